"""Records by number: every kind of file, larger than a block, read in any order and by several processes."""

import json
import multiprocessing
import os
import pickle
import random

import pytest

from almosaic.data import json_lists, row_files
from almosaic.data.formats import ChatRows
from almosaic.data.row_files import RowFile
from almosaic.errors import AlmosaicError

TEXTS = ['quote " and \\', "braces ]}[{ ,", "ünïcødé 🎧", "line\nbreak\ttab", "", "\\\\", "x" * 300]


def records(count):
    rng = random.Random(0)
    return [
        {"n": number, "text": "".join(rng.choices(TEXTS, k=rng.randrange(4))), "more": [{"a": [[]]}]}
        for number in range(count)
    ]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(params=["lines", "escaped", "list", "indented"])
def file(request, tmp_path, monkeypatch):
    """200 records in a file of many blocks."""
    monkeypatch.setattr(row_files, "BLOCK_BYTES", 100)
    monkeypatch.setattr(json_lists, "PIECE_BYTES", 64)
    rows = records(200)
    if request.param in ("lines", "escaped"):
        lines = (json.dumps(row, ensure_ascii=request.param == "escaped") for row in rows)
        return write(tmp_path / "a.jsonl", "\r\n".join(lines) + "\n\n")
    indent = 2 if request.param == "indented" else None
    return write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=indent is None, indent=indent) + " \n")


def test_every_record_is_found_in_any_order(file):
    rows = RowFile(file)
    assert len(rows) == 200
    for number in random.Random(1).sample(range(200), 200):
        assert rows[number] == records(200)[number]


def test_places_are_those_of_the_lines(file):
    rows, lines = RowFile(file), file.read_text().split("\n")
    for number in (0, 1, 57, 199):
        name, _, line = rows.place(number).rpartition(":")
        assert name == str(file)
        # The line on which the record begins; in an indented list its first key is on the next one.
        text = "".join(lines[int(line) - 1 : int(line) + 1])
        assert f'"n": {number}' in text


def test_processes_share_an_open_file(file):
    rows = RowFile(file)
    assert rows[0] == records(200)[0]
    copy = pickle.loads(pickle.dumps(rows))
    assert copy[150] == records(200)[150]
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        assert pool.map(rows.__getitem__, range(200), chunksize=7) == records(200)


