"""`almosaic check` on chat files: each bad row and clip is one line with its place, and lengths are told."""

import io
import json
import tarfile

import numpy as np
import pytest

from almosaic.arguments import FORMATS
from almosaic.cli import main
from almosaic.data.chat_check import is_chat_file, token_counter
from almosaic.data.chat_forms import FORMS
from almosaic.data.check import ChatOptions, check_data
from almosaic.errors import AlmosaicError, AudioError

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def row(question, answer, *clips):
    tags = "<audio>" * len(clips)
    return {"query": f"{tags}{question}", "response": answer, "audios": list(clips)}


@pytest.fixture
def chat(tmp_path):
    """Two good clips, one damaged, one missing; seven rows, of which two are bad."""
    for name, seconds in (("one", 1.0), ("three", 3.0)):
        (tmp_path / "clips").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"clips/{name}.wav", np.full(round(seconds * RATE), 0.1), RATE)
    (tmp_path / "clips/bad.wav").write_bytes(b"no sound at all" * 9)
    rows = [
        row("What is it?", "A dog barks.", "one.wav"),
        row("Which of the two is longer?", "The second.", "one.wav", "three.wav"),
        {"query": "<audio>Hm?", "response": "?"},
        row("And this?", "Nothing.", "bad.wav", "one.wav"),
        row("And this?", "Nothing at all.", "bad.wav", "gone.wav"),
        row("Hello", "Hello yourself, and how are you today?"),
        {"query": "Hm?", "response": "?", "mood": "calm"},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def options(chat, **changes):
    return ChatOptions(audio_root=chat.parent / "clips")._replace(**changes)


def test_every_bad_row_and_clip_has_its_line(chat):
    calls = []
    items, complaints = check_data(str(chat), lambda *counts: calls.append(counts), options(chat))
    assert items == 11 and calls[-1] == (11, 11) and len(calls) == 11
    starts = [f"{chat}:3: 1 <audio> tags", f"{chat}:7: unknown key 'mood'"]
    starts += [
        f"{chat}:4: {chat.parent}/clips/bad.wav: not readable",
        f"{chat}:5: {chat.parent}/clips/gone.wav",
    ]
    assert len(complaints) == 4
    for line, start in zip(complaints, starts, strict=True):
        assert line.startswith(start) and "\n" not in line
    assert complaints[2].endswith("; named 2 times") and "times" not in complaints[3]


def test_lengths_are_told(chat):
    notes = []
    check_data(str(chat), chat=options(chat), note=notes.append)
    assert notes == [
        "7 rows, 1 without audio; 4 clips, 0.00 hours",
        "words of the prompts of a row: min 1, median 2.0, max 6",
        "words of the answers of a row: min 1, median 3.0, max 7",
        f"most words: 8 in {chat}:2",
        "seconds of a clip: min 1.00, median 2.00, max 3.00",
        f"most audio: 4.00 s in {chat}:2",
    ]


def test_questions_need_no_answer_unless_they_are_learned_from(tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "Is it raining?"}]}) + "\n")
    assert main(["check", str(path)]) == 2
    assert "to learn from, found none; the keys are messages (questions alone are for generate)" in (
        capsys.readouterr().out
    )
    assert main(["check", str(path), "--questions"]) == 0


def test_tokens_are_counted_as_in_training(chat):
    class Processor:
        def encode(self, messages, frames):
            if 98 in frames and 298 in frames:
                raise AudioError("too long")
            return type("Encoded", (), {"input_ids": [0] * (sum(frames) + len(messages))})

    notes = []
    chosen = options(chat, tokens=token_counter(Processor()))
    _, complaints = check_data(str(chat), chat=chosen, note=notes.append)
    assert complaints[-1] == f"{chat}:2: too long"
    assert notes[-2:] == ["tokens of a row: min 2, median 51.0, max 100", f"most tokens: 100 in {chat}:1"]


def test_the_command_prints_them_and_ends_with_status_2(chat, capsys):
    root = str(chat.parent / "clips")
    assert main(["check", str(chat), "--audio-root", root, "--format", "query"]) == 2
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{chat}:3: ") and printed[-1] == f"{chat}: 4 of 11 are bad"
    chat.write_text(json.dumps(row("What?", "A dog.", "one.wav")))
    assert main(["check", str(chat), "--audio-root", root]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{chat}: all 2 are good"
    assert main(["check", str(chat), "--format", "slam"]) == 2
    assert "needs the keys key, source, found query, response, audios" in capsys.readouterr().out
    assert main(["check", root, "--format", "slam"]) == 2
    assert "are for chat files" in capsys.readouterr().err


def test_clips_in_archives(chat):
    with tarfile.open(chat.parent / "s.tar", "w") as archive:
        data = (chat.parent / "clips/one.wav").read_bytes()
        member = tarfile.TarInfo("one.wav")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    _, complaints = check_data(str(chat), chat=ChatOptions(archives=(str(chat.parent / "*.tar"),)))
    assert [line.partition(": in none")[0] for line in complaints[2:]] == [
        f"{chat}:2: three.wav",
        f"{chat}:4: bad.wav",
        f"{chat}:5: gone.wav",
    ]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.jsonl", '{"id": "a", "audio": "a.wav", "captions": ["A dog."]}\n', False),
        ("a.jsonl", '{"id": "a", "audio": "a.wav"}\n', False),
        ("a.jsonl", '{"id": "a", "audio": "a.wav"}\n{"messages": []}\n', True),
        ("a.jsonl", '{"id": "a", "audio": "a.wav", "caption": "A dog.", "labels": ["dog"]}\n', False),
        ("a.jsonl", '{"audio": "a.wav", "caption": "A dog."}\n', True),
        ("a.jsonl", '{"text": "a", "wav": "a.wav"}\n', True),
        ("a.jsonl", "not JSON\n", False),
        ("a.json", "{}", True),
        ("a.csv", "a,b\n", True),
        ("a.wav", "RIFF", False),
    ],
)
def test_a_chat_file_is_told_from_a_manifest(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    assert is_chat_file(tmp_path / name) is expected


def test_a_file_of_bad_rows_alone(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "a"}, {"text": "b"}]')
    notes = []
    items, complaints = check_data(str(path), note=notes.append)
    assert items == 2 and len(complaints) == 2 and notes == []
    path.write_text("[")
    with pytest.raises(AlmosaicError, match="not valid JSON"):
        check_data(str(path))


def test_the_command_knows_every_format():
    assert set(FORMATS) == {"auto", *FORMS}
