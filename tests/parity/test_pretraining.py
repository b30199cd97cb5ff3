"""Projections, masks, BatchNorm and one whole training step of the released pretraining code."""

import pytest
import torch
from released import arrays, close, meta, model, needs_oracle

from almosaic.masking import PatchGrid, PatchMask, mask_from_scores

pytestmark = needs_oracle
GRID = PatchGrid(16, 8)
BRANCHES = [
    ("time", "released_time", 0.6, "x0"),
    ("freq", "released_frequency", 0.4, "x1"),
    ("unstructured", "random", 0.5, "x0"),
]


@pytest.fixture(scope="module")
def stored():
    return arrays("tiny_pretrain_io")


def drawn(ids_keep):
    """The stored indices, in their drawn order, as a mask."""
    everywhere = torch.ones(len(ids_keep), GRID.patches, dtype=torch.bool)
    return PatchMask(ids_keep, ids_keep[:, :0], ids_keep[:, :0], everywhere)


@pytest.mark.parametrize("pooling, name", [("mean", "eval_z"), ("cls", "eval_cls_pool_z")])
def test_eval_projection(stored, pooling, name):
    found = model("tiny_pretrain", pooling=pooling)
    close(found.objective.project(found.encoder, stored["x0"]), stored[name], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("branch, layout, ratio, view", BRANCHES)
def test_masks_from_the_stored_noise(stored, branch, layout, ratio, view):
    mask = mask_from_scores(GRID, stored[f"train_{branch}_noise"], ratio, layout=layout)
    ids_keep, masked = stored[f"train_{branch}_ids_keep"], stored[f"train_{branch}_mask"]
    assert torch.equal(mask.ids_keep, ids_keep.sort(1).values)
    assert torch.equal(~mask.kept, masked.bool())
    # Theirs restores from the drawn order (for "freq", of columns inside each row), ours from ascending:
    # the place of a token differs, its side does not.
    kept, restore = ids_keep.shape[1], stored[f"train_{branch}_ids_restore"]
    their_side = restore % 16 < kept // 8 if branch == "freq" else restore < kept
    assert torch.equal(mask.ids_restore < kept, their_side)


@pytest.mark.parametrize("branch, layout, ratio, view", BRANCHES)
def test_train_mode_projection_and_batch_norm(stored, branch, layout, ratio, view):
    found = model("tiny_pretrain").train()
    mask = mask_from_scores(GRID, stored[f"train_{branch}_noise"], ratio, layout=layout)
    close(found.objective.project(found.encoder, stored[view], mask), stored[f"train_{branch}_z"], atol=5e-4)
    for layer, norm in (("bn1", found.objective.projector[1]), ("bn4", found.objective.projector[4])):
        close(norm.running_mean, stored[f"train_{branch}_{layer}_running_mean_after"], atol=5e-6)
        close(norm.running_var, stored[f"train_{branch}_{layer}_running_var_after"], atol=5e-6)


@pytest.mark.parametrize("cache_chunk", [None, 3])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_one_training_step(stored, temperature, cache_chunk):
    found = model("tiny_pretrain").train()
    found.objective.loss.temperature, found.objective.cache_chunk = temperature, cache_chunk
    masks = [drawn(stored["step_time_ids_keep"]), drawn(stored["step_freq_ids_keep"])]
    output = found([stored["x0"], stored["x1"]], masks)
    output.loss.backward()
    close(output.loss, stored[f"step_loss_tau{temperature}"], atol=0, rtol=1e-5)
    accuracy = stored[f"step_acc_tau{temperature}"].item()
    assert output.metrics["contrastive_accuracy"].item() == pytest.approx(accuracy)
    for name in ("lid_mean", "lid_var"):
        expected = stored[f"step_{name.replace('lid', 'lids')}_tau{temperature}"].item()
        assert output.metrics[name].item() == pytest.approx(expected, rel=1e-4)

    published = {name.split(".", 1)[1]: parameter for name, parameter in found.named_parameters()}
    norms = meta("tiny_pretrain_meta")["grad_norms"][f"tau{temperature}"]
    assert norms.keys() - published.keys() == {"projector.4.bias"}
    for name, parameter in published.items():
        if name != "fc_norm.bias":
            assert parameter.grad.norm().item() == pytest.approx(norms[name], rel=1e-3, abs=1e-4), name

    projector = found.objective.projector  # its statistics after both forward passes, counted once each
    close(projector[1].running_mean, stored["step_bn1_running_mean_after"], atol=5e-6)
    close(projector[4].running_var, stored["step_bn4_running_var_after"], atol=5e-6)
    assert projector[1].num_batches_tracked == stored["step_bn_num_batches_tracked_after"]
    if temperature == 0.1:
        for name in [key for key in stored if key.startswith("step_grad_")]:
            close(published[name.removeprefix("step_grad_")].grad, stored[name], atol=1e-4, rtol=1e-3)
