"""Every objective and every mask of its own family through the real command: what each run leaves behind."""

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "invariance"))
from forks import finish, lines, start, train

from almosaic.masking.settings import DispersionMask
from almosaic.objectives import OBJECTIVES
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.recipe import load_recipe

RECIPE = "smoke/objectives"
STAGES = {stage.id: stage for stage in load_recipe(RECIPE).stages if stage.task == "pretrain"}
FAMILY = {
    "dispersion_weighted",
    "dispersion_weighted_time",
    "dispersion_weighted_frequency",
    "inverse_block",
    "block",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run."""
    place = tmp_path_factory.mktemp("smoke-objectives")
    finish(start(train, place / "log", place / "run", [], RECIPE), log=place / "log")
    return place / "run"


def test_the_recipe_leaves_no_objective_and_no_mask_of_the_family_out():
    assert {type(stage.objective) for stage in STAGES.values()} == OBJECTIVES.keys()
    masks = [view for stage in STAGES.values() for view in stage.views]
    assert {view.mask.name for view in masks} >= FAMILY
    assert max(view.masks for view in masks) > 1
    assert {stage.texts for stage in STAGES.values() if stage.objective.name == "clap"} == {
        "captions",
        "labels",
    }


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_its_budget_and_notes_what_it_took(folder, name):
    stage, logged = STAGES[name], lines(folder, name)
    budget = json.loads((folder / f"stages/{name}/budget.json").read_text())
    per_step = budget["tokens_per_clip"] * stage.optim.batch_size
    assert budget["encoder_tokens"] == budget["steps"] * per_step
    assert 0 <= budget["encoder_tokens"] - stage.encoder_tokens < per_step
    assert len(logged) == budget["steps"] and 0 < budget["seconds"] < 600
    assert all(math.isfinite(line["loss"]) for line in logged)
    told = (folder.parent / "log").read_text()
    assert f"{per_step:,} in a step; {budget['steps']:,} steps" in told


@pytest.mark.parametrize("name", STAGES)
def test_hints_are_logged_where_a_mask_has_them(folder, name):
    views, logged = STAGES[name].views, lines(folder, name)
    for number, view in enumerate(views):
        key = "hint" if len(views) == 1 else f"hint_{number}"
        found = [line.get(key) for line in logged]
        hint = view.mask.hint if isinstance(view.mask, DispersionMask) else None
        steps = range(len(logged))
        expected = [None if hint is None else hint.at(step / len(logged)) for step in steps]
        assert found == [None if value is None else pytest.approx(value) for value in expected]


@pytest.mark.parametrize("name", STAGES)
def test_what_was_trained_loads_with_its_objective(folder, name):
    model = AudioMosaicForPreTraining.from_pretrained(folder / f"stages/{name}/pretraining")
    assert type(model.objective) is OBJECTIVES[type(STAGES[name].objective)]


def test_all_are_probed_in_one_table(folder):
    results = json.loads((folder / "results.json").read_text())
    (stage,) = (stage for stage in load_recipe(RECIPE).stages if stage.task == "eval")
    assert {row["features"] for row in results["probe"]} >= stage.encoders.keys()
