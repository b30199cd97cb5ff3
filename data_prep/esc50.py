"""ESC-50: 2,000 five-second clips of 50 environmental sounds, in five folds.

    python -m data_prep.esc50 download --out downloads/esc50
    python -m data_prep.esc50 prepare --source downloads/esc50 --out data/esc50

`prepare` reads the official layout (`meta/esc50.csv`, `audio/*.wav`) and a folder with `metadata.csv`,
`audio/`, `classes.csv` and `regions.csv`. The audio stays where it is; `--out` receives `manifest.jsonl`,
`classes.csv` (phrases for captions and answers) and `regions.csv` (where something sounds).
Folds 1-3 are train, 4 is dev, 5 is test; papers average over the five folds instead.
"""

import argparse
import shutil
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from almosaic.errors import AlmosaicError
from data_prep.common import (
    Row,
    add_common_arguments,
    inspect_audio,
    read_table,
    run_script,
    verify_sums,
    write_prepared,
)

URL = "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"
SPLIT_OF_FOLD = {"1": "train", "2": "train", "3": "train", "4": "dev", "5": "test"}
CLASSES = Path(__file__).with_name("esc50_classes.csv")
NUMBERS = ("active_start_s", "active_end_s", "active_s", "rms_dbfs", "peak_dbfs")
SET_LICENSE = "CC-BY-NC-3.0"
SET_ATTRIBUTION = "K. J. Piczak, ESC: Dataset for Environmental Sound Classification, ACM Multimedia 2015"


def download(url: str, out: Path) -> None:
    """Fetch the official archive (about 600 MB) and unpack its audio and table into `out`."""
    archive = out / "esc50.zip.partial"
    try:
        out.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=30) as answer, archive.open("wb") as file:
            size = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=size, desc="ESC-50", unit="B", unit_scale=True, leave=False) as bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        unpack(archive, out)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AlmosaicError(
            f"cannot fetch {url}: {reason}; get ESC-50 from https://github.com/karolpiczak/ESC-50 "
            f"and unpack it into {out}"
        ) from error
    finally:
        archive.unlink(missing_ok=True)


def unpack(archive: Path, out: Path) -> None:
    """Take table, licence and `audio/*.wav` out of the archive, whatever its top folder is called."""
    with zipfile.ZipFile(archive) as bundle:
        members = [(member, _wanted(member.filename)) for member in bundle.infolist()]
        wanted = [(member, path) for member, path in members if path is not None]
        if not any(path == "meta/esc50.csv" for _, path in wanted):
            raise AlmosaicError(
                f"{archive}: expected meta/esc50.csv in the archive, found none; check the URL"
            )
        for member, path in tqdm(wanted, desc="unpacking", unit="file", leave=False):
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, (out / path).open("wb") as target:
                shutil.copyfileobj(source, target)
    print(f"{out}: {sum(path.startswith('audio/') for _, path in wanted)} clips")


def _wanted(name: str) -> str | None:
    """Where a member of the archive goes; None leaves it out, as any name that climbs out of the folder."""
    parts = PurePosixPath(name).parts[1:]
    is_audio = len(parts) == 2 and parts[0] == "audio" and parts[1].endswith(".wav")
    return "/".join(parts) if is_audio or parts in (("meta", "esc50.csv"), ("LICENSE",)) else None


def prepare(source: Path, out: Path, skip_bad: bool = False) -> None:
    """Check tables, checksums and every clip, then write the manifest and its two tables."""
    own_layout = (source / "metadata.csv").is_file()
    if not own_layout and not (source / "meta" / "esc50.csv").is_file():
        raise AlmosaicError(
            f"{source}: expected metadata.csv or meta/esc50.csv, found neither; give the ESC-50 folder"
        )
    classes_path = source / "classes.csv" if (source / "classes.csv").is_file() else CLASSES
    classes = {row["label"]: row for row in read_table(classes_path, ("label", "group", "noun_phrase"))}
    rows = _own_rows(source, classes) if own_layout else _official_rows(source, classes)
    verify_sums(source)
    rows, regions = inspect_audio(rows, skip_bad)
    write_prepared(out, rows, regions)
    if (out / "classes.csv").resolve() != classes_path.resolve():
        shutil.copyfile(classes_path, out / "classes.csv")


def _own_rows(source: Path, classes: dict[str, dict[str, str]]) -> list[Row]:
    needed = ("file", "split", "fold", "label", "license", "attribution")
    rows: list[Row] = []
    for entry in read_table(source / "metadata.csv", needed):
        row = _row(source / entry["file"], entry["fold"], entry["split"], entry["label"], classes)
        row.update(license=entry["license"], attribution=entry["attribution"])
        row.update({name: float(entry[name]) for name in NUMBERS if entry.get(name)})
        row.update({name: entry[name] for name in ("source_id", "esc10") if entry.get(name)})
        rows.append(row)
    return rows


def _official_rows(source: Path, classes: dict[str, dict[str, str]]) -> list[Row]:
    rows: list[Row] = []
    for entry in read_table(
        source / "meta" / "esc50.csv", ("filename", "fold", "category", "esc10", "src_file")
    ):
        fold = entry["fold"]
        if fold not in SPLIT_OF_FOLD:
            raise AlmosaicError(f"{source / 'meta/esc50.csv'}: expected a fold from 1 to 5, found {fold!r}")
        path = source / "audio" / entry["filename"]
        row = _row(path, fold, SPLIT_OF_FOLD[fold], entry["category"], classes)
        row.update(license=SET_LICENSE, attribution=SET_ATTRIBUTION)
        row.update(source_id=entry["src_file"], esc10=entry["esc10"])
        rows.append(row)
    return rows


def _row(path: Path, fold: str, split: str, label: str, classes: dict[str, dict[str, str]]) -> Row:
    if label not in classes:
        raise AlmosaicError(f"{path}: label {label!r} is not in classes.csv; add it there")
    phrases = classes[label]
    return {
        "id": path.stem,
        "audio": path,
        "split": split,
        "fold": fold,
        "labels": [label],
        "captions": [phrases["noun_phrase"]],
        "group": phrases["group"],
    }


def main() -> None:
    """`download` or `prepare`."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.esc50", description=(__doc__ or "").split("\n")[0]
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    fetch = verbs.add_parser("download", help="fetch the official archive (about 600 MB)")
    fetch.add_argument("--out", type=Path, required=True, help="folder for the recordings")
    fetch.add_argument("--url", default=URL, help="another address of the archive")
    add_common_arguments(
        verbs.add_parser("prepare", help="write manifest.jsonl, classes.csv and regions.csv")
    )
    arguments = parser.parse_args()
    if arguments.verb == "download":
        download(arguments.url, arguments.out)
    else:
        prepare(arguments.source, arguments.out, arguments.skip_bad)


if __name__ == "__main__":
    run_script(main)
