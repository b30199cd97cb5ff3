"""SpecAugment and the noise of the keyword recipes, batched, on windows of log-mel on any device."""

import torch
from pydantic import Field
from torch import Tensor

from almosaic.data.augment import Draws
from almosaic.data.draws import key
from almosaic.settings import Settings


class SpecAugment(Settings):
    """One band and one stretch of time of a window are set to 0.0 before it is normalised (Park et al. 2019).

    Widths are whole and uniform below the limits; a limit of 0 leaves that axis alone.
    """

    frequency_bins: int = Field(default=48, ge=0)
    time_frames: int = Field(default=192, ge=0)

    def apply(self, log_mel: Tensor, draws: Draws) -> Tensor:
        """Mask un-normalised log-mel windows [B, T, F], padding included, first bins, then frames."""
        drawn = draws.on(log_mel.device).uniform("spec augment", 4)
        bins = _stretch(log_mel.shape[2], self.frequency_bins, drawn[:, :2])
        frames = _stretch(log_mel.shape[1], self.time_frames, drawn[:, 2:])
        return log_mel.masked_fill(bins[:, None, :] | frames[:, :, None], 0.0)


def _stretch(size: int, limit: int, drawn: Tensor) -> Tensor:
    """Return [B, size], True on a stretch whose width and start come from uniforms [B, 2]."""
    width = drawn[:, :1] * min(limit, size)
    start = (drawn[:, 1:] * (size - width)).long()
    place = torch.arange(size, device=drawn.device)
    return (place >= start) & (place < start + width.long())


class FeatureNoise(Settings):
    """Noise on normalised windows, then a circular shift in time, as published for Speech Commands.

    Each value gains a uniform number in [0, 1) times one factor per window, uniform in [0, `level`); the
    window is then rolled by a whole number of frames in [-`max_shift`, `max_shift`).
    """

    level: float = Field(default=0.1, ge=0)
    max_shift: int = Field(default=10, ge=0)

    def apply(self, features: Tensor, draws: Draws) -> Tensor:
        """Change normalised windows [B, T, F], padding included."""
        draws = draws.on(features.device)
        drawn = draws.uniform("feature noise", 2)
        noise = torch.empty_like(features)
        for row, clip in enumerate(draws.clip_index.tolist()):
            seeded = torch.Generator(features.device).manual_seed(key(*draws.parts, "feature noise", clip))
            noise[row].uniform_(generator=seeded)
        noisy = features + noise * (self.level * drawn[:, :1, None])
        shift = (drawn[:, 1] * 2 * self.max_shift).long() - self.max_shift
        frames = features.shape[1]
        source = (torch.arange(frames, device=features.device) - shift[:, None]) % frames
        return noisy.gather(1, source[..., None].expand_as(noisy))
