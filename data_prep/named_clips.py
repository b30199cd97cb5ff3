"""Clips by the names that an annotation file gives them, wherever they lie below a folder."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from tqdm import tqdm

from almosaic.audio import AUDIO_SUFFIXES
from almosaic.errors import AlmosaicError
from almosaic.files import write_whole


class NamedClips:
    """The audio files below a folder, found by name.

    Spaces at the ends, doubled spaces and the suffix do not matter: unpacking on another system and
    converting to another format change them. Of several files the one is meant whose name is the same to the
    letter, then the one whose folders agree best with those of the name.

    Raises:
        AlmosaicError: there is no such folder, or it holds no audio.
    """

    def __init__(self, source: Path) -> None:
        if not source.is_dir():
            raise AlmosaicError(f"{source}: expected a folder of clips, found none; check --source")
        self.source = source
        self.paths: dict[str, list[Path]] = {}
        for path in tqdm(sorted(source.rglob("*")), desc="files", unit="file", leave=False):
            if path.suffix.lower() in AUDIO_SUFFIXES:
                self.paths.setdefault(_key(path.name), []).append(path)
        if not self.paths:
            raise AlmosaicError(f"{source}: expected audio files, found none; check --source")

    def find(self, name: str) -> Path | None:
        """The clip of a name or path, None where there is none.

        Raises:
            AlmosaicError: several clips fit equally well.
        """
        found = self.paths.get(_key(name.rpartition("/")[2]), [])
        if len(found) < 2:
            return found[0] if found else None
        stem, folders = Path(name).stem, Path(name).parts[-2::-1]
        scores = [(path.stem == stem, _agreeing(folders, path)) for path in found]
        best = [path for path, score in zip(found, scores, strict=True) if score == max(scores)]
        if len(best) > 1:
            raise AlmosaicError(f"{name}: expected one clip of this name, found {best[0]} and {best[1]}")
        return best[0]


def write_missing(out: Path, missing: list[str], total: int, what: str) -> None:
    """List in `missing.txt` what has no clip and say how many, or remove the list of an earlier run."""
    (out / "missing.txt").unlink(missing_ok=True)
    if missing:
        write_whole(out / "missing.txt", "\n".join(missing) + "\n")
        print(f"{len(missing)} of {total} {what} are missing, see {out / 'missing.txt'}")


def _key(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    known = dot and f".{suffix.strip().lower()}" in AUDIO_SUFFIXES
    return " ".join((stem if known else name).split())


def _agreeing(folders: Sequence[str], path: Path) -> int:
    """How many folders, from the clip upwards, are as wanted."""
    pairs = zip(folders, path.parts[-2::-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
