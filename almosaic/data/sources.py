"""Where the clips of a stage may lie: a folder of audio files, a manifest, or tar archives."""

import glob
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from almosaic.audio import AUDIO_SUFFIXES
from almosaic.data.clips import ClipSource, FileClips, ManifestClips
from almosaic.data.manifest import ManifestRow, read_manifest
from almosaic.data.shards import ShardClips
from almosaic.errors import AlmosaicError
from almosaic.settings import Settings


class FolderData(Settings):
    """All audio files below a folder in order of their names; hidden files and folders are passed over.

    Args:
        folder: the folder.
        suffixes: what an audio file is called, empty = every format that can be read.
    """

    name: Literal["folder"] = "folder"
    folder: Path
    suffixes: tuple[str, ...] = ()


class ManifestData(Settings):
    """Rows of a manifest; `splits` and `folds` choose rows, empty = all."""

    name: Literal["manifest"] = "manifest"
    manifest: Path
    splits: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()


class ShardsData(Settings):
    """Clips in tar archives of the WebDataset layout: paths or patterns such as `clips/train-*.tar`."""

    name: Literal["shards"] = "shards"
    shards: str | tuple[str, ...] = Field(min_length=1)


StoredData = FolderData | ManifestData | ShardsData


def open_clips(data: StoredData, crop_seconds: float | None = None, seed: int = 0) -> ClipSource:
    """The clips that some settings name; long ones give random crops of `crop_seconds` (None = whole clips).

    Raises:
        AlmosaicError: nothing is there, nothing is chosen, or what is there cannot be read.
    """
    if isinstance(data, FolderData):
        return FileClips(audio_below(data.folder, data.suffixes), crop_seconds, seed)
    if isinstance(data, ShardsData):
        return ShardClips(shard_paths(data.shards), crop_seconds, seed)
    return ManifestClips(chosen_rows(data), crop_seconds, seed)


def audio_below(folder: str | Path, suffixes: Sequence[str] = ()) -> list[str]:
    """Paths of the audio files in a folder and its sub-folders (symbolic links too), sorted.

    Raises:
        AlmosaicError: it is no folder, a part of it cannot be read, or it holds no audio.
    """
    if not Path(folder).is_dir():
        raise AlmosaicError(f"{folder}: expected a folder of audio files, found none; check the path")
    wanted = {f".{suffix.lower().removeprefix('.')}" for suffix in suffixes} or AUDIO_SUFFIXES
    found: list[str] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()

    def refuse(error: OSError) -> None:
        raise AlmosaicError(f"{error.filename}: cannot be read: {error.strerror}") from error

    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        visited.add(os.path.realpath(place))
        links = (name for name in folders if os.path.islink(os.path.join(place, name)))
        again = {name for name in links if os.path.realpath(os.path.join(place, name)) in visited}
        folders[:] = [name for name in folders if not name.startswith(".") and name not in again]
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if not name.startswith("."):
                found += [os.path.join(place, name)] if suffix in wanted else []
                others[suffix or "no suffix"] += suffix not in wanted
    if not found:
        kinds = " ".join(sorted(wanted))
        raise AlmosaicError(f"{folder}: expected audio files ({kinds}), found {_kinds(others)}")
    return sorted(found)


def _kinds(others: "Counter[str]") -> str:
    """What a folder holds instead of audio, and what to do about it."""
    counts = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(3) if number)
    hint = "; archives are given as {name: shards, shards: FOLDER/*.tar}" if others[".tar"] else ""
    return (counts or "no files") + hint


def shard_paths(patterns: str | Iterable[str]) -> list[Path]:
    """The archives that paths and patterns name, each once, those of one pattern in order of their names.

    Raises:
        AlmosaicError: a path or pattern names no file.
    """
    found: dict[Path, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        named = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in named if Path(name).is_file()]
        if not files:
            raise AlmosaicError(
                f"{pattern}: expected tar archives, found no file of that name; check the pattern"
            )
        found |= dict.fromkeys(files)
    return list(found)


def chosen_rows(data: ManifestData) -> list[ManifestRow]:
    """The rows of a manifest that its splits and folds choose.

    Raises:
        AlmosaicError: there is none, or the manifest cannot be read.
    """
    rows = read_manifest(data.manifest)
    chosen = [row for row in rows if not data.splits or row.split in data.splits]
    chosen = [row for row in chosen if not data.folds or row.fold in data.folds]
    if not chosen:
        splits, folds = ({str(row.split) for row in rows}, {str(row.fold) for row in rows})
        raise AlmosaicError(
            f"{data.manifest}: no row has split {_any(data.splits)} and fold {_any(data.folds)}; "
            f"found the splits {', '.join(sorted(splits))} and the folds {', '.join(sorted(folds))}"
        )
    return chosen


def _any(names: Sequence[str]) -> str:
    return " or ".join(names) or "of any name"
