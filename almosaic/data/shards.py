"""Clips in tar archives (WebDataset layout), read by position: any clip at any time, none of them unpacked.

A clip is an audio member; `key.json` (an object: id, labels, captions, ...) and `key.txt` (a caption) beside
`key.flac` belong to it. The key is the whole name up to the last dot; metadata may also carry the shorter key
of the webdataset package, up to the first dot of the file name. Hidden members and others are passed over.
"""

import hashlib
import io
import json
import os
import posixpath
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from almosaic.audio import AUDIO_SUFFIXES
from almosaic.data.clips import StoredClips
from almosaic.data.texts import Description, TextKind
from almosaic.errors import AlmosaicError, AudioError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
OPEN_SHARDS = 64  # archives that one process keeps open
BUFFER_BYTES = 1 << 18  # what is read at a time: most clips at once, and little of a long one
_INDEXERS = 8  # threads: indexing waits for the disk

Place = tuple[int, int]
"""First byte and size of a member's content."""
NOWHERE: Place = (0, -1)


class Member(io.RawIOBase):
    """A stretch of an open file as a file; reads by position, so that forked processes may share it."""

    def __init__(self, descriptor: int, name: str, place: Place) -> None:
        self.descriptor, self.name = descriptor, name
        self.start, self.size = place
        self.position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position within the stretch and return it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill as much of the buffer as is left of the stretch."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.size - self.position))
        found = os.pread(self.descriptor, wanted, self.start + self.position)
        view[: len(found)] = found
        self.position += len(found)
        return len(found)


class ShardIndex(NamedTuple):
    """Names and places of a shard's clips: audio, JSON and text as start and size each, [N, 6]."""

    names: list[str]
    places: NDArray[np.int64]


