"""Records of JSONL, JSON and CSV files by number: an index of places in memory, the records on disk.

A `.jsonl` file, and a `.json` file that is a list, may be larger than memory: only where each record begins
and ends is kept, and a record is read when it is asked for, in any order and by any number of processes. A
`.json` file that is one object (`{"annotation": [...]}`, `{"data": {...}}`) and a `.csv` or `.tsv` table are
parsed once, which takes several times their size, and their records then stay in memory as text.
"""

import csv
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from almosaic.data.json_lists import element_places
from almosaic.errors import AlmosaicError

LINES, TABLES = (".jsonl", ".ndjson"), {".csv": ",", ".tsv": "\t"}
SUFFIXES = (*LINES, ".json", *TABLES)
BLOCK_BYTES = 1 << 24  # of a file read at a time to find its lines
_HEADER = ("split", "dataset_path", "split_path", "flamingo_task", "total_num")


class Places(NamedTuple):
    """Where each record starts and ends; `lines` is empty where record i is line i."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    lines: NDArray[np.int64]


class RowFile:
    """The records of one file: `file[i]` is a dictionary, and 16 to 24 bytes of memory.

    Raises:
        AlmosaicError: the file is missing, of another kind, not valid JSON or CSV, or without records; later,
            a record that is no JSON object, or a file that has changed since it was opened. One line with the
            place, `file:line`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._text: bytes | None = None  # the records of a file that is parsed as a whole
        suffix = self.path.suffix.lower()
        if suffix not in SUFFIXES:
            raise AlmosaicError(f"{path}: expected a file named {', '.join(SUFFIXES)}; convert it to .jsonl")
        try:
            self._identity = _identity(self.path.stat())
            if suffix in LINES:
                self._places = line_places(self.path)
            elif suffix == ".json" and (listed := element_places(self.path)) is not None:
                self._places = Places(*listed)
            else:
                whole = _table(self.path, TABLES[suffix]) if suffix in TABLES else _object(self.path)
                self._text, self._places = _as_text(whole)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise AlmosaicError(f"{path}: cannot be read ({error})") from error
        if not len(self):
            raise AlmosaicError(f"{path}: expected at least one conversation, found none")

    def __len__(self) -> int:
        return len(self._places.starts)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if (file := self.__dict__.get("_file")) is not None:
            file.close()

    def place(self, index: int) -> str:
        """`file:line` of a record."""
        lines = self._places.lines
        return f"{self.path}:{int(lines[index]) if len(lines) else index + 1}"

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        start, end = int(self._places.starts[index]), int(self._places.ends[index])
        found = self._read(start, end) if self._text is None else self._text[start:end]
        try:
            record = json.loads(found)
        except (ValueError, RecursionError) as error:
            raise AlmosaicError(f"{self.place(index)}: not valid JSON ({_reason(error)})") from error
        if not isinstance(record, dict):
            kind = type(record).__name__
            raise AlmosaicError(f"{self.place(index)}: expected an object with messages, found {kind}")
        return record

    def _read(self, start: int, end: int) -> bytes:
        try:
            if self._file is None:
                self._file = self.path.open("rb", buffering=0)
                if _identity(os.fstat(self._file.fileno())) != self._identity:
                    raise AlmosaicError(f"{self.path}: has changed since it was opened; start again")
            return os.pread(self._file.fileno(), end - start, start)
        except OSError as error:
            raise AlmosaicError(f"{self.path}: cannot be read ({error})") from error


def line_places(path: Path) -> Places:
    """Places of the lines that are not blank."""
    found: list[NDArray[np.int64]] = []
    size = 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.append(np.flatnonzero(np.frombuffer(block, np.uint8) == 10) + size)
            size += len(block)
        ends = np.concatenate([*found, np.array([size])])
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        filled = np.ones(len(ends), bool)
        for index in np.flatnonzero(ends - starts < 16).tolist():  # shorter than any conversation
            file.seek(int(starts[index]))
            filled[index] = bool(file.read(int(ends[index] - starts[index])).strip())
    lines = np.flatnonzero(filled) + 1
    in_step = len(lines) == 0 or lines[-1] == len(lines)  # but for blank lines at the end
    return Places(starts[filled], ends[filled], np.zeros(0, np.int64) if in_step else lines)


def _table(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line and fields of the rows of a table with a header line."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(reader, [])
        if len(set(header)) < len(header):
            raise AlmosaicError(f"{path}:1: expected each column once, found {', '.join(header)}")
        line = reader.line_num + 1
        for fields in reader:
            if len(fields) not in (0, len(header)):
                raise AlmosaicError(f"{path}:{line}: expected {len(header)} fields, found {len(fields)}")
            if fields:
                yield line, dict(zip(header, fields, strict=True))
            line = reader.line_num + 1


def _object(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and record of the `annotation` list or the `data` mapping of a file that is one object."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        hint = "; a file with an object on each line is called .jsonl" if "Extra data" in str(error) else ""
        raise AlmosaicError(f"{path}: not valid JSON ({_reason(error)}){hint}") from error
    if isinstance(found, dict) and isinstance(found.get("annotation"), list) and len(found) == 1:
        yield from enumerate(found["annotation"], start=1)
    elif isinstance(found, dict) and isinstance(found.get("data"), dict):
        records = found.pop("data")
        if unknown := sorted(set(found) - set(_HEADER)):
            raise AlmosaicError(
                f"{path}: unknown key {unknown[0]!r} beside data; known: {', '.join(_HEADER)}"
            )
        if found.get("total_num", len(records)) != len(records):
            raise AlmosaicError(f"{path}: total_num is {found['total_num']}, found {len(records)} records")
        folders = {name: found[name] for name in ("dataset_path", "split_path") if name in found}
        for number, record in enumerate(records.values(), start=1):
            yield number, {**folders, **record} if isinstance(record, dict) else record
    else:
        raise AlmosaicError(
            f"{path}: expected a list of conversations, or an object with the list annotation or the mapping "
            f"data, found {type(found).__name__}"
        )


def _as_text(records: Iterable[tuple[int, Any]]) -> tuple[bytes, Places]:
    """Records as JSON text, which forked processes share, unlike objects."""
    texts: list[bytes] = []
    lines, ends = array("q"), array("q", [0])
    for line, record in records:
        texts.append(json.dumps(record).encode())
        lines.append(line)
        ends.append(ends[-1] + len(texts[-1]))
    cuts = np.array(ends, np.int64)
    return b"".join(texts), Places(cuts[:-1], cuts[1:], np.array(lines, np.int64))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return str(error).splitlines()[0]
