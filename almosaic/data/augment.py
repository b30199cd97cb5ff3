"""Augmentation in batches on the training device: each clip with its own draws and its own length."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from almosaic.data.log_mel_steps import LogGain, LogMelStep, LogNoise, LogRoll
from almosaic.data.steps import Draws
from almosaic.data.waveform_steps import (
    BandStop,
    Gain,
    GaussianSnr,
    HighPass,
    PitchShift,
    Polarity,
    RollGain,
    TimeStretch,
    WaveformStep,
)
from almosaic.log_mel import FrontEnd

__all__ = [
    "AugmentStep",
    "BandStop",
    "Draws",
    "Gain",
    "GaussianSnr",
    "HighPass",
    "LogGain",
    "LogMelStep",
    "LogNoise",
    "LogRoll",
    "PitchShift",
    "Polarity",
    "RollGain",
    "TimeStretch",
    "WaveformStep",
    "augment_log_mel",
    "augment_waveforms",
]

AugmentStep = Annotated[
    RollGain
    | Polarity
    | TimeStretch
    | GaussianSnr
    | Gain
    | HighPass
    | BandStop
    | PitchShift
    | LogGain
    | LogNoise
    | LogRoll,
    Field(discriminator="name"),
]

_CPU_CHUNK_SAMPLES = 2_560_000  # what a step leaves has to be in the cache for the next


def augment_waveforms(
    waveforms: Tensor, lengths: Tensor | Sequence[int], steps: Sequence[AugmentStep], draws: Draws
) -> Tensor:
    """Apply the waveform steps of `steps`, in order, to 16 kHz waveforms [B, S] of `lengths` [B] samples.

    The result of a clip depends on its draws and its samples, not on the batch. The defaults are the ranges
    that AudioMosaic was pre-trained with. Log-mel steps in the list are left to `augment_log_mel`.
    """
    lengths = torch.as_tensor(lengths, device=waveforms.device)
    device = waveforms.device.type
    rows = max(1, _CPU_CHUNK_SAMPLES // waveforms.shape[1]) if device == "cpu" else len(waveforms)
    with torch.autocast(device, enabled=False):
        chunks = [
            _augment(waveforms[part].float(), lengths[part], steps, WaveformStep, draws.rows(part))
            for part in np.array_split(np.arange(len(waveforms)), -(-len(waveforms) // rows))
        ]
    return chunks[0] if len(chunks) == 1 else torch.cat(chunks)


def augment_log_mel(
    log_mel: Tensor,
    frames: Tensor,
    steps: Sequence[AugmentStep],
    draws: Draws,
    front_end: FrontEnd,
) -> Tensor:
    """Apply the log-mel steps of `steps`, in order, to un-normalised log-mel [B, T', F] of `frames` [B].

    Frames beyond a clip's own stay 0.0. Waveform steps in the list are left to `augment_waveforms`.
    `front_end` is the one that made the log-mel.
    """
    return _augment(log_mel, frames, steps, LogMelStep, draws, front_end)


def _augment(
    batch: Tensor,
    lengths: Tensor,
    steps: Sequence[AugmentStep],
    kind: type[WaveformStep] | type[LogMelStep],
    draws: Draws,
    *front_end: FrontEnd,
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
        changed = step._apply(result[index], lengths[index], draws.rows(rows), name, *front_end)
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
