"""Time stretch and pitch shift in batches: a phase vocoder in which each row has its own rate.

For each frame of the result, two frames of the clip are transformed: one at the time that the rate asks for,
and one a hop before. What the phase turns by between the two, it has to turn by from one frame of the result to
the next; no frequency is estimated, no phase unwrapped. Bins keep the phase relations that they have in the
clip, since each is rotated like the loud bins around it (a soft form of the identity phase locking of Laroche
and Dolson 1999), and at an onset the clip's own phases are taken.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from almosaic.data.interpolate import read_every

_FRAME = 1152  # 72 ms
_HOP = _FRAME // 3  # a squared Hann window overlaps to 9/8 everywhere
_BINS = _FRAME // 2 + 1
_ONSET = 2.0  # a frame of twice the amplitude of the one a hop before restarts the phases
_FAINT = 1e-12  # what a bin without any energy has instead, lest its phase be undefined for ever
_PASSBAND = 0.97  # of what a pitch shift upwards can keep below Nyquist
# On a CPU a block of frames stays in the cache; elsewhere the rows of a batch go through together.
_CPU_ROWS, _CPU_FRAMES, _DEVICE_FRAMES = 16, 16, 64


def time_stretch(waveforms: Tensor, lengths: Tensor, rates: Tensor) -> Tensor:
    """Play 16 kHz waveforms [B, S] of `lengths` [B] at `rates` [B], pitch kept, length kept.

    Above 1 a clip is faster, and ends in zeros; below 1 its end is cut.
    """
    lengths, rates = lengths.cpu(), rates.cpu().double()
    samples = torch.minimum(lengths, (lengths / rates).ceil().long())
    stretched = _vocoded(waveforms, rates, samples)
    beyond = (
        torch.arange(stretched.shape[1], device=waveforms.device) >= samples.to(waveforms.device)[:, None]
    )
    return F.pad(stretched.masked_fill_(beyond, 0.0), (0, waveforms.shape[1] - stretched.shape[1]))


def pitch_shift(waveforms: Tensor, lengths: Tensor, semitones: Tensor) -> Tensor:
    """Move the pitch of 16 kHz waveforms [B, S] of `lengths` [B] by `semitones` [B], tempo and length kept.

    The clip is stretched by the ratio of frequencies, then read at that step. What would move beyond Nyquist
    is taken out.
    """
    ratios = torch.exp2(semitones.cpu().double() / 12)
    samples = (lengths.cpu() * ratios).ceil().long() + 16  # a few more for the last value read
    bins = torch.arange(_BINS) / (_BINS - 1) * ratios[:, None]
    stretched = _vocoded(waveforms, 1 / ratios, samples, (bins < _PASSBAND) | (ratios <= 1)[:, None])
    return read_every(stretched, ratios, waveforms.shape[1])


def _vocoded(waveforms: Tensor, rates: Tensor, samples: Tensor, kept: Tensor | None = None) -> Tensor:
    """Play [B, S] at `rates` [B], `samples` [B] of each, with the bins `kept` [B, bins]: [B, max samples].

    Rows that need many frames come first, so that those which are done can be left out.
    """
    device = waveforms.device
    ahead = int((float(rates.max()) + 2.5) * _HOP) + 1
    padded = F.pad(waveforms, (ahead, ahead))
    frames = (samples + 5 * _HOP // 2 - 1) // _HOP + 1
    # Frames start with the one whose centre lies a hop before the clip.
    centres = torch.arange(-1, int(frames.max()) - 1)[:, None] * _HOP * rates
    starts = (centres.round().long() + ahead - _FRAME // 2).clamp_max(padded.shape[1] - _FRAME)
    result = waveforms.new_zeros(len(waveforms), int(frames.max()) + 2, _HOP)
    order = frames.argsort(descending=True, stable=True)
    for rows in torch.split(order, _CPU_ROWS if device.type == "cpu" else len(order)):
        index = rows.to(device)
        passed = None if kept is None else kept[rows].to(device, torch.complex64)
        voiced = _overlapped(padded[index], starts[:, rows], frames[rows], passed)
        result[index, : len(voiced)] = voiced.transpose(0, 1)
    return result.flatten(1)[:, 5 * _HOP // 2 :][:, : int(samples.max())]


def _overlapped(waveforms: Tensor, starts: Tensor, frames: Tensor, passed: Tensor | None) -> Tensor:
    """Resynthesise rows [B, S] from their frames at `starts` [frames, B]: [frames + 2, B, hop]."""
    batch, width = waveforms.shape
    device = waveforms.device
    count = int(frames[0])
    block = _CPU_FRAMES if device.type == "cpu" else _DEVICE_FRAMES
    window = torch.hann_window(_FRAME, device=device)
    every_frame = waveforms.reshape(-1).unfold(0, _FRAME, 1)
    here = starts[:count] + torch.arange(batch) * width
    where = torch.stack([here, here - _HOP]).to(device)
    result = waveforms.new_zeros(count + 2, batch, _HOP)
    last = rotation = None
    for start in range(0, count, block):
        stop, rows = min(count, start + block), int((frames > start).sum())
        shape = (2, stop - start, rows, -1)
        cut = every_frame.index_select(0, where[:, start:stop, :rows].reshape(-1)).mul_(window).view(shape)
        spectra = torch.fft.rfft(cut)
        spectrum, before = spectra[0], spectra[1]
        last = before[0] if last is None else last[:rows]
        turned = torch.cat([last[None], spectrum[:-1]]) * before.conj()
        last = spectrum[-1].clone()
        loud, loud_before = torch.linalg.vector_norm(cut, dim=-1, keepdim=True)
        restart = (loud >= _ONSET * loud_before).to(torch.complex64) + _FAINT
        rotations = _rotations(turned, restart, rotation)
        rotation = rotations[-1].clone()
        spectrum.mul_(rotations)
        if passed is not None:
            spectrum.mul_(passed[:rows])
        voiced = torch.fft.irfft(spectrum, _FRAME).mul_(window * (8 / 9)).view(*shape[1:3], 3, _HOP)
        for third in range(3):
            result[start + third : stop + third, :rows] += voiced[:, :, third]
    return result


def _rotations(turned: Tensor, restart: Tensor, rotation: Tensor | None) -> Tensor:
    """Return the factors of size 1 that bring the clip's spectra into phase, [frames, B, bins].

    A rotation is the sum of the turned ones before it over five neighbouring bins, each as loud as it is.
    """
    rotations = torch.empty_like(turned)
    batch, bins = turned.shape[1:]
    rotation = torch.ones_like(turned[0]) if rotation is None else rotation[:batch]
    padded, pairs = turned.new_zeros(batch, bins + 4), turned.new_empty(batch, bins + 3)
    total = torch.empty_like(turned[0])
    centre, left, right, fifth = padded[:, 2:-2], padded[:, :-1], padded[:, 1:], padded[:, 4:]
    first_two, next_two = pairs[:, :bins], pairs[:, 2 : bins + 2]
    for turn, again, out in zip(turned.unbind(), restart.unbind(), rotations.unbind(), strict=True):
        torch.addcmul(again, turn, rotation, out=centre)
        torch.add(left, right, out=pairs)
        torch.add(first_two, next_two, out=total).add_(fifth)
        rotation = torch.sgn(total, out=out)
    return rotations
