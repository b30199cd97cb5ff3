"""Butterworth filters in batches, each row with its own order and corners."""

import math

import torch
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
    from scipy.signal import butter, sosfilt

    kind = "highpass" if edges.shape[1] == 1 else "bandstop"
    filtered = torch.empty_like(waveforms)
    for row, (order, corners) in enumerate(zip(orders.tolist(), edges.double().numpy(), strict=True)):
        sections = butter(order, corners.squeeze(), btype=kind, fs=SAMPLING_RATE, output="sos")
        filtered[row] = torch.from_numpy(sosfilt(sections, waveforms[row].numpy()))
    return filtered


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
