"""Conversations from files that may be larger than memory: rows and clips by number, read when asked for."""

import hashlib
import posixpath
from array import array
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from almosaic.audio import AudioSource
from almosaic.data.clips import StoredClips
from almosaic.data.datasets import Conversation
from almosaic.data.formats import ChatRow
from almosaic.data.shards import ShardClips
from almosaic.errors import AudioError

_BAR_ROWS = 10_000  # a bar is shown from here on


def root_of_clips(audio_root: str | Path | None, archives: ShardClips | None) -> str | Path | None:
    """Where the names of clips start: None = the folder of each file, or with archives their own root."""
    return "" if archives is not None and audio_root is None else audio_root


class Rows(Protocol):
    """Conversations by number, such as `formats.ChatRows` or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ChatRow: ...


class ChatFileDataset(Dataset[Conversation]):
    """Conversations of files; the same in every epoch.

    Every row is read and checked once, then only numbers are kept: 8 bytes for each row, 4 for each mention
    of a clip. A clip that several rows speak of is one clip.

    Args:
        rows: the conversations.
        archives: tar archives in which the clips' names are looked up, None = the names are paths.

    Attributes:
        source: the clips.
        ends: mentions of clips up to the end of each row, [R].
        clips: which clip each mention is of.

    Raises:
        AlmosaicError: a row cannot be used.
    """

    def __init__(self, rows: Rows, archives: ShardClips | None = None) -> None:
        self.rows = rows
        counts, digests = array("q"), bytearray()
        quiet = True if len(rows) < _BAR_ROWS else None
        for index in tqdm(range(len(rows)), "rows", leave=False, unit="row", disable=quiet):
            audios = rows[index]["audios"]
            counts.append(len(audios))
            for audio in audios:
                digests += hashlib.blake2b(audio.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        self.ends = np.cumsum(np.array(counts, np.int64))
        self.clips, first = _numbered(np.frombuffer(digests, np.uint64).reshape(-1, 2))
        self.source = RowClips(rows, self.ends, first, archives)

    def set_epoch(self, epoch: int) -> None:
        """Nothing depends on the epoch."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        row = self.rows[index]
        end = int(self.ends[index])
        clips = self.clips[end - len(row["audios"]) : end].tolist()
        return {"id": row["id"], "messages": row["messages"], "clips": clips}


class RowClips(StoredClips):
    """The clips that rows speak of, numbered in the order in which they are first spoken of.

    Args:
        rows: the conversations.
        ends: mentions of clips up to each row, [R].
        first: the first mention of each clip, [A].
        archives: where the clips are, None = in files.
    """

    def __init__(
        self,
        rows: Rows,
        ends: NDArray[np.int64],
        first: NDArray[np.int64],
        archives: ShardClips | None,
    ) -> None:
        super().__init__()
        self.rows, self.ends, self.first, self.archives = rows, ends, first, archives
        if archives is not None:
            archives.find("")  # indexes the names once, before workers are forked

    def __len__(self) -> int:
        return len(self.first)

    def name(self, index: int) -> str:
        """Path, archive member or data URI of a clip."""
        row, mention = self._mention(index)
        return self.rows[row]["audios"][mention]

    def row(self, index: int) -> int:
        """The first row that speaks of a clip."""
        return self._mention(index)[0]

    def stored(self, index: int) -> AudioSource:
        """The path of a clip, its data URI, or its archive's member as a file."""
        name = self.name(index)
        if self.archives is None or name.startswith("data:"):
            return name
        member = self.archives.find(posixpath.normpath(name))
        if member is None:
            raise AudioError(
                f"{name}: in none of the {len(self.archives.shards)} archives, whose members are called as "
                f"{self.archives.member(0)}; set audio_root or `archives`"
            )
        return self.archives.stored(member)

    def fingerprint(self) -> str:
        """Hash of every clip's name, and of its file's size and modification time or its archive."""
        digest = hashlib.sha256(b"" if self.archives is None else self.archives.fingerprint().encode())
        for index in range(len(self)):
            name = self.name(index)
            digest.update(f"\n{name}".encode("utf-8", "surrogatepass"))
            if self.archives is None and not name.startswith("data:") and Path(name).is_file():
                found = Path(name).stat()
                digest.update(repr((found.st_size, found.st_mtime_ns)).encode())
        return digest.hexdigest()

    def _mention(self, index: int) -> tuple[int, int]:
        """The row of a clip's first mention, and its place among the row's clips."""
        mention = int(self.first[index])
        row = int(np.searchsorted(self.ends, mention, side="right"))
        return row, mention - (int(self.ends[row - 1]) if row else 0)


def _numbered(keys: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Equal keys [A, 2] get one number, in the order of first appearance: numbers [A], first places [C]."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: of equal keys the first stays the first
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[new]
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = number[np.cumsum(new) - 1]
    return numbers, np.sort(first)
