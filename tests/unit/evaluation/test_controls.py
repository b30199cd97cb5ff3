import numpy as np
import pytest

from almosaic.data.draws import generator
from almosaic.errors import AlmosaicError
from almosaic.evaluation.controls import (
    CONDITIONS,
    DEAF_CONTROLS,
    ORACLE,
    derangement,
    listening_gap,
    pair_table,
)


def made_up(right, templates=("presence", "count"), pairs=60):
    """Records whose `correct` is `right(condition, template, pair, side)`."""
    return [
        {
            "pair_id": f"{template}-{pair}",
            "side": side,
            "template": template,
            "condition": condition,
            "correct": right(condition, template, pair, side),
        }
        for condition in CONDITIONS
        for template in templates
        for pair in range(pairs)
        for side in (0, 1)
    ]


def coin(condition, template, pair, side):
    return bool(generator(condition, template, pair, side).random() < 0.5)


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_a_derangement_moves_everything_once(count):
    for seed in range(20):
        moved = derangement(count, seed, "shuffled")
        assert sorted(moved) == list(range(count))
        assert all(index != partner for index, partner in enumerate(moved))
    assert derangement(count, 1) == derangement(count, 1)


def test_derangements_depend_on_the_key():
    assert derangement(50, 1, "a") != derangement(50, 1, "b")
    with pytest.raises(AlmosaicError, match="at least 2"):
        derangement(1)


def test_a_perfect_listener_has_the_whole_gap():
    records = made_up(lambda condition, template, pair, side: condition == "audio" or side == 0)
    gap = listening_gap(records)
    assert (gap["gap"], gap["low"], gap["high"]) == (0.5, 0.5, 0.5)
    assert gap["accuracy"] == 1.0
    assert gap["controls"] == dict.fromkeys(DEAF_CONTROLS, 0.5)
    assert gap["pairs"] == 120


def test_constant_answers_have_no_gap():
    gap = listening_gap(made_up(lambda condition, template, pair, side: side == 1))
    assert (gap["gap"], gap["low"], gap["high"]) == (0, 0, 0)


def test_guessing_has_a_gap_of_zero_within_its_interval():
    inside = 0
    for seed in range(10):
        gap = listening_gap(
            made_up(lambda *key, seed=seed: bool(generator(seed, *key).random() < 0.5)), resamples=300
        )
        assert abs(gap["gap"]) < 0.2
        inside += gap["low"] <= 0 <= gap["high"]
    assert inside >= 8


def test_the_best_control_is_chosen_anew_in_each_resample():
    records = made_up(coin, templates=("presence",), pairs=30)
    right = {condition: np.zeros(30) for condition in CONDITIONS}
    for record in records:
        right[record["condition"]][int(record["pair_id"].split("-")[1])] += record["correct"] / 2
    rng = np.random.default_rng(3)
    slow = []
    for _ in range(3000):
        drawn = rng.integers(0, 30, 30)
        best = max(right[control][drawn].mean() for control in DEAF_CONTROLS)
        slow.append(right["audio"][drawn].mean() - best)
    gap = listening_gap(records, resamples=3000)
    assert gap["low"] == pytest.approx(np.quantile(slow, 0.025), abs=0.03)
    assert gap["high"] == pytest.approx(np.quantile(slow, 0.975), abs=0.03)
    fixed = right["audio"] - right[gap["best_control"]]
    assert np.mean(slow) < fixed.mean() - 0.01  # a maximum fixed beforehand would not be


def test_templates_count_alike_and_can_be_chosen():
    many = made_up(lambda condition, *_: condition == "audio", templates=("presence",), pairs=50)
    few = made_up(lambda *_: False, templates=("count",), pairs=5)
    assert listening_gap(many + few)["gap"] == 0.5
    assert listening_gap(many + few, ["presence"])["gap"] == 1.0
    with pytest.raises(AlmosaicError, match=r"expected questions of half, found presence"):
        listening_gap(many, ["presence", "half"])


def test_the_interval_is_seeded():
    records = made_up(coin)
    assert listening_gap(records, seed=1) == listening_gap(records, seed=1)
    assert listening_gap(records, seed=1)["low"] != listening_gap(records, seed=2)["low"]


def test_the_oracle_is_no_control():
    records = made_up(lambda condition, template, pair, side: side == 0)
    oracle = [{**record, "condition": ORACLE, "correct": True} for record in records[:4]]
    assert ORACLE not in listening_gap(records + oracle)["controls"]


def test_incomplete_records_are_refused():
    records = made_up(coin, pairs=3)
    with pytest.raises(AlmosaicError, match=r"pair presence-0: expected two answers under 'audio', found 1"):
        pair_table(records[1:])
    with pytest.raises(AlmosaicError, match=r"holds side 0 twice"):
        pair_table([*records, records[0]])
    with pytest.raises(AlmosaicError, match=r"needs the condition 'audio' and a deaf control, found audio"):
        listening_gap([record for record in records if record["condition"] == "audio"])
    with pytest.raises(AlmosaicError, match=r"unknown condition 'noise'"):
        listening_gap([{**records[0], "condition": "noise"}])
