"""What is wrong with a manifest, a folder of audio or tar archives: one line for each bad item."""

import glob
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from almosaic.audio import AUDIO_SUFFIXES, decoded_seconds
from almosaic.data.clips import FileClips
from almosaic.data.manifest import check_manifest
from almosaic.data.shards import ShardClips
from almosaic.data.sources import audio_below, shard_paths
from almosaic.errors import AlmosaicError, AudioError

Progress = Callable[[int, int], object]


class Checked(NamedTuple):
    """How many items were looked at, and one line for each bad one."""

    items: int
    complaints: list[str]


def check_data(target: str, progress: Progress = lambda done, total: None) -> Checked:
    """Decode every clip of a folder, of a tar archive or a pattern of archives, of a manifest, or one file.

    Args:
        target: what to look at; a name with `*`, `?` or `[` that is no file is a pattern of archives.
        progress: called with (items done, items in all) after every item.

    Raises:
        AlmosaicError: there is nothing of that name, or a folder without audio.
    """
    path = Path(target)
    if path.is_dir() or path.suffix.lower() in AUDIO_SUFFIXES:
        files = FileClips(audio_below(path) if path.is_dir() else [path])
        return Checked(len(files), list(_bad_clips([files], progress)))
    if ".tar" in path.suffixes or path.suffix == ".tgz" or (glob.has_magic(target) and not path.is_file()):
        archives, broken = _open_archives(shard_paths(target))
        bad = [*broken, *_bad_clips(archives, progress)]
        return Checked(sum(map(len, archives)) + len(broken), bad)
    rows = [0]

    def count(done: int, total: int) -> None:
        rows.append(total)
        progress(done, total)

    complaints = check_manifest(path, progress=count)
    return Checked(rows[-1], complaints)


def _open_archives(paths: list[Path]) -> tuple[list[ShardClips], list[str]]:
    """The archives that can be opened, and a line for each of the others."""
    archives: list[ShardClips] = []
    broken: list[str] = []
    for path in paths:
        try:
            archives.append(ShardClips([path]))
        except AlmosaicError as error:
            broken.append(str(error))
    return archives, broken


def _bad_clips(sources: list[FileClips] | list[ShardClips], progress: Progress) -> Iterator[str]:
    total, done = sum(map(len, sources)), 0
    for source in sources:
        for index in range(len(source)):
            try:
                decoded_seconds(source.stored(index))
                if isinstance(source, ShardClips):
                    source.row(index)
            except AudioError as error:
                yield str(error)
            done += 1
            progress(done, total)
