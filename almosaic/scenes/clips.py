"""Labelled clips, the phrases of their classes, and a bounded cache of their waveforms."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE
from almosaic.errors import AlmosaicError

CACHE_BYTES = 512 << 20  # holds the waveforms of 1,600 five-second clips
REGION_TOLERANCE_SECONDS = 0.05
EVENT_SECONDS = (0.08, 1.2)  # the length of a short event

Span = tuple[float, float]
Use = Literal["any", "event", "long"]


@dataclass(frozen=True, slots=True)
class SoundClass:
    """A kind of sound and its phrases; `answer` is the name a model is expected to say."""

    label: str
    group: str
    kind: Literal["event", "texture"]
    noun_phrase: str
    clause: str
    answer: str
    aliases: tuple[str, ...] = ()
    confusable_with: tuple[str, ...] = ()
    countable: bool = False
    background_prone: bool = False

    @property
    def phrases(self) -> tuple[str, ...]:
        """Every wording that names this class."""
        return (self.answer, self.noun_phrase, self.clause, self.label.replace("_", " "), *self.aliases)


@dataclass(frozen=True, slots=True)
class BankClip:
    """One clip: where its sound is (`regions`) and which regions are a single countable event (`events`)."""

    id: str
    label: str
    split: str
    fold: str | None
    audio: str
    regions: tuple[Span, ...]
    events: tuple[Span, ...] = ()


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of a clip to cut from; a sliding one may be cut anywhere inside, others from their start."""

    clip: BankClip
    start: float
    end: float
    sliding: bool


def is_heldout(first: str, second: str) -> bool:
    """One pair of labels in five is kept out of training, the same on every machine."""
    return crc32("|".join(sorted((first, second))).encode()) % 5 == 0


class Bank:
    """Clips by label, what can be cut from them, and their waveforms [S] at 16 kHz."""

    def __init__(
        self,
        classes: Mapping[str, SoundClass],
        clips: Iterable[BankClip],
        load: Callable[[BankClip], NDArray[np.float32]],
    ):
        self.clips = tuple(sorted(clips, key=lambda clip: clip.id))
        if not self.clips:
            raise AlmosaicError("expected a bank with at least one clip, found none; check its splits")
        unknown = sorted({clip.label for clip in self.clips} - set(classes))
        if unknown:
            clip = next(clip for clip in self.clips if clip.label == unknown[0])
            raise AlmosaicError(
                f"clip {clip.id!r}: label {clip.label!r} has no class; add it to the classes "
                f"({len(unknown)} such labels)"
            )
        present = {clip.label for clip in self.clips}
        self.classes = {label: classes[label] for label in sorted(present)}
        self.labels = tuple(self.classes)
        self.by_id = {clip.id: clip for clip in self.clips}
        self.label_of_phrase = _label_of_phrase(self.classes.values())
        # Beside which labels a label can be claimed to be absent: other groups, nothing easily taken for it.
        self.apart = {label: self._apart_from(label) for label in self.labels}
        self.apart_in_training = {
            label: frozenset(other for other in others if not is_heldout(label, other))
            for label, others in self.apart.items()
        }
        self._load = load
        self._cache: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._cached_bytes = 0
        self._excerpts: dict[tuple[Use, float], dict[str, tuple[Excerpt, ...]]] = {}
        self._fingerprint = ""

    def __len__(self) -> int:
        return len(self.clips)

    def __getstate__(self) -> dict[str, Any]:
        """Without the waveforms: loader processes fill a cache of their own."""
        return {**self.__dict__, "_cache": OrderedDict(), "_cached_bytes": 0}

    def waveform(self, clip: BankClip) -> NDArray[np.float32]:
        """The whole clip, [S] float32 at 16 kHz; do not write to it."""
        if clip.id in self._cache:
            self._cache.move_to_end(clip.id)
            return self._cache[clip.id]
        audio = self._load(clip)
        seconds = len(audio) / SAMPLING_RATE
        if clip.regions[-1][1] > seconds + REGION_TOLERANCE_SECONDS:
            raise AlmosaicError(
                f"clip {clip.id!r}: regions end at {clip.regions[-1][1]:g} s, the audio at {seconds:g} s; "
                "measure the regions again"
            )
        self._cache[clip.id] = audio
        self._cached_bytes += audio.nbytes
        while self._cached_bytes > CACHE_BYTES and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
        return audio

    def confusable(self, label: str, other: str) -> bool:
        """Whether one of the two is listed as easily taken for the other."""
        return label in self.classes[other].confusable_with or other in self.classes[label].confusable_with

    def _apart_from(self, label: str) -> frozenset[str]:
        kind = self.classes[label]
        return frozenset(
            other
            for other in self.labels
            if not kind.background_prone
            and kind.group != self.classes[other].group
            and not self.confusable(label, other)
        )

    def subset(self, split: str | None = None, folds: Collection[str | int] | None = None) -> "Bank":
        """The clips of one split and / or of some folds.

        Raises:
            AlmosaicError: no clip is left.
        """
        wanted = None if folds is None else {str(fold) for fold in folds}
        clips = [
            clip
            for clip in self.clips
            if (split is None or clip.split == split) and (wanted is None or clip.fold in wanted)
        ]
        return Bank(self.classes, clips, self._load)

    def excerpts(self, use: Use, seconds: float = 0.0) -> dict[str, tuple[Excerpt, ...]]:
        """What can be cut, by label: any sound, single countable events, or sounds of at least `seconds`."""
        if (use, seconds) not in self._excerpts:
            found: dict[str, list[Excerpt]] = {}
            for clip in self.clips:
                cuts = _cuts(clip, self.classes[clip.label], use, seconds)
                if cuts:
                    found.setdefault(clip.label, []).extend(cuts)
            self._excerpts[use, seconds] = {label: tuple(found[label]) for label in sorted(found)}
        return self._excerpts[use, seconds]

    def fingerprint(self) -> str:
        """SHA-256 of what the bank holds, in hex: the same wherever its files lie."""
        if not self._fingerprint:
            digest = hashlib.sha256()
            clips = (replace(clip, audio="") for clip in self.clips)
            for item in (*self.classes.values(), *clips):
                digest.update(repr(item).encode() + b"\n")
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def _cuts(clip: BankClip, kind: SoundClass, use: Use, seconds: float) -> list[Excerpt]:
    texture = kind.kind == "texture"
    if use == "event":
        return [Excerpt(clip, start, end, sliding=False) for start, end in clip.events]
    if use == "long":
        long = [span for span in clip.regions if texture and span[1] - span[0] >= seconds]
        return [Excerpt(clip, start, end, sliding=True) for start, end in long]
    return [Excerpt(clip, clip.regions[0][0], clip.regions[-1][1], sliding=texture)]


def _label_of_phrase(classes: Iterable[SoundClass]) -> dict[str, str]:
    """Phrase to label; a phrase of two classes would make a wrong answer right."""
    owner: dict[str, str] = {}
    for kind in classes:
        for phrase in kind.phrases:
            other = owner.setdefault(phrase.lower(), kind.label)
            if other != kind.label:
                raise AlmosaicError(
                    f"expected every phrase to name one class, found {phrase!r} for {other!r} and "
                    f"{kind.label!r}; remove it from one of them"
                )
    return owner
