"""Log-mels of all clips in memory, computed once: cheap pretraining on a few thousand clips."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from almosaic.data.clips import BadClips, ClipSource
from almosaic.data.collate import WaveformCollator
from almosaic.data.datasets import PretrainDataset
from almosaic.features import AudioMosaicFeatureExtractor

MEASURED_CLIPS = 500


class LogMelPool:
    """The un-normalised log-mels of a source as of epoch 0, float16; a bad clip is replaced by the next.

    Args:
        log_mels: of each clip.
        clips: their numbers in the source; None = all in order.
    """

    def __init__(self, log_mels: list[Tensor], clips: Sequence[int] | None = None) -> None:
        self.log_mels = log_mels
        self.clips = range(len(log_mels)) if clips is None else clips

    @classmethod
    def build(
        cls, source: ClipSource, bad: BadClips, extractor: AudioMosaicFeatureExtractor, workers: int = 0
    ) -> "LogMelPool":
        """Read every clip once and transform it as the extractor does before it cuts and normalises.

        Raises:
            AlmosaicError: too many clips cannot be used.
        """
        log_mels: list[Tensor] = []
        clips: list[int] = []
        with tqdm(total=len(source), desc="log-mels", unit="clip") as bar:
            for numbers, log_mel, frames in _log_mels(source, range(len(source)), bad, extractor, workers):
                clips += numbers
                log_mels += [
                    clip[:length].half() for clip, length in zip(log_mel, frames.tolist(), strict=True)
                ]
                bar.update(len(frames))
        return cls(log_mels, clips)

    def __len__(self) -> int:
        return len(self.log_mels)

    def take(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Log-mels [B, T', F], float32 with 0.0 beyond a clip's own frames, and the frames [B]."""
        chosen = [self.log_mels[index] for index in indices]
        return pad_sequence(chosen, batch_first=True).float(), torch.tensor([len(clip) for clip in chosen])


class PoolDataset(Dataset[int]):
    """The clips of a pool by number; the trainer takes the log-mels themselves on its device."""

    def __init__(self, pool: LogMelPool) -> None:
        self.clips = len(pool)

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> int:
        return index

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on the epoch before augmentation."""


def collate_pool(rows: list[int]) -> dict[str, Any]:
    """Clip numbers -> `clip_index` [B]."""
    return {"clip_index": torch.tensor(rows), "bad_clips": []}


def measure_statistics(
    source: ClipSource,
    bad: BadClips,
    extractor: AudioMosaicFeatureExtractor,
    pool: LogMelPool | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of the log-mel over the real frames of up to 500 evenly spaced clips."""
    step = -(-len(source) // MEASURED_CLIPS)
    chosen = range(0, len(source), step)
    totals = torch.zeros(3, dtype=torch.float64)
    if pool is None:
        batches = ((log_mel, frames) for _, log_mel, frames in _log_mels(source, chosen, bad, extractor, 0))
    else:
        batches = (pool.take([index]) for index in chosen)
    for log_mel, frames in batches:
        own = torch.arange(log_mel.shape[1]) < frames[:, None]
        values = log_mel[own].double()
        totals += torch.stack([torch.tensor(float(values.numel())), values.sum(), values.square().sum()])
    count, total, squares = totals.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 1e-12) ** 0.5


def _log_mels(
    source: ClipSource,
    indices: Sequence[int],
    bad: BadClips,
    extractor: AudioMosaicFeatureExtractor,
    workers: int,
) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Numbers, log-mels [B, T', F] and frames [B] of the chosen clips, a few at a time."""
    rows = Subset(PretrainDataset(source, bad.attempts), list(indices))
    for batch in DataLoader(rows, batch_size=16, collate_fn=WaveformCollator(), num_workers=workers):
        bad.note(batch["bad_clips"])
        yield batch["clip_index"].tolist(), *extractor.log_mel(batch["waveforms"], batch["lengths"])
