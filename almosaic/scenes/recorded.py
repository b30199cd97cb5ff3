"""Banks of recordings: a manifest, the phrases of its labels and, where known, its active regions."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from almosaic.audio import audio_duration, load_audio
from almosaic.data.manifest import ManifestRow, read_manifest
from almosaic.errors import AlmosaicError
from almosaic.scenes.clips import EVENT_SECONDS, Bank, BankClip, SoundClass, Span
from almosaic.settings import Settings

MAX_BELOW_DB = 12.0  # a region this far under the loudest frame of its clip is not the sound meant

# Labels whose active region is one event, so that counting regions counts the sound.
COUNTABLE = (
    "bass_drum",
    "can_opening",
    "car_horn",
    "cat",
    "clock_alarm",
    "clock_tick",
    "coughing",
    "dog",
    "glass_breaking",
    "mouse_click",
    "sneezing",
    "snare_drum",
    "water_drops",
)
# A region of these holds several events.
NOT_COUNTABLE = (
    "breathing",
    "chirping_birds",
    "clapping",
    "crying_baby",
    "door_wood_creaks",
    "door_wood_knock",
    "drinking_sipping",
    "fireworks",
    "footsteps",
    "keyboard_typing",
    "laughing",
    "snoring",
)
# Clips of other labels may hold these faintly, so they are never claimed to be absent.
BACKGROUND_PRONE = (
    "breathing",
    "chirping_birds",
    "crickets",
    "engine",
    "footsteps",
    "insects",
    "rain",
    "wind",
)
CLASS_COLUMNS = ("label", "group", "kind", "noun_phrase", "clause", "answer", "aliases", "confusable_with")


class RecordedBank(Settings):
    """A bank of recordings.

    `splits` says which rows belong to a split, by column `fold` or `split`: `{"dev": {"fold": [4]}}`; a split
    that is not named there takes the rows whose column `split` has its name.
    """

    name: Literal["recorded"] = "recorded"
    manifest: Path
    classes: Path
    regions: Path | None = None
    splits: dict[str, dict[Literal["fold", "split"], list[str | int]]] = Field(default_factory=dict)


def open_recorded(settings: RecordedBank, split: str) -> Bank:
    """Read the tables and keep the rows of one split; audio is read when it is asked for.

    Raises:
        AlmosaicError: a file or column is missing, a row has not exactly one label, or no row is left.
    """
    classes = read_classes(settings.classes)
    regions = {} if settings.regions is None else read_regions(settings.regions)
    rows = [row for row in read_manifest(settings.manifest) if _belongs(row, settings, split)]
    if not rows:
        raise AlmosaicError(
            f"{settings.manifest}: no row of split {split!r}; say under `splits` which folds it has"
        )
    return Bank(classes, [_clip(row, split, classes, regions) for row in rows], load_clip)


def read_classes(path: Path) -> dict[str, SoundClass]:
    """Classes by label from a table with the columns label, group, kind, noun_phrase, clause, answer, ...

    Optional columns `countable` and `background_prone` (true / false) replace the lists of this module.
    """
    classes = {}
    for number, row in _table(path, CLASS_COLUMNS):
        label, kind = row["label"], row["kind"]
        if kind not in ("event", "texture"):
            raise AlmosaicError(f"{path}:{number}: column 'kind': expected event or texture, found {kind!r}")
        classes[label] = SoundClass(
            label=label,
            group=row["group"],
            kind="event" if kind == "event" else "texture",
            noun_phrase=row["noun_phrase"],
            clause=row["clause"],
            answer=row["answer"],
            aliases=_words(row["aliases"]),
            confusable_with=_words(row["confusable_with"]),
            countable=_flag(
                row.get("countable"), label in COUNTABLE or (kind == "event" and label not in NOT_COUNTABLE)
            ),
            background_prone=_flag(row.get("background_prone"), label in BACKGROUND_PRONE),
        )
    return classes


def read_regions(path: Path) -> dict[str, list[Span]]:
    """Active regions by file as written, without those far below the loudest of their clip."""
    regions: dict[str, list[Span]] = {}
    for number, row in _table(path, ("file", "start_s", "end_s")):
        try:
            span = (float(row["start_s"]), float(row["end_s"]))
            below = float(row.get("below_clip_max_db") or 0.0)
        except ValueError as error:
            raise AlmosaicError(f"{path}:{number}: expected numbers in start_s and end_s: {error}") from error
        found = regions.setdefault(row["file"], [])
        if below <= MAX_BELOW_DB:
            found.append(span)
    return regions


def _clip(
    row: ManifestRow, split: str, classes: dict[str, SoundClass], regions: dict[str, list[Span]]
) -> BankClip:
    if len(row.labels) != 1 or row.labels[0] not in classes:
        raise AlmosaicError(
            f"clip {row.id!r}: expected exactly one label that the classes know, found {list(row.labels)}"
        )
    label = row.labels[0]
    spans = _regions_of(row, regions) or [_active_span(row)]
    listed = label in COUNTABLE
    events = [
        span
        for span in spans
        if classes[label].countable
        and (listed or len(spans) == 1)
        and EVENT_SECONDS[0] <= span[1] - span[0] <= EVENT_SECONDS[1]
    ]
    return BankClip(
        id=row.id,
        label=label,
        split=split,
        fold=row.fold,
        audio=str(row.path),
        regions=tuple(sorted(spans)),
        events=tuple(sorted(events)),
    )


def _regions_of(row: ManifestRow, regions: dict[str, list[Span]]) -> list[Span]:
    """Found by the path as written, or by the longest end of it that the table knows."""
    parts = row.path.parts
    names = [row.audio, *("/".join(parts[start:]) for start in range(1, len(parts)))]
    return next((regions[name] for name in names if name in regions), [])


def _active_span(row: ManifestRow) -> Span:
    """From the columns `active_start_s` and `active_end_s`, else the whole clip."""
    start, end = row.extra.get("active_start_s"), row.extra.get("active_end_s")
    if start is not None and end is not None and float(end) > float(start):
        return float(start), float(end)
    return 0.0, row.duration_seconds or audio_duration(row.path)


def _belongs(row: ManifestRow, settings: RecordedBank, split: str) -> bool:
    if split not in settings.splits:
        return row.split == split
    wanted = settings.splits[split]
    return all(getattr(row, column) in {str(value) for value in values} for column, values in wanted.items())


def load_clip(clip: BankClip) -> NDArray[np.float32]:
    """Read the clip's file, [S] at 16 kHz."""
    return load_audio(Path(clip.audio))


def _table(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Line numbers and rows of a table that has the given columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AlmosaicError(f"{path}: cannot be read as a table: {error}") from error
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise AlmosaicError(f"{path}: expected a column {missing[0]!r}, found {reader.fieldnames}")
    return rows


def _words(cell: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in cell.split(";") if word.strip())


def _flag(cell: str | None, default: bool) -> bool:
    return default if not cell else cell.lower() in ("true", "1", "yes")
