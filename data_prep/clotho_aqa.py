"""Clotho-AQA: questions about Clotho's clips, each answered by three people; one chat file for each split.

    python -m data_prep.clotho_aqa --source audio_files --out data/clotho_aqa --train clotho_aqa_train.csv \
        --validation clotho_aqa_val.csv --test clotho_aqa_test.csv

A split may have several lists, such as those of yes-no and of single-word questions. `--answers majority`
keeps what more than half answered (the default), `unanimous` what all did, `all` makes a row of every
answer; questions that are left out are counted. Clips that are missing are listed in `missing.txt`.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from almosaic.errors import AlmosaicError
from almosaic.files import write_whole
from data_prep.common import add_list_arguments, given_lists, read_table, relative_to, run_script
from data_prep.named_clips import NamedClips, write_missing

SPLITS = ("train", "validation", "test")
ANSWERS = ("majority", "unanimous", "all")
ATTRIBUTION = "Lipping, Sudarsanam, Drossos and Virtanen, Clotho-AQA, EUSIPCO 2022"


def prepare(source: Path, out: Path, lists: dict[str, Sequence[Path]], answers: str = "majority") -> None:
    """Write `SPLIT.jsonl` for the lists of every split, paths relative to `out`."""
    clips = NamedClips(source)
    missing: dict[str, None] = {}
    for split, paths in lists.items():
        rows: list[dict[str, Any]] = []
        left_out = 0
        for (name, question), given in read_answers(paths).items():
            clip = clips.find(name)
            if clip is None:
                missing[f"{split} {name}"] = None
                continue
            chosen = choose(given, answers)
            left_out += not chosen
            audio = relative_to(clip, out)
            for answer in chosen:
                rows.append(_row(f"{split}-{len(rows)}", split, audio, question, answer))
        if not rows:
            raise AlmosaicError(f"{source}: no clip of the split {split} is there; check --source")
        write_whole(
            out / f"{split}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        )
        print(f"{out / f'{split}.jsonl'}: {len(rows)} rows; {left_out} questions have no {answers} answer")
    total = len({name for paths in lists.values() for name, _ in read_answers(paths)})
    write_missing(out, list(missing), total, "listed clips")


def read_answers(paths: Sequence[Path]) -> dict[tuple[str, str], list[str]]:
    """The answers to each question about each clip, in the order of the lists."""
    found: dict[tuple[str, str], list[str]] = {}
    for path in paths:
        for row in read_table(path, ("file_name", "QuestionText", "answer")):
            key = row["file_name"], row["QuestionText"].strip()
            found.setdefault(key, []).append(row["answer"].strip().lower())
    return found


def choose(given: Sequence[str], answers: str) -> list[str]:
    """What is kept of the answers to one question."""
    if answers == "all":
        return list(given)
    answer, votes = Counter(given).most_common(1)[0]
    needed = len(given) if answers == "unanimous" else len(given) // 2 + 1
    return [answer] if votes >= needed else []


def _row(name: str, split: str, audio: str, question: str, answer: str) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": f"<audio>\n{question}"},
        {"role": "assistant", "content": answer},
    ]
    return {
        "id": name,
        "split": split,
        "messages": messages,
        "audios": [audio],
        "attribution": ATTRIBUTION,
    }


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.clotho_aqa", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--source", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for the chat files")
    parser.add_argument("--answers", choices=ANSWERS, default="majority")
    add_list_arguments(parser, dict.fromkeys(SPLITS, "lists of questions and answers"), nargs="+")
    arguments = parser.parse_args()
    lists = given_lists(parser, arguments, SPLITS)
    prepare(arguments.source, arguments.out, lists, arguments.answers)


if __name__ == "__main__":
    run_script(main)
