"""Augmentation of log-mel spectrograms: cheaper than that of waveforms, and near to it."""

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from almosaic.data.steps import Draws, Range, between, roll
from almosaic.log_mel import LOG_FLOOR, FrontEnd, white_noise_log_mel
from almosaic.settings import Settings

_NATURAL_PER_DB = math.log(10.0) / 10.0  # natural log of power per decibel


class LogMelStep(Settings, ABC):
    """A change of log-mel spectrograms that a clip meets with probability `p`; cheaper than waveforms."""

    p: float = Field(default=1.0, ge=0, le=1)

    @abstractmethod
    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str, front_end: FrontEnd) -> Tensor:
        """Return the changed log-mel [B, T', F]; the caller sets what lies beyond `frames` [B] to 0.0."""


class LogGain(LogMelStep):
    """Add a constant, a gain drawn uniformly in dB; the floor of the logarithm stays where it is."""

    name: Literal["log_gain"] = "log_gain"
    gain_db: Range = (-6.0, 6.0)

    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str, front_end: FrontEnd) -> Tensor:
        gain = _NATURAL_PER_DB * between(self.gain_db, draws.uniform(name, 1))
        return (log_mel + gain[..., None]).clamp_min(LOG_FLOOR)


class LogNoise(LogMelStep):
    """Add the mean power of white noise at a level drawn uniformly in dB relative to full scale."""

    name: Literal["log_noise"] = "log_noise"
    level_db: Range = (-70.0, -40.0)

    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str, front_end: FrontEnd) -> Tensor:
        level = _NATURAL_PER_DB * between(self.level_db, draws.uniform(name, 1))
        return torch.logaddexp(
            log_mel, level[..., None] + white_noise_log_mel(front_end, log_mel.shape[2], log_mel.device)
        )


class LogRoll(LogMelStep):
    """Shift the frames of a clip in a circle by a whole number drawn from -max_frames to max_frames."""

    name: Literal["log_roll"] = "log_roll"
    max_frames: int = Field(default=10, ge=0)

    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str, front_end: FrontEnd) -> Tensor:
        shift = (draws.uniform(name, 1)[:, 0] * (2 * self.max_frames + 1)).long() - self.max_frames
        return roll(log_mel, frames, shift)
