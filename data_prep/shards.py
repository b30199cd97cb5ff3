"""Pack the clips of a manifest or of a folder into tar archives (WebDataset layout).

    python -m data_prep.shards data/mine/manifest.jsonl shards/mine --clips-per-shard 1000
    python -m data_prep.shards recordings shards/mine

The audio is copied byte for byte, with a JSON file beside each clip that holds the other columns of its row.
Every split gets archives of its own, `train-000000.tar` and so on (`clips-...` for rows without one), in an
order drawn from `--seed`: training mixes the clips of a few archives at a time. `OUT` appears when all is
written. In a recipe: `data: [{name: shards, shards: "shards/mine/train-*.tar"}]`.
"""

import argparse
import io
import json
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from almosaic.audio import AUDIO_SUFFIXES, audio_duration
from almosaic.data import draws
from almosaic.data.manifest import ManifestRow, read_manifest
from almosaic.data.shards import ShardClips
from almosaic.data.sources import audio_below
from almosaic.errors import AlmosaicError, AudioError
from data_prep.common import run_script

COLUMNS = ("id", "split", "fold", "labels", "captions", "duration_seconds", "license", "attribution")


def prepare(
    source: Path, out: Path, clips_per_shard: int = 1000, *, seed: int = 0, skip_bad: bool = False
) -> list[Path]:
    """Write the archives and return their paths.

    Raises:
        AlmosaicError: clips cannot be read (each is named on stderr first), `out` holds something already,
            two ids give one key, or the disk is full.
    """
    if clips_per_shard < 1:
        raise AlmosaicError(f"expected --clips-per-shard of 1 or more, found {clips_per_shard}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlmosaicError(f"{out}: expected an empty or a new folder; choose another or remove it")
    rows = _usable(_rows(source), skip_bad)
    by_split: dict[str, dict[str, ManifestRow]] = {}
    for row in rows:
        clips = by_split.setdefault(re.sub(r"[^A-Za-z0-9_-]", "_", row.split or "clips"), {})
        if (key := key_of(row.id)) in clips:
            raise AlmosaicError(
                f"{source}: the ids {clips[key].id!r} and {row.id!r} give one key; rename one"
            )
        clips[key] = row
    partial = out.absolute().with_name(f".{out.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        with tqdm(total=len(rows), unit="clip", leave=False) as bar:
            for split, clips in sorted(by_split.items()):
                order = draws.generator(seed, "shards", split).permutation(len(clips))
                keys = [list(clips)[place] for place in order]
                for number, start in enumerate(range(0, len(keys), clips_per_shard)):
                    chosen = {key: clips[key] for key in keys[start : start + clips_per_shard]}
                    write_shard(partial / f"{split}-{number:06}.tar", chosen)
                    bar.update(len(chosen))
        packed = len(ShardClips(sorted(partial.iterdir())))
        if packed != len(rows):
            raise AlmosaicError(f"{partial}: expected {len(rows)} clips in the archives, found {packed}")
        partial.replace(out)
    except OSError as error:
        raise AlmosaicError(
            f"{out}: cannot be written ({error.strerror or error}); make room or mend the file"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(out.iterdir())


def write_shard(path: Path, clips: dict[str, ManifestRow]) -> None:
    """Write one archive: for each key the audio file as it is, and a JSON file with the row."""
    with path.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for key, row in clips.items():
                audio = tarfile.TarInfo(key + row.path.suffix.lower())
                audio.size = row.path.stat().st_size
                with row.path.open("rb") as content:
                    archive.addfile(audio, content)
                text = json.dumps(_columns(row), ensure_ascii=False).encode()
                beside = tarfile.TarInfo(key + ".json")
                beside.size = len(text)
                archive.addfile(beside, io.BytesIO(text))
        file.flush()
        os.fsync(file.fileno())


def key_of(clip_id: str) -> str:
    """An id as the key of an archive's member: without dots, which end a key, and inside the archive."""
    parts = [part for part in clip_id.replace(".", "_").split("/") if part.strip()]
    return "/".join(parts) or "_"


def _columns(row: ManifestRow) -> dict[str, Any]:
    """What is known about a clip, without the empty columns."""
    known = {name: getattr(row, name) for name in COLUMNS}
    return {name: value for name, value in {**known, **row.extra}.items() if value not in (None, ())}


def _rows(source: Path) -> list[ManifestRow]:
    if not source.is_dir():
        return read_manifest(source)
    paths = [Path(path) for path in audio_below(source)]
    names = [path.relative_to(source).as_posix() for path in paths]
    return [ManifestRow(name, name, path) for name, path in zip(names, paths, strict=True)]


def _usable(rows: Sequence[ManifestRow], skip_bad: bool) -> list[ManifestRow]:
    """The rows whose files open as audio; their samples are not decoded (`almosaic check` does)."""
    bad = dict(_complaints(rows))
    for reason in bad.values():
        print(f"bad clip: {reason}", file=sys.stderr)
    if bad and not skip_bad:
        raise AlmosaicError(
            f"{len(bad)} of {len(rows)} clips cannot be packed; mend or remove them, or add --skip-bad"
        )
    if len(bad) == len(rows):
        raise AlmosaicError(f"expected at least one usable clip, found none among {len(rows)}")
    return [row for row in rows if row.id not in bad]


def _complaints(rows: Sequence[ManifestRow]) -> Iterator[tuple[str, str]]:
    for row in tqdm(rows, desc="headers", unit="clip", leave=False):
        suffix = row.path.suffix.lower()
        if suffix not in AUDIO_SUFFIXES:
            kinds = " ".join(sorted(AUDIO_SUFFIXES))
            yield row.id, f"{row.path}: expected a file name with {kinds}, found {suffix or 'none'}"
            continue
        try:
            audio_duration(row.path)
        except AudioError as error:
            yield row.id, str(error)


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.shards", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", metavar="MANIFEST-or-FOLDER", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the archives")
    parser.add_argument("--clips-per-shard", metavar="N", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the order of clips")
    parser.add_argument("--skip-bad", action="store_true", help="name bad clips and leave them out")
    arguments = parser.parse_args()
    written = prepare(
        arguments.source,
        arguments.out,
        arguments.clips_per_shard,
        seed=arguments.seed,
        skip_bad=arguments.skip_bad,
    )
    size = sum(path.stat().st_size for path in written) / 2**20
    print(f"{arguments.out}: {len(written)} archives, {size:.1f} MiB")


if __name__ == "__main__":
    run_script(main)
