"""Two processes with half of the batch each train exactly like one process with all of it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask, released_time_mask, time_mask
from almosaic.objectives.contrastive import NTXent
from almosaic.objectives.monitors import representation_metrics
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.ranks import world_size

ORACLE = Path(os.environ.get("ALMOSAIC_ORACLE", Path(__file__).parents[3] / "shared" / "oracle"))
STORED = ORACLE / "audiomosaic" / "tiny_ntxent.npz"
CLIPS, RANKS, STEPS = 6, 2, 2
WAYS = ("plain", "chunks", "chunks and blocks")


def pretraining_model():
    torch.manual_seed(0)
    objective = {"name": "contrastive", "projection_hidden": 16, "projection_size": 8}
    objective["learnable_temperature"] = True
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    config = AudioMosaicConfig(**sizes, drop_path_rate=0.5, objective=objective)
    model = AudioMosaicForPreTraining(config).train()
    with torch.no_grad():  # a fresh CLS token is almost zero, and LayerNorm then blows rounding up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def batch(rows):
    """The given rows of a fixed batch: two views, their masks and the noise of drop path."""
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(2, CLIPS, 64, 128)).astype(np.float32))
    grid, generator = pretraining_model().config.grid, torch.Generator().manual_seed(1)
    masks = [draw(grid, CLIPS, ratio=0.5, generator=generator) for draw in (time_mask, released_time_mask)]
    parts = [(m.ids_keep, m.ids_masked, m.ids_restore, m.valid) for m in masks]
    masks = [PatchMask(*(tensor[rows] for tensor in part)) for part in parts]
    noise = torch.rand(2, CLIPS, 2, 2, generator=generator)[:, rows]
    return {"views": list(features[:, rows]), "masks": masks, "path_noise": list(noise)}


def train(model, rows):
    """Plain SGD; returns the losses and the gradients of the first step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses, gradients = [], {}
    for step in range(STEPS):
        optimizer.zero_grad()
        output = model(**batch(rows))
        output.loss.backward()
        losses.append(output.loss.detach())
        if step == 0:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
    return (
        torch.stack(losses),
        gradients,
        {key: value.detach().item() for key, value in output.metrics.items()},
    )


def one_rank(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    assert world_size() == RANKS
    share = slice(rank * CLIPS // RANKS, (rank + 1) * CLIPS // RANKS)
    found = {way: as_one_of_two(way, share) for way in WAYS}
    if STORED.exists():
        found["oracle"] = {temperature: stored_batch(rank, temperature) for temperature in (0.1, 0.5)}
        stored = np.load(STORED)
        rows = slice(4 * rank, 4 * rank + 4)
        features = torch.from_numpy(np.concatenate([stored["f0"][rows], stored["f1"][rows]]))
        metrics = representation_metrics(features, 32)
        found["oracle"] |= {name: value.item() for name, value in metrics.items()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def as_one_of_two(way, share):
    """What training on a share gives: in one piece, in chunks, or in chunks with blocks recomputed too."""
    model = pretraining_model()
    if way != "plain":
        model.objective.cache_chunk = 2  # chunks of two clips and of one
    if way == "chunks and blocks":
        model.gradient_checkpointing_enable()
    unused = way == "chunks"  # what the Trainer asks for where blocks are not recomputed
    wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
    losses, gradients, metrics = train(wrapped, share)
    return {"losses": losses, "gradients": gradients, "metrics": metrics, "state": model.state_dict()}


def stored_batch(rank, temperature):
    """Loss, accuracy and gradient of this rank's half of the stored batch."""
    stored = np.load(STORED)
    rows = slice(4 * rank, 4 * rank + 4)
    z = torch.stack([torch.from_numpy(stored[name][rows]) for name in ("z0", "z1")]).requires_grad_()
    loss, scores = NTXent(temperature)(z)
    loss.backward()
    return {"loss": loss.item(), "accuracy": scores["contrastive_accuracy"].item(), "grad": z.grad}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    model = pretraining_model()
    assert world_size() == 1
    losses, gradients, metrics = train(model, slice(None))
    return {"losses": losses, "gradients": gradients, "metrics": metrics, "state": model.state_dict()}


@pytest.mark.parametrize("way", WAYS)
def test_the_mean_loss_is_the_loss_of_one_process(ranks, alone, way):
    torch.testing.assert_close(torch.stack([rank[way]["losses"] for rank in ranks]).mean(0), alone["losses"])
    assert ranks[0][way]["losses"][0] != ranks[1][way]["losses"][0]
    for name in ("contrastive_accuracy", "alignment", "temperature"):
        mean = sum(rank[way]["metrics"][name] for rank in ranks) / RANKS
        assert mean == pytest.approx(alone["metrics"][name], abs=1e-5)
    for rank in ranks:  # these see the clips of all processes
        for name in ("lid_mean", "lid_var", "effective_rank"):
            assert rank[way]["metrics"][name] == pytest.approx(alone["metrics"][name], rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_gradients_after_averaging_are_those_of_one_process(ranks, alone, way):
    for name, gradient in alone["gradients"].items():
        assert gradient.abs().max() > 1e-4 or name == "objective.fc_norm.bias"
        for rank in ranks:
            difference = (rank[way]["gradients"][f"module.{name}"] - gradient).abs().max()
            assert difference < 1e-5 * max(1.0, gradient.abs().max()), name


@pytest.mark.parametrize("way", WAYS)
def test_weights_and_batch_norm_statistics_agree_after_training(ranks, alone, way):
    for rank in ranks:
        torch.testing.assert_close(rank[way]["state"], alone["state"], atol=2e-6, rtol=1e-4)
    assert alone["state"]["objective.projector.1.num_batches_tracked"] == 2 * STEPS


needs_stored = pytest.mark.skipif(not STORED.exists(), reason=f"no oracle at {STORED}; set ALMOSAIC_ORACLE")


@needs_stored
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_each_rank_equals_the_released_code(ranks, temperature):
    stored = np.load(STORED)
    for i, rank in enumerate(ranks):
        prefix, found = f"ddp2_rank{i}_", rank["oracle"][temperature]
        assert found["loss"] == pytest.approx(float(stored[f"{prefix}loss_tau{temperature}"]), rel=1e-5)
        assert found["accuracy"] == pytest.approx(float(stored[f"{prefix}acc_tau{temperature}"]))
        for view in (0, 1):
            expected = stored[f"{prefix}grad_z{view}_tau{temperature}"]
            np.testing.assert_allclose(found["grad"][view], expected, atol=1e-6, rtol=1e-4)


@needs_stored
def test_two_ranks_measure_the_dimension_that_one_process_logs(ranks):
    stored = np.load(STORED)
    for rank in ranks:
        for name in ("lid_mean", "lid_var"):
            expected = float(stored[f"{name.replace('lid', 'lids')}_tau0.1"])
            assert rank["oracle"][name] == pytest.approx(expected, rel=1e-4)
