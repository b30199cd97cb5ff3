"""The smoke recipe of pretraining through the real command: what it leaves, with the monitor on."""

import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).parents[1] / "invariance"))
from forks import finish, lines, start, train

from almosaic.encoder import AudioMosaicModel
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.objectives.pretraining import AudioMosaicForPreTraining


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run."""
    place = tmp_path_factory.mktemp("smoke-pretrain")
    finish(start(train, place / "log", place / "run", []), log=place / "log")
    return place / "run"


def test_the_encoder_its_front_end_and_its_heads_are_there(folder):
    stage = folder / "stages/pretrain"
    assert AudioMosaicFeatureExtractor.from_pretrained(stage / "model").window_frames == 208
    encoder = AudioMosaicModel.from_pretrained(stage / "model")
    assert (
        AudioMosaicForPreTraining.from_pretrained(stage / "pretraining").config.objective["cache_chunk"] == 4
    )
    assert encoder.config.drop_path_rate == 0.2
    said = (folder.parent / "log").read_text()
    assert f"next: almosaic embed {folder}" in said


def test_the_monitor_is_in_the_log_and_in_tensorboard(folder):
    scores = {line["step"]: line["knn_accuracy"] for line in lines(folder) if "knn_accuracy" in line}
    assert list(scores) == [0, 4, 8] and all(score > 0.1 for score in scores.values()), "of about 24 labels"
    (events,) = (folder / "stages/pretrain/runs").iterdir()
    board = EventAccumulator(str(events))
    board.Reload()
    logged = {name for line in lines(folder) for name in line if name != "step"}
    assert {f"train/{name}" for name in logged} <= set(board.Tags()["scalars"])
    assert {"knn_accuracy", "lid_mean", "effective_rank", "alignment", "contrastive_accuracy"} <= logged
