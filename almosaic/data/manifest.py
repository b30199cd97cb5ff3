"""Manifests: one JSON object per line that names a clip and says what is known about it.

Columns: `id` and `audio` (required; `audio` is relative to the manifest); `split`, `fold`, `labels`,
`captions`, `duration_seconds`, `license`, `attribution` (all optional). Any other column is kept in `extra`.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from almosaic.errors import AlmosaicError, AudioError
from almosaic.files import write_whole

DURATION_TOLERANCE_SECONDS = 0.1  # lossy formats pad a clip by up to two of their frames

_TEXT_COLUMNS = ("split", "license", "attribution")
_LIST_COLUMNS = ("labels", "captions")
_COLUMNS = frozenset({"id", "audio", "fold", "duration_seconds", *_TEXT_COLUMNS, *_LIST_COLUMNS})


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One clip of a manifest; `audio` is the path as written, `path` the same made absolute."""

    id: str
    audio: str
    path: Path
    split: str | None = None
    fold: str | None = None
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    duration_seconds: float | None = None
    license: str | None = None
    attribution: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def read_manifest(path: str | Path) -> list[ManifestRow]:
    """All rows of a manifest; the first bad one raises AlmosaicError with file, line and field."""
    rows: list[ManifestRow] = []
    seen: dict[str, int] = {}
    for line, row in _parsed(Path(path)):
        if isinstance(row, AlmosaicError):
            raise row
        if row.id in seen:
            raise AlmosaicError(_duplicate(Path(path), line, row.id, seen[row.id]))
        seen[row.id] = line
        rows.append(row)
    return rows


def write_manifest(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Check every row, write the manifest in one step (never half a file) and return the number of rows."""
    path = Path(path)
    lines: list[str] = []
    seen: dict[str, int] = {}
    for number, values in enumerate(rows, start=1):
        row = _row(values, path, number)
        if row.id in seen:
            raise AlmosaicError(_duplicate(path, number, row.id, seen[row.id]))
        seen[row.id] = number
        lines.append(json.dumps(values, ensure_ascii=False, allow_nan=False))
    if not lines:
        raise AlmosaicError(f"{path}: expected at least one row to write, found none; check the source")
    write_whole(path, "\n".join(lines) + "\n")
    return len(lines)


def check_manifest(
    path: str | Path,
    labels: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Decode every clip and return one line per bad row; an empty list means that all rows can be used.

    Args:
        path: The manifest.
        labels: The labels that may occur; None accepts any.
        progress: Called with (rows done, rows in all) after every row.

    Raises:
        AlmosaicError: The manifest itself is missing or has no rows.
    """
    path = Path(path)
    parsed = list(_parsed(path))
    seen: dict[str, int] = {}
    bad: list[str] = []
    for done, (line, row) in enumerate(parsed, start=1):
        if isinstance(row, AlmosaicError):
            bad.append(str(row))
        else:
            if row.id in seen:
                bad.append(_duplicate(path, line, row.id, seen[row.id]))
            else:
                reasons = list(_problems(row, labels))
                bad.extend([f"{path}:{line}: id {row.id!r}: {'; '.join(reasons)}"] if reasons else [])
            seen.setdefault(row.id, line)
        if progress is not None:
            progress(done, len(parsed))
    return bad


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AlmosaicError(f"{path}: cannot be read: {error.strerror or error}") from error


def _problems(row: ManifestRow, labels: Collection[str] | None) -> Iterator[str]:
    """What is wrong with the labels and the audio of a well-formed row."""
    from almosaic.audio import decoded_seconds  # reading a manifest needs no audio library

    unknown = [label for label in row.labels if labels is not None and label not in labels]
    if unknown:
        names = ", ".join(map(repr, unknown))
        yield f"field 'labels': unknown label {names}; add it to the classes or mend the row"
    try:
        seconds = decoded_seconds(row.path)
    except AudioError as error:
        yield f"field 'audio': {error}"
        return
    if row.duration_seconds is not None and abs(row.duration_seconds - seconds) > DURATION_TOLERANCE_SECONDS:
        yield (
            f"field 'duration_seconds': says {row.duration_seconds:g}, the file lasts {seconds:.3f}; "
            "correct it or leave it out"
        )


def _parsed(path: Path) -> Iterator[tuple[int, ManifestRow | AlmosaicError]]:
    """Line number and row, or what is wrong with the line."""
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise AlmosaicError(f"{path}: cannot read the manifest: {reason}; give a .jsonl file") from error
    lines = [(number, line) for number, line in enumerate(text.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise AlmosaicError(f"{path}: expected one JSON object per line, found an empty file")
    for number, line in lines:
        try:
            yield number, _row(_json(line, path, number), path, number)
        except AlmosaicError as error:
            yield number, error


def _json(line: bytes, path: Path, number: int) -> object:
    try:
        value: object = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise AlmosaicError(f"{path}:{number}: expected one JSON object per line, found {reason}") from error
    return value


def _row(values: object, path: Path, number: int) -> ManifestRow:
    """Check the columns of one row; the message names file, line and field."""
    where = f"{path}:{number}"
    if not isinstance(values, dict):
        raise AlmosaicError(f"{where}: expected a JSON object with 'id' and 'audio', found {_shown(values)}")
    for name in ("id", "audio"):
        if not isinstance(values.get(name), str) or not values[name].strip() or "\0" in values[name]:
            found = _shown(values[name]) if name in values else "no such field"
            raise AlmosaicError(f"{where}: field '{name}': expected text, found {found}")
    for name in _TEXT_COLUMNS:
        if not isinstance(values.get(name), str | None):
            raise AlmosaicError(f"{where}: field '{name}': expected text, found {_shown(values[name])}")
    for name in _LIST_COLUMNS:
        entries = [] if values.get(name) is None else values[name]
        if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
            found = _shown(values[name])
            raise AlmosaicError(f"{where}: field '{name}': expected a list of texts, found {found}")
    return ManifestRow(
        id=values["id"],
        audio=values["audio"],
        path=(path.parent / values["audio"]).absolute(),
        split=values.get("split"),
        fold=_fold(values.get("fold"), where),
        labels=tuple(values.get("labels") or ()),
        captions=tuple(values.get("captions") or ()),
        duration_seconds=_seconds(values.get("duration_seconds"), where),
        license=values.get("license"),
        attribution=values.get("attribution"),
        extra={name: value for name, value in values.items() if name not in _COLUMNS},
    )


def _fold(value: object, where: str) -> str | None:
    """Folds are names; a whole number is taken as its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise AlmosaicError(f"{where}: field 'fold': expected text or a whole number, found {_shown(value)}")
    return None if value is None else str(value)


def _seconds(value: object, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise AlmosaicError(
            f"{where}: field 'duration_seconds': expected a number above 0, found {_shown(value)}"
        )
    return float(value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _duplicate(path: Path, line: int, row_id: str, first: int) -> str:
    return f"{path}:{line}: field 'id': {row_id!r} is taken by line {first}; every row needs an id of its own"
