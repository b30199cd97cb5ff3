"""Log-mel spectrograms: the filter banks of Kaldi and of MATPAC, batched torch on any device.

`kaldi` (AudioMosaic, AudioMAE, EAT) takes out the means of clip and frames, has pre-emphasis, a symmetric
Hann window, 512 FFT lines, triangles that are linear in mel from 20 Hz, and the log of what is above a floor.
`slaney` (MATPAC, Quelennec et al. 2025) has a periodic Hann window, 400 FFT lines, triangles that are linear
in hertz, on Slaney's scale from 50 Hz and each of equal area, and the log of the sum with the same floor.
Both read 25 ms every 10 ms and never beyond a clip's ends, so that they have the same frames.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from almosaic.errors import AlmosaicError, AudioError

FrontEnd = Literal["kaldi", "slaney"]
SAMPLING_RATE = 16_000
FRAME_SAMPLES = 400
HOP_SAMPLES = 160
NUM_MEL_BINS = 128
_FFT_SAMPLES: dict[FrontEnd, int] = {"kaldi": 512, "slaney": 400}
_LOWEST_HZ: dict[FrontEnd, float] = {"kaldi": 20.0, "slaney": 50.0}
_HIGHEST_HZ = 8000.0
_PREEMPHASIS = 0.97
# Slaney's scale (Auditory Toolbox, 1998): 15 mel of equal width up to 1 kHz, then 27 to every factor of 6.4.
_LINEAR_MEL, _LINEAR_HZ, _LOG_STEP = 15.0, 1000.0, math.log(6.4) / 27.0
_POWER_FLOOR = torch.finfo(torch.float32).eps
LOG_FLOOR = math.log(_POWER_FLOOR)
# A CPU is three times faster when a chunk fits its cache; elsewhere the chunk only bounds memory.
_CPU_CHUNK_SAMPLES = 200_000
_DEVICE_CHUNK_SAMPLES = 20_000_000


def frames_of(samples: int) -> int:
    """Return how many 25 ms frames, one every 10 ms, fit into `samples` at 16 kHz (0 below 400 samples)."""
    return max(0, 1 + (samples - FRAME_SAMPLES) // HOP_SAMPLES)


def log_mel_fbank(
    waveforms: Tensor,
    lengths: Tensor | Sequence[int] | None = None,
    *,
    num_mel_bins: int = NUM_MEL_BINS,
    front_end: FrontEnd = "kaldi",
) -> tuple[Tensor, Tensor]:
    """Return the un-normalised log-mel [B, T', F], float32, of 16 kHz waveforms [B, S], and the frames [B].

    `kaldi` without dither and energy, after the clip's own mean is taken out, or `slaney`: the same numbers
    whatever the padding and the company in the batch. Frames beyond a clip's own are 0.0. Computed in float32
    even under autocast.

    Raises:
        AudioError: a clip is shorter than one frame (400 samples).
        AlmosaicError: `waveforms` is not [B, S], or `lengths` does not fit it.
    """
    if waveforms.ndim != 2:
        raise AlmosaicError(f"expected waveforms of shape [B, S], found {list(waveforms.shape)}")
    batch, samples = waveforms.shape
    if lengths is None:
        lengths = torch.full((batch,), samples)
    lengths = torch.as_tensor(lengths, device=waveforms.device)
    device = waveforms.device.type
    _check_lengths(lengths, batch, samples)
    rows = max(1, (_CPU_CHUNK_SAMPLES if device == "cpu" else _DEVICE_CHUNK_SAMPLES) // samples)
    with torch.autocast(device, enabled=False):
        chunks = [
            _log_mel_chunk(waveform.float(), length, num_mel_bins, front_end)
            for waveform, length in zip(torch.split(waveforms, rows), torch.split(lengths, rows), strict=True)
        ]
        log_mel = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
    return log_mel, _frames_of(lengths)


def _check_lengths(lengths: Tensor, batch: int, samples: int) -> None:
    if lengths.shape != (batch,) or lengths.is_floating_point():
        raise AlmosaicError(
            f"expected {batch} whole lengths, found {lengths.dtype} of shape {list(lengths.shape)}"
        )
    if batch == 0:
        raise AlmosaicError("expected at least one waveform, found an empty batch")
    shortest, longest = (int(bound) for bound in lengths.aminmax())
    if shortest < FRAME_SAMPLES:
        raise AudioError(
            f"a clip of {shortest} samples is too short, one frame needs {FRAME_SAMPLES}; drop it"
        )
    if longest > samples:
        raise AlmosaicError(f"a length of {longest} samples is beyond the {samples} samples of the batch")


def _log_mel_chunk(waveforms: Tensor, lengths: Tensor, num_mel_bins: int, front_end: FrontEnd) -> Tensor:
    """Compute log-mel [B, T', F] of a few rows."""
    device = waveforms.device
    own = torch.arange(waveforms.shape[1], device=device) < lengths[:, None]
    waveforms = torch.where(own, waveforms, 0.0)
    if front_end == "kaldi":
        waveforms = waveforms - (waveforms.sum(1) / lengths)[:, None]
    frames = waveforms.unfold(1, FRAME_SAMPLES, HOP_SAMPLES)
    if front_end == "kaldi":
        frames = frames - frames.mean(-1, keepdim=True)
        frames = frames - _PREEMPHASIS * torch.cat([frames[..., :1], frames[..., :-1]], -1)
    spectrum = torch.fft.rfft(frames * _window(front_end, device), _FFT_SAMPLES[front_end])
    power = spectrum.real.square() + spectrum.imag.square()
    mel = power @ mel_bank(front_end, num_mel_bins, device)
    log_mel = (mel.clamp_min(_POWER_FLOOR) if front_end == "kaldi" else mel + _POWER_FLOOR).log()
    own_frames = torch.arange(log_mel.shape[1], device=device) < _frames_of(lengths)[:, None]
    return torch.where(own_frames[..., None], log_mel, 0.0)


def _frames_of(lengths: Tensor) -> Tensor:
    return 1 + (lengths - FRAME_SAMPLES).div(HOP_SAMPLES, rounding_mode="floor")


@lru_cache(maxsize=8)
def _window(front_end: FrontEnd, device: torch.device) -> Tensor:
    periodic = front_end == "slaney"
    with torch.inference_mode(False):
        return torch.hann_window(FRAME_SAMPLES, periodic=periodic, dtype=torch.float64).float().to(device)


@lru_cache(maxsize=8)
def mel_bank(front_end: FrontEnd, num_mel_bins: int, device: torch.device) -> Tensor:
    """Return the triangles [FFT lines, F] of a front end."""
    with torch.inference_mode(False):
        samples = _FFT_SAMPLES[front_end]
        lines = torch.arange(samples // 2 + 1, dtype=torch.float64)[:, None] * (SAMPLING_RATE / samples)
        limits = torch.tensor([_LOWEST_HZ[front_end], _HIGHEST_HZ], dtype=torch.float64)
        low, high = (_kaldi_mel(limits) if front_end == "kaldi" else _slaney_mel(limits)).tolist()
        corners = torch.linspace(low, high, num_mel_bins + 2, dtype=torch.float64)
        height = torch.ones(num_mel_bins, dtype=torch.float64)
        if front_end == "kaldi":  # triangles in mel, all of height 1
            lines = _kaldi_mel(lines)
        else:  # triangles in hertz, all of area 1
            corners = _slaney_hertz(corners)
            height = 2.0 / (corners[2:] - corners[:-2])
        left, centre, right = corners[:-2], corners[1:-1], corners[2:]
        rising, falling = (lines - left) / (centre - left), (right - lines) / (right - centre)
        return (torch.minimum(rising, falling).clamp_min(0.0) * height).float().to(device)


def _kaldi_mel(hertz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hertz / 700.0)


def _slaney_mel(hertz: Tensor) -> Tensor:
    above = _LINEAR_MEL + (hertz / _LINEAR_HZ).clamp_min(1.0).log() / _LOG_STEP
    return torch.where(hertz < _LINEAR_HZ, hertz * (_LINEAR_MEL / _LINEAR_HZ), above)


def _slaney_hertz(mel: Tensor) -> Tensor:
    above = _LINEAR_HZ * ((mel - _LINEAR_MEL) * _LOG_STEP).exp()
    return torch.where(mel < _LINEAR_MEL, mel * (_LINEAR_HZ / _LINEAR_MEL), above)


@lru_cache(maxsize=8)
def white_noise_log_mel(front_end: FrontEnd, num_mel_bins: int, device: torch.device) -> Tensor:
    """Return the log of the mean mel power [F] that white noise of unit variance has in a front end."""
    with torch.inference_mode(False):
        samples, window = _FFT_SAMPLES[front_end], _window(front_end, device)
        power = window.square().sum().expand(samples // 2 + 1)
        if front_end == "kaldi":  # after pre-emphasis neighbouring samples are alike
            angle = torch.arange(samples // 2 + 1, device=device) * (2.0 * math.pi / samples)
            next_to = (window[1:] * window[:-1]).sum()
            power = (1.0 + _PREEMPHASIS**2) * power - 2.0 * _PREEMPHASIS * next_to * angle.cos()
        return (power @ mel_bank(front_end, num_mel_bins, device)).clamp_min(_POWER_FLOOR).log()
