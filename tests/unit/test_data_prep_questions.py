"""Clotho, AudioCaps, Clotho-AQA and OpenAQA, from lists made here in the official layouts."""

import csv
import json

import numpy as np
import pytest
import soundfile

from almosaic.data.check import check_data
from almosaic.data.formats import read_chat
from almosaic.data.manifest import read_manifest
from almosaic.errors import AlmosaicError
from data_prep import audiocaps, clotho, clotho_aqa, openaqa
from data_prep.named_clips import NamedClips


def clip(path, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * 16_000), np.float32), 16_000)


def table(path, header, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows([header.split(","), *rows])
    return path


def test_names_are_found_whatever_unpacking_did_to_them(tmp_path):
    for name in ("Rain, heavy .flac", "sub/a.wav", "b/a.wav", "UPPER.WAV", "x  y.wav", "x y.wav"):
        clip(tmp_path / name) if name.lower().endswith("wav") else soundfile.write(
            tmp_path / name, np.zeros(8000), 16_000
        )
    clips = NamedClips(tmp_path)
    assert clips.find(" Rain,  heavy.wav") == tmp_path / "Rain, heavy .flac"
    assert clips.find("/data/other/b/a.flac") == tmp_path / "b/a.wav"
    assert clips.find("x  y.wav") == tmp_path / "x  y.wav" and clips.find("x y.wav") == tmp_path / "x y.wav"
    assert clips.find("UPPER.wav") == tmp_path / "UPPER.WAV" and clips.find("upper.wav") is None
    with pytest.raises(
        AlmosaicError, match=r"a\.wav: expected one clip of this name, found .*b/a\.wav and .*sub"
    ):
        clips.find("a.wav")
    for wrong in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(AlmosaicError, match="check --source"):
            NamedClips(wrong)


CLOTHO = "file_name,caption_1,caption_2,caption_3,caption_4,caption_5"


def test_clotho_keeps_its_splits_apart_and_lists_what_is_missing(tmp_path, capsys):
    for folder in ("development", "clotho_audio_evaluation"):
        clip(tmp_path / "raw" / folder / "same.wav")
    clip(tmp_path / "raw/development/Rain, heavy.wav")
    texts = [f"Text {number}." for number in range(5)]
    lists = {
        "train": table(
            tmp_path / "dev.csv",
            CLOTHO,
            ["same.wav", *texts],
            [" Rain, heavy.wav", *texts],
            ["gone.wav", *texts],
        ),
        "test": table(tmp_path / "eval.csv", CLOTHO, ["same.wav", *texts]),
    }
    clotho.prepare(tmp_path / "raw", tmp_path / "out", lists)
    rows = read_manifest(tmp_path / "out/manifest.jsonl")
    assert [(row.id, row.split) for row in rows] == [
        ("development/same.wav", "train"),
        ("development/ Rain, heavy.wav", "train"),
        ("evaluation/same.wav", "test"),
    ]
    assert rows[0].path != rows[2].path and rows[1].captions == tuple(texts)
    assert check_data(str(tmp_path / "out/manifest.jsonl")) == (3, [])
    assert (tmp_path / "out/missing.txt").read_text() == "train gone.wav\n"
    assert "1 of 4 listed clips are missing" in capsys.readouterr().out
    clip(tmp_path / "raw/development/gone.wav")
    clotho.prepare(tmp_path / "raw", tmp_path / "out", lists)
    assert not (tmp_path / "out/missing.txt").exists()
    with pytest.raises(AlmosaicError, match="expected validation or clotho_audio_validation, found 0"):
        clotho.prepare(tmp_path / "raw", tmp_path / "out", {"validation": lists["train"]})


AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption"


def test_audiocaps_joins_the_captions_of_a_video(tmp_path, capsys):
    clip(tmp_path / "raw/Yabcdefghijk.wav")
    clip(tmp_path / "raw/--_efghijk1_30.000.wav")
    train = table(
        tmp_path / "train.csv", AUDIOCAPS, [1, "abcdefghijk", 20, "A dog"], [2, "gonegonegon", 7, "Wind"]
    )
    five = [[number, "--_efghijk1", 30, f"Text {number} "] for number in range(5)]
    test = table(tmp_path / "test.csv", AUDIOCAPS, *five)
    audiocaps.prepare(tmp_path / "raw", tmp_path / "out", {"train": train, "test": test})
    rows = {row.id: row for row in read_manifest(tmp_path / "out/manifest.jsonl")}
    assert rows["abcdefghijk"].captions == ("A dog",) and rows["abcdefghijk"].split == "train"
    assert rows["--_efghijk1"].captions == tuple(f"Text {number}" for number in range(5))
    assert (tmp_path / "out/missing.txt").read_text() == "train gonegonegon 7\n"
    assert "1 of 3 videos are missing" in capsys.readouterr().out
    with pytest.raises(AlmosaicError, match="is in the list of train too"):
        audiocaps.prepare(tmp_path / "raw", tmp_path / "out", {"train": train, "test": train})
    twice = table(tmp_path / "x.csv", AUDIOCAPS, [1, "abcdefghijk", 20, "A"], [2, "abcdefghijk", 40, "B"])
    with pytest.raises(AlmosaicError, match="starts at 20 and at 40"):
        audiocaps.prepare(tmp_path / "raw", tmp_path / "out", {"train": twice})


@pytest.mark.parametrize(
    ("answers", "expected", "left"),
    [
        ("majority", ["yes", "water"], 1),
        ("unanimous", ["water"], 2),
        ("all", ["yes", "yes", "no", "water", "water", "water", "one", "two", "six"], 0),
    ],
)
def test_clotho_aqa_makes_conversations_of_three_answers(tmp_path, capsys, answers, expected, left):
    clip(tmp_path / "raw/Creaking pier .wav")
    header = "file_name,QuestionText,answer"
    name = "Creaking pier.wav"
    yes = [[name, "Is it wood?", answer] for answer in ("YES", "YES", "NO")]
    words = [[name, "What flows?", "WATER"]] * 3 + [
        [name, "How many?", word] for word in ("ONE", "TWO", "SIX")
    ]
    lists = [
        table(tmp_path / "binary.csv", header, *yes, ["gone.wav", "Is it?", "YES"]),
        table(tmp_path / "words.csv", header, *words),
    ]
    clotho_aqa.prepare(tmp_path / "raw", tmp_path / "out", {"train": lists}, answers)
    rows = read_chat(tmp_path / "out/train.jsonl")
    assert [row["messages"][1]["content"] for row in rows] == expected
    assert [part.get("text") for part in rows[0]["messages"][0]["content"]][1] in (
        "Is it wood?",
        "What flows?",
    )
    assert check_data(str(tmp_path / "out/train.jsonl")) == (len(rows) + 1, [])
    printed = capsys.readouterr().out
    assert f"{len(rows)} rows; {left} questions have no {answers} answer" in printed
    assert "1 of 2 listed clips are missing" in printed
    assert (tmp_path / "out/missing.txt").read_text() == "train gone.wav\n"
    with pytest.raises(AlmosaicError, match="no clip of the split test is there"):
        gone = table(tmp_path / "gone.csv", header, ["gone.wav", "Is it?", "YES"])
        clotho_aqa.prepare(tmp_path / "raw", tmp_path / "out", {"test": [gone]}, answers)


def test_openaqa_finds_its_clips_by_name(tmp_path, capsys):
    clip(tmp_path / "raw/audioset/abc.wav")
    clip(tmp_path / "raw/clotho/abc.wav")
    row = {"instruction": "What?", "input": "", "dataset": "as", "task": "open", "output": "A dog."}
    names = ["/data/sls/audioset/abc.flac", "/data/clotho/abc.wav", "/data/gone.flac", "/data/clotho/abc.wav"]
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps([row | {"audio_id": name} for name in names]))
    openaqa.prepare(tmp_path / "raw", tmp_path / "out", questions)
    rows = read_chat(tmp_path / "out/openaqa.jsonl")
    assert [one["audios"][0].partition("raw/")[2] for one in rows] == [
        "audioset/abc.wav",
        "clotho/abc.wav",
        "clotho/abc.wav",
    ]
    assert check_data(str(tmp_path / "out/openaqa.jsonl")) == (5, [])
    assert "3 of 4 rows" in capsys.readouterr().out
    assert (tmp_path / "out/missing.txt").read_text() == "/data/gone.flac\n"
    questions.write_text(json.dumps([row]))
    with pytest.raises(AlmosaicError, match=r"q\.json:1: expected a path under audio_id, found None"):
        openaqa.prepare(tmp_path / "raw", tmp_path / "out", questions)
    questions.write_text(json.dumps([row | {"audio_id": "x.wav"}]))
    with pytest.raises(AlmosaicError, match="none of the 1 clips is there"):
        openaqa.prepare(tmp_path / "raw", tmp_path / "out", questions)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["missing.txt", "openaqa.jsonl"]
