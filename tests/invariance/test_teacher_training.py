"""Training with a teacher: two processes, parts of a batch and an interrupted run give what one run gives."""

import copy
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchGrid, PatchMask, mask_from_scores
from almosaic.objectives.matpac import MatpacSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.ranks import world_size
from almosaic.training.checkpoints import load_weights

CLIPS, RANKS, STEPS = 4, 2, 3
SHARED = ("classes_used", "hypotheses_used", "target_similarity", "effective_rank", "lid_mean")


def pretraining_model():
    torch.manual_seed(0)
    objective = MatpacSettings(
        predictor={"width": 16, "depth": 1, "heads": 2},
        hypotheses=3,
        encoder_decay=(0.8, 0.9),
        classification={"hidden": 12, "bottleneck": 8, "classes": 10, "decay": (0.7, 0.8), "warmup": 0.5},
    )
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    config = AudioMosaicConfig(**sizes, drop_path_rate=0.5, objective=objective.model_dump())
    model = AudioMosaicForPreTraining(config).train()
    with torch.no_grad():  # a fresh CLS token is almost zero, and LayerNorm then blows rounding up
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def batch(step, rows):
    """Rows of a fixed batch, some of them padded: view, mask and the noise of drop path."""
    draws = np.random.default_rng(step)
    view = torch.from_numpy(draws.normal(size=(CLIPS, 64, 128)).astype(np.float32))
    scores = torch.from_numpy(draws.random((CLIPS, 32)))
    frames = torch.arange(64) < torch.tensor([64, 64, 32, 48])[:, None]
    mask = mask_from_scores(PatchGrid(4, 8), scores, 0.8, valid=PatchGrid(4, 8).valid_patches(frames))
    mask = PatchMask(*(part[rows] for part in vars(mask).values()))
    noise = torch.from_numpy(draws.random((CLIPS, 2, 2)).astype(np.float32))
    return {"views": [view[rows]], "masks": [mask], "path_noise": [noise[rows]]}


def train(model, parts, steps=range(STEPS), optimizer=None, owner=None):
    """Plain SGD, or the given optimizer; each step is the mean of the losses of `parts` of the batch."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for step in steps:
        optimizer.zero_grad()
        found = []
        for rows in parts:
            output = model(**batch(step, rows))
            (output.loss / len(parts)).backward()
            found.append(output.loss.detach())
        optimizer.step()
        (owner or model).after_step((step + 1) / STEPS)
        losses.append(torch.stack(found).mean())
    return torch.stack(losses), {name: value.item() for name, value in output.metrics.items()}


def one_rank(rank, folder):
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    assert world_size() == RANKS
    model = pretraining_model()
    wrapped = DistributedDataParallel(model)  # which asks a gradient of every parameter in every step
    share = slice(rank * CLIPS // RANKS, (rank + 1) * CLIPS // RANKS)
    losses, metrics = train(wrapped, [share], owner=model)
    found = {"losses": losses, "metrics": metrics, "state": model.state_dict()}
    torch.save(found, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(one_rank, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def alone():
    model = pretraining_model()
    losses, metrics = train(model, [slice(None)])
    return losses, metrics, model.state_dict()


def test_two_processes_train_as_one(ranks, alone):
    losses, metrics, state = alone
    torch.testing.assert_close(torch.stack([rank["losses"] for rank in ranks]).mean(0), losses)
    assert ranks[0]["losses"][0] != ranks[1]["losses"][0]
    for rank in ranks:
        torch.testing.assert_close(rank["state"], state, atol=2e-6, rtol=1e-4)
        for name in SHARED:  # these see the clips of all processes
            assert rank["metrics"][name] == pytest.approx(metrics[name], rel=1e-3), name
    first = pretraining_model().state_dict()
    for name, value in state.items():
        assert ".positions" in name or not torch.equal(value, first[name]), name


def test_a_batch_in_two_parts_trains_as_in_one_piece(alone):
    losses, _, state = alone
    model = pretraining_model()
    found, _ = train(model, [slice(0, 2), slice(2, 4)])
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(model.state_dict(), state, atol=2e-6, rtol=1e-4)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    whole = [slice(None)]
    model = pretraining_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, whole, [0], optimizer)
    model.save_pretrained(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    losses, _ = train(model, whole, [1, 2], optimizer)

    resumed = pretraining_model()
    with torch.no_grad():
        for tensor in resumed.state_dict().values():
            tensor.zero_()
    load_weights(resumed, tmp_path)
    optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    optimizer.load_state_dict(saved)
    found, _ = train(resumed, whole, [1, 2], optimizer)
    torch.testing.assert_close(found, losses, rtol=0, atol=0)
    torch.testing.assert_close(resumed.state_dict(), model.state_dict(), rtol=0, atol=0)
