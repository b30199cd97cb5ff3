"""The position table separates time from frequency, and resizing keeps what can be kept."""

import pytest
import torch

from almosaic.encoder.positions import resize_table, sincos_table
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid


def test_first_half_is_frequency_and_second_half_time():
    grid = PatchGrid(6, 4)
    table = sincos_table(grid, 16)[0]
    assert table.shape == (25, 16) and table[0].eq(0).all()
    patches = table[1:].reshape(6, 4, 16)
    assert torch.equal(patches[0, :, :8], patches[5, :, :8])
    assert torch.equal(patches[:, 0, 8:], patches[:, 3, 8:])
    assert patches.flatten(0, 1).unique(dim=0).shape[0] == grid.patches
    assert torch.allclose(patches[2, 1, :4], (1.0 * 10000 ** (-torch.arange(4) / 4)).sin())
    assert torch.allclose(patches[2, 1, 12:], (2.0 * 10000 ** (-torch.arange(4) / 4)).cos())


def test_shorter_windows_crop_time():
    table, source = torch.randn(1, 25, 8), PatchGrid(6, 4)
    assert torch.equal(resize_table(table, source, source, "time_frequency"), table)
    assert torch.equal(resize_table(table, source, PatchGrid(2, 4), "time_frequency"), table[:, : 1 + 8])


def test_longer_windows_stretch_time_linearly():
    source, target = PatchGrid(3, 2), PatchGrid(6, 2)
    table = torch.cat([torch.full((1, 1, 2), 9.0), ramp(source)], dim=1)
    found = resize_table(table, source, target, "time_frequency")
    assert found[0, 0].tolist() == [9.0, 9.0]
    stretched = found[:, 1:].reshape(6, 2, 2)
    assert stretched[:, 0, 0].tolist() == pytest.approx([0.0, 0.25, 0.75, 1.25, 1.75, 2.0])
    assert stretched[3, :, 1].tolist() == [0.0, 1.0]


def ramp(grid):
    """Channel 0 is the time index, channel 1 the band: [1, N, 2]."""
    tokens = torch.arange(grid.patches)
    return torch.stack([tokens // grid.freq, tokens % grid.freq], dim=1).float()[None]


def test_released_resizing_averages_pairs_of_its_rows():
    """From 1024 to 512 frames: rows of 32 tokens, new row i = mean of old rows 2i and 2i + 1."""
    table = torch.randn(1, 513, 4)
    found = resize_table(table, PatchGrid(64, 8), PatchGrid(32, 8), "released")
    rows = table[0, 1:].reshape(16, 32, 4)
    torch.testing.assert_close(found[0, 1:].reshape(8, 32, 4), (rows[0::2] + rows[1::2]) / 2)
    assert torch.equal(found[:, 0], table[:, 0])


def test_released_resizing_refuses_a_remainder():
    with pytest.raises(AlmosaicError, match="found 48: use position_resize: time_frequency"):
        resize_table(torch.zeros(1, 513, 4), PatchGrid(64, 8), PatchGrid(48, 8), "released")


@pytest.mark.parametrize("mode", ["time_frequency", "released"])
def test_bands_are_never_resized(mode):
    with pytest.raises(AlmosaicError, match=r"expected windows of 8 patches in frequency.*found 5"):
        resize_table(torch.zeros(1, 513, 4), PatchGrid(64, 8), PatchGrid(64, 5), mode)


def test_gradients_reach_the_stored_table():
    table = torch.randn(1, 13, 4, requires_grad=True)
    resize_table(table, PatchGrid(6, 2), PatchGrid(9, 2), "time_frequency").sum().backward()
    assert (table.grad != 0).all()
