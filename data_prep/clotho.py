"""Clotho: clips of 15 to 30 seconds with five captions each; a manifest for captioning.

    python -m data_prep.clotho --source clotho --out data/clotho --train clotho_captions_development.csv \
        --validation clotho_captions_validation.csv --test clotho_captions_evaluation.csv

`--source` holds the unpacked archives, a folder for each list, called `development`, `validation` and
`evaluation` (or `clotho_audio_development`, ...): names occur in more than one of them. Clips that a list
names and the folder lacks are counted and listed in `missing.txt`.
"""

import argparse
from pathlib import Path

from almosaic.errors import AlmosaicError
from data_prep.common import (
    Row,
    add_common_arguments,
    add_list_arguments,
    given_lists,
    measure_durations,
    read_table,
    run_script,
    write_rows,
)
from data_prep.named_clips import NamedClips, write_missing

FOLDERS = {"train": "development", "validation": "validation", "test": "evaluation"}
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))
LICENSE = "Tampere University licence, non-commercial with attribution (captions); each clip has its own"
ATTRIBUTION = "Drossos, Lipping and Virtanen, Clotho: an audio captioning dataset, ICASSP 2020"


def prepare(source: Path, out: Path, lists: dict[str, Path], skip_bad: bool = False) -> None:
    """Match the clips of every list (split -> file) with those at hand, and write the manifest."""
    rows: list[Row] = []
    missing: list[str] = []
    for split, path in lists.items():
        clips = NamedClips(_folder(source, FOLDERS[split]))
        for entry in read_table(path, ("file_name", *CAPTIONS)):
            name = entry["file_name"]
            clip = clips.find(name)
            if clip is None:
                missing.append(f"{split} {name}")
                continue
            rows.append(
                {
                    "id": f"{FOLDERS[split]}/{name}",
                    "audio": clip,
                    "split": split,
                    "captions": [entry[column].strip() for column in CAPTIONS],
                    "license": LICENSE,
                    "attribution": ATTRIBUTION,
                }
            )
    if not rows:
        raise AlmosaicError(f"{source}: none of the {len(missing)} listed clips is there; check --source")
    write_rows(out, measure_durations(rows, skip_bad))
    write_missing(out, missing, len(missing) + len(rows), "listed clips")


def _folder(source: Path, name: str) -> Path:
    folders = [source / name, source / f"clotho_audio_{name}"]
    found = [folder for folder in folders if folder.is_dir()]
    if len(found) != 1:
        raise AlmosaicError(f"{source}: expected {name} or clotho_audio_{name}, found {len(found)} of them")
    return found[0]


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.clotho", description=(__doc__ or "").split("\n")[0]
    )
    add_common_arguments(parser)
    add_list_arguments(parser, {split: f"clotho_captions_{name}.csv" for split, name in FOLDERS.items()})
    arguments = parser.parse_args()
    lists = given_lists(parser, arguments, FOLDERS)
    prepare(arguments.source, arguments.out, lists, arguments.skip_bad)


if __name__ == "__main__":
    run_script(main)
