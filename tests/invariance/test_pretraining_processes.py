"""All of pretraining in two processes: the losses of one, and an exact resume."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from forks import finish, lines, needs_cpu_places, start, train, train_together, weights

# In float32 two ways to add up differ by rounding, which training multiplies: small steps, and few.
CHANGES = ["optim.steps=6", "optim.save_steps=4", "optim.learning_rate=1e-4", "optim.tensorboard=false"]
RESUMED = {"waveforms": [], "pool": ["cache=true", "augment=[{name: log_gain}, {name: log_roll}]"]}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder of the recipe trained by two processes."""
    folder = tmp_path_factory.mktemp("two")
    train_together(folder / "run", CHANGES, folder / "log")
    return folder / "run"


def test_two_processes_train_as_one(tmp_path, two):
    """Drop path, masks, augmentation, BatchNorm, gathered negatives, gradient caching and the monitor."""
    assert [(two / f"rank-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    finish(start(train, tmp_path / "log", tmp_path / "one", CHANGES), log=tmp_path / "log")
    pairs = list(zip(lines(tmp_path / "one"), lines(two), strict=True))
    assert [line["step"] for line, _ in pairs] == [0, 1, 2, 3, 4, 5, 6]
    for alone, together in pairs:
        assert alone.keys() == together.keys()
        # The uniformity of two processes is a mean of logarithms, that of one the logarithm of a mean.
        for name in alone.keys() - {"uniformity"}:
            assert together[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-3), (alone["step"], name)
    for name in ("objective.projector.1.running_mean", "encoder.blocks.1.mlp.fc2.weight"):
        left, right = (
            load_file(folder / "stages/pretrain/pretraining/model.safetensors")[name]
            for folder in (two, tmp_path / "one")
        )
        torch.testing.assert_close(left, right, atol=2e-4, rtol=1e-3)


@needs_cpu_places
@pytest.mark.parametrize("kind", RESUMED)
def test_two_processes_resume_exactly(tmp_path, two, kind):
    changes, log = [*CHANGES, *RESUMED[kind]], tmp_path / "log"
    whole = two
    if RESUMED[kind]:
        whole = tmp_path / "whole"
        train_together(whole, changes, log)
    shutil.copytree(whole, tmp_path / "part")
    stage = tmp_path / "part/stages/pretrain"
    shutil.rmtree(stage / "checkpoint-6")
    (stage / "training_log.json").unlink()
    note = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(note | {"done": False}))
    train_together(tmp_path / "part", changes, log)
    assert lines(tmp_path / "part") == lines(whole)
    assert weights(tmp_path / "part") == weights(whole)
    states = {path.name for path in (whole / "stages/pretrain/checkpoint-4").glob("rng_state_*")}
    assert states == {"rng_state_0.pth", "rng_state_1.pth"}
