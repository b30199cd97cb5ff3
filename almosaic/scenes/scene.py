"""The record of a scene: what sounds where. Audio, captions and answers are computed from it alone."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from pydantic import Field

from almosaic.errors import AlmosaicError
from almosaic.settings import Settings

RECIPE_VERSION = 1  # part of every draw: raise it when the same key gives another scene

Template = Literal[
    "presence",
    "first",
    "before",
    "next",
    "count",
    "distinct",
    "louder",
    "longer",
    "overlap",
    "half",
    "choice",
]
TEMPLATES: tuple[Template, ...] = get_args(Template)
LOUDER_DB = 9.0  # one of two sounds is called the louder from this difference of levels on
LONGER_RATIO = 2.0  # one of two sounds is called the longer from this ratio of lengths on


class SceneSettings(Settings):
    """How scenes are laid out; lengths in seconds, levels in dBFS."""

    duration_seconds: float = Field(default=10.0, ge=3.0, le=60.0)
    templates: tuple[Template, ...] = Field(default=TEMPLATES, min_length=1)
    heldout_label_pairs: bool = True
    level_dbfs: float = -23.0
    level_jitter_db: float = Field(default=3.0, ge=0.0, le=4.0)  # twice this stays below LOUDER_DB
    loudness_gap_db: float = Field(default=12.0, ge=LOUDER_DB)
    noise_dbfs: tuple[float, float] = (-70.0, -55.0)
    margin_seconds: float = 0.3  # free at both ends
    gap_seconds: float = 0.4  # at least this between separate sounds
    max_excerpt_seconds: float = 3.0
    max_long_seconds: float = 4.0
    max_count: int = Field(default=5, ge=2, le=10)
    max_sounds: int = Field(default=4, ge=2, le=6)
    attempts: int = Field(default=25, ge=1)

    def room(self, sounds: int) -> float:
        """Seconds that each of so many separate sounds may last: 2.86 for three in 10 s, 2.05 for four."""
        free = self.duration_seconds - 2 * self.margin_seconds - self.gap_seconds * (sounds - 1)
        return math.floor(round(100 * min(self.max_excerpt_seconds, free / sounds), 6)) / 100

    @property
    def count_limit(self) -> int:
        """The highest number of repeats that leaves each 0.6 s."""
        return max(n for n in range(2, self.max_count + 1) if n == 2 or self.room(n) >= 0.6)

    @property
    def sounds_limit(self) -> int:
        """The highest number of different sounds that leaves each 0.6 s."""
        return max(n for n in range(2, self.max_sounds + 1) if n == 2 or self.room(n) >= 0.6)

    @property
    def long_seconds(self) -> float:
        """Length of the longer one of two long sounds; 4.0 s of 10, 2.0 s of 5."""
        free = self.duration_seconds - 2 * self.margin_seconds - self.gap_seconds
        return math.floor(round(100 * min(self.max_long_seconds, free / 2), 6)) / 100

    @property
    def short_seconds(self) -> float:
        """Length of the shorter one of two long sounds; 1.5 s of 10."""
        return round(0.375 * self.long_seconds, 3)


@dataclass(frozen=True, slots=True)
class Event:
    """One sound in a scene: which part of which clip, when (seconds), and how it is scaled (dB)."""

    label: str
    clip_id: str
    source_start: float
    source_end: float
    onset: float
    duration: float
    gain_db: float
    level_dbfs: float

    @property
    def end(self) -> float:
        """When it stops, in seconds."""
        return self.onset + self.duration


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene before it is audio; `template` is the question it was laid out for, `seed` draws its noise."""

    scene_id: str
    template: str
    seed: int
    recipe_version: int
    bank_fingerprint: str
    duration_seconds: float
    noise_dbfs: float
    gain_db: float
    events: tuple[Event, ...]
    relations: dict[str, Any] = field(hash=False)

    @property
    def labels(self) -> tuple[str, ...]:
        """Each label once, in the order of its first onset."""
        return tuple(self.relations["counts"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` gives the same scene back exactly."""
        return {**asdict(self), "events": [asdict(event) for event in self.events]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Scene":
        """Read what `to_dict` wrote.

        Raises:
            AlmosaicError: a field is missing or unknown.
        """
        try:
            return cls(**{**values, "events": tuple(Event(**event) for event in values["events"])})
        except (KeyError, TypeError) as error:
            raise AlmosaicError(f"expected the record of a scene, found other fields: {error}") from error


def relations(events: Sequence[Event]) -> dict[str, Any]:
    """What can be asked about the events: order, overlaps, counts, the louder and the longer of two."""
    ordered = sorted(events, key=lambda event: (event.onset, event.label))
    counts: dict[str, int] = {}
    for event in ordered:
        counts[event.label] = counts.get(event.label, 0) + 1
    overlaps: list[list[str]] = []
    for place, event in enumerate(ordered):
        for later in ordered[place + 1 :]:
            if later.onset < event.end and later.label != event.label:
                pair = sorted((event.label, later.label))
                overlaps.extend([pair] if pair not in overlaps else [])
    return {
        "order": [event.label for event in ordered],
        "overlaps": overlaps,
        "counts": counts,
        "louder": _louder(ordered),
        "longer": _longer(ordered),
    }


def _louder(events: Sequence[Event]) -> str | None:
    if len(events) != 2 or events[0].label == events[1].label:
        return None
    quiet, loud = sorted(events, key=lambda event: event.level_dbfs)
    return loud.label if loud.level_dbfs - quiet.level_dbfs >= LOUDER_DB else None


def _longer(events: Sequence[Event]) -> str | None:
    if len(events) != 2 or events[0].label == events[1].label:
        return None
    short, long = sorted(events, key=lambda event: event.duration)
    return long.label if long.duration >= LONGER_RATIO * short.duration else None
