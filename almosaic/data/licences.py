"""Where training clips come from and under which licences: counted from manifests, banks and chat files."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from almosaic.data.manifest import ManifestRow, read_manifest
from almosaic.data.row_files import RowFile
from almosaic.errors import AlmosaicError
from almosaic.settings import Settings

NOT_STATED = "not stated"
RESTRICTIONS = {
    "non-commercial": re.compile(r"\bnc\b|non-?commercial", re.IGNORECASE),
    "no derivatives": re.compile(r"\bnd\b|no-?deriv", re.IGNORECASE),
    "share-alike": re.compile(r"\bsa\b|share-?alike", re.IGNORECASE),
    "no advertising (Sampling Plus)": re.compile(r"sampling", re.IGNORECASE),
}
_BANK_USES = {
    "scenes": "clips of composed scenes",
    "sounds": "clips",
    "scene_texts": "descriptions of composed scenes",
}
Entry = Mapping[str, Any]


class DataSource(Settings):
    """One source of training clips.

    Attributes:
        name: short, as in a list of data sets.
        kind: what it is.
        place: file or folder as the recipe names it.
        rows: clips or conversations there for training; None = not counted.
        licenses: rows by licence as the source states it; "not stated" where it does not.
        attributions: rows by whom they are to be attributed to.
        note: why something is not known.
    """

    name: str
    kind: str
    place: str = ""
    rows: int | None = None
    licenses: dict[str, int] = Field(default_factory=dict)
    attributions: dict[str, int] = Field(default_factory=dict)
    note: str = ""


def restrictions(licences: Iterable[str]) -> dict[str, list[str]]:
    """Kind of restriction -> the licences that have it; what commercial use and redistribution hang on."""
    found: dict[str, list[str]] = {}
    for licence in sorted(set(licences)):
        text = licence.replace("_", "-")
        for restriction, pattern in RESTRICTIONS.items():
            if pattern.search(text):
                found.setdefault(restriction, []).append(licence)
    return found


def data_sources(settings: Entry) -> list[DataSource]:
    """The sources of a stage whose settings, as plain data, name its `data` and the recipe's `sounds`.

    A source that cannot be read any more is listed with that as its note.
    """
    data = settings.get("data") or ()
    entries = [data] if isinstance(data, Mapping) else data
    return [source for entry in entries for source in _of_entry(entry, settings.get("sounds") or {})]


def _of_entry(entry: Entry, sounds: Entry) -> Iterator[DataSource]:
    kind = str(entry.get("name") or "labelled clips")
    if kind in ("scenes", "sounds", "scene_texts"):
        yield from _of_bank(sounds, _BANK_USES[kind])
    elif "manifest" in entry:
        chosen = _split_rule(entry) if "name" in entry else _held_out_rule(entry)
        used_as = {"manifest": "clips", "captions": "captioned clips"}.get(kind, kind)
        yield _of_manifest(entry["manifest"], chosen, used_as)
    elif kind == "folder":
        note = "a folder of audio states no licences"
        yield DataSource(name=_short(Path(entry["folder"])), kind=kind, place=entry["folder"], note=note)
    elif kind == "shards":
        shards = [entry["shards"]] if isinstance(entry["shards"], str) else list(entry["shards"])
        name, note = _short(Path(shards[0]).parent), "licences inside archives are not read"
        yield DataSource(name=name, kind="tar archives", place=", ".join(shards), note=note)
    else:
        paths = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
        yield from map(_of_chat_file, paths)


def _of_bank(bank: Entry, kind: str) -> Iterator[DataSource]:
    if bank.get("name") == "joined":
        for one in bank["banks"].values():
            yield from _of_bank(one, kind)
    elif bank.get("name") == "recorded":
        yield _of_manifest(bank["manifest"], _bank_rule(bank), kind)
    else:
        note = "made by this package; no recordings"
        yield DataSource(name="almosaic synthetic sounds", kind=kind, note=note)


def _of_manifest(manifest: str, chosen: Callable[[ManifestRow], bool], kind: str) -> DataSource:
    source = DataSource(name=_short(Path(manifest)), kind=kind, place=manifest)
    try:
        rows = [row for row in read_manifest(manifest) if chosen(row)]
    except AlmosaicError as error:
        return _not_at_hand(source, error)
    return _counted(source, ((row.license, row.attribution) for row in rows))


def _of_chat_file(path: str) -> DataSource:
    source = DataSource(name=_short(Path(path)), kind="conversations", place=path)
    try:
        file = RowFile(path)
        records = (file[index] for index in range(len(file)))
        return _counted(source, ((row.get("license"), row.get("attribution")) for row in records))
    except AlmosaicError as error:
        return _not_at_hand(source, error)


def _counted(source: DataSource, rows: Iterable[tuple[Any, Any]]) -> DataSource:
    stated: Counter[str] = Counter()
    owed: Counter[str] = Counter()
    for licence, attribution in rows:
        stated[str(licence or NOT_STATED)] += 1
        owed.update([str(attribution)] if attribution else [])
    counts = {"rows": stated.total(), "licenses": dict(stated.most_common()), "attributions": dict(owed)}
    return source.model_copy(update=counts)


def _not_at_hand(source: DataSource, error: AlmosaicError) -> DataSource:
    return source.model_copy(update={"note": f"not at hand when this was written ({error})"})


def _bank_rule(bank: Entry) -> Callable[[ManifestRow], bool]:
    """Rows of the split `train`, which the bank may define by fold."""
    wanted = bank["splits"].get("train", {"split": ["train"]})
    named = {column: {str(value) for value in values} for column, values in wanted.items()}
    return lambda row: all(getattr(row, column) in values for column, values in named.items())


def _split_rule(entry: Entry) -> Callable[[ManifestRow], bool]:
    splits, folds = entry["splits"], entry["folds"]
    return lambda row: (not splits or row.split in splits) and (not folds or row.fold in folds)


def _held_out_rule(entry: Entry) -> Callable[[ManifestRow], bool]:
    """Of labelled clips: all folds but the one that is scored, or the splits for training."""
    scored, splits = entry["fold"], entry["train"]
    return lambda row: row.fold != scored if scored is not None else row.split in splits


def _short(path: Path) -> str:
    """The name of a data set: its file's, or its folder's where the file has a name that says nothing."""
    if path.suffix and path.stem not in ("manifest", "metadata", "train", "data"):
        return path.stem
    return (path.parent if path.suffix else path).name or path.stem
