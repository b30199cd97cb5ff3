"""Optimisation of pretraining against the released code: weight decay by parameter, rate by step."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from released import meta, needs_oracle

from almosaic.encoder import AudioMosaicConfig
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.recipe import load_recipe
from almosaic.training.optim import OptimSettings, parameter_groups, rate_factor
from almosaic.training.pretrain import PARTS

pytestmark = needs_oracle
PRETRAINING = "pretrain_lr6e-4_warm100_total40000"


def test_what_decays_and_what_does_not():
    with torch.device("meta"):
        model = AudioMosaicForPreTraining(AudioMosaicConfig())
    names = {id(parameter): name.split(".", 1)[1] for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(model, OptimSettings(steps=1, weight_decay=0.05), PARTS):
        found |= {names[id(parameter)]: group["weight_decay"] for parameter in group["params"]}
    stored = meta("optim_groups")["pretrain_param_groups"]
    assert found == {name: group["weight_decay"] for group in stored for name in group["names"]}
    assert len(found) == 159


@pytest.mark.parametrize("name", [PRETRAINING, "as20k_lr1.25e-4_warm1296_total19440"])
def test_the_published_curve_is_ours_but_for_its_first_step_which_has_no_rate(name):
    curve = meta("optim_groups")["lr_schedule_cosine"][name]
    steps, peak = curve["total_steps"] - 1, curve["lr"]
    settings = OptimSettings(
        steps=steps, warmup=(curve["warmup_steps"] - 1) / steps, min_ratio=curve["min_lr"] / peak
    )
    (first, rate), *points = curve["points"]
    assert (first, rate) == (0, 0.0) and len(points) == 9
    for step, expected in points:
        assert peak * rate_factor(settings, step - 1, steps) == pytest.approx(expected, rel=1e-9)


def test_the_recipe_states_the_published_optimisation(monkeypatch):
    monkeypatch.setenv("DATA", "/nowhere")
    optim = load_recipe("pretrain/base").stages[0].optim
    curve = meta("optim_groups")["lr_schedule_cosine"][PRETRAINING]
    assert optim.learning_rate == curve["lr"]
    assert optim.learning_rate * optim.min_ratio == pytest.approx(curve["min_lr"], rel=1e-5)
    assert optim.warmup * optim.epochs == pytest.approx(1.0), "one epoch"
    assert (optim.weight_decay, optim.betas, optim.max_grad_norm) == (0.05, (0.9, 0.999), 0)
