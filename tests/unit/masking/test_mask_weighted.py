"""Weighted draws: exact counts and shares, the hint swap against a plain loop, padding, and the schedule."""

import itertools
import math

import pytest
import torch

from almosaic.errors import AlmosaicError
from almosaic.masking import (
    ConstantHint,
    HintSchedule,
    PatchGrid,
    group_count,
    mask_from_scores,
    weighted_mask_from_uniforms,
)

GRID = PatchGrid(4, 3)
LAYOUTS = ["random", "time", "frequency"]


def drawn(rows, columns, seed=0):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed))


def chances(weights, count):
    """Chance of every item to be among `count` drawn without replacement, over all orders."""
    chance = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), count):
        left, likely = sum(weights), 1.0
        for item in order:
            likely, left = likely * weights[item] / left, left - weights[item]
        for item in order:
            chance[item] += likely
    return torch.tensor(chance)


def plain_draw(weights, uniforms, masked, hint, real):
    """One row by sorting lists, as the source tells it; the kept items."""
    items = range(len(weights))
    clocks = {i: math.log(max(uniforms[i], 2**-25)) / weights[i] for i in items}
    padding = [i for i in items if not real[i]]
    by_weight = sorted((i for i in items if real[i]), key=clocks.get, reverse=True)
    hidden = (padding[::-1] + by_weight)[:masked]
    visible = [i for i in items if i not in hidden]
    swaps = math.floor(sum(real[i] for i in hidden) * hint + 1e-6)
    shown = sorted((i for i in hidden if real[i]), key=lambda i: uniforms[len(weights) + i])[::-1][:swaps]
    visible += shown
    again = sorted(visible, key=lambda i: uniforms[2 * len(weights) + i])[::-1][:swaps]
    return sorted(set(visible) - set(again))


@pytest.mark.parametrize("hint", [0.0, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75])
def test_a_draw_is_what_sorted_lists_make_of_the_same_numbers(hint, ratio):
    weights, uniforms = drawn(3, 12) ** 3, drawn(12, 36, 1)
    uniforms[0, 4] = 0.0  # as likely as any other number
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, 7:], valid[2, 2:] = False, False
    mask = weighted_mask_from_uniforms(GRID, weights, uniforms, ratio, hint=hint, valid=valid)
    for row in range(12):
        clip = row // 4
        masked = 12 - mask.ids_keep.shape[1]
        row_of = (weights[clip].tolist(), uniforms[row].tolist(), masked, hint, valid[clip].tolist())
        assert mask.ids_keep[row].tolist() == plain_draw(*row_of)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("hint", [0.0, 0.5, 1.0])
def test_counts_are_exact_and_nothing_comes_twice(layout, hint):
    groups = group_count(GRID, layout)
    mask = weighted_mask_from_uniforms(
        GRID, drawn(50, groups, 2), drawn(50, 3 * groups), 0.5, layout=layout, hint=hint
    )
    both = torch.cat([mask.ids_keep, mask.ids_masked], dim=1)
    assert torch.equal(both.gather(1, mask.ids_restore), torch.arange(12).expand(50, -1))
    assert (mask.ids_keep.diff(dim=1) > 0).all() and (mask.ids_masked.diff(dim=1) > 0).all()
    assert mask.ids_keep.shape == (50, int(groups * 0.5) * 12 // groups)


@pytest.mark.parametrize("hint", [0.0, 0.34, 0.67, 1.0])
def test_shares_follow_the_closed_form(hint):
    """P(masked) = q + (1 - q)(1 - h') pi with q = n / (K + n) and h' = n / M."""
    grid, weights, rows = PatchGrid(5, 1), torch.tensor([[1.0, 2.0, 4.0, 8.0, 1e-12]]), 40_000
    mask = weighted_mask_from_uniforms(grid, weights, drawn(rows, 15), 0.6, hint=hint)
    swapped = int(3 * hint)
    mixed = swapped / (2 + swapped)
    expected = mixed + (1 - mixed) * (1 - swapped / 3) * chances(weights[0].tolist(), 3)
    assert (1 - mask.kept.float().mean(0) - expected).abs().max() < 0.01
    if hint == 1.0:
        torch.testing.assert_close(expected, torch.full((5,), 0.6))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_hint_of_one_or_equal_weights_are_plain_random_masks(layout):
    groups = group_count(GRID, layout)
    uniforms = drawn(20, 3 * groups)
    plain = mask_from_scores(GRID, uniforms[:, :groups], 0.4, layout=layout)
    weights = drawn(20, groups, 1)
    hinted = weighted_mask_from_uniforms(GRID, weights, uniforms, 0.4, layout=layout, hint=1.0)
    equal = weighted_mask_from_uniforms(GRID, torch.full_like(weights, 0.25), uniforms, 0.4, layout=layout)
    assert torch.equal(hinted.ids_keep, plain.ids_keep) and torch.equal(equal.ids_keep, plain.ids_keep)


def test_topk_masks_the_heaviest_without_a_draw():
    weights = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0, 0.5, 6.0, 7.0, 0.1, 0.2, 0.3, 0.4]])
    masks = [
        weighted_mask_from_uniforms(GRID, weights, drawn(2, 12, seed), 0.5, order="topk") for seed in (0, 1)
    ]
    assert masks[0].ids_masked.tolist() == [[0, 2, 3, 4, 6, 7]] * 2
    assert torch.equal(masks[0].ids_keep, masks[1].ids_keep)


def test_a_number_of_zero_does_not_outweigh_the_weights():
    mask = weighted_mask_from_uniforms(
        PatchGrid(2, 1), torch.tensor([[1.0, 1e-12]]), torch.tensor([[0.0, 0.9]]), 0.5
    )
    assert mask.ids_masked.tolist() == [[0]]


def test_rows_are_decided_by_their_own_numbers():
    weights, uniforms = drawn(4, 12, 1), drawn(4, 36)
    whole = weighted_mask_from_uniforms(GRID, weights, uniforms, 0.5, hint=0.5)
    again = weighted_mask_from_uniforms(GRID, weights[2:], uniforms[2:], 0.5, hint=0.5)
    assert torch.equal(whole.ids_keep[2:], again.ids_keep)


def test_the_schedule_of_the_source():
    """Epochs 0, 49, 50, ... of 300, squared, from a sixth on."""
    squared, linear = HintSchedule(), HintSchedule(power=1)
    found = [squared.at(epoch / 300) for epoch in (0, 49, 50, 100, 150, 200, 250, 299)]
    expected = [1, 1, 0.972222, 0.888889, 0.75, 0.555556, 0.305556, 0.006656]
    assert found == pytest.approx(expected, abs=1e-6)
    assert [linear.at(epoch / 300) for epoch in (49, 50, 150, 299)] == pytest.approx([1, 5 / 6, 0.5, 1 / 300])
    assert squared.at(1.0) == 0.0 and ConstantHint(constant=0.5).at(0.0) == 0.5


@pytest.mark.parametrize("progress", [-0.1, 1.1, float("nan")])
def test_a_progress_outside_its_range(progress):
    with pytest.raises(AlmosaicError, match=f"progress between 0 and 1, found {progress:g}: give"):
        HintSchedule().at(progress)


@pytest.mark.parametrize("hint", [-0.1, 1.1, float("nan")])
def test_a_hint_outside_its_range(hint):
    with pytest.raises(AlmosaicError, match=rf"hint from 0 .* to 1 .*, found {hint:g}: give"):
        weighted_mask_from_uniforms(GRID, drawn(1, 12), drawn(1, 36), 0.5, hint=hint)
