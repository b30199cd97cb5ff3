"""The head that turns tokens into soft classes."""

import pytest
import torch
from torch import nn

from almosaic.objectives.heads import ClassHead, NormedLinear, XavierLinear


def head(linear=XavierLinear):
    return ClassHead(8, 16, 6, 10, linear)


def test_against_the_formula():
    model, x = head(), torch.randn(2, 3, 8)
    with torch.no_grad():
        model.classes.gain.uniform_(0.5, 2.0)
    hidden = x
    for i in (0, 2):
        hidden = torch.nn.functional.gelu(hidden @ model.mlp[i].weight.T + model.mlp[i].bias)
    hidden = hidden @ model.mlp[4].weight.T + model.mlp[4].bias
    cosines = torch.cosine_similarity(hidden[..., None, :], model.classes.direction, dim=-1)
    torch.testing.assert_close(model(x), cosines * model.classes.gain.squeeze(1))


def test_length_of_directions_does_not_matter():
    model, x = head(), torch.randn(2, 8)
    before = model(x)
    with torch.no_grad():
        model.classes.direction.mul_(torch.rand(10, 1) + 0.5)
    torch.testing.assert_close(model(x), before)


def test_logits_stay_in_float32():
    model, x = head(), torch.randn(4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, model(x), atol=0.05, rtol=0.05)


def test_student_starts_as_xavier_and_every_gain_as_one():
    torch.manual_seed(0)
    layer = XavierLinear(30, 70)
    assert layer.bias.abs().max() == 0 and layer.weight.abs().max() <= (6 / 100) ** 0.5
    assert layer.weight.std().item() == pytest.approx((2 / 100) ** 0.5, rel=0.05)
    assert isinstance(head(nn.Linear).mlp[0], nn.Linear)
    assert torch.equal(NormedLinear(4, 7).gain, torch.ones(7, 1))


def test_all_of_it_learns():
    model = head()
    model(torch.randn(5, 8)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
