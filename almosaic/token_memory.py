"""Patch tokens of clips that were heard already: however often asked about, a clip is encoded once."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor, frames_of

WINDOWS_AT_ONCE = 64
"""How many windows the front end and the encoder see together: long clips bring many."""


class TokenMemory:
    """Patch tokens [W, Tp, Fp, D] of the clips heard last, found again by their samples.

    Pass one to `generate` and `stream` to remember across calls. It belongs to one model: call `clear()` when
    the weights of its encoder change.

    Args:
        model: an `AlmosaicForConditionalGeneration`.
        processor: its processor.
        limit: windows to keep, those used longest ago go first; 0 keeps nothing. A window of the base encoder
            (10.24 s) takes 1.5 MiB on the model's device.
    """

    def __init__(self, model: Any, processor: Any, limit: int = 64) -> None:
        if limit < 0:
            raise AlmosaicError(f"a token memory keeps 0 windows or more, found limit={limit}")
        self.model = model
        self.processor = processor
        self.limit = limit
        self.windows = 0
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()
        self._lock = Lock()

    def tokens(self, waveforms: Sequence[NDArray[np.float32]]) -> list[Tensor]:
        """Patch tokens [W, Tp, Fp, D] of each clip [S] at 16 kHz; equal clips are encoded once."""
        clips = [(_key(waveform), waveform) for waveform in waveforms]
        with self._lock:
            found = {key: self._kept[key] for key, _ in clips if key in self._kept}
            missing = {key: waveform for key, waveform in clips if key not in found}
            found |= zip(missing, self._encode(list(missing.values())), strict=True)
            for key, tokens in found.items():
                self._keep(key, tokens)
        return [found[key] for key, _ in clips]

    def inputs(self, rows: Sequence[Sequence[NDArray[np.float32]]]) -> dict[str, Tensor]:
        """`audio_features`, `audio_windows`, `audio_clips` for the clips of each row; empty without clips."""
        tokens = self.tokens([waveform for own in rows for waveform in own])
        if not tokens:
            return {}
        return {
            "audio_features": torch.cat(tokens),
            "audio_windows": torch.tensor([len(clip) for clip in tokens]),
            "audio_clips": torch.tensor([len(own) for own in rows]),
        }

    def clear(self) -> None:
        """Forget every clip."""
        with self._lock:
            self._kept.clear()
            self.windows = 0

    def _keep(self, key: bytes, tokens: Tensor) -> None:
        if key in self._kept:
            self._kept.move_to_end(key)
        elif len(tokens) <= self.limit:
            self._kept[key] = tokens
            self.windows += len(tokens)
        while self.windows > self.limit:
            _, oldest = self._kept.popitem(last=False)
            self.windows -= len(oldest)

    @torch.no_grad()
    def _encode(self, waveforms: list[NDArray[np.float32]]) -> list[Tensor]:
        """Patch tokens of each clip, a bounded number of windows at a time."""
        extractor, model = self.processor.feature_extractor, self.model
        encoded: list[Tensor] = []
        training = model.training
        model.eval()
        try:
            for group in _groups(waveforms, extractor):
                features, mask, windows = featurized(extractor, group, model.device)
                parts = zip(*(torch.split(x, WINDOWS_AT_ONCE) for x in (features, mask)), strict=True)
                tokens = torch.cat([model.get_audio_features(*part).last_hidden_state for part in parts])
                # Copies: a slice would hold the memory of the whole group.
                encoded += [clip.clone() for clip in torch.split(tokens, windows.tolist())]
        finally:
            model.train(training)
        return encoded


def _key(waveform: NDArray[np.float32]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(waveform).data, digest_size=16).digest()


def _groups(
    waveforms: list[NDArray[np.float32]], extractor: AudioMosaicFeatureExtractor
) -> Iterator[list[NDArray[np.float32]]]:
    """Neighbouring clips that stay within `WINDOWS_AT_ONCE` when padded to the longest of them."""
    group: list[NDArray[np.float32]] = []
    longest = 0
    for waveform in waveforms:
        windows = max(longest, extractor.windows(frames_of(len(waveform))))
        if group and windows * (len(group) + 1) > WINDOWS_AT_ONCE:
            yield group
            group, windows = [], extractor.windows(frames_of(len(waveform)))
        group.append(waveform)
        longest = windows
    if group:
        yield group


def featurized(
    extractor: AudioMosaicFeatureExtractor, waveforms: list[NDArray[np.float32]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised windows, their mask and their number per clip, computed on `device`."""
    clips = [torch.from_numpy(waveform) for waveform in waveforms]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).to(device)
    return extractor.featurize(padded, torch.tensor([len(clip) for clip in clips], device=device))
