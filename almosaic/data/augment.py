"""Augmentation in batches on the training device: each clip with its own draws and its own length."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field
from torch import Tensor

from almosaic.data.draws import key, uniforms
from almosaic.data.filters import butterworth
from almosaic.features import LOG_FLOOR, SAMPLING_RATE, white_noise_log_mel
from almosaic.settings import Settings

_NATURAL_PER_DB = math.log(10.0) / 10.0  # natural log of power per decibel


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"expected (low, high), found low {bounds[0]} above high {bounds[1]}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
RollOffs = Annotated[tuple[Literal[6, 12, 18, 24], ...], Field(min_length=1)]


class Draws:
    """The random numbers of one batch: row b depends on the parts, the name and `clip_index[b]` alone."""

    def __init__(
        self,
        parts: Sequence[int | str],
        clip_index: Tensor | Sequence[int] | NDArray[np.integer],
        device: torch.device | str = "cpu",
    ) -> None:
        self.parts = tuple(parts)
        self.clip_index = np.asarray(
            clip_index.tolist() if isinstance(clip_index, Tensor) else clip_index, dtype=np.int64
        )
        self.device = torch.device(device)

    def uniform(self, name: str, n: int) -> Tensor:
        """Draw [B, n] float32 in [0, 1); the same on every device."""
        return torch.from_numpy(uniforms((*self.parts, name), self.clip_index, n)).to(self.device)

    def normal(self, name: str, samples: int, lengths: Tensor | None = None) -> Tensor:
        """Draw normal noise [B, samples], zero from `lengths` [B] on; the same per kind of device."""
        counts = [samples] * len(self.clip_index) if lengths is None else lengths.tolist()
        noise = torch.zeros(len(counts), samples, device=self.device)
        for row, (clip, count) in enumerate(zip(self.clip_index.tolist(), counts, strict=True)):
            seeded = torch.Generator(self.device).manual_seed(key(*self.parts, name, clip))
            # Only a clip's own length is drawn: how many are drawn changes the numbers themselves.
            torch.randn(count, generator=seeded, device=self.device, out=noise[row, :count])
        return noise

    def chosen(self, name: str, p: float) -> NDArray[np.int64]:
        """Return the rows that a step of probability `p` meets; the host knows them without a device sync."""
        return np.flatnonzero(uniforms((*self.parts, name, "chosen"), self.clip_index, 1)[:, 0] < p)

    def rows(self, rows: NDArray[np.int64]) -> "Draws":
        """Return the draws of some rows."""
        return Draws(self.parts, self.clip_index[rows], self.device)

    def on(self, device: torch.device) -> "Draws":
        """Return the same draws, made on another device."""
        return Draws(self.parts, self.clip_index, device)


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
        # The tenth smallest of nineteen uniforms is distributed as Beta(10, 10).
        gain = 0.5 + drawn[:, 1:].sort(dim=1).values[:, 9:10]
        return _roll(waveforms, lengths, (drawn[:, 0] * lengths).long()) * gain


class Polarity(WaveformStep):
    """Turn the waveform upside down."""

    name: Literal["polarity"] = "polarity"
    p: float = Field(default=0.5, ge=0, le=1)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        return -waveforms


class GaussianSnr(WaveformStep):
    """Add white noise at a ratio to the clip's own power that is drawn uniformly in dB."""

    name: Literal["gaussian_snr"] = "gaussian_snr"
    p: float = Field(default=0.5, ge=0, le=1)
    snr_db: Range = (5.0, 40.0)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        snr_db = _between(self.snr_db, draws.uniform(name, 1))
        rms = (waveforms.square().sum(1, keepdim=True) / lengths[:, None]).sqrt()
        noise = draws.normal(name, waveforms.shape[1], lengths)
        return waveforms + noise * (rms * 10.0 ** (-snr_db / 20.0))


class Gain(WaveformStep):
    """Scale by a gain drawn uniformly in dB; nothing is clipped."""

    name: Literal["gain"] = "gain"
    p: float = Field(default=0.3, ge=0, le=1)
    gain_db: Range = (-12.0, 12.0)

    def _apply(self, waveforms: Tensor, lengths: Tensor, draws: Draws, name: str) -> Tensor:
        return waveforms * 10.0 ** (_between(self.gain_db, draws.uniform(name, 1)) / 20.0)


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
        half = 0.5 * centre * _between(self.bandwidth_fraction, drawn[:, 1:2])
        edges = torch.cat([centre - half, (centre + half).clamp_max(0.9999 * SAMPLING_RATE / 2)], 1)
        return butterworth(waveforms, _orders(self.rolloff_db, drawn[:, 2]), edges)


class LogMelStep(Settings, ABC):
    """A change of log-mel spectrograms that a clip meets with probability `p`; cheaper than waveforms."""

    p: float = Field(default=1.0, ge=0, le=1)

    @abstractmethod
    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str) -> Tensor:
        """Return the changed log-mel [B, T', F]; the caller sets what lies beyond `frames` [B] to 0.0."""


