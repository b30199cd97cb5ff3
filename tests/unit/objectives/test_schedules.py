"""Schedules over progress, against the tables of the published runs."""

import math

import pytest
import torch

from almosaic.errors import AlmosaicError
from almosaic.objectives.matpac import UPDATES, ClassificationSettings, MatpacSettings
from almosaic.objectives.schedules import Progress, linear_at

MATPAC, CLASSES = MatpacSettings(), ClassificationSettings()
# [update, value] of 294,816 updates, as the authors' code gives them.
TEACHER_TEMPERATURE = [(0, 0.04), (1000, 0.04305281367660527), (9826, 0.0699969471863234), (9827, 0.07)]
TEACHER_TEMPERATURE += [(20_000, 0.07), (UPDATES, 0.07)]
ENCODER_DECAY = [(0, 0.99995), (1000, 0.9999501356778465), (100_000, 0.9999635677846521), (UPDATES, 0.99999)]
HEAD_DECAY = [(0, 0.998), (1, 0.9980000067838923), (100_000, 0.9986783892326061), (UPDATES, 1.0)]
HYPOTHESES = [(0, 0.1), (1000, 0.0970445096839407), (100_000, 0.004978482795551568)]
HYPOTHESES += [(230_254, 0.0001000031663116944), (UPDATES, 1.4415626547665865e-05)]


def at(update):
    progress = Progress()
    progress.set(update / UPDATES)
    return progress


@pytest.mark.parametrize("update, value", TEACHER_TEMPERATURE)
def test_teacher_temperature(update, value):
    found = at(update).linear(CLASSES.teacher_temperature, CLASSES.warmup)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("update, value", HYPOTHESES)
def test_hypothesis_temperature(update, value):
    found = at(update).geometric(MATPAC.hypothesis_temperature)
    assert found.item() == pytest.approx(value, rel=1e-6)
    assert (found.item() <= MATPAC.hard_below) == (update > 230_255)


@pytest.mark.parametrize("ends, table", [(MATPAC.encoder_decay, ENCODER_DECAY), (CLASSES.decay, HEAD_DECAY)])
def test_decays(ends, table):
    for update, value in table:
        assert linear_at(ends, update / UPDATES) == pytest.approx(value, abs=1e-13)


@pytest.mark.parametrize("warmup, expected", [(1.0, 1.5), (0.5, 2.0), (0.25, 2.0), (0.0, 2.0)])
def test_a_warmup_is_a_share_of_the_training(warmup, expected):
    progress = Progress()
    progress.set(0.5)
    assert progress.linear((1.0, 2.0), warmup).item() == expected


def test_progress_is_stored_in_double_precision():
    progress, other = Progress(), Progress()
    progress.set(1 / 3)
    other.load_state_dict(progress.state_dict())
    assert other.done.item() == 1 / 3 and list(progress.state_dict()) == ["done"]
    other.reset_parameters()
    assert other.done.item() == 0.0


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_progress_outside_of_the_training(share):
    with pytest.raises(AlmosaicError, match="share of the training from 0 to 1, found"):
        Progress().set(share)
