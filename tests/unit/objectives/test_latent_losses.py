"""Losses between latents and between soft classes, against explicit loops."""

import math

import numpy as np
import pytest
import torch

from almosaic.objectives.latent_losses import (
    CentredTargets,
    class_losses,
    cosine_losses,
    hypothesis_weights,
    standardised,
)
from almosaic.objectives.latent_metrics import class_metrics, hypothesis_metrics, target_metrics

EVERYWHERE = torch.ones(3, 4, dtype=torch.bool)


def test_cosine_losses_one_by_one():
    predictions, targets = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 5)
    found = cosine_losses(predictions.bfloat16(), targets)
    assert found.shape == (2, 3, 4) and found.dtype == torch.float32
    found = cosine_losses(predictions, targets)
    for b, m, h in np.ndindex(2, 3, 4):
        p, t = predictions[b, m, h].double().numpy(), targets[b, m].double().numpy()
        expected = 2 - 2 * p @ t / np.linalg.norm(p) / np.linalg.norm(t)
        assert found[b, m, h].item() == pytest.approx(expected, abs=1e-5)
    torch.testing.assert_close(cosine_losses(3.0 * targets[:, :, None], targets), torch.zeros(2, 3, 1))


def test_standardised_tokens():
    tokens = torch.randn(2, 3, 64) * 5 + 2
    found = standardised(tokens)
    torch.testing.assert_close(found.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(-1, unbiased=False), torch.ones(2, 3), atol=1e-3, rtol=0)


def test_hypotheses_share_softly_then_the_best_takes_all():
    losses = torch.tensor([[1.0, 1.1, 3.0], [2.0, 0.5, 0.7]], requires_grad=True)
    soft = hypothesis_weights(losses, torch.tensor(0.1), 1e-4)
    expected = [[math.exp(-x / 0.1) for x in row] for row in losses.tolist()]
    torch.testing.assert_close(soft, torch.tensor([[x / sum(row) for x in row] for row in expected]))
    assert not soft.requires_grad
    even = hypothesis_weights(losses, torch.tensor(1e6), 1e-4)
    torch.testing.assert_close(even, torch.full((2, 3), 1 / 3), atol=1e-6, rtol=0)
    for temperature in (1e-4, 6e-7):
        hard = hypothesis_weights(losses, torch.tensor(temperature), 1e-4)
        assert hard.tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    for temperature, shares in ((2e-4, [0.5, 0.5]), (1e-4, [1.0, 0.0])):  # even equal ones end to share
        tied = hypothesis_weights(torch.tensor([[1.0, 1.0]]), torch.tensor(temperature), 1e-4)
        assert tied.tolist() == [shares]


def test_one_hypothesis_has_all_the_weight():
    for temperature in (0.1, 1e-6):
        found = hypothesis_weights(torch.rand(3, 4, 1), torch.tensor(temperature), 1e-4)
        assert torch.equal(found, torch.ones(3, 4, 1))


def test_class_losses_one_by_one():
    logits, targets = torch.randn(2, 3, 6), torch.softmax(torch.randn(2, 3, 6), -1)
    found = class_losses(logits, targets, 0.1)
    for b, m in np.ndindex(2, 3):
        scores = (logits[b, m].double() / 0.1).exp()
        expected = -(targets[b, m] * (scores / scores.sum()).log()).sum().item()
        assert found[b, m].item() == pytest.approx(expected, rel=1e-5)


def centred(classes=5, momentum=0.9):
    targets = CentredTargets(classes, momentum)
    targets.centre.normal_()
    return targets.train()


def test_probabilities_are_centred_and_sharpened():
    targets, logits = centred(), torch.randn(3, 4, 5)
    expected = torch.softmax((logits - targets.centre) / 0.05, dim=-1)
    torch.testing.assert_close(targets(logits, EVERYWHERE, torch.tensor(0.05)), expected)


