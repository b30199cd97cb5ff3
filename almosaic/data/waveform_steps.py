"""Augmentation of waveforms: what a clip may meet before its log-mel, each step with its published ranges."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field
from torch import Tensor

from almosaic.data.filters import butterworth
from almosaic.data.steps import Draws, Range, beta_ten, between, roll
from almosaic.data.stretch import pitch_shift, time_stretch
from almosaic.features import SAMPLING_RATE
from almosaic.settings import Settings


def _within(low: float, high: float) -> Callable[[tuple[float, float]], tuple[float, float]]:
    def check(bounds: tuple[float, float]) -> tuple[float, float]:
        if bounds[0] < low or bounds[1] > high:
            raise ValueError(
                f"expected a range within {low:g} and {high:g}, found {bounds[0]:g} to {bounds[1]:g}"
            )
        return bounds

    return check


RollOffs = Annotated[tuple[Literal[6, 12, 18, 24], ...], Field(min_length=1)]


class WaveformStep(Settings, ABC):
    """A change of waveforms that a clip meets with probability `p`."""

    p: float = Field(default=1.0, ge=0, le=1)

    @abstractmethod
    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        """Return the changed waveforms [B, S]; the caller silences what lies beyond `lengths` [B]."""


class RollGain(WaveformStep):
    """Shift a clip in a circle by up to its whole length, then scale it by Beta(10, 10) + 0.5."""

    name: Literal["roll_gain"] = "roll_gain"

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        drawn = draws.uniform(name, 20)
        gain = 0.5 + beta_ten(drawn[:, 1:])
        return roll(waveforms, lengths, (drawn[:, 0] * lengths).long()) * gain[:, None]


class Polarity(WaveformStep):
    """Turn the waveform upside down."""

    name: Literal["polarity"] = "polarity"
    p: float = Field(default=0.5, ge=0, le=1)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        return -waveforms


class TimeStretch(WaveformStep):
    """Play a clip at a drawn rate, pitch kept: above 1 it ends in zeros, below 1 its end is cut."""

    name: Literal["time_stretch"] = "time_stretch"
    p: float = Field(default=0.7, ge=0, le=1)
    rate: Annotated[Range, AfterValidator(_within(0.25, 4.0))] = (0.7, 1.3)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        rates = between(self.rate, draws.on("cpu").uniform(name, 1)[:, 0])
        return time_stretch(waveforms, lengths, rates)


class GaussianSnr(WaveformStep):
    """Add white noise at a ratio to the clip's own power that is drawn uniformly in dB."""

    name: Literal["gaussian_snr"] = "gaussian_snr"
    p: float = Field(default=0.5, ge=0, le=1)
    snr_db: Range = (5.0, 40.0)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        snr_db = between(self.snr_db, draws.uniform(name, 1))
        rms = torch.linalg.vector_norm(waveforms, dim=1, keepdim=True) / lengths[:, None].sqrt()
        noise = draws.normal(name, waveforms.shape[1], lengths)
        return noise.mul_(rms * 10.0 ** (-snr_db / 20.0)).add_(waveforms)


class Gain(WaveformStep):
    """Scale by a gain drawn uniformly in dB; nothing is clipped."""

    name: Literal["gain"] = "gain"
    p: float = Field(default=0.3, ge=0, le=1)
    gain_db: Range = (-12.0, 12.0)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        return waveforms * 10.0 ** (between(self.gain_db, draws.uniform(name, 1)) / 20.0)


class HighPass(WaveformStep):
    """Butterworth high-pass, its corner uniform on the mel scale, its roll-off drawn in dB per octave."""

    name: Literal["high_pass"] = "high_pass"
    p: float = Field(default=0.3, ge=0, le=1)
    cutoff_hertz: Range = (20.0, 2400.0)
    rolloff_db: RollOffs = (12, 18, 24)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        drawn = draws.uniform(name, 2)
        corner = _between_mel(self.cutoff_hertz, drawn[:, :1])
        return butterworth(waveforms, _orders(self.rolloff_db, drawn[:, 1]), corner)


class BandStop(WaveformStep):
    """Butterworth band-stop: centre uniform on the mel scale, width a drawn fraction of the centre."""

    name: Literal["band_stop"] = "band_stop"
    p: float = Field(default=0.5, ge=0, le=1)
    centre_hertz: Range = (200.0, 4000.0)
    bandwidth_fraction: Range = (0.5, 1.99)
    rolloff_db: RollOffs = (12, 18, 24)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        drawn = draws.uniform(name, 3)
        centre = _between_mel(self.centre_hertz, drawn[:, :1])
        half = 0.5 * centre * between(self.bandwidth_fraction, drawn[:, 1:2])
        edges = torch.cat([centre - half, (centre + half).clamp_max(0.9999 * SAMPLING_RATE / 2)], 1)
        return butterworth(waveforms, _orders(self.rolloff_db, drawn[:, 2]), edges)


class PitchShift(WaveformStep):
    """Move the pitch by a drawn number of semitones, tempo kept."""

    name: Literal["pitch_shift"] = "pitch_shift"
    p: float = Field(default=0.6, ge=0, le=1)
    semitones: Annotated[Range, AfterValidator(_within(-24.0, 24.0))] = (-4.0, 4.0)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        semitones = between(self.semitones, draws.on("cpu").uniform(name, 1)[:, 0])
        return pitch_shift(waveforms, lengths, semitones)


def _between_mel(bounds: tuple[float, float], drawn: Tensor) -> Tensor:
    low, high = (math.log1p(hertz / 700.0) for hertz in bounds)
    return 700.0 * torch.expm1(between((low, high), drawn))


def _orders(rolloff_db: Sequence[int], drawn: Tensor) -> Tensor:
    """Return Butterworth orders [B]: each order falls by 6 dB per octave."""
    orders = torch.tensor(rolloff_db, device=drawn.device) // 6
    return orders[(drawn * len(rolloff_db)).long()]
