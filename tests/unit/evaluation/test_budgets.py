"""Tokens and wall time of pretraining: a mean over repetitions, a dash where unknown."""

import json

import pytest

from almosaic.errors import AlmosaicError
from almosaic.evaluation.budgets import budgets, shown_minutes, shown_tokens


def stage(folder, name, **budget):
    (folder / name / "model").mkdir(parents=True)
    if budget:
        (folder / name / "budget.json").write_text(json.dumps(budget))
    return folder / name / "model"


def test_repetitions_share_a_mean_and_what_is_unknown_is_left_out(tmp_path):
    encoders = {
        "x: x_7": stage(tmp_path, "x_7", encoder_tokens=1_000_000, tokens_per_clip=99, steps=3, seconds=60.0),
        "x: x_8": stage(tmp_path, "x_8", encoder_tokens=1_000_000, tokens_per_clip=99, steps=3, seconds=90.0),
        "y": stage(tmp_path, "y", encoder_tokens=2_500_000, tokens_per_clip=9, steps=3, seconds=30),
        "untrained": stage(tmp_path, "untrained"),
        "z: z_7": stage(tmp_path, "z_7", encoder_tokens=5, tokens_per_clip=9, steps=3, seconds=3),
        "z: z_8": stage(tmp_path, "z_8"),
    }
    things = {"x": ("x: x_7", "x: x_8"), "z": ("z: z_7", "z: z_8")}
    found = budgets(encoders, things)
    assert found == {
        "x": {"encoder_tokens": 1_000_000, "seconds": 75.0},
        "y": {"encoder_tokens": 2_500_000, "seconds": 30.0},
    }, "half a mean would be a wrong one"
    assert (shown_tokens(found["x"]), shown_minutes(found["x"])) == ("1.0M", "1.2")
    assert (shown_tokens(None), shown_minutes(None)) == ("–", "–")


@pytest.mark.parametrize(
    "text", ["{", '{"encoder_tokens": 3}', "[1]", '{"encoder_tokens": "a", "seconds": 1}']
)
def test_a_damaged_note_is_one_line(tmp_path, text):
    model = stage(tmp_path, "x")
    (tmp_path / "x" / "budget.json").write_text(text)
    with pytest.raises(AlmosaicError, match=r"budget\.json is damaged .*run its stage again") as caught:
        budgets({"x": model}, {})
    assert "\n" not in str(caught.value)