class ShardClips(StoredClips):
    """The clips of several archives in order; long ones give a random crop, as `FileClips` do.

    Only places are kept, 48 bytes and a name for each clip. `blocks` are the clips of each shard: whoever
    reads neighbours together reads the disk in one go.

    Args:
        shards: the archives.
        crop_seconds: length of the crop, None = whole clips.
        seed: of the crop's position.

    Raises:
        AlmosaicError: an archive is compressed, damaged, cut off, without audio, or has one key twice.
    """

    def __init__(
        self, shards: Sequence[str | Path], crop_seconds: float | None = None, seed: int = 0
    ) -> None:
        super().__init__(crop_seconds, seed)
        self.shards = [Path(shard) for shard in shards]
        with ThreadPoolExecutor(_INDEXERS) as threads:
            indexed = threads.map(index_shard, self.shards)
            found = list(tqdm(indexed, "index", len(self.shards), leave=False, unit="archive", disable=None))
        self.blocks = [len(index.names) for index in found]
        self._ends = list(accumulate(self.blocks))
        self._places = np.concatenate([np.zeros((0, 6), np.int64), *(index.places for index in found)])
        names = [name.encode("utf-8", "surrogateescape") for index in found for name in index.names]
        self._names, self._name_ends = b"".join(names), np.cumsum([len(name) for name in names])
        self._sizes = [shard.stat().st_size for shard in self.shards]
        self._open: dict[int, BinaryIO] = {}
        self._keys: tuple[NDArray[np.uint64], NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for file in self.__dict__.get("_open", {}).values():
            file.close()

    def name(self, index: int) -> str:
        """Archive and member of a clip, for messages."""
        shard = bisect_right(self._ends, index)
        return f"{self.shards[shard]}: {self.member(index)}"

    def member(self, index: int) -> str:
        """Name of a clip's member within its archive."""
        start = int(self._name_ends[index - 1]) if index else 0
        return self._names[start : int(self._name_ends[index])].decode("utf-8", "replace")

    def find(self, member: str) -> int | None:
        """The clip whose member has this name, None = there is none.

        Raises:
            AudioError: several archives have a member of this name.
        """
        if self._keys is None:  # once, on the first call: hashes of all names in order, and whose they are
            hashes = np.array([_name_hash(self.member(index)) for index in range(len(self))], np.uint64)
            order = np.argsort(hashes)
            self._keys = hashes[order], order
        hashes, order = self._keys
        wanted = np.uint64(_name_hash(member))
        first, last = np.searchsorted(hashes, wanted, "left"), np.searchsorted(hashes, wanted, "right")
        found = [clip for clip in order[first:last].tolist() if self.member(clip) == member]
        if len(found) > 1:
            places = ", ".join(map(self.name, sorted(found)))
            raise AudioError(f"{member}: expected one archive with a member of this name, found {places}")
        return found[0] if found else None

    def stored(self, index: int) -> BinaryIO:
        """The audio member of a clip as a file."""
        shard = bisect_right(self._ends, index)
        start, size = self._places[index, :2].tolist()
        member = Member(self._file(shard).fileno(), self.name(index), (start, size))
        return io.BufferedReader(member, BUFFER_BYTES)

    def row(self, index: int) -> dict[str, Any]:
        """What the archive says about a clip: `id` (its key unless the JSON has one), JSON fields, captions.

        Raises:
            AudioError: the metadata is no JSON object, or no UTF-8 text.
        """
        key = self.member(index).rpartition(".")[0]
        try:
            values = json.loads(self._bytes(index, 2) or b"{}")
            caption = (self._bytes(index, 4) or b"").decode("utf-8-sig").strip()
        except (ValueError, RecursionError) as error:
            reason = str(error).splitlines()[0]
            raise AudioError(f"{self.name(index)}: its .json or .txt cannot be read: {reason}") from error
        if not isinstance(values, dict):
            raise AudioError(f"{self.name(index)}: expected a JSON object beside it, found {values!r:.60}")
        if caption:
            known = values.get("captions")
            values["captions"] = [*(known if isinstance(known, list) else []), caption]
        return {"id": key, **values}

    def described(self, index: int) -> Description:
        """Captions and labels of a clip's `row`.

        Raises:
            AudioError: as `row`, or one of them is no list of texts.
        """
        row = self.row(index)
        texts = {name: row.get(name) or [] for name in ("captions", "labels")}
        for name, entries in texts.items():
            if not isinstance(entries, list) or not all(isinstance(one, str) and one for one in entries):
                raise AudioError(
                    f"{self.name(index)}: field {name!r}: expected a list of texts, found {entries!r:.60}"
                )
        return Description(tuple(texts["captions"]), tuple(texts["labels"]))

    def undescribed(self, kind: TextKind) -> list[str]:
        """Archive and member of the clips without a text of this kind; reads all metadata, and no audio."""
        rows = tqdm(range(len(self)), desc="texts", unit="clip", delay=5, leave=False, disable=None)
        return [self.name(index) for index in rows if not self.described(index).of(kind)]

    def fingerprint(self) -> str:
        """Hash of every archive's name and size, of its members and their places, and of the crop."""
        archives = [(str(shard), size) for shard, size in zip(self.shards, self._sizes, strict=True)]
        digest = hashlib.sha256(repr((self.crop_seconds, self.seed, archives, self.blocks)).encode())
        digest.update(self._names)
        digest.update(self._places.tobytes())
        return digest.hexdigest()

    def _bytes(self, index: int, column: int) -> bytes | None:
        start, size = self._places[index, column : column + 2].tolist()
        file = self._file(bisect_right(self._ends, index))
        return None if size < 0 else os.pread(file.fileno(), size, start)

    def _file(self, shard: int) -> BinaryIO:
        if shard not in self._open:
            if len(self._open) == OPEN_SHARDS:
                self._open.pop(next(iter(self._open))).close()
            try:
                self._open[shard] = self.shards[shard].open("rb", buffering=0)
            except OSError as error:
                raise AudioError(
                    f"{self.shards[shard]}: cannot be opened: {error.strerror or error}"
                ) from error
        return self._open[shard]


def _name_hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def index_shard(path: Path) -> ShardIndex:
    """Find the clips of one archive by its headers alone.

    Raises:
        AlmosaicError: see `ShardClips`.
    """
    places: dict[str, Place] = {}
    clips: dict[str, str] = {}
    for name, place in _members(path):
        key, suffix = posixpath.splitext(name)
        if suffix.lower() not in AUDIO_SUFFIXES | {".json", ".txt"}:
            continue
        taken = clips.get(key) if suffix.lower() in AUDIO_SUFFIXES else None
        if name in places or taken is not None:
            other = "itself" if name in places else taken
            raise AlmosaicError(f"{path}: member {name} has the key of {other}; every clip needs its own")
        places[name] = place
        if suffix.lower() in AUDIO_SUFFIXES:
            clips[key] = name
    if not clips:
        seen = ", ".join(list(places)[:3]) or "none that could be"
        kinds = " ".join(sorted(AUDIO_SUFFIXES))
        raise AlmosaicError(f"{path}: expected audio members ({kinds}), found {seen}")

    def beside(key: str, suffix: str) -> Place:
        folder, name = posixpath.split(key)
        short = posixpath.join(folder, name.partition(".")[0])
        return places.get(key + suffix) or places.get(short + suffix) or NOWHERE

    rows = [(*places[name], *beside(key, ".json"), *beside(key, ".txt")) for key, name in clips.items()]
    return ShardIndex(list(clips.values()), np.array(rows, np.int64))


def _members(path: Path) -> Iterator[tuple[str, Place]]:
    """Name and place of every plain file in an archive."""
    try:
        with path.open("rb") as file:
            _refuse_packed(path, file.read(8))
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    name = posixpath.normpath(member.name)
                    if any(part.startswith(".") and part != ".." for part in name.split("/")):
                        continue
                    if member.isreg() and not member.issparse():
                        yield name, (member.offset_data, member.size)
                    elif posixpath.splitext(name)[1].lower() in AUDIO_SUFFIXES and not member.isdir():
                        raise AlmosaicError(
                            f"{path}: member {name} is a link or sparse; pack the file itself"
                        )
                file.seek(archive.offset)
                _check_end(path, file.read(tarfile.BLOCKSIZE))
    except tarfile.TarError as error:
        raise AlmosaicError(
            f"{path}: damaged, cut off or no tar archive ({error}); fetch it again"
        ) from error
    except OSError as error:
        raise AlmosaicError(f"{path}: cannot be read: {error.strerror or error}") from error


def _refuse_packed(path: Path, head: bytes) -> None:
    for magic, kind in PACKED.items():
        if head.startswith(magic):
            raise AlmosaicError(
                f"{path}: expected a plain tar archive, found one compressed with {kind}, in which nothing "
                "can be read by position; unpack it to .tar (audio hardly shrinks)"
            )


def _check_end(path: Path, block: bytes) -> None:
    """The block at which reading stopped is the empty one that ends every archive."""
    if len(block) < tarfile.BLOCKSIZE:
        raise AlmosaicError(
            f"{path}: cut off, the mark at the end of a tar archive is missing; fetch it again"
        )
    if any(block):
        raise AlmosaicError(f"{path}: damaged, a member's header cannot be read; fetch it again")
