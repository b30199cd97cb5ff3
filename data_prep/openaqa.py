"""OpenAQA: millions of questions about clips of other corpora, whose paths are those of its authors.

    python -m data_prep.openaqa --source clips --out data/openaqa --questions openaqa_5.6M.json

The clips are found below `--source` by their file names, whatever their suffix; where several have a name,
the folders of the published path decide. `--out` receives `openaqa.jsonl` with paths relative to it. Rows
whose clip is missing are counted, their clips listed in `missing.txt`. Nothing but names is held in memory.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from almosaic.data.row_files import RowFile
from almosaic.errors import AlmosaicError
from data_prep.common import relative_to, run_script
from data_prep.named_clips import NamedClips, write_missing


def prepare(source: Path, out: Path, questions: Path) -> None:
    """Copy the rows whose clips are there, with local paths."""
    clips = NamedClips(source)
    rows = RowFile(questions)
    places: dict[str, str | None] = {}
    kept = 0
    out.mkdir(parents=True, exist_ok=True)
    target, temporary = out / "openaqa.jsonl", out / "tmp-openaqa.jsonl"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            for index in tqdm(range(len(rows)), desc="rows", unit="row", leave=False):
                row = rows[index]
                name = row.get("audio_id")
                if not isinstance(name, str) or not name:
                    raise AlmosaicError(
                        f"{rows.place(index)}: expected a path under audio_id, found {name!r}"
                    )
                if name not in places:
                    places[name] = _place(clips, name, out)
                if (place := places[name]) is not None:
                    file.write(json.dumps({**row, "audio_id": place}, ensure_ascii=False) + "\n")
                    kept += 1
        if not kept:
            raise AlmosaicError(f"{source}: none of the {len(places)} clips is there; check --source")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{target}: {kept} of {len(rows)} rows")
    write_missing(out, [name for name, place in places.items() if place is None], len(places), "listed clips")


def _place(clips: NamedClips, name: str, out: Path) -> str | None:
    """The path of a clip from the folder of the rows, None where it is missing."""
    clip = clips.find(name)
    return None if clip is None else relative_to(clip, out)


def main() -> None:
    """Command line of this script."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.openaqa", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--source", type=Path, required=True, help="folder with the recordings")
    parser.add_argument("--out", type=Path, required=True, help="folder for openaqa.jsonl")
    parser.add_argument("--questions", type=Path, required=True, help="a published list of questions")
    arguments = parser.parse_args()
    prepare(arguments.source, arguments.out, arguments.questions)


if __name__ == "__main__":
    run_script(main)
