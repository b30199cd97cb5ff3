"""Waveforms read at fractional positions: resampling in batches, each row by its own ratio."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_TAPS = 16  # samples that an interpolated value is made of
_POWERS = 4  # between two samples each tap is a cubic of the fraction (Farrow 1988)
_BLOCK = 8  # positions whose cubics one row of the matrix product gives
_KAISER = 6.0
_CPU_CHUNK_SAMPLES = 320_000
_DEVICE_CHUNK_SAMPLES = 1 << 26  # keeps the numbers of positions below 2^31


def read_every(waveforms: Tensor, steps: Tensor, samples: int) -> Tensor:
    """Return [B, samples], the values of waveforms [B, S] at 0, step, 2 step, ... for steps [B] in samples.

    Cubics fit to a windowed sinc: errors of -70 dB at 1 kHz, -57 at 4, -44 at 6. A step above 1 does not take
    out what lies beyond the new Nyquist frequency. Beyond its samples a waveform is 0.
    """
    cpu = waveforms.device.type == "cpu"
    rows = max(1, (_CPU_CHUNK_SAMPLES if cpu else _DEVICE_CHUNK_SAMPLES) // samples)
    chunks = zip(torch.split(waveforms, rows), torch.split(steps, rows), strict=True)
    return torch.cat([_read_every(chunk, step.to(waveforms.device), samples) for chunk, step in chunks])


def _read_every(waveforms: Tensor, steps: Tensor, samples: int) -> Tensor:
    batch, own = waveforms.shape
    device = waveforms.device
    behind = _TAPS + _BLOCK - own % _BLOCK
    blocks = F.pad(waveforms, (_TAPS // 2 - 1, behind)).unfold(1, _BLOCK + _TAPS - 1, _BLOCK)
    matrix = torch.from_numpy(_cubics()).to(device)
    cubics = (blocks.reshape(-1, _BLOCK + _TAPS - 1) @ matrix).view(batch, -1, _POWERS)
    # float64: at the end of a clip of 10 s, float32 leaves a position six bits for the fraction.
    position = torch.arange(samples, dtype=torch.float64, device=device) * steps.double()[:, None]
    whole = position.int()
    fraction = position.frac_().float().view(-1)
    first = torch.arange(batch, dtype=torch.int32, device=device)[:, None] * cubics.shape[1]
    whole.clamp_max_(cubics.shape[1] - 1).add_(first)  # the last cubics are those of the padding: 0
    chosen = cubics.view(-1, _POWERS).index_select(0, whole.view(-1))
    value = chosen[:, -1] * fraction
    for power in range(_POWERS - 2, 0, -1):
        value.add_(chosen[:, power]).mul_(fraction)
    return value.add_(chosen[:, 0]).view(batch, samples)


@lru_cache(maxsize=1)
def _cubics() -> NDArray[np.float32]:
    """Return the matrix from a block's samples to the cubic that starts at each of its positions."""
    fraction = 0.5 - 0.5 * np.cos(np.linspace(0.0, np.pi, 65))  # the ends weigh as much as the middle
    distance = np.arange(_TAPS)[:, None] - (_TAPS // 2 - 1) - fraction
    taper = np.i0(_KAISER * np.sqrt(np.clip(1 - (2 * distance / _TAPS) ** 2, 0, None))) / np.i0(_KAISER)
    taps = np.sinc(distance) * taper
    coefficients = np.polynomial.polynomial.polyfit(fraction, taps.T, _POWERS - 1)
    matrix = np.zeros((_BLOCK + _TAPS - 1, _BLOCK, _POWERS))
    for position in range(_BLOCK):
        matrix[position : position + _TAPS, position] = coefficients.T
    return matrix.reshape(len(matrix), -1).astype(np.float32)
