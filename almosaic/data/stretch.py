"""Time stretch and pitch shift in batches: a phase vocoder in which each row has its own rate.

For each frame of the result, two frames of the clip are transformed: one at the time that the rate asks for,
and one a hop before. What the phase turns by between the two, it has to turn by from one frame of the result
to the next; no frequency is estimated, no phase unwrapped. Bins keep the phase relations of the clip: each is
rotated like the loud bins around it (a soft form of the identity phase locking of Laroche and Dolson 1999),
and at an onset the clip's own phases are taken.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from almosaic.data.interpolate import read_every

_FRAME = 1024  # 64 ms
_HOP = 410  # two frames and a half overlap
_LEAD = _FRAME // 2 + _HOP  # the first frame begins so long before the clip: its centre lies a hop before
_BINS = _FRAME // 2 + 1
_ONSET = 2.0  # a frame of twice the amplitude of the one a hop before restarts the phases
_FAINT = 1e-12  # what a bin without any energy has instead, lest its phase be undefined for ever
_PASSBAND = 0.97  # of what a pitch shift upwards can keep below Nyquist
_CPU_FRAMES, _DEVICE_FRAMES = 16, 64  # of each row at once: what the cache of a CPU holds


def time_stretch(waveforms: Tensor, lengths: Tensor, rates: Tensor) -> Tensor:
    """Play 16 kHz waveforms [B, S] of `lengths` [B] at `rates` [B], pitch kept, length kept.

    Above 1 a clip is faster, and ends in zeros; below 1 its end is cut.
    """
    lengths, rates = lengths.cpu(), rates.cpu().double()
    samples = torch.minimum(lengths, (lengths / rates).ceil().long())
    stretched = _vocoded(waveforms, rates, samples)
    # Only the end of the batch is looked at: what lies before belongs to every clip.
    end = torch.arange(int(samples.min()), stretched.shape[1], device=waveforms.device)
    stretched[:, int(samples.min()) :].masked_fill_(end >= samples.to(waveforms.device)[:, None], 0.0)
    missing = waveforms.shape[1] - stretched.shape[1]
    return F.pad(stretched, (0, missing)) if missing else stretched


def pitch_shift(waveforms: Tensor, lengths: Tensor, semitones: Tensor) -> Tensor:
    """Move the pitch of 16 kHz waveforms [B, S] of `lengths` [B] by `semitones` [B], tempo and length kept.

    The clip is stretched by the ratio of frequencies, then read at that step. What would move beyond Nyquist
    is taken out.
    """
    ratios = torch.exp2(semitones.cpu().double() / 12)
    samples = (lengths.cpu() * ratios).ceil().long() + 16  # a few more for the last value read
    bins = torch.where(ratios > 1, _PASSBAND * (_BINS - 1) / ratios, _BINS).ceil().long()
    stretched = _vocoded(waveforms, 1 / ratios, samples, bins)
    return read_every(stretched, ratios, waveforms.shape[1])


def _vocoded(waveforms: Tensor, rates: Tensor, samples: Tensor, bins: Tensor | None = None) -> Tensor:
    """Play [B, S] at `rates` [B], `samples` [B] of each, with the lowest `bins` [B] alone: [B, max samples].

    Rows that need many frames come first, so that those which are done can be left out.
    """
    device = waveforms.device
    ahead = int(float(rates.max()) * _HOP) + _LEAD + 1
    padded = F.pad(waveforms, (ahead, ahead))
    frames = (samples + _LEAD - 1) // _HOP + 1
    centres = torch.arange(-1, int(frames.max()) - 1)[:, None] * _HOP * rates
    starts = (centres.round().long() + ahead - _FRAME // 2).clamp_max(padded.shape[1] - _FRAME)
    order = frames.argsort(descending=True, stable=True)
    index, back = order.to(device), order.argsort().to(device)
    lowest = None if bins is None else bins[order]
    voiced = _overlapped(padded[index], starts[:, order], frames[order], lowest)
    result = voiced.transpose(0, 1)[back].flatten(1)
    return result[:, _LEAD : _LEAD + int(samples.max())]


def _overlapped(waveforms: Tensor, starts: Tensor, frames: Tensor, bins: Tensor | None) -> Tensor:
    """Resynthesise rows [B, S] from their frames at `starts` [frames, B]: [frames + 2, B, hop]."""
    batch, width = waveforms.shape
    device = waveforms.device
    count = int(frames[0])
    block = _CPU_FRAMES if device.type == "cpu" else _DEVICE_FRAMES
    analysis, synthesis = _windows(device)
    every_frame = waveforms.reshape(-1).unfold(0, _FRAME, 1)
    here = starts[:count] + torch.arange(batch) * width
    where = torch.stack([here, here - _HOP]).to(device)
    passed, lowest = (None, 0) if bins is None else _passed(bins, device)
    result = waveforms.new_zeros(count + 2, batch, _HOP)
    last = rotation = None
    for start in range(0, count, block):
        stop, rows = min(count, start + block), int((frames > start).sum())
        shape = (2, stop - start, rows, -1)
        cut = every_frame.index_select(0, where[:, start:stop, :rows].reshape(-1)).mul_(analysis).view(shape)
        spectrum, turned = torch.fft.rfft(cut).unbind()
        loud, loud_before = torch.linalg.vector_norm(cut, dim=-1, keepdim=True)
        restart = (loud >= _ONSET * loud_before).to(torch.complex64).add_(_FAINT)
        # Each spectrum a hop before, against that of the last frame: the rotation the result still lacks.
        last = turned[0].clone() if last is None else last[:rows]
        turned = turned.conj_physical_()
        turned[0].mul_(last)
        turned[1:].mul_(spectrum[:-1])
        last = spectrum[-1].clone()
        rotations = _rotations(turned, restart, rotation)
        rotation = rotations[-1].clone()
        spectrum.mul_(rotations)
        if passed is not None:
            spectrum[:, :, lowest:].mul_(passed[:rows])
        voiced = torch.fft.irfft(spectrum, _FRAME).mul_(synthesis)
        for third in range(3):
            part = voiced[:, :, third * _HOP : (third + 1) * _HOP]
            result[start + third : stop + third, :rows, : part.shape[2]] += part
    return result


def _windows(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the windows [frame] before and after: overlapping products of the two add up to 1."""
    window = torch.hann_window(_FRAME, dtype=torch.float64)
    energy = F.pad(window.square(), (0, -_FRAME % _HOP)).view(-1, _HOP).sum(0)
    again = window / energy.repeat(-(-_FRAME // _HOP))[:_FRAME]
    return window.float().to(device), again.float().to(device)


def _passed(bins: Tensor, device: torch.device) -> tuple[Tensor | None, int]:
    """Return what rows pass [B, bins - lowest], 1 or 0, from the lowest bin on that is stopped anywhere."""
    lowest = int(bins.min())
    if lowest >= _BINS:
        return None, lowest
    passed = torch.arange(lowest, _BINS) < bins[:, None]
    return passed.to(device, torch.complex64), lowest


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
