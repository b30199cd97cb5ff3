"""`almosaic check`: every bad item of a manifest, a folder or archives is named, and nothing else is."""

import gzip
import io
import json
import tarfile

import numpy as np
import pytest

from almosaic.cli import main
from almosaic.data.check import check_data
from almosaic.data.manifest import check_manifest
from almosaic.errors import AlmosaicError

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def encoded(value=0.1, seconds=0.2, **options):
    file = io.BytesIO()
    soundfile.write(file, np.full(round(seconds * RATE), value), RATE, **({"format": "WAV"} | options))
    return file.getvalue()


GOOD = {"a.wav": encoded(), "b/c.flac": encoded(format="FLAC"), "d.ogg": encoded(format="OGG")}
BAD = {
    "empty.wav": b"",
    "b/half.ogg": encoded(seconds=2.0, format="OGG")[:-300],
    "infinite.wav": encoded(np.inf, subtype="FLOAT"),
    "nan.wav": encoded(np.nan, subtype="FLOAT"),
    "short.wav": encoded(seconds=0.01),
    "text.mp3": b"not a sound" * 50,
}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def named(complaints):
    """Each complaint is one line about one of the bad files."""
    assert not any("\n" in line for line in complaints)
    return sorted(next(name for name in BAD if name in line) for line in complaints)


def test_every_bad_file_of_a_folder_is_named(tmp_path):
    calls = []
    folder = write(tmp_path, GOOD | BAD | {"notes.txt": b"x"})
    items, complaints = check_data(str(folder), lambda *counts: calls.append(counts))
    assert items == 9 and named(complaints) == sorted(BAD)
    assert calls == [(done, 9) for done in range(1, 10)]
    assert check_data(str(folder / "a.wav")) == (1, [])
    assert named(check_data(str(folder / "nan.wav"))[1]) == ["nan.wav"]
    with pytest.raises(AlmosaicError, match="expected audio files"):
        check_data(str(write(tmp_path / "none", {"x.txt": b""})))


def test_bad_members_and_broken_archives_are_named_and_the_rest_is_still_read(tmp_path):
    pack(tmp_path / "0.tar", GOOD | {"a.json": b"[]"})
    pack(tmp_path / "1.tar", BAD)
    (tmp_path / "2.tar").write_bytes((tmp_path / "0.tar").read_bytes()[:2000])
    items, complaints = check_data(str(tmp_path / "*.tar"))
    assert items == 10 and len(complaints) == 8
    assert f"{tmp_path / '2.tar'}: damaged, cut off" in complaints[0]
    assert f"{tmp_path / '0.tar'}: a.wav: expected a JSON object" in complaints[1]
    assert named(complaints[2:]) == sorted(BAD) and all("1.tar: " in line for line in complaints[2:])
    assert check_data(str(pack(tmp_path / "good.tar", GOOD))) == (3, [])


def test_the_command_lists_bad_items_sums_up_and_fails(tmp_path, capsys):
    good, bad = pack(tmp_path / "good.tar", GOOD), write(tmp_path / "bad", GOOD | BAD)
    rows = [{"id": name, "audio": f"bad/{name}"} for name in [*GOOD, "nan.wav"]]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    assert main(["check", str(good)]) == 0
    assert capsys.readouterr().out == f"{good}: all 3 are good\n"
    assert main(["check", str(good), str(bad), str(manifest)]) == 2
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{good}: all 3 are good"
    assert named(lines[:6]) == sorted(BAD) and lines[6] == f"{bad}: 6 of 9 are bad"
    assert "m.jsonl:4: id 'nan.wav': field 'audio'" in lines[7]
    assert "m.jsonl:5: field 'id': 'a.wav' is taken by line 1" in lines[8]
    assert lines[9:] == [f"{manifest}: 2 of 5 are bad"]
    good.with_suffix(".tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    assert main(["check", str(good.with_suffix(".tar.gz"))]) == 2
    assert "compressed with gzip" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "*.tgz")]) == 2
    assert "expected tar archives, found no file of that name" in capsys.readouterr().err


def test_long_recordings_are_no_fault(tmp_path):
    soundfile.write(tmp_path / "long.flac", np.zeros(400 * 1000, np.int16), 1000)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"id": "a", "audio": "long.flac", "duration_seconds": 400}\n')
    assert check_manifest(manifest) == [] and check_data(str(tmp_path)) == (1, [])
