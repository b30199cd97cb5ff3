"""Labelled clips for probes: named sets from manifests, or the sounds of a recipe."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from almosaic.audio import load_audio
from almosaic.data.clips import FileClips
from almosaic.data.manifest import ManifestRow, read_manifest
from almosaic.errors import AlmosaicError, AudioError
from almosaic.evaluation.splits import Label, Labels, Round, rounds
from almosaic.scenes.bank import Bank
from almosaic.settings import Settings


class LabelledSet(Settings):
    """A manifest with labels, and which of its parts are fitted and tested.

    `by` says which column names the parts. With `by: fold` and neither `train` nor `test`, every fold is
    tested against a fit of the others. `clips_per_label` takes only so many clips of each label and part.
    """

    manifest: Path
    by: Literal["split", "fold"] = "split"
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    clips_per_label: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "LabelledSet":
        if self.by == "split" and not self.test:
            raise AlmosaicError(
                "name the splits to fit on and to test on, for example train: [train] and test: [dev], "
                "or test each fold against the others with by: fold"
            )
        return self


@dataclass(frozen=True)
class ProbeClips:
    """Labelled clips in order, a `ClipSource`: labels and parts (split or fold) [n], and how to load each."""

    ids: tuple[str, ...]
    labels: tuple[Label, ...]
    parts: tuple[str, ...]
    load: Callable[[int], NDArray[np.float32]]
    clips_key: str
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def waveform(self, index: int, epoch: int = 0) -> NDArray[np.float32]:
        """The clip [S] at 16 kHz; AudioError names one that cannot be used: no score is given without it."""
        try:
            return self.load(index)
        except AudioError as error:
            raise AudioError(f"clip {self.ids[index]!r} cannot be used: {error}") from error

    def fingerprint(self) -> str:
        """A hash of the audio, in order; labels and parts are no part of it."""
        return self.clips_key

    def rounds(self) -> tuple[Labels, list[Round]]:
        """The targets, and which rows are fitted and tested; AlmosaicError as `splits.rounds`."""
        labels = Labels.of(self.labels)
        return labels, rounds(labels, self.parts, self.train, self.test)

    @classmethod
    def from_banks(
        cls, banks: Mapping[str, Bank], train: Sequence[str] = (), test: Sequence[str] = ()
    ) -> "ProbeClips":
        """The clips of several banks; each bank is the part of its name."""
        clips = [(part, bank, clip) for part, bank in banks.items() for clip in bank.clips]
        digest = hashlib.sha256(repr([(part, bank.fingerprint()) for part, bank in banks.items()]).encode())
        return cls(
            ids=tuple(clip.id for _, _, clip in clips),
            labels=tuple(clip.label for _, _, clip in clips),
            parts=tuple(part for part, _, _ in clips),
            load=lambda index: clips[index][1].waveform(clips[index][2]),
            clips_key=digest.hexdigest(),
            train=tuple(train),
            test=tuple(test),
        )

    @classmethod
    def from_set(cls, name: str, settings: LabelledSet) -> "ProbeClips":
        """The rows of a manifest that a set uses.

        Raises:
            AlmosaicError: a used row without labels or part, a part that no row has, or nothing to use.
        """
        rows = _used(name, read_manifest(settings.manifest), settings)
        for row in rows:
            if not row.labels:
                raise AlmosaicError(
                    f"{name}: clip {row.id!r} of {settings.manifest} has no labels; a probe needs one"
                )
        return cls(
            ids=tuple(row.id for row in rows),
            labels=tuple(row.labels for row in rows),
            parts=tuple(str(getattr(row, settings.by)) for row in rows),
            load=lambda index: load_audio(rows[index].path),
            clips_key=FileClips([row.path for row in rows]).fingerprint(),
            train=settings.train,
            test=settings.test,
        )


def _used(name: str, rows: Sequence[ManifestRow], settings: LabelledSet) -> list[ManifestRow]:
    """The rows of the parts that are fitted or tested."""
    there = Counter(getattr(row, settings.by) for row in rows)
    found = sorted(str(part) for part in there if part is not None)
    for part in (*settings.train, *settings.test):
        if part not in found:
            raise AlmosaicError(
                f"{name}: {settings.manifest} has no {settings.by} {part!r}, only "
                f"{', '.join(found) or 'rows without one'}; choose among these"
            )
    wanted: Collection[str] = {*settings.train, *settings.test}
    if not (settings.train and settings.test):  # the others of the two are what is not named
        wanted = found
    used = [row for row in rows if getattr(row, settings.by) in wanted]
    if not used:
        raise AlmosaicError(f"{name}: no row of {settings.manifest} has a {settings.by}; choose another `by`")
    if settings.clips_per_label is None:
        return used
    taken: Counter[tuple[str, str]] = Counter()
    kept = []
    for row in used:
        own = [(getattr(row, settings.by), label) for label in row.labels]
        if any(taken[pair] < settings.clips_per_label for pair in own):
            taken.update(own)
            kept.append(row)
    return kept
