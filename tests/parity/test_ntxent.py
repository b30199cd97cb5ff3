"""NT-Xent of the released code: loss, accuracy and gradients (two ranks: tests/invariance)."""

import pytest
import torch
from released import arrays, close, needs_oracle

from almosaic.objectives.contrastive import NTXent

pytestmark = needs_oracle


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradients(temperature):
    stored = arrays("tiny_ntxent")
    z = torch.stack([stored["z0"], stored["z1"]]).requires_grad_()
    loss, metrics = NTXent(temperature)(z)
    loss.backward()
    close(loss, stored[f"loss_tau{temperature}"], atol=0, rtol=1e-5)
    assert metrics["contrastive_accuracy"].item() == pytest.approx(stored[f"acc_tau{temperature}"].item())
    for view in (0, 1):
        close(z.grad[view], stored[f"grad_z{view}_tau{temperature}"], atol=1e-6, rtol=1e-4)
        norm = stored[f"grad_norm_z{view}_tau{temperature}"].item()
        assert z.grad[view].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-4)