class LogGain(LogMelStep):
    """Add a constant, a gain drawn uniformly in dB; the floor of the logarithm stays where it is."""

    name: Literal["log_gain"] = "log_gain"
    gain_db: Range = (-6.0, 6.0)

    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str) -> Tensor:
        gain = _NATURAL_PER_DB * _between(self.gain_db, draws.uniform(name, 1))
        return (log_mel + gain[..., None]).clamp_min(LOG_FLOOR)


class LogNoise(LogMelStep):
    """Add the mean power of white noise at a level drawn uniformly in dB relative to full scale."""

    name: Literal["log_noise"] = "log_noise"
    level_db: Range = (-70.0, -40.0)

    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str) -> Tensor:
        level = _NATURAL_PER_DB * _between(self.level_db, draws.uniform(name, 1))
        return torch.logaddexp(
            log_mel, level[..., None] + white_noise_log_mel(log_mel.shape[2], log_mel.device)
        )


class LogRoll(LogMelStep):
    """Shift the frames of a clip in a circle by a whole number drawn from -max_frames to max_frames."""

    name: Literal["log_roll"] = "log_roll"
    max_frames: int = Field(default=10, ge=0)

    def _apply(self, log_mel: Tensor, frames: Tensor, draws: Draws, name: str) -> Tensor:
        shift = (draws.uniform(name, 1)[:, 0] * (2 * self.max_frames + 1)).long() - self.max_frames
        return _roll(log_mel, frames, shift)


AugmentStep = Annotated[
    RollGain | Polarity | GaussianSnr | Gain | HighPass | BandStop | LogGain | LogNoise | LogRoll,
    Field(discriminator="name"),
]


def augment_waveforms(
    waveforms: Tensor, lengths: Tensor | Sequence[int], steps: Sequence[AugmentStep], draws: Draws
) -> Tensor:
    """Apply the waveform steps of `steps`, in order, to 16 kHz waveforms [B, S] of `lengths` [B] samples.

    The result of a clip depends on its draws and its samples, not on the batch. The defaults are the ranges
    that AudioMosaic was pre-trained with. Log-mel steps in the list are left to `augment_log_mel`.
    """
    lengths = torch.as_tensor(lengths, device=waveforms.device)
    return _augment(waveforms.float(), lengths, steps, WaveformStep, draws)


def augment_log_mel(log_mel: Tensor, frames: Tensor, steps: Sequence[AugmentStep], draws: Draws) -> Tensor:
    """Apply the log-mel steps of `steps`, in order, to un-normalised log-mel [B, T', F] of `frames` [B].

    Frames beyond a clip's own stay 0.0. Waveform steps in the list are left to `augment_waveforms`.
    """
    return _augment(log_mel, frames, steps, LogMelStep, draws)


def _augment(
    batch: Tensor,
    lengths: Tensor,
    steps: Sequence[AugmentStep],
    kind: type[WaveformStep] | type[LogMelStep],
    draws: Draws,
) -> Tensor:
    """Apply the steps of one kind, each to the rows that its probability picks."""
    beyond = _beyond(batch, lengths)
    result, draws = _silence(batch.clone(), beyond), draws.on(batch.device)
    for position, step in enumerate(steps):
        name = f"{position} {step.name}"  # a step that occurs twice draws twice
        rows = draws.chosen(name, step.p)
        if not isinstance(step, kind) or len(rows) == 0:
            continue
        index = torch.from_numpy(rows).to(result.device)
        changed = step._apply(result[index], lengths[index], draws.rows(rows), name)
        result[index] = _silence(changed, None if beyond is None else beyond[index])
    return result


def _beyond(batch: Tensor, lengths: Tensor) -> Tensor | None:
    """Return [B, S], True on the padding of a batch [B, S] or [B, S, F]; None where nothing is padded."""
    if bool((lengths == batch.shape[1]).all()):
        return None
    return torch.arange(batch.shape[1], device=batch.device) >= lengths[:, None]


def _silence(batch: Tensor, beyond: Tensor | None) -> Tensor:
    """Set the padding of a batch to 0.0 in place."""
    if beyond is None:
        return batch
    return batch.masked_fill_(beyond if batch.ndim == 2 else beyond[..., None], 0.0)


def _between(bounds: tuple[float, float], drawn: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


def _between_mel(bounds: tuple[float, float], drawn: Tensor) -> Tensor:
    low, high = (math.log1p(hertz / 700.0) for hertz in bounds)
    return 700.0 * torch.expm1(_between((low, high), drawn))


def _roll(batch: Tensor, lengths: Tensor, shift: Tensor) -> Tensor:
    """Shift each row of [B, S] or [B, S, F] to the right, in a circle of its own length."""
    rolled = batch.clone()
    # Two copies a row: the index tensor of a gather would be twice as large as the batch.
    for row, (length, by) in enumerate(zip(lengths.tolist(), (shift % lengths).tolist(), strict=True)):
        rolled[row, by:length] = batch[row, : length - by]
        rolled[row, :by] = batch[row, length - by : length]
    return rolled


def _orders(rolloff_db: Sequence[int], drawn: Tensor) -> Tensor:
    """Return Butterworth orders [B]: each order falls by 6 dB per octave."""
    orders = torch.tensor(rolloff_db, device=drawn.device) // 6
    return orders[(drawn * len(rolloff_db)).long()]
