"""AudioCaps: ten-second clips of AudioSet, one caption each for training and five for testing; a manifest.

    python -m data_prep.audiocaps --source clips --out data/audiocaps --train train.csv \
        --validation val.csv --test test.csv

The clips are found by their video ids, named in any of the ways that `data_prep.audioset` knows. Videos
disappear: those without a clip are counted and listed in `missing.txt`; say with your figures how many you
had.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from almosaic.errors import AlmosaicError
from data_prep.audioset import Listed, match_videos
from data_prep.common import (
    add_common_arguments,
    add_list_arguments,
    given_lists,
    measure_durations,
    read_table,
    run_script,
    write_rows,
)
from data_prep.named_clips import write_missing

SPLITS = {"train": "train.csv", "validation": "val.csv", "test": "test.csv"}
LICENSE = "MIT, for academic purposes (captions); the audio belongs to its authors"
ATTRIBUTION = "Kim, Kim, Lee and Kim, AudioCaps: generating captions for audios in the wild, NAACL-HLT 2019"


def prepare(source: Path, out: Path, lists: dict[str, Path], skip_bad: bool = False) -> None:
    """Match the videos of every list (split -> file) with the clips at hand, and write the manifest."""
    common = {"license": LICENSE, "attribution": ATTRIBUTION}

    def read(path: Path) -> Iterator[Listed]:
        for video, (start, captions) in read_captions(path).items():
            yield video, f"{video} {start}", {"captions": captions, **common}

    rows, missing = match_videos(source, lists, read, "videos")
    write_rows(out, measure_durations(rows, skip_bad))
    write_missing(out, missing, len(missing) + len(rows), "videos")


def read_captions(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Start and captions of every video of an official list, in the order of the list."""
    videos: dict[str, tuple[str, list[str]]] = {}
    for row in read_table(path, ("youtube_id", "start_time", "caption")):
        start, captions = videos.setdefault(row["youtube_id"], (row["start_time"], []))
        if start != row["start_time"]:
            raise AlmosaicError(
                f"{path}: {row['youtube_id']} starts at {start} and at {row['start_time']}; keep one segment"
            )
        captions.append(row["caption"].strip())
    return videos


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.audiocaps", description=(__doc__ or "").split("\n")[0]
    )
    add_common_arguments(parser)
    add_list_arguments(parser, SPLITS)
    arguments = parser.parse_args()
    lists = given_lists(parser, arguments, SPLITS)
    prepare(arguments.source, arguments.out, lists, arguments.skip_bad)


if __name__ == "__main__":
    run_script(main)
