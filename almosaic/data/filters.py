"""Butterworth filters in batches, each row with its own order and corners."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from almosaic.features import SAMPLING_RATE

_TAIL_SAMPLES = 65_536  # zeros behind a clip, so that the ringing of a filter does not wrap round


def butterworth(waveforms: Tensor, orders: Tensor, edges: Tensor) -> Tensor:
    """Filter 16 kHz waveforms [B, S] with orders [B]; each order falls by 6 dB per octave.

    `edges` [B, 1] are the corners of high-passes in Hz, `edges` [B, 2] those of band-stops; -3 dB there.
    A filter starts in the steady state of the first sample: that sample is taken out before, and put back
    where the filter passes a constant. On a CPU the recursion is several times faster than transforms;
    elsewhere it would not run in parallel, and the same response is applied to the spectrum.
    """
    first = waveforms[:, :1]
    run = filter_by_recursion if waveforms.device.type == "cpu" else filter_by_spectrum
    filtered = run(waveforms - first, orders, edges)
    return filtered if edges.shape[1] == 1 else filtered + first


def filter_by_recursion(waveforms: Tensor, orders: Tensor, edges: Tensor) -> Tensor:
    """Filter [B, S] from rest, row by row on the CPU."""
    from scipy.signal import sosfilt

    filtered = torch.empty_like(waveforms)
    for row, (order, corners) in enumerate(zip(orders.tolist(), edges.double().numpy(), strict=True)):
        filtered[row] = torch.from_numpy(sosfilt(sections(order, corners), waveforms[row].numpy()))
    return filtered


def sections(order: int, corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the second-order sections [n, 6] of a digital Butterworth filter (bilinear transform).

    One corner in Hz is that of a high-pass, two are those of a band-stop. They are scipy's filters, without
    the time of its general design: about as long as filtering a clip.
    """
    # Poles of the low-pass prototype that are real or above the real axis; the others are their conjugates.
    angles = np.pi * (2 * np.arange((order + 1) // 2) + order + 1) / (2 * order)
    poles = np.exp(1j * angles)
    alone = np.arange(len(poles)) == order // 2  # of an odd order, the last is real
    warped = np.tan(np.pi / SAMPLING_RATE * corners)
    if len(corners) == 1:
        first = _to_digital(warped[0] / poles)
        second = np.where(alone, 0.0, first.conj())
        zeros = np.stack([np.ones(len(first)), np.where(alone, -1.0, -2.0), np.where(alone, 0.0, 1.0)], 1)
        passed = -1.0
    else:
        half, product = 0.5 * (warped[1] - warped[0]) / poles, warped[0] * warped[1]
        away = np.sqrt(half**2 - product + 0j)
        upper, lower = _to_digital(half + away), _to_digital(half - away)
        # The two roots of the real pole are partners; those of another have theirs below the real axis.
        first = np.concatenate([upper, lower[~alone]])
        second = np.concatenate([np.where(alone, lower, upper.conj()), lower[~alone].conj()])
        stopped = -2.0 * (1 - product) / (1 + product)  # both zeros at the middle, on the unit circle
        zeros = np.tile([1.0, stopped, 1.0], (len(first), 1))
        passed = 1.0
    poles_of = np.stack([np.ones(len(first)), -(first + second).real, (first * second).real], 1)
    at = np.array([1.0, passed, 1.0])
    return np.concatenate([zeros * (poles_of @ at / (zeros @ at))[:, None], poles_of], 1)


def _to_digital(roots: NDArray[np.complex128]) -> NDArray[np.complex128]:
    return (1 + roots) / (1 - roots)


def filter_by_spectrum(waveforms: Tensor, orders: Tensor, edges: Tensor) -> Tensor:
    """Filter [B, S] from rest, all rows at once on any device."""
    samples = waveforms.shape[1]
    length = 1 << (samples + _TAIL_SAMPLES - 1).bit_length()
    spectrum = torch.fft.rfft(waveforms, length) * _response(orders, edges, length)
    filtered: Tensor = torch.fft.irfft(spectrum, length)
    return filtered[:, :samples]


def _response(orders: Tensor, edges: Tensor, length: int) -> Tensor:
    """Return the complex response [B, length/2 + 1] of digital Butterworth filters (bilinear transform).

    The low-pass prototype is the product of 1 / (s - pole) over its poles; s is replaced by `above / below`,
    both multiplied by the cosine of half the angle, or its square, so that nothing is infinite at Nyquist.
    """
    half_angle = torch.arange(length // 2 + 1, device=edges.device) * (math.pi / length)
    sine, cosine = half_angle.sin(), half_angle.cos()
    corners = (math.pi / SAMPLING_RATE * edges).tan()
    if edges.shape[1] == 1:
        above, below = (corners * cosine).to(torch.complex64), torch.complex(torch.zeros_like(sine), sine)
    else:
        low, high = corners[:, :1], corners[:, 1:]
        width = (high - low) * sine * cosine
        above = torch.complex(torch.zeros_like(width), width)
        below = (low * high * cosine.square() - sine.square()).to(torch.complex64)
    response = torch.ones_like(above)
    for number in range(int(orders.max())):
        angle = math.pi * (2 * number + orders[:, None] + 1) / (2 * orders[:, None])
        factor = below / (above - torch.polar(torch.ones_like(angle), angle) * below)
        response = torch.where(number < orders[:, None], response * factor, response)
    return response
