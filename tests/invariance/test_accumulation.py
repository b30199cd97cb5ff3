"""Two half batches make one batch where the loss is a mean over words, and are refused elsewhere."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from stages import make_parts, pretrain_settings, run_alm, tiny_bank


@pytest.fixture(scope="module")
def bank():
    return tiny_bank()


@pytest.mark.parametrize("tune", [{"projector": "full"}, {"projector": "full", "language_model": "full"}])
def test_two_times_two_is_four(tmp_path, bank, tune):
    """Rows differ in length, so a mean of the halves' means would differ."""
    parts = make_parts(tmp_path, bank)
    optim = {"steps": 5, "batch_size": 4, "learning_rate": 1e-3}
    whole = run_alm(tmp_path / "whole", parts, bank, tune=tune, optim=optim)
    halves = run_alm(tmp_path / "halves", parts, bank, tune=tune, optim={**optim, "accumulation": 2})
    assert list(halves.values()) == pytest.approx(list(whole.values()), rel=1e-4)


def test_a_contrastive_batch_is_not_put_together_from_parts():
    with pytest.raises(ValidationError, match="contrastive accumulation is not batch size"):
        pretrain_settings(optim={"accumulation": 2})
