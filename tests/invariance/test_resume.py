"""A stage that was interrupted in the middle of an epoch goes on exactly as if it had not been."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from stages import SCENES, make_parts, run_alm, run_pretrain, tiny_bank

# 16 clips at 4 a step, 12 scenes at 4 a step: checkpoints fall into the middle of the second epoch.
PRETRAIN = {"augment": [{"name": "gaussian_snr"}, {"name": "log_gain"}, {"name": "log_roll"}]}
LORA = {"projector": "full", "language_model": "lora", "lora_rank": 2, "lora_dropout": 0.3}


def cut_back(folder, step):
    """Leave the folder as an interruption after `step` would, with debris beside the checkpoint."""
    for entry in folder.iterdir():
        if entry.name != f"checkpoint-{step}":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (folder / "tmp-checkpoint-9").mkdir()


def same_weights(first, second):
    left, right = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("changes", [{}, {"cache": True, "augment": []}], ids=["waveforms", "pool"])
def test_pretraining(tmp_path, changes):
    settings = {**PRETRAIN, **changes}
    encoder = {"preset": "tiny", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings["encoder"] = {**encoder, "drop_path_rate": 0.2}
    optim = {"steps": 11, "save_steps": 6, "schedule": "cosine"}
    whole = run_pretrain(tmp_path / "whole", optim=optim, **settings)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    cut_back(tmp_path / "part", 6)
    resumed = run_pretrain(tmp_path / "part", optim={**optim, "workers": 1}, resume=True, **settings)
    assert resumed == whole and len(whole) == 11
    assert same_weights(tmp_path / "whole/model", tmp_path / "part/model")


@pytest.mark.parametrize("step", [4, 6], ids=["mid-epoch", "between epochs"])
def test_audio_language_stage(tmp_path, step):
    bank = tiny_bank()
    parts = make_parts(tmp_path, bank)
    optim = {"steps": 8, "save_steps": step, "learning_rate": 1e-2}
    whole = run_alm(tmp_path / "whole", parts, bank, tune=LORA, optim=optim)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    cut_back(tmp_path / "part", step)
    resumed = run_alm(tmp_path / "part", parts, bank, tune=LORA, optim=optim, resume=True)
    assert resumed == whole and len(whole) == 8
    assert same_weights(tmp_path / "whole/model", tmp_path / "part/model")


def test_without_resume_a_stage_starts_anew(tmp_path):
    first = run_pretrain(tmp_path, optim={"steps": 4, "save_steps": 2})
    assert run_pretrain(tmp_path, optim={"steps": 4, "save_steps": 2}) == first
    assert SCENES.duration_seconds == 3.0
