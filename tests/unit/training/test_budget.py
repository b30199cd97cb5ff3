"""Length in encoder tokens: how many steps they make, and what is noted of the time they took."""

import json
import sys
from pathlib import Path

import pytest

from almosaic.masking import PatchGrid
from almosaic.training.budget import Budget
from almosaic.training.pretrain import PretrainSettings, pretrain
from almosaic.training.pretrain_checks import window_grid
from almosaic.training.trainer import Spent

sys.path.insert(0, str(Path(__file__).parent))
from stages import ENCODER, WINDOW_FRAMES, Tones
from toy import toy_trainer

GRID = PatchGrid(13, 8)
RANDOM = {"mask": {"name": "random", "ratio": 0.75}}  # keeps 26 of 104


def settings(objective="masked_autoencoder", tokens=5000, masks=1, optim=None, **changes):
    """Settings of a stage that is as long as its tokens."""
    front_end = {"window_frames": WINDOW_FRAMES}
    views = changes.pop("views", [RANDOM | {"masks": masks}])
    given = {"encoder": ENCODER, "front_end": front_end, "objective": {"name": objective}, "views": views}
    given |= {"encoder_tokens": tokens, "optim": optim or {"batch_size": 4}}
    return PretrainSettings.model_validate(given | changes)


@pytest.mark.parametrize(
    ("objective", "masks", "per_clip"),
    [
        ("masked_autoencoder", 1, 27),
        ("masked_autoencoder", 3, 81),
        ("matpac", 2, 2 * (27 + 79)),
        ("position_prediction", 1, 105),
        ("clap", 1, 27),
    ],
)
def test_tokens_of_a_clip_are_those_of_its_views_and_masks(objective, masks, per_clip):
    budget = Budget.of(settings(objective, masks=masks), GRID)
    assert budget.tokens_per_clip == per_clip and budget.tokens_per_step == 4 * per_clip
    steps = budget.optim.steps
    assert 4 * per_clip * (steps - 1) < 5000 <= 4 * per_clip * steps
    assert str(budget).endswith(f"; {steps:,} steps, {4 * per_clip * steps:,} tokens in all")


def test_two_views_count_both():
    views = [{"mask": {"name": "time", "ratio": 0.6}}, {"mask": {"name": "frequency", "ratio": 0.4}}]
    assert Budget.of(settings("contrastive", views=views), GRID).tokens_per_clip == 1 + 5 * 8 + 1 + 13 * 4


def test_a_stage_has_one_length():
    assert PretrainSettings().optim.steps == 10_000
    assert settings().optim.steps is None
    assert settings(tokens=None, optim={"epochs": 2}).optim.epochs == 2
    left_out = {key: value for key, value in settings().model_dump().items() if key != "optim"}
    assert PretrainSettings.model_validate(left_out).optim.steps is None
    again = PretrainSettings.model_validate(settings().model_dump())
    assert again == settings(), "as a resolved recipe says it"
    exact = settings(tokens=4 * 27 * 7)
    assert Budget.of(exact, window_grid(exact)).optim.steps == 7


def test_the_seconds_of_all_parts_of_a_stage_are_summed(tmp_path):
    stopped = toy_trainer(tmp_path, steps=8, save_steps=5)
    first = stopped.run(False)
    assert first.steps == 8 and 0 < first.seconds < 100
    assert toy_trainer(tmp_path, steps=8).run(True) == pytest.approx(first, abs=5), "nothing is left to do"
    (tmp_path / "checkpoint-8").rename(tmp_path / "tmp-checkpoint-8")
    place = tmp_path / "checkpoint-5/seconds.json"
    assert 0 < json.loads(place.read_text())["seconds"] <= first.seconds
    place.write_text(json.dumps({"seconds": 1000.0}))
    assert toy_trainer(tmp_path, steps=8).run(True) == Spent(8, pytest.approx(1000.0, abs=100))


def test_an_untrained_encoder_has_read_nothing(tmp_path):
    pretrain(settings(tokens=None, optim={"steps": 0}), source=Tones(), folder=tmp_path, seed=0)
    budget = json.loads((tmp_path / "budget.json").read_text())
    assert budget == {"encoder_tokens": 0, "tokens_per_clip": 27, "steps": 0, "seconds": 0.0}
