"""From waveforms to normalised log-mel windows, batched, on any device: front ends of published models."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional
from transformers import BatchFeature, SequenceFeatureExtractor

from almosaic.audio import load_named
from almosaic.errors import AlmosaicError, AudioError
from almosaic.log_mel import (
    FRAME_SAMPLES,
    HOP_SAMPLES,
    NUM_MEL_BINS,
    SAMPLING_RATE,
    FrontEnd,
    frames_of,
    log_mel_fbank,
)
from almosaic.settings import Settings

__all__ = [
    "FRAME_SAMPLES",
    "FRONT_END_PRESETS",
    "HOP_SAMPLES",
    "SAMPLING_RATE",
    "AudioMosaicFeatureExtractor",
    "FrontEndPreset",
    "FrontEndSettings",
    "frames_of",
    "log_mel_fbank",
]

LongClips = Literal["windows", "first", "centre"]
Padding = Literal["log_mel", "normalised"]


class FrontEndPreset(NamedTuple):
    """Windows and log-mel statistics of one corpus, as a published model was trained on it."""

    window_frames: int
    mean: float
    std: float
    std_factor: float = 2.0
    min_samples: int = 0
    max_samples: int | None = None
    front_end: FrontEnd = "kaldi"
    num_mel_bins: int = NUM_MEL_BINS
    zeros_in: Padding = "log_mel"


# `ltu`: the encoder inside the audio-language model was fed with other statistics and without factor 2.
# `envsdd`: training cut clips to 64,600 samples (4 s), the published evaluation did not: `max_samples: null`.
# `matpac`: another model family (Quelennec et al. 2025), with a filter bank and a padding of its own.
FRONT_END_PRESETS = {
    "audioset": FrontEndPreset(1024, -4.2677393, 4.5689974),
    "esc50": FrontEndPreset(512, -6.6268077, 5.358466),
    "speech_commands": FrontEndPreset(128, -6.845978, 5.5654526),
    "envsdd": FrontEndPreset(1024, -4.2677393, 4.5689974, max_samples=64_600),
    "ltu": FrontEndPreset(1024, -5.081, 4.4849, std_factor=1.0, min_samples=16_000),
    "matpac": FrontEndPreset(
        608, -7.056, 4.193, std_factor=1.0, front_end="slaney", num_mel_bins=80, zeros_in="normalised"
    ),
}


class FrontEndSettings(Settings):
    """Front end of a run; a key that is not given takes the preset's value.

    `std_factor` 2.0 is what AudioMosaic trains with, (x - mean) / (2 std); the preprocessing shipped beside
    the released weights divides by std alone, which `std_factor: 1.0` reproduces.

    Clips of any length: `long_clips` says what becomes of a clip that is longer than a window, `windows` (all
    of it, window by window), `first` (the first window, as the released code) or `centre` (the middle one).
    A clip shorter than a window is padded at its end, with zeros in the log-mel domain (`zeros_in: log_mel`)
    or after normalisation (`normalised`). Before that, `min_samples` pads short waveforms with zeros and
    `max_samples` cuts long ones, both at 16 kHz.
    """

    preset: Literal["audioset", "esc50", "speech_commands", "envsdd", "ltu", "matpac"] = "audioset"
    front_end: FrontEnd | None = None
    num_mel_bins: int | None = Field(default=None, gt=0)
    zeros_in: Padding | None = None
    window_frames: int | None = Field(default=None, gt=0)
    mean: float | None = None
    std: float | None = Field(default=None, gt=0)
    std_factor: float | None = Field(default=None, gt=0)
    long_clips: LongClips = "windows"
    min_samples: int | None = Field(default=None, ge=0)
    max_samples: int | None = Field(default=None, ge=FRAME_SAMPLES)


class AudioMosaicFeatureExtractor(SequenceFeatureExtractor):  # type: ignore[misc]
    """Cut log-mel spectrograms into windows of `window_frames` frames and normalise them.

    The log-mel is computed once per clip and cut every `window_frames` frames; only the last window of a
    clip is padded, with 0.0 before normalisation as AudioMosaic was trained, or after it. Nothing is thrown
    away unless `long_clips` or `max_samples` ask for it; `FrontEndSettings` explains them.
    """

    model_input_names = ["input_features", "input_features_mask"]  # noqa: RUF012 (the library's own convention)
    fetch_audio = staticmethod(load_named)

    def __init__(
        self,
        num_mel_bins: int = NUM_MEL_BINS,
        window_frames: int = FRONT_END_PRESETS["audioset"].window_frames,
        mean: float = FRONT_END_PRESETS["audioset"].mean,
        std: float = FRONT_END_PRESETS["audioset"].std,
        std_factor: float = 2.0,
        sampling_rate: int = SAMPLING_RATE,
        long_clips: LongClips = "windows",
        min_samples: int = 0,
        max_samples: int | None = None,
        front_end: FrontEnd = "kaldi",
        zeros_in: Padding = "log_mel",
        **kwargs: Any,
    ) -> None:
        kwargs = {"feature_size": num_mel_bins, "padding_value": 0.0} | kwargs  # a saved file brings its own
        super().__init__(sampling_rate=sampling_rate, **kwargs)
        self.num_mel_bins = num_mel_bins
        self.window_frames = window_frames
        self.mean = mean
        self.std = std
        self.std_factor = std_factor
        self.long_clips = long_clips
        self.min_samples = min_samples
        self.max_samples = max_samples
        self.front_end = front_end
        self.zeros_in = zeros_in
        self._check()

    def _check(self) -> None:
        """AlmosaicError for values that no front end can have."""
        if self.sampling_rate != SAMPLING_RATE:
            raise AlmosaicError(
                f"the front end works at {SAMPLING_RATE} Hz, found sampling_rate={self.sampling_rate}"
            )
        if self.window_frames <= 0 or self.std <= 0 or self.std_factor <= 0:
            raise AlmosaicError(
                "expected window_frames, std and std_factor above zero, "
                f"found {self.window_frames}, {self.std} and {self.std_factor}"
            )
        choices = {"long_clips": LongClips, "front_end": FrontEnd, "zeros_in": Padding}
        for name, allowed in choices.items():
            if (found := getattr(self, name)) not in get_args(allowed):
                raise AlmosaicError(
                    f"expected {name} to be one of {', '.join(get_args(allowed))}, "
                    f"found {found!r}: correct the front end's config"
                )
        most = self.max_samples
        if self.min_samples < 0 or (most is not None and most < max(FRAME_SAMPLES, self.min_samples)):
            raise AlmosaicError(
                f"expected min_samples of 0 or more and max_samples of {FRAME_SAMPLES} or more and not below "
                f"it, found {self.min_samples} and {most}: correct the front end's config"
            )

    @classmethod
    def from_settings(cls, settings: FrontEndSettings) -> "AudioMosaicFeatureExtractor":
        """Build the extractor of a recipe's `front_end`."""
        preset = FRONT_END_PRESETS[settings.preset]._asdict()
        given = settings.model_dump(include=settings.model_fields_set & preset.keys())
        # None stands for the preset's value, but where None itself is a choice: clips are not cut then.
        chosen = {key: value for key, value in given.items() if value is not None or key == "max_samples"}
        return cls(**(preset | chosen), long_clips=settings.long_clips)

    def __call__(
        self,
        waveforms: "NDArray[Any] | Tensor | Sequence[NDArray[Any] | Tensor]",
        sampling_rate: int = SAMPLING_RATE,
        return_tensors: Literal["pt", "np"] = "pt",
    ) -> BatchFeature:
        """Return `input_features` [sum W, T, F], `input_features_mask` [sum W, T] and `audio_windows` [A].

        Args:
            waveforms: one clip [S], a batch [A, S] of equal lengths, or a list of A clips [S]; mono.
            sampling_rate: of the waveforms, in Hz; only 16 kHz is accepted, `load_audio` resamples.
            return_tensors: "pt" or "np".

        Raises:
            AudioError: a clip is shorter than 25 ms or holds non-finite samples.
            AlmosaicError: another sampling rate, or clips that are not one-dimensional.
        """
        if sampling_rate != self.sampling_rate:
            raise AlmosaicError(
                f"expected waveforms at {self.sampling_rate} Hz, found {sampling_rate} Hz; "
                "load_audio((waveform, rate)) resamples"
            )
        if return_tensors not in ("pt", "np"):
            raise AlmosaicError(f"expected return_tensors 'pt' or 'np', found {return_tensors!r}")
        padded, lengths = _pad_clips(waveforms)
        features, mask, audio_windows = self.featurize(padded, lengths)
        named = {"input_features": features, "input_features_mask": mask, "audio_windows": audio_windows}
        if return_tensors == "np":
            return BatchFeature({name: tensor.numpy(force=True) for name, tensor in named.items()})
        return BatchFeature(named)

    def windows(self, frames: int) -> int:
        """Return the windows of a clip of `frames` frames."""
        return -(-frames // self.window_frames) if self.long_clips == "windows" else 1

    def cut(self, log_mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cut and normalise log-mel [B, T', F] with `frames` [B] real frames per clip.

        Returns:
            features [sum W, T, F], mask [sum W, T] (True on real frames), windows [B] of each clip, in order.
        """
        if self.long_clips != "windows":
            log_mel, frames = self._crop(log_mel, frames)
        batch, longest, bins = log_mel.shape
        most = self.windows(longest)
        real = torch.arange(most * self.window_frames, device=log_mel.device) < frames[:, None]
        padded = functional.pad(log_mel, (0, 0, 0, most * self.window_frames - longest))
        padded = torch.where(real[..., None], padded, 0.0)
        normalised = (padded - self.mean) / (self.std * self.std_factor)
        if self.zeros_in == "normalised":
            normalised = torch.where(real[..., None], normalised, 0.0)
        audio_windows = frames.to(torch.int64).add(self.window_frames - 1) // self.window_frames
        used = torch.arange(most, device=log_mel.device) < audio_windows[:, None]
        features = normalised.view(batch, most, self.window_frames, bins)[used]
        return features, real.view(batch, most, self.window_frames)[used], audio_windows

    def _crop(self, log_mel: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Keep one window of each clip: its first, or its middle one."""
        size = min(self.window_frames, log_mel.shape[1])
        start = (frames - size).clamp_min(0) // 2 if self.long_clips == "centre" else frames.new_zeros(1)
        rows = start.expand(len(frames))[:, None] + torch.arange(size, device=log_mel.device)
        kept = log_mel.gather(1, rows[..., None].expand(-1, -1, log_mel.shape[2]))
        return kept, frames.clamp_max(size)

    def featurize(self, waveforms: Tensor, lengths: Tensor | Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `cut` returns, from waveforms [B, S] with `lengths` [B] samples, on their device."""
        return self.cut(*self.log_mel(waveforms, lengths))

    def log_mel(self, waveforms: Tensor, lengths: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what `cut` takes, from waveforms [B, S] with `lengths` [B] samples, on their device."""
        waveforms, lengths = self._of_allowed_length(waveforms, lengths)
        return log_mel_fbank(waveforms, lengths, num_mel_bins=self.num_mel_bins, front_end=self.front_end)

    def _of_allowed_length(self, waveforms: Tensor, lengths: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pad and cut clips as `min_samples` and `max_samples` say."""
        lengths = torch.as_tensor(lengths, device=waveforms.device)
        if waveforms.shape[1] < self.min_samples:
            waveforms = functional.pad(waveforms, (0, self.min_samples - waveforms.shape[1]))
        if self.min_samples and bool((lengths < self.min_samples).any()):
            # What a batch holds behind a clip is not the clip: silence takes its place.
            own = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
            waveforms, lengths = torch.where(own, waveforms, 0.0), lengths.clamp_min(self.min_samples)
        if self.max_samples is not None:
            waveforms, lengths = waveforms[:, : self.max_samples], lengths.clamp_max(self.max_samples)
        return waveforms, lengths


def _pad_clips(waveforms: Any) -> tuple[Tensor, Tensor]:
    """Return float32 [A, S] with zeros at the ends, and the lengths [A]."""
    if isinstance(waveforms, np.ndarray | Tensor) and waveforms.ndim == 1:
        waveforms = [waveforms]
    clips = [torch.as_tensor(clip, dtype=torch.float32) for clip in waveforms]
    for index, clip in enumerate(clips):
        if clip.ndim != 1:
            raise AlmosaicError(
                f"clip {index}: expected one mono waveform [S], found shape {list(clip.shape)}"
            )
        if not torch.isfinite(clip).all():
            raise AudioError(f"clip {index}: holds NaN or infinite samples; drop it")
    if not clips:
        raise AlmosaicError("expected at least one waveform, found none")
    lengths = torch.tensor([len(clip) for clip in clips], device=clips[0].device)
    return torch.nn.utils.rnn.pad_sequence(clips, batch_first=True), lengths