def test_the_centre_is_the_running_mean_of_probabilities_from_the_next_step_on():
    targets, logits = centred(), torch.randn(3, 4, 5)
    before = targets.centre.clone()
    found = targets(logits, EVERYWHERE, torch.tensor(0.05))
    torch.testing.assert_close(targets.centre, before, rtol=0, atol=0)
    targets.update()
    torch.testing.assert_close(targets.centre, 0.9 * before + 0.1 * found.mean(dim=(0, 1)))
    moved = targets.centre.clone()
    targets.update()  # nothing new was seen
    torch.testing.assert_close(targets.centre, moved, rtol=0, atol=0)


def test_a_batch_in_parts_moves_the_centre_as_in_one_piece():
    whole, parts = centred(), centred()
    parts.load_state_dict(whole.state_dict())
    logits, valid = torch.randn(4, 6, 5), torch.rand(4, 6) > 0.4
    valid[1] = False  # a row of padding counts in neither
    whole(logits, valid, torch.tensor(0.05))
    for rows in (slice(0, 2), slice(2, 4)):
        parts(logits[rows], valid[rows], torch.tensor(0.05))
    whole.update()
    parts.update()
    torch.testing.assert_close(parts.centre, whole.centre, atol=1e-7, rtol=1e-6)


def test_padding_does_not_move_the_centre():
    plain, padded = centred(), centred()
    padded.load_state_dict(plain.state_dict())
    logits = torch.randn(3, 4, 5)
    valid = torch.cat([EVERYWHERE, ~EVERYWHERE], dim=1)
    plain(logits, EVERYWHERE, torch.tensor(0.05))
    padded(torch.cat([logits, 9 * torch.randn(3, 4, 5)], dim=1), valid, torch.tensor(0.05))
    plain.update()
    padded.update()
    torch.testing.assert_close(padded.centre, plain.centre)
    before = padded.centre.clone()
    padded(logits, ~EVERYWHERE, torch.tensor(0.05))
    padded.update()
    torch.testing.assert_close(padded.centre, before, rtol=0, atol=0)


def test_evaluation_leaves_the_centre_alone():
    targets = centred().eval()
    before = targets.centre.clone()
    targets(torch.randn(3, 4, 5), EVERYWHERE, torch.tensor(0.05))
    targets.update()
    torch.testing.assert_close(targets.centre, before, rtol=0, atol=0)


def test_a_collapse_of_targets_is_visible():
    spread = target_metrics(torch.randn(3, 4, 256), EVERYWHERE)["target_similarity"].item()
    one = torch.randn(256).expand(3, 4, 256) * torch.rand(3, 4, 1).add(0.5)
    assert spread == pytest.approx(1 / 12, abs=0.05)  # that of a token with itself
    assert target_metrics(one, EVERYWHERE)["target_similarity"].item() == pytest.approx(1.0, abs=1e-4)
    valid = EVERYWHERE.clone()
    valid[:, 2:] = False
    half = torch.cat([one[:, :2], torch.randn(3, 2, 256)], dim=1)
    assert target_metrics(half, valid)["target_similarity"].item() == pytest.approx(1.0, abs=1e-4)


def test_use_of_the_classes():
    uniform = torch.full((3, 4, 8), 1 / 8)
    found = class_metrics(uniform, EVERYWHERE)
    assert found["teacher_entropy"].item() == pytest.approx(math.log(8))
    assert found["classes_used"].item() == pytest.approx(8)
    sharp = torch.eye(8)[torch.arange(12).view(3, 4) % 4]
    found = class_metrics(sharp, EVERYWHERE)
    assert found["teacher_entropy"].item() == 0.0 and found["classes_used"].item() == pytest.approx(4)
    valid = torch.arange(4).expand(3, 4) == 0
    assert class_metrics(sharp, valid)["classes_used"].item() == pytest.approx(1)


def test_use_of_the_hypotheses():
    best = torch.tensor([[0, 0, 1, 1]] * 3)
    assert hypothesis_metrics(best, EVERYWHERE, 5)["hypotheses_used"].item() == pytest.approx(2)
    valid = best == 1
    assert hypothesis_metrics(best, valid, 5)["hypotheses_used"].item() == pytest.approx(1)
