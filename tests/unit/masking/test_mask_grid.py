"""The patch grid: windows that divide, pixels of patches, real patches, counts, and indices of a mask."""

import pytest
import torch

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, kept_count
from almosaic.masking.grid import mask_from_kept, rows_of

GRID = PatchGrid(64, 8)


def test_grid_of_a_window():
    assert PatchGrid.of(1024, 128) == GRID and GRID.patches == 512
    assert PatchGrid.of(8, 4, patch_size=2) == PatchGrid(4, 2)


@pytest.mark.parametrize("frames, bins", [(1000, 128), (1024, 120), (0, 128), (8, 128)])
def test_grid_refuses_what_does_not_divide(frames, bins):
    with pytest.raises(AlmosaicError, match=f"found {frames} frames x {bins} mel bins: pad or cut"):
        PatchGrid.of(frames, bins)


@pytest.mark.parametrize(
    "n, ratio, kept",
    [(5, 0.8, 1), (64, 0.6, 25), (8, 0.4, 4), (8, 0.6, 3), (64, 0.4, 38), (10, 0.9, 1), (7, 0.0, 7)],
)
def test_kept_count(n, ratio, kept):
    assert kept_count(n, ratio) == kept


@pytest.mark.parametrize("n, ratio", [(5, 0.9), (8, 1.0), (8, -0.1), (1, 0.5), (8, float("nan"))])
def test_kept_count_never_keeps_nothing(n, ratio):
    with pytest.raises(AlmosaicError, match=f"at least one of {n} groups.*found {ratio:g}"):
        kept_count(n, ratio)


def test_a_frame_mask_that_does_not_fit_the_grid():
    with pytest.raises(AlmosaicError, match="multiple of 4 frames, found 30"):
        PatchGrid(4, 2).valid_patches(torch.ones(1, 30))


def test_pixels_of_a_patch_are_its_cells_time_before_frequency():
    grid, spectrogram = PatchGrid(3, 2), torch.arange(2 * 12 * 8).float().view(2, 12, 8)
    patches = grid.patches_of(spectrogram)
    assert patches.shape == (2, 6, 16)
    for t in range(3):
        for f in range(2):
            cells = spectrogram[:, 4 * t : 4 * t + 4, 4 * f : 4 * f + 4]
            assert torch.equal(patches[:, 2 * t + f], cells.flatten(1))


@pytest.mark.parametrize("shape", [(2, 12, 9), (2, 13, 8), (2, 12, 4), (12, 8), (2, 2, 8), (2, 12, 0)])
def test_pixels_of_a_spectrogram_that_does_not_divide(shape):
    with pytest.raises(AlmosaicError, match=r"\[B, T, F\] of 3 x 2 square patches, found \["):
        PatchGrid(3, 2).patches_of(torch.zeros(shape))


def test_indices_of_a_mask():
    kept = torch.tensor([[False, True, True, False, True], [True, True, False, False, True]])
    valid = torch.tensor([[True, True, False, True, True]])
    mask = mask_from_kept(kept, 3, valid)
    assert mask.ids_keep.tolist() == [[1, 2, 4], [0, 1, 4]] and mask.ids_masked.tolist() == [[0, 3], [2, 3]]
    assert mask.ids_restore.tolist() == [[3, 0, 1, 4, 2], [0, 1, 3, 4, 2]]
    assert mask.valid.tolist() == valid.tolist() * 2 and torch.equal(mask.kept, kept)
    assert mask.kept_padding.item() == pytest.approx(1 / 6)


def test_masks_of_a_clip_lie_side_by_side():
    clips = torch.tensor([[1], [2]])
    assert rows_of(clips, 6).flatten().tolist() == [1, 1, 1, 2, 2, 2] and rows_of(clips, 2) is clips
    with pytest.raises(AlmosaicError, match="found 5 for 2 clips: draw one row per mask"):
        rows_of(clips, 5)
