"""The monitor: when it looks, where the scores go, and that training does not notice."""

import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from almosaic.evaluation.online import LabelledClip, OnlineKnn
from almosaic.training.pretrain import pretrain

sys.path.insert(0, str(Path(__file__).parent))
from stages import Tones, losses, pretrain_settings, run_pretrain

METRICS = {
    "loss",
    "contrastive_loss",
    "contrastive_accuracy",
    "alignment",
    "uniformity",
    "lid_mean",
    "lid_var",
    "effective_rank",
    "kept_padding",
    "pad_fraction",
    "learning_rate",
    "grad_norm",
}


def tones_judge():
    clips = [
        LabelledClip(str(i % 2), "train" if i < 10 else "dev", partial(Tones().waveform, i, 0))
        for i in range(16)
    ]
    return OnlineKnn(clips, train=("train",), test=("dev",), limit=20, k=3, seed=0)


def monitored(folder, judge, optim=None, steps=4, resume=False, **changes):
    """Log of a run of six steps with a monitor."""
    settings = pretrain_settings(monitor={"steps": steps}, optim=optim or {}, **changes)
    pretrain(settings, source=Tones(), folder=folder, seed=0, judge=judge, resume=resume)
    return json.loads((folder / "training_log.json").read_text())


def test_scores_stand_at_the_start_regularly_and_at_the_end_and_training_does_not_notice(tmp_path):
    changes = {
        "encoder": {
            "preset": "tiny",
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "drop_path_rate": 0.3,
        }
    }
    log = monitored(tmp_path / "a", tones_judge(), **changes)
    scores = {line["step"]: line["knn_accuracy"] for line in log if "knn_accuracy" in line}
    assert list(scores) == [0, 4, 6] and all(0 <= score <= 1 for score in scores.values())
    assert losses(tmp_path / "a") == run_pretrain(tmp_path / "b", **changes)


def test_everything_that_is_measured_reaches_tensorboard(tmp_path):
    optim = {"tensorboard": True, "log_steps": 4, "save_steps": 100}
    log = monitored(tmp_path, tones_judge(), optim, steps=3)
    (folder,) = (tmp_path / "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    lines = {line["step"]: line for line in log if "loss" in line}
    assert sorted(lines) == [3, 4, 6]
    assert lines[4].keys() >= METRICS and "knn_accuracy" in lines[6] and "knn_accuracy" not in lines[4]
    for step, line in lines.items():
        for name in line.keys() - {"step"}:
            written = {event.step: event.value for event in events.Scalars(f"train/{name}")}
            assert written[step] == pytest.approx(line[name], rel=1e-5), name
    assert [event.step for event in events.Scalars("train/knn_accuracy")] == [0, 3, 6]


def test_the_judge_gets_the_encoder_as_it_is_after_the_step(tmp_path):
    seen = []

    def judge(encoder, extractor):
        seen.append(encoder.state_dict()["pos_embed"].clone())
        return {"knn_accuracy": 0.0}

    monitored(tmp_path, judge)
    written = load_file(tmp_path / "model/model.safetensors")
    assert (
        len(seen) == 3 and torch.equal(seen[-1], written["pos_embed"]) and not torch.equal(seen[0], seen[1])
    )


def test_a_resumed_run_has_the_same_lines(tmp_path):
    optim = {"log_steps": 4, "save_steps": 3}
    whole = monitored(tmp_path / "a", tones_judge(), optim, steps=5)
    shutil.copytree(tmp_path / "a/checkpoint-3", tmp_path / "b/checkpoint-3")
    resumed = monitored(tmp_path / "b", tones_judge(), optim, steps=5, resume=True)
    lines = [[line for line in log if "train_runtime" not in line] for log in (whole, resumed)]
    assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == [0, 3, 4, 5, 6]
    (tmp_path / "b/training_log.json").unlink()  # killed between the last checkpoint and the log
    finished = monitored(tmp_path / "b", tones_judge(), optim, steps=5, resume=True)
    assert [line for line in finished if "train_runtime" not in line] == lines[0]


def test_costly_metrics_are_measured_for_the_lines_alone(tmp_path):
    every = monitored(tmp_path / "a", tones_judge(), {"log_steps": 1})
    rare = monitored(tmp_path / "b", tones_judge(), {"log_steps": 3}, steps=6)
    one, other = (next(line for line in log if line["step"] == 3) for log in (every, rare))
    assert other["effective_rank"] == one["effective_rank"], "of the third step, not a mean over three"
    assert other["alignment"] != one["alignment"]
