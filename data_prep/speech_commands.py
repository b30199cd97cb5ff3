"""Speech Commands: one spoken word a clip, 35 words (version 2) or ten and the unknown ones (version 1).

    python -m data_prep.speech_commands --source speech_commands_v0.02 --out data/spc2
    python -m data_prep.speech_commands --source speech_commands_v0.01 --out data/spc1 --words ten

`--source` is the unpacked archive: a folder per word, `validation_list.txt` and `testing_list.txt`.
`--words ten` keeps yes, no, up, down, left, right, on, off, stop and go and calls every other word
`_unknown_`: eleven classes as in the published runs, which have none for silence. The long noises of
`_background_noise_` are left out.
"""

import argparse
from pathlib import Path

from almosaic.errors import AlmosaicError
from data_prep.common import Row, add_common_arguments, measure_durations, run_script, write_rows, write_table

TEN = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN = "_unknown_"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
LICENSE = "CC-BY-4.0"
ATTRIBUTION = "P. Warden, Speech Commands: A Dataset for Limited-Vocabulary Speech Recognition, 2018"


def prepare(source: Path, out: Path, ten: bool = False, skip_bad: bool = False) -> None:
    """Read the lists and the folders, measure every clip, and write the manifest and the classes."""
    split_of = read_lists(source)
    clips = sorted(path for path in source.glob("*/*.wav") if not path.parent.name.startswith("_"))
    found = {path.relative_to(source).as_posix() for path in clips}
    if missing := sorted(set(split_of) - found):
        raise AlmosaicError(
            f"{source}: {len(missing)} listed clips are missing, the first is {missing[0]}; "
            "unpack the archive again"
        )
    words = sorted({path.parent.name for path in clips})
    if ten and (absent := [word for word in TEN if word not in words]):
        raise AlmosaicError(
            f"{source}: expected a folder for each of the ten words, found none for {', '.join(absent)}"
        )
    labels = [*TEN, UNKNOWN] if ten else words
    rows: list[Row] = []
    for path in clips:
        name, word = path.relative_to(source).as_posix(), path.parent.name
        rows.append(
            {
                "id": name.removesuffix(".wav"),
                "audio": path,
                "split": split_of.get(name, "train"),
                "labels": [word if word in labels else UNKNOWN],
                "speaker": path.stem.split("_")[0],
                "license": LICENSE,
                "attribution": ATTRIBUTION,
            }
        )
    write_rows(out, measure_durations(rows, skip_bad))
    write_table(
        out / "classes.csv", ("label", "target"), [(label, index) for index, label in enumerate(labels)]
    )


def read_lists(source: Path) -> dict[str, str]:
    """Split by the name of every clip that the two official lists name."""
    split_of: dict[str, str] = {}
    for split, name in LISTS.items():
        try:
            lines = (source / name).read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise AlmosaicError(
                f"{source / name}: expected the list of {split} clips; give the unpacked archive as --source"
            ) from error
        split_of.update(dict.fromkeys(lines, split))
    return split_of


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.speech_commands", description=(__doc__ or "").split("\n")[0]
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--words", choices=("all", "ten"), default="all", help="ten: the others are _unknown_"
    )
    arguments = parser.parse_args()
    prepare(arguments.source, arguments.out, arguments.words == "ten", arguments.skip_bad)


if __name__ == "__main__":
    run_script(main)
