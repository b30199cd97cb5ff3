"""What is wrong with a chat file, a manifest, a folder or tar archives: one line for each bad item."""

import glob
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from almosaic.audio import AUDIO_SUFFIXES, decoded_seconds
from almosaic.data.chat_check import ChatCheck, CountTokens, is_chat_file
from almosaic.data.chat_forms import Format
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


class ChatOptions(NamedTuple):
    """How a chat file is read: see `ChatCheck`; with `form`, any file is taken for one.

    `questions` are rows to be answered: they need no assistant's turn.
    """

    form: Format | None = None
    audio_root: Path | None = None
    archives: Sequence[str] = ()
    tokens: CountTokens | None = None
    questions: bool = False


def check_data(
    target: str,
    progress: Progress = lambda done, total: None,
    chat: ChatOptions = ChatOptions(),  # noqa: B008 (it is immutable)
    note: Callable[[str], object] = lambda line: None,
) -> Checked:
    """Decode every clip of a chat file, a folder, a tar archive or several, a manifest, or one file.

    Args:
        target: what to look at; a name with `*`, `?` or `[` that is no file is a pattern of archives.
        progress: called with (items done, items in all) after every item.
        chat: how a chat file is read.
        note: called with each line about the lengths of a chat file's rows and clips.

    Raises:
        AlmosaicError: there is nothing of that name, a folder without audio, or options of chat files for
            something else.
    """
    path = Path(target)
    if path.is_file() and (chat.form is not None or is_chat_file(path)):
        clips = ShardClips(shard_paths(chat.archives)) if chat.archives else None
        check = ChatCheck(path, chat.audio_root, chat.form or "auto", clips, not chat.questions)
        items, notes = check.run(progress, chat.tokens)
        for line in notes:
            note(line)
        return Checked(items, check.complaints)
    if chat != ChatOptions():
        raise AlmosaicError(
            f"{target}: --format, --audio-root, --archives, --questions and --model are for chat files"
        )
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
