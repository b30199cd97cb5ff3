"""RAVDESS speech: two sentences spoken by 24 actors in eight emotions.

    python -m data_prep.ravdess --source Audio_Speech_Actors_01-24 --out data/ravdess
    python -m data_prep.ravdess --source Audio_Speech_Actors_01-24 --out data/voices --label speaker

Everything is read from the names, `03-01-EMOTION-INTENSITY-SENTENCE-REPETITION-ACTOR.wav` (or any other audio
suffix). The label is the emotion, or with `--label speaker` whether a man or a woman speaks. Splits are by
actor: 17 to 20 dev, 21 to 24 test, the others train. `--out` receives `manifest.jsonl`, `regions.csv` and
`classes.csv`, whose phrases make the voices part of composed scenes.
"""

import argparse
import re
from pathlib import Path
from typing import Literal

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

EMOTIONS = ("neutral", "calm", "happy", "sad", "angry", "fearful", "disgusted", "surprised")
SPEAKERS = ("man", "woman")  # actors with an odd number are men
SENTENCES = ("Kids are talking by the door", "Dogs are sitting by the door")
LICENSE = "CC-BY-NC-SA-4.0"
ATTRIBUTION = "RAVDESS, S. R. Livingstone and F. A. Russo, PLoS ONE 13(5), 2018, doi 10.5281/zenodo.1188976"
_NAME = re.compile(r"03-01-0([1-8])-0([12])-0([12])-0([12])-(0[1-9]|1[0-9]|2[0-4])")

Label = Literal["emotion", "speaker"]


def prepare(source: Path, out: Path, label: Label = "emotion", skip_bad: bool = False) -> None:
    """Read all fields from the names, decode every clip, and write the manifest and its tables."""
    rows = [_row(path, label) for path in audio_paths(source)]
    if not rows:
        raise AlmosaicError(f"{source}: expected clips named like 03-01-05-01-02-01-12.wav, found no audio")
    rows, regions = inspect_audio(rows, skip_bad)
    write_prepared(out, rows, regions)
    names = EMOTIONS if label == "emotion" else SPEAKERS
    write_table(out / "classes.csv", CLASS_COLUMNS, [_class(name, label) for name in names])


def _row(path: Path, label: Label) -> Row:
    found = _NAME.fullmatch(path.stem)
    if found is None:
        raise AlmosaicError(
            f"{path}: expected a name like 03-01-05-01-02-01-12.wav (audio-only speech); move it elsewhere"
        )
    emotion, intensity, sentence, repetition, actor = (int(field) for field in found.groups())
    speaker = SPEAKERS[(actor + 1) % 2]
    name = EMOTIONS[emotion - 1] if label == "emotion" else speaker
    return {
        "id": path.stem,
        "audio": path,
        "split": "train" if actor < 17 else "dev" if actor < 21 else "test",
        "fold": f"actor{actor:02d}",
        "labels": [f"{name}_voice"],
        "captions": [f"a {speaker} says '{SENTENCES[sentence - 1]}' in {_voice(EMOTIONS[emotion - 1])}"],
        "emotion": EMOTIONS[emotion - 1],
        "intensity": ("normal", "strong")[intensity - 1],
        "gender": speaker,
        "transcript": SENTENCES[sentence - 1],
        "repetition": repetition,
        "license": LICENSE,
        "attribution": ATTRIBUTION,
    }


def _class(name: str, label: Label) -> tuple[str, ...]:
    if label == "speaker":
        phrases = (f"a {name} speaking", f"a {name} speaks", f"{name} speaking", f"a {name}'s voice")
    else:
        phrases = (_voice(name), f"someone speaks in {_voice(name)}", f"{name} voice", f"{name} speech")
    return (f"{name}_voice", "speech", "event", *phrases, "")


def _voice(emotion: str) -> str:
    return f"{'an' if emotion[0] in 'aeiou' else 'a'} {emotion} voice"


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.ravdess", description=(__doc__ or "").split("\n")[0]
    )
    add_common_arguments(parser)
    parser.add_argument("--label", choices=("emotion", "speaker"), default="emotion")
    arguments = parser.parse_args()
    prepare(arguments.source, arguments.out, arguments.label, arguments.skip_bad)


if __name__ == "__main__":
    run_script(main)
