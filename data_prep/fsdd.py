"""Free Spoken Digit Dataset: the English digits zero to nine, each clip one word, six speakers.

    python -m data_prep.fsdd --source free-spoken-digit-dataset/recordings --out data/fsdd

Clips are found by their names, `DIGIT_SPEAKER_INDEX.wav` (or any other audio suffix). Splits are by speaker:
theo is dev, lucas is test, the others train, so that no voice is on both sides. `--out` receives
`manifest.jsonl`, `regions.csv` and `classes.csv`, whose phrases make the words part of composed scenes.
"""

import argparse
import re
from pathlib import Path

from almosaic.errors import AlmosaicError
from almosaic.scenes.recorded import CLASS_COLUMNS
from data_prep.common import (
    Row,
    add_common_arguments,
    audio_paths,
    inspect_audio,
    run_script,
    write_prepared,
    write_table,
)

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPLIT_OF_SPEAKER = {"theo": "dev", "lucas": "test"}
LICENSE = "CC-BY-SA-4.0"
ATTRIBUTION = "Z. Jackson and contributors, Free Spoken Digit Dataset, doi 10.5281/zenodo.1342401, speaker "
_NAME = re.compile(r"([0-9])_([a-z]+)_([0-9]+)")


def prepare(source: Path, out: Path, skip_bad: bool = False) -> None:
    """Read digit and speaker from the names, decode every clip, and write the manifest and its tables."""
    rows: list[Row] = []
    for path in audio_paths(source):
        found = _NAME.fullmatch(path.stem)
        if found is None:
            raise AlmosaicError(
                f"{path}: expected a name like 7_theo_12.wav (digit, speaker, number); move it elsewhere"
            )
        digit, speaker, _ = found.groups()
        rows.append(
            {
                "id": path.stem,
                "audio": path,
                "split": SPLIT_OF_SPEAKER.get(speaker, "train"),
                "fold": speaker,
                "labels": [f"word_{DIGITS[int(digit)]}"],
                "captions": [f"the spoken word {DIGITS[int(digit)]}"],
                "speaker": speaker,
                "license": LICENSE,
                "attribution": ATTRIBUTION + speaker,
            }
        )
    if not rows:
        raise AlmosaicError(f"{source}: expected clips named like 7_theo_12.wav, found no audio")
    rows, regions = inspect_audio(rows, skip_bad)
    write_prepared(out, rows, regions)
    write_table(out / "classes.csv", CLASS_COLUMNS, [_class(word) for word in DIGITS])


def _class(word: str) -> tuple[str, ...]:
    """Phrases of a word; the bare word is none of them, since it is also how a count is answered."""
    phrases = (f"the spoken word {word}", f"someone says {word}", f"spoken {word}", f"the word {word}")
    return (f"word_{word}", "speech", "event", *phrases, "")


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.fsdd", description=(__doc__ or "").split("\n")[0]
    )
    add_common_arguments(parser)
    arguments = parser.parse_args()
    prepare(arguments.source, arguments.out, arguments.skip_bad)


if __name__ == "__main__":
    run_script(main)
