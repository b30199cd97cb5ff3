"""Block masks: exact counts, blocks cut off at the border, random fix-up, padding, and clear refusals."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, block_mask, block_mask_from_uniforms, inverse_block_mask
from almosaic.masking.block import block_count, block_score_count, union_of_blocks

GRID = PatchGrid(64, 8)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(rows, columns, seed=0):
    return torch.rand(rows, columns, generator=seeded(seed))


def marked(*cells, grid=GRID):
    union = torch.zeros(grid.time, grid.freq, dtype=torch.bool)
    for time, freq in cells:
        union[time, freq] = True
    return union.flatten()


def test_a_block_is_cut_off_at_the_border():
    grid = PatchGrid(6, 7)
    inside, corner = 2 * 7 + 3, 5 * 7 + 6
    odd = union_of_blocks(grid, torch.tensor([[inside], [corner]]), 3)
    assert torch.equal(odd[0], marked((slice(1, 4), slice(2, 5)), grid=grid))
    assert torch.equal(odd[1], marked((slice(4, 6), slice(5, 7)), grid=grid))
    even = union_of_blocks(grid, torch.tensor([[inside, 0]]), 4)
    assert torch.equal(even[0], marked((slice(0, 4), slice(1, 5)), (slice(0, 2), slice(0, 2)), grid=grid))


@pytest.mark.parametrize(
    "grid, ratio, adjust, block, inverse, blocks",
    [
        (GRID, 0.8, 0.07, 5, True, 5),
        (GRID, 0.75, 0.10, 5, True, 7),
        (PatchGrid(38, 5), 0.7, 0.07, 5, True, 2),
        (PatchGrid(16, 16), 0.8, 0.07, 3, True, 7),
        (GRID, 0.8, 0.07, 5, False, 17),
    ],
)
def test_how_many_blocks(grid, ratio, adjust, block, inverse, blocks):
    assert block_count(grid, ratio, block=block, adjust=adjust, inverse=inverse) == blocks


@given(
    time=st.integers(3, 20),
    freq=st.integers(3, 10),
    ratio=st.floats(0.1, 0.8),
    block=st.integers(1, 3),
    inverse=st.booleans(),
    real=st.integers(1, 200),
    seed=st.integers(0, 99),
)
def test_counts_are_exact_and_nothing_comes_twice(time, freq, ratio, block, inverse, real, seed):
    grid, shape = PatchGrid(time, freq), {"block": block, "adjust": 0.9, "inverse": inverse}
    valid = (torch.arange(grid.patches) < real).expand(2, -1)
    uniforms = drawn(4, block_score_count(grid, ratio, **shape), seed)
    for told in (None, valid):
        mask = block_mask_from_uniforms(grid, uniforms, ratio, valid=told, **shape)
        kept = int(grid.patches * (1 - ratio) + 1e-6)
        assert mask.ids_keep.shape == (4, kept)
        both = torch.cat([mask.ids_keep, mask.ids_masked], dim=1)
        assert torch.equal(both.gather(1, mask.ids_restore), torch.arange(grid.patches).expand(4, -1))
    assert (mask.kept & ~mask.valid).sum(1).tolist() == [max(0, kept - min(real, grid.patches))] * 4


@pytest.mark.parametrize("inverse", [True, False])
def test_only_what_is_too_much_or_too_little_is_random(inverse):
    """Of each mask either all blocks are whole, or nothing lies outside them."""
    shape = {"block": 5, "adjust": 0.07 if inverse else 0.8, "inverse": inverse}
    uniforms = drawn(500, block_score_count(GRID, 0.8, **shape))
    blocks = uniforms.shape[1] - 512
    union = union_of_blocks(GRID, (uniforms[:, :blocks] * 512).long(), 5)
    kept = block_mask_from_uniforms(GRID, uniforms, 0.8, **shape).kept
    chosen = kept if inverse else ~kept
    too_many = union.sum(1) > chosen.sum(1)
    assert 0 < too_many.sum() < 500
    assert not (chosen & ~union)[too_many].any() and not (union & ~chosen)[~too_many].any()
    other = torch.cat([uniforms[:, :blocks], drawn(500, 512, 1)], dim=1)
    redrawn = block_mask_from_uniforms(GRID, other, 0.8, **shape).kept
    assert not torch.equal(redrawn, kept)
    exact = union.sum(1) == chosen.sum(1)
    assert exact.any() and torch.equal(redrawn[exact], kept[exact])


@pytest.mark.parametrize("inverse", [True, False])
def test_surplus_and_deficit_fall_uniformly(inverse):
    shape, rows = {"block": 5, "adjust": 0.07, "inverse": inverse}, 4000
    blocks = block_count(GRID, 0.8, **shape)
    centres = drawn(1, blocks, seed=3).expand(rows, -1)
    kept = block_mask_from_uniforms(GRID, torch.cat([centres, drawn(rows, 512)], dim=1), 0.8, **shape).kept
    union = union_of_blocks(GRID, (centres[:1] * 512).long(), 5)[0]
    share = (kept if inverse else ~kept).float().mean(0)
    touched = ~union if share[union].min() == 1 else union
    assert 0 < share[touched].mean() < 1 and (share[touched] - share[touched].mean()).abs().max() < 0.04


def test_block_masks_hide_in_blocks_what_inverse_ones_show():
    shown, hidden = (
        make(GRID, 300, ratio=0.8, generator=seeded()).kept for make in (inverse_block_mask, block_mask)
    )
    assert shown.sum(1).tolist() == hidden.sum(1).tolist() == [102] * 300

    def beside(marks):  # share of marked patches whose next column is marked, too
        marks = marks.view(300, 64, 8)
        return (marks[:, 1:] & marks[:, :-1]).sum() / marks[:, 1:].sum()

    assert beside(shown) > 0.65 and beside(~hidden) > 0.83 and beside(hidden) > 0.25
    uniform = torch.rand(300, 512, generator=seeded()) < 0.2
    assert beside(uniform) < 0.25 and beside(~uniform) < 0.83


def test_centres_fall_on_real_patches_as_if_there_were_no_others():
    """102 visible of 160 real patches are 4 blocks' worth, where 102 of 512 are 5."""
    valid = GRID.valid_patches(torch.arange(64) < torch.tensor([[64], [20]]))
    uniforms = drawn(2, 517)
    uniforms[:, :5] = torch.tensor([0.0, 0.25, 0.5, 0.75, 1 - 2**-24])
    kept = block_mask_from_uniforms(GRID, uniforms, 0.8, valid=valid).kept
    for row, tokens in enumerate([[0, 128, 256, 384, 511], [0, 40, 80, 120]]):
        union = union_of_blocks(GRID, torch.tensor([tokens]), 5)[0] & valid[row]
        assert union.sum() <= 102 and kept[row][union].all()