def test_a_byte_order_mark_and_blank_lines(tmp_path):
    mark = b"\xef\xbb\xbf"
    lines = write(tmp_path / "a.jsonl", mark + b'\n{"n": 1}\n  \n\r\n{"n": 2}')
    with pytest.raises(AlmosaicError, match=r"a\.jsonl:1: not valid JSON"):
        RowFile(lines)[0]
    lines.write_bytes(mark + b'{"n": 1}\n  \n\r\n{"n": 2}')
    rows = RowFile(lines)
    assert [rows[0], rows[1]] == [{"n": 1}, {"n": 2}]
    assert [rows.place(0), rows.place(1)] == [f"{lines}:1", f"{lines}:4"]
    listed = RowFile(write(tmp_path / "a.json", mark + b'\n [{"n": 1}]'))
    assert listed[0] == {"n": 1} and listed.place(0).endswith(":2")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", b'{"n": "\xff"}\n', r"a\.jsonl:1: not valid JSON \('utf-8' codec"),
        ("a.jsonl", b'{"n": 1}\n{"n": \n', r"a\.jsonl:2: not valid JSON \(Expecting value at column 7\)"),
        ("a.jsonl", b'{"n": 1}\n[1]\n', r"a\.jsonl:2: expected an object with messages, found list"),
        ("a.jsonl", b"", "expected at least one conversation, found none"),
        ("a.json", b'[{"n": 1},\n{"n": 2}', r"a\.json:2: not valid JSON \(expected , or \] .* found the end"),
        ("a.json", b'[{"n": 1},\n{"n": ', r"a\.json:2: not valid JSON \(Expecting value"),
        ("a.json", b'[{"n": 1}\n\n{"n": 2}]', r"a\.json:3: .*expected , or \] behind an element, found '\{'"),
        ("a.json", b'[{"n": 1}]\n]', r"a\.json:2: not valid JSON \(expected nothing behind the list"),
        ("a.json", b'[{"n": 1},]', r"a\.json:1: not valid JSON"),
        ("a.json", b"[1, 2]", r"a\.json:1: expected an object with messages, found int"),
        ("a.json", b"[]", "expected at least one conversation, found none"),
        ("a.json", b'{"n": 1}\n{"n": 2}', "Extra data at column 1.*; a file with an object on each line is"),
        ("a.json", b'{"rows": []}', "expected a list of conversations, or an object with"),
        ("a.csv", b"a,b\n1,2\n1,2,3\n", r"a\.csv:3: expected 2 fields, found 3"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1: expected each column once, found a, a"),
        ("a.csv", b"a,b\n", "expected at least one conversation, found none"),
        ("a.csv", b'a,b\n"1"2,3\n', r"a\.csv: cannot be read \("),
        ("a.parquet", b"PAR1", r"expected a file named \.jsonl, .*convert it"),
    ],
)
def test_mistakes_are_one_line_with_the_place(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(AlmosaicError, match=message) as caught:
        rows = RowFile(path)
        [rows[index] for index in range(len(rows))]
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_that_changes_is_not_read_at_old_places(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"n": 1}\n{"n": 2}\n')
    rows = RowFile(path)
    path.write_text('{"other": 1}\n{"n": 2}\n')
    os.utime(path, ns=(1, 1))
    with pytest.raises(AlmosaicError, match="has changed since it was opened"):
        rows[1]


def test_tables_may_hold_commas_quotes_and_line_breaks(tmp_path):
    text = 'audio,caption\r\n"a, b.wav","A ""dog""\nbarks"\r\n\r\nc.wav, left \r\n'
    rows = RowFile(write(tmp_path / "a.csv", text))
    assert [rows[0], rows[1]] == [
        {"audio": "a, b.wav", "caption": 'A "dog"\nbarks'},
        {"audio": "c.wav", "caption": " left "},
    ]
    assert [rows.place(0), rows.place(1)] == [f"{tmp_path / 'a.csv'}:2", f"{tmp_path / 'a.csv'}:5"]
    tabs = RowFile(write(tmp_path / "a.tsv", "audio\tcaption\na.wav\tone, two\n"))
    assert tabs[0] == {"audio": "a.wav", "caption": "one, two"}


def test_objects_with_a_list_of_annotations_or_a_mapping_of_data(tmp_path):
    clip = {"path": "a.wav", "text": "hello", "task": "asr"}
    path = write(tmp_path / "a.json", json.dumps({"annotation": [clip, clip]}))
    assert [row["audios"] for row in ChatRows(path)] == [[str(tmp_path / "a.wav")]] * 2
    item = {"name": "a.wav", "prompt": "What?", "output": "A dog.", "duration": 1.0}
    manifest = {"split": "train", "split_path": "clips/", "flamingo_task": "AQA", "total_num": 2}
    manifest["data"] = {"0": item, "1": item | {"name": "b.wav"}}
    rows = ChatRows(write(path, json.dumps(manifest)), "/data")
    assert [row["audios"] for row in rows] == [["/data/clips/a.wav"], ["/data/clips/b.wav"]]
    manifest["dataset_path"] = "/sets/x"
    rows = ChatRows(write(path, json.dumps(manifest)), "/data")
    assert rows[0]["audios"] == ["/sets/x/clips/a.wav"]
    with pytest.raises(AlmosaicError, match="total_num is 3, found 2 records"):
        ChatRows(write(path, json.dumps(manifest | {"total_num": 3})))
    with pytest.raises(AlmosaicError, match="unknown key 'prompt' beside data"):
        ChatRows(write(path, json.dumps(manifest | {"prompt": "?"})))


def test_several_files_are_numbered_through_and_keep_their_folders(tmp_path):
    (tmp_path / "b").mkdir()
    row = {"instruction": "?", "audio_id": "a.wav", "output": "."}
    first = write(tmp_path / "a.jsonl", json.dumps(row))
    second = write(tmp_path / "b/b.json", json.dumps([row, row | {"audio_id": "b.wav"}]))
    rows = ChatRows([first, second])
    assert len(rows) == 3 and [row["id"] for row in rows] == ["0", "1", "2"]
    assert [row["audios"][0] for row in rows] == [
        str(tmp_path / name) for name in ("a.wav", "b/a.wav", "b/b.wav")
    ]
    assert [rows.place(index) for index in range(3)] == [f"{first}:1", f"{second}:1", f"{second}:1"]
    with pytest.raises(IndexError):
        rows[3]
