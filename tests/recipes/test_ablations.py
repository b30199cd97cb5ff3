"""The ablations of the published augmentation keep the first steps of the chain, in its order."""

from pathlib import Path

import pytest

from almosaic.recipe import load_recipe

PRETRAIN = Path(__file__).parents[2] / "recipes" / "pretrain"
CHAIN = ["polarity", "time_stretch", "gaussian_snr", "gain", "high_pass", "band_stop", "pitch_shift"]


@pytest.mark.parametrize(
    ("name", "steps"), [("noaug", 0), ("aug2", 2), ("aug4", 4), ("aug6", 6), ("base", 7)]
)
def test_ablations_keep_the_first_steps(name, steps, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA", str(tmp_path))
    (found,) = load_recipe(PRETRAIN / f"{name}.yaml").stages
    (base,) = load_recipe(PRETRAIN / "base.yaml").stages
    assert [step.name for step in found.augment] == ["roll_gain", *CHAIN[:steps]]
    # Nothing but the chain differs, and each step has its published ranges.
    assert found.model_copy(update={"augment": base.augment}) == base
    assert list(found.augment) == [type(step)() for step in found.augment]
