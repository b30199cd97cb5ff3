"""NT-Xent of the released code: loss, accuracy, gradients, learned temperature, intrinsic dimension.

Two ranks: tests/invariance. The stored `lid_mle_k5` has no counterpart: the released code never calls that
estimator. Neither has the gradient of its learned bias, which is 0: a constant cannot move a softmax.
"""

import pytest
import torch
from released import arrays, close, needs_oracle

from almosaic.objectives.contrastive import NTXent
from almosaic.objectives.monitors import intrinsic_dimensions, representation_metrics

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


def test_learned_temperature():
    stored, learned = arrays("tiny_ntxent"), NTXent(learnable=True)
    close(learned.log_scale.squeeze(), stored["learn_logit_scale_param"], atol=0, rtol=1e-6)
    loss, _ = learned(torch.stack([stored["z0"], stored["z1"]]))
    loss.backward()
    close(loss, stored["learn_loss"], atol=0, rtol=1e-5)
    close(learned.log_scale.grad.squeeze(), stored["learn_grad_logit_scale_param"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("neighbours, capped", [(5, 5), (32, 14)])
def test_intrinsic_dimensions(neighbours, capped):
    stored = arrays("tiny_ntxent")
    features = torch.cat([stored["f0"], stored["f1"]])
    found = intrinsic_dimensions(features, features, capped)
    close(found, stored[f"lid_mom_k{neighbours}"], atol=0, rtol=1e-4)


def test_logged_dimension():
    stored = arrays("tiny_ntxent")
    found = representation_metrics(torch.cat([stored["f0"], stored["f1"]]), 32)
    assert found["lid_mean"].item() == pytest.approx(stored["lids_mean_tau0.1"].item(), rel=1e-4)
    assert found["lid_var"].item() == pytest.approx(stored["lids_var_tau0.1"].item(), rel=1e-4)
