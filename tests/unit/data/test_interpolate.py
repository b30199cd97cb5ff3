"""Reading between samples: tones come out where they belong, and rows do not meet."""

import math

import pytest
import torch

from almosaic.data.interpolate import read_every


@pytest.mark.parametrize(("hertz", "decibels"), [(200.0, -65), (2000.0, -62), (4000.0, -52), (6000.0, -40)])
def test_tones_are_read_between_samples(hertz, decibels):
    turn = 2 * math.pi * hertz / 16_000
    tone = torch.sin(turn * torch.arange(20_000, dtype=torch.float64)).float()
    steps = torch.tensor([0.7937, 1.0, 1.2599, 0.95])
    found = read_every(tone.repeat(4, 1), steps, 15_000)
    exact = torch.sin(turn * steps.double()[:, None] * torch.arange(15_000, dtype=torch.float64))
    error = (found - exact)[:, 50:-50].square().mean(1).sqrt() * math.sqrt(2)
    assert (20 * error.log10() < decibels).all(), 20 * error.log10()


def test_beyond_its_end_a_waveform_is_zero():
    found = read_every(torch.ones(2, 1000), torch.tensor([0.5, 2.0]), 1500)
    assert found.shape == (2, 1500)
    torch.testing.assert_close(found[0, 40:1500], torch.ones(1460), atol=1e-3, rtol=0)
    assert (found[1, 520:] == 0).all()


def test_rows_are_alone():
    waveforms, steps = torch.randn(70, 5001), torch.linspace(0.8, 1.25, 70)
    together = read_every(waveforms, steps, 6000)
    for row in (0, 33, 69):
        alone = read_every(waveforms[row, None], steps[row, None], 6000)
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=0)
