import json

import numpy as np
import pytest
import soundfile

from almosaic.data.manifest import check_manifest, fingerprint, read_manifest, write_manifest
from almosaic.errors import AlmosaicError

FULL = {
    "id": "a",
    "audio": "clips/a.wav",
    "split": "train",
    "fold": "1",
    "labels": ["dog", "cat"],
    "captions": ["a dog barks at a cat"],
    "duration_seconds": 1.5,
    "license": "CC0-1.0",
    "attribution": "someone",
    "group": "animals",
}


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def write_clip(path, seconds=0.5, value=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(16_000 * seconds), value, np.float32), 16_000, subtype="FLOAT")


def test_every_column_comes_back_and_unknown_ones_are_kept(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    assert write_manifest(manifest, [FULL, {"id": "b", "audio": "b.wav"}]) == 2
    full, bare = read_manifest(manifest)
    assert full.path == tmp_path / "clips/a.wav"
    assert full.audio == "clips/a.wav"
    assert (full.split, full.fold, full.license) == ("train", "1", "CC0-1.0")
    assert full.labels == ("dog", "cat")
    assert full.captions == ("a dog barks at a cat",)
    assert full.duration_seconds == 1.5
    assert full.extra == {"group": "animals"}
    assert bare.labels == () and bare.split is None and bare.duration_seconds is None and bare.extra == {}


def test_absolute_paths_stay_and_variables_are_not_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", "/elsewhere")
    rows = [{"id": "a", "audio": "/data/a.wav"}, {"id": "b", "audio": "${DATA}/b.wav"}]
    absolute, variable = read_manifest(write_lines(tmp_path / "m.jsonl", *rows))
    assert str(absolute.path) == "/data/a.wav"
    assert variable.path == tmp_path / "${DATA}/b.wav"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": None}, "field 'audio': expected text, found None"),
        ({"id": 7}, "field 'id': expected text, found 7"),
        ({"id": " "}, "field 'id': expected text"),
        ({"labels": "dog"}, "field 'labels': expected a list of texts, found 'dog'"),
        ({"labels": [1]}, "field 'labels': expected a list of texts, found [1]"),
        ({"captions": ""}, "field 'captions': expected a list of texts, found ''"),
        ({"split": 3}, "field 'split': expected text, found 3"),
        ({"fold": 1.5}, "field 'fold': expected text or a whole number, found 1.5"),
        ({"fold": True}, "field 'fold'"),
        ({"duration_seconds": "5"}, "field 'duration_seconds': expected a number above 0, found '5'"),
        ({"duration_seconds": 0}, "field 'duration_seconds'"),
        ({"duration_seconds": float("nan")}, "field 'duration_seconds'"),
        ({"duration_seconds": True}, "field 'duration_seconds'"),
    ],
)
def test_a_wrong_type_names_file_line_and_field(tmp_path, change, message):
    manifest = write_lines(tmp_path / "m.jsonl", {**FULL, "id": "first"}, {**FULL, **change})
    with pytest.raises(AlmosaicError) as caught:
        read_manifest(manifest)
    assert f"{manifest}:2: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_whole_numbers_name_folds(tmp_path):
    (row,) = read_manifest(write_lines(tmp_path / "m.jsonl", {**FULL, "fold": 3}))
    assert row.fold == "3"


@pytest.mark.parametrize("line", ['{"id": "x"', "[1, 2]", "null", '"text"', "\udcff"])
def test_a_line_that_is_no_object_is_named(tmp_path, line):
    manifest = tmp_path / "m.jsonl"
    manifest.write_bytes(json.dumps(FULL).encode() + b"\n\n" + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(AlmosaicError, match=r"m\.jsonl:3: expected (one|a) JSON object"):
        read_manifest(manifest)


def test_duplicate_ids_name_both_lines(tmp_path):
    manifest = write_lines(tmp_path / "m.jsonl", FULL, {"id": "b", "audio": "b"}, FULL)
    with pytest.raises(AlmosaicError, match=r"m\.jsonl:3: field 'id': 'a' is taken by line 1"):
        read_manifest(manifest)


def test_missing_and_empty_manifests_are_errors(tmp_path):
    with pytest.raises(AlmosaicError, match="No such file"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(AlmosaicError, match="found an empty file"):
        read_manifest(tmp_path / "empty.jsonl")


def test_writing_checks_rows_and_leaves_the_old_file_when_one_is_wrong(tmp_path):
    manifest = tmp_path / "m.jsonl"
    write_manifest(manifest, [FULL])
    before = manifest.read_bytes()
    for rows in ([{"id": "b"}], [FULL, FULL], []):
        with pytest.raises(AlmosaicError):
            write_manifest(manifest, rows)
    assert manifest.read_bytes() == before
    assert list(tmp_path.iterdir()) == [manifest]


def test_check_lists_every_bad_row_once(tmp_path):
    write_clip(tmp_path / "good.wav")
    write_clip(tmp_path / "short.wav", seconds=0.01)
    write_clip(tmp_path / "nan.wav", value=np.nan)
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("this is no audio" * 100)
    bad = ["missing.wav", "short.wav", "nan.wav", "empty.wav", "text.wav"]
    rows = [{"id": name, "audio": name} for name in bad]
    good = {"id": "good", "audio": "good.wav", "labels": ["dog"], "duration_seconds": 0.5}
    manifest = write_lines(
        tmp_path / "m.jsonl",
        good,
        *rows,
        good,
        {**good, "id": "label", "labels": ["dog", "dgo"]},
        {**good, "id": "length", "duration_seconds": 5.0},
        {**good, "id": "type", "labels": 3},
        "{broken",
    )
    calls = []
    problems = check_manifest(
        manifest, labels={"dog"}, progress=lambda done, total: calls.append((done, total))
    )
    assert [int(line.split(":")[1]) for line in problems] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    for line, name in zip(problems[:5], bad, strict=True):
        assert f"id {name!r}: field 'audio'" in line and name in line
    assert "'good' is taken by line 1" in problems[5]
    assert "unknown label 'dgo'" in problems[6]
    assert "says 5, the file lasts 0.500" in problems[7]
    assert all("\n" not in line for line in problems)
    assert calls == [(done, 11) for done in range(1, 12)]


def test_check_without_labels_accepts_any(tmp_path):
    write_clip(tmp_path / "good.wav")
    manifest = write_lines(tmp_path / "m.jsonl", {"id": "a", "audio": "good.wav", "labels": ["anything"]})
    assert check_manifest(manifest) == []


def test_fingerprint_follows_the_bytes(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"abc")
    assert fingerprint(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(AlmosaicError):
        fingerprint(tmp_path / "none")