def test_padding_takes_its_part_of_what_is_masked_before_blocks_do():
    """256 of 384 masked patches are padding: 5 blocks are left for the others, not 16."""
    valid = GRID.valid_patches(torch.arange(64) < torch.tensor([[32]]))
    uniforms = drawn(200, 16 + 512)
    kept = block_mask_from_uniforms(GRID, uniforms, 0.75, inverse=False, valid=valid).kept
    hidden = ~kept[:, :256]
    assert not kept[:, 256:].any() and hidden.sum(1).tolist() == [128] * 200
    union = union_of_blocks(GRID, (uniforms[:, :5] * 256).long(), 5)[:, :256]
    whole = union.sum(1) <= 128
    assert whole.float().mean() > 0.9 and (hidden | ~union)[whole].all()
    assert (hidden & union).sum() > 0.6 * hidden.sum()


def test_numbers_decide_and_rows_differ():
    masks = [inverse_block_mask(GRID, 3, generator=seeded(seed)).ids_keep for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0][0], masks[0][1])


def test_the_largest_number_is_still_a_patch():
    grid = PatchGrid(38, 5)
    uniforms = torch.full((1, 2 + 190), 1 - 2**-24)
    assert block_mask_from_uniforms(grid, uniforms, 0.7).kept[0, -1]


def test_blocks_that_do_not_fit():
    with pytest.raises(AlmosaicError, match=r"block to be 1 to 4 for 64 x 4 patches, found 5: lower block"):
        inverse_block_mask(PatchGrid(64, 4), 2)
    with pytest.raises(
        AlmosaicError, match=r"holds a block of 5 x 5 patches, found 0\.27 of 40: lower block"
    ):
        inverse_block_mask(PatchGrid(8, 5), 2)
    with pytest.raises(AlmosaicError, match="at least one of 512 groups"):
        block_mask(GRID, 2, ratio=0.999)
