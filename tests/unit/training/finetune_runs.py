"""Fine-tuning small enough for tests: half a second of sound in a window of 48 frames."""

import json

import pytest
import torch

from almosaic.training.finetune import FinetuneSettings, finetune
from almosaic.training.pretrain import PretrainSettings, pretrain
from tests.unit.data.labelled_manifest import folds, write_tones
from tests.unit.training.stages import ENCODER, Tones

FRAMES = 48


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three folds of four clips of each of three labels."""
    return write_tones(tmp_path_factory.mktemp("tones"), folds())


def finetune_settings(manifest, **changes):
    optim = {"epochs": 3, "batch_size": 8, "learning_rate": 3e-3, "log_steps": 1, "save_steps": 100}
    given = {
        "data": {"manifest": str(manifest), "fold": 3, "validation_share": 0.25, **changes.pop("data", {})},
        "encoder": ENCODER,
        "front_end": {"window_frames": FRAMES, "mean": -8.0, "std": 4.0},
        "optim": {**optim, **changes.pop("optim", {})},
        **changes,
    }
    return FinetuneSettings.model_validate(given)


def run_finetune(folder, manifest, start=None, resume=False, seed=0, **changes):
    """The stage's rows of results."""
    settings = finetune_settings(manifest, **changes)
    finetune(settings, start=start, folder=folder, seed=seed, resume=resume)
    return json.loads((folder / "scores.json").read_text())["classification"]


def log_of(folder, name):
    """Logged values by step."""
    log = json.loads((folder / "training_log.json").read_text())
    return {entry["step"]: entry[name] for entry in log if name in entry}


def pretrained(folder):
    """An encoder of one step over windows of 208 frames, with its heads beside it."""
    given = {
        "encoder": ENCODER,
        "front_end": {"window_frames": 208},
        "objective": {"name": "contrastive", "projection_hidden": 16, "projection_size": 8},
        "crop_seconds": 2.0,
        "optim": {"steps": 1, "batch_size": 4, "learning_rate": 1e-2},
    }
    return pretrain(PretrainSettings.model_validate(given), source=Tones(4), folder=folder, seed=0)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
