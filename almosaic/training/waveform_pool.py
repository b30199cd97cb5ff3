"""Decoded clips of a classifier: as long as training needs them, and all of them kept in memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from tqdm import tqdm

from almosaic.audio import load_audio
from almosaic.data.clips import BadClips, ClipSource, ManifestClips
from almosaic.data.datasets import PretrainDataset, bad_rows
from almosaic.data.manifest import ManifestRow
from almosaic.errors import AudioError
from almosaic.features import FRAME_SAMPLES, HOP_SAMPLES, SAMPLING_RATE, AudioMosaicFeatureExtractor


class WindowClips(ManifestClips):
    """One window of every clip: its start, or a crop drawn by (seed, epoch, clip); no more is decoded.

    Clips are also cut and padded as the front end's `max_samples` and `min_samples` say.
    """

    def __init__(
        self, rows: Sequence[ManifestRow], extractor: AudioMosaicFeatureExtractor, crop_seed: int | None
    ) -> None:
        window = FRAME_SAMPLES + (extractor.window_frames - 1) * HOP_SAMPLES
        self.samples = min(window, extractor.max_samples or window)
        self.least = extractor.min_samples
        self.crop_seed = crop_seed
        super().__init__(rows, self.samples / SAMPLING_RATE, crop_seed or 0)

    def waveform(self, index: int, epoch: int) -> NDArray[np.float32]:
        """The window [S]."""
        if self.crop_seed is not None:
            waveform = super().waveform(index, epoch)
        else:
            waveform = load_audio(self.paths[index], duration_seconds=self.crop_seconds)
        waveform = waveform[: self.samples]
        return np.pad(waveform, (0, max(0, self.least - len(waveform))))


class WaveformPool:
    """All clips of a source as of epoch 0, in memory; 16,000 x 4 bytes for every second of sound."""

    def __init__(self, source: ClipSource, bad: BadClips, workers: int = 0) -> None:
        self.name = source.fingerprint()
        self.waveforms: list[NDArray[np.float32] | None] = []
        loader = DataLoader(
            PretrainDataset(source), batch_size=16, collate_fn=lambda rows: rows, num_workers=workers
        )
        with tqdm(total=len(source), desc="decoding", unit="clip") as bar:
            for rows in loader:
                bad.note(bad_rows(rows))
                self.waveforms += [row["waveform"] for row in rows]
                bar.update(len(rows))
        self.reasons = dict(bad.reasons)

    def __len__(self) -> int:
        return len(self.waveforms)

    def waveform(self, index: int, epoch: int) -> NDArray[np.float32]:
        """The clip; AudioError where it could not be decoded."""
        found = self.waveforms[index]
        if found is None:
            raise AudioError(self.reasons[index])
        return found

    def fingerprint(self) -> str:
        """The source's."""
        return self.name
