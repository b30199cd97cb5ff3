"""Masks of SpecAugment and the noise of the keyword recipes: widths, places, draws."""

import numpy as np
import torch

from almosaic.data.augment import Draws
from almosaic.data.spec_augment import FeatureNoise, SpecAugment

CLIPS = 400


def drawn(clips=CLIPS, epoch=0):
    return Draws((5, "stage", epoch), np.arange(clips))


def masks(settings, frames=60, bins=32):
    """Width and start of the masked frames and bins of every window."""
    masked = settings.apply(torch.ones(CLIPS, frames, bins), drawn()) == 0.0
    times, bands = masked.all(dim=2), masked.all(dim=1)
    rest = masked & ~times[:, :, None] & ~bands[:, None, :]
    assert not rest.any(), "only whole frames and whole bands are masked"
    return times, bands


def test_widths_are_uniform_below_the_limit_and_places_cover_the_axis():
    times, bands = masks(SpecAugment(frequency_bins=8, time_frames=20))
    for found, limit in ((times, 20), (bands, 8)):
        widths = found.sum(1)
        assert widths.min() == 0 and widths.max() == limit - 1
        assert abs(widths.float().mean() - (limit - 1) / 2) < 0.1 * limit
        changes = (found[:, 1:] != found[:, :-1]).sum(1) + found[:, 0].int()
        assert changes.max() <= 2, "one stretch"
        assert found.any(dim=0)[:-1].all(), "every place but the last is met, which the floor leaves out"


def test_a_limit_of_zero_leaves_an_axis_alone():
    times, bands = masks(SpecAugment(frequency_bins=0, time_frames=20))
    assert times.any() and not bands.any()


def test_masks_depend_on_the_clip_and_the_epoch_alone():
    settings = SpecAugment(frequency_bins=16, time_frames=30)
    together = settings.apply(torch.ones(CLIPS, 60, 32), drawn())
    alone = settings.apply(torch.ones(1, 60, 32), Draws((5, "stage", 0), [7]))
    assert torch.equal(together[7:8], alone)
    assert not torch.equal(together, settings.apply(torch.ones(CLIPS, 60, 32), drawn(epoch=1)))


def test_noise_is_uniform_up_to_a_drawn_level_and_the_window_is_rolled():
    ramp = torch.arange(64.0)[None, :, None].expand(CLIPS, 64, 8).contiguous()
    still = FeatureNoise(level=0.1, max_shift=0).apply(ramp, drawn()) - ramp
    assert still.min() >= 0.0 and still.max() < 0.1
    levels = still.amax(dim=(1, 2))
    assert levels.min() < 0.01 and abs(levels.mean() - 0.05) < 0.005
    assert torch.allclose(still.mean(dim=(1, 2)), levels / 2, atol=0.005)
    rolled = FeatureNoise(level=0.0, max_shift=10).apply(ramp, drawn())
    shifts = set((-rolled[:, 32, 0] + 32).int().tolist())
    assert shifts == set(range(-10, 10))
    assert torch.equal(rolled[3].sort(dim=0).values, ramp[3]), "a roll loses nothing"


def test_noise_depends_on_the_clip_alone():
    noise = FeatureNoise()
    together = noise.apply(torch.zeros(4, 16, 8), drawn(4))
    assert torch.equal(together[2:3], noise.apply(torch.zeros(1, 16, 8), Draws((5, "stage", 0), [2])))
    assert not torch.equal(together[0], together[1])
