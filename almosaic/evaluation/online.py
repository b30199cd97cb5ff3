"""kNN accuracy of an encoder that is still being trained: labelled clips are read and transformed once."""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from almosaic.audio import load_audio
from almosaic.data import draws
from almosaic.data.collate import pad_waveforms
from almosaic.data.manifest import read_manifest
from almosaic.errors import AlmosaicError
from almosaic.evaluation.knn import neighbours
from almosaic.scenes.bank import Bank

BATCH = 32


class LabelledClip(NamedTuple):
    """One clip with its one label, its split or fold, and how to read it: [S] at 16 kHz."""

    label: str
    part: str
    read: Callable[[], NDArray[np.float32]]


def bank_clips(banks: Mapping[str, Bank]) -> list[LabelledClip]:
    """The clips of several banks; each bank is the part of its name."""
    return [
        LabelledClip(clip.label, part, partial(bank.waveform, clip))
        for part, bank in banks.items()
        for clip in bank.clips
    ]


def manifest_clips(
    manifest: Path, column: Literal["split", "fold"], parts: Collection[str]
) -> list[LabelledClip]:
    """The rows of a manifest in some of its splits or folds; AlmosaicError where one has not one label."""
    clips = []
    for row in read_manifest(manifest):
        part = getattr(row, column)
        if part not in parts:
            continue
        if len(row.labels) != 1:
            raise AlmosaicError(
                f"monitor: expected one label per clip of {manifest}, found {len(row.labels)} for "
                f"{row.id!r}; name other parts"
            )
        clips.append(LabelledClip(row.labels[0], part, partial(load_audio, row.path)))
    return clips


class OnlineKnn:
    """Called with an encoder and its front end, gives `knn_accuracy`; draws nothing and changes nothing.

    The log-mel windows of all clips stay in memory as float16 (262 kB per ten seconds) after the first call.

    Args:
        clips: of all parts; others than those named are left out.
        train: parts in which neighbours are looked for.
        test: parts whose labels are guessed.
        limit: at most so many clips of each, labels taken in turn.
        k: how many neighbours vote.
        seed: of the choice of clips.

    Raises:
        AlmosaicError: a part has no clips, is named twice, or has a label to guess that no neighbour has.
    """

    def __init__(
        self,
        clips: Sequence[LabelledClip],
        *,
        train: Collection[str],
        test: Collection[str],
        limit: int,
        k: int,
        seed: int,
    ) -> None:
        sides = []
        for names in (train, test):
            missing = sorted(set(names) - {clip.part for clip in clips})
            if missing:
                raise AlmosaicError(f"monitor: expected labelled clips of {missing[0]!r}, found none")
            own = [clip for clip in clips if clip.part in names]
            sides.append(_in_turn(own, limit, draws.key(seed, "monitor", *sorted(names))))
        known, asked = ({clip.label for clip in side} for side in sides)
        if set(train) & set(test):
            raise AlmosaicError(
                f"monitor: {sorted(set(train) & set(test))[0]!r} is in both train and test; name other parts"
            )
        if asked - known:
            raise AlmosaicError(
                f"monitor: expected neighbours of every label, found none of {sorted(asked - known)[0]!r} "
                f"among {len(sides[0])} clips of {', '.join(train)}; name other parts or raise `clips`"
            )
        self.k, self.split, self.clips = k, len(sides[0]), [*sides[0], *sides[1]]
        classes, index = np.unique([clip.label for clip in self.clips], return_inverse=True)
        self.targets = np.eye(len(classes), dtype=np.bool_)[index]
        self.windows: list[Tensor] = []
        self.masks: list[Tensor] = []

    def __call__(self, encoder: Any, extractor: Any) -> dict[str, float]:
        """Share of the test clips whose label wins the vote; the encoder's mode is left as found."""
        if not self.windows:
            self._transform(extractor, encoder.device)
        training = encoder.training
        encoder.eval()
        vectors = self._vectors(encoder)
        encoder.train(training)
        known, asked = vectors[: self.split], vectors[self.split :]
        votes = neighbours(self.k)(known, self.targets[: self.split], asked)
        right = self.targets[self.split :][np.arange(len(asked)), votes.argmax(axis=1)]
        return {"knn_accuracy": float(right.mean())}

    def _transform(self, extractor: Any, device: torch.device) -> None:
        """Windows [W, T, F] and masks [W, T] of every clip, on the host."""
        for start in tqdm(range(0, len(self.clips), BATCH), desc="monitor", unit="batch", leave=False):
            waveforms = [clip.read() for clip in self.clips[start : start + BATCH]]
            padded, lengths = pad_waveforms(waveforms)
            windows, mask, counts = extractor.featurize(padded.to(device), lengths.to(device))
            self.windows += windows.half().cpu().split(counts.tolist())
            self.masks += mask.cpu().split(counts.tolist())

    @torch.no_grad()
    def _vectors(self, encoder: Any) -> NDArray[np.float32]:
        """The pooled output of each clip, mean over its windows: [n, D]."""
        vectors = []
        for start in range(0, len(self.windows), BATCH):
            windows, masks = self.windows[start : start + BATCH], self.masks[start : start + BATCH]
            features = torch.cat(windows).to(encoder.device).float()
            output = encoder(features, input_features_mask=torch.cat(masks).to(encoder.device))
            clips = output.pooler_output.float().split([len(own) for own in windows])
            vectors += [clip.mean(dim=0) for clip in clips]
        return torch.stack(vectors).cpu().numpy()


def _in_turn(clips: Sequence[LabelledClip], limit: int, seed: int) -> list[LabelledClip]:
    """At most `limit` of the clips: one of each label, then a second one, and so on, which ones is drawn."""
    if len(clips) <= limit:
        return list(clips)
    order = draws.generator(seed, "order").permutation(len(clips))
    turns: dict[str, int] = defaultdict(int)
    ranked = []
    for place in order.tolist():
        label = clips[place].label
        ranked.append((turns[label], place))
        turns[label] += 1
    return [clips[place] for _, place in sorted(ranked, key=lambda entry: entry[0])[:limit]]
