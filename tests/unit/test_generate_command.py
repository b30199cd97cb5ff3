"""`almosaic generate` on a model folder: chat files, options, and a batch of which much is wrong."""

import json
import wave
from pathlib import Path
from typing import Any

import pytest
import soundfile
from helpers_tiny import tiny_model, waveform

from almosaic.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command")
    for part in tiny_model(folder):
        part.save_pretrained(folder / "model")
    soundfile.write(folder / "dog.wav", waveform(0.5), 16_000)
    soundfile.write(folder / "long.wav", waveform(1.5), 16_000)
    (folder / "zip.wav").write_bytes(b"PK\x03\x04" + bytes(100))
    with wave.open(str(folder / "hours.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(800)
        file.writeframes(bytes(800 * 3 * 3600))
    return folder


def chat(name: str, text: str, *clips: str) -> dict[str, Any]:
    content = "<audio>" * len(clips) + text
    return {"id": name, "messages": [{"role": "user", "content": content}], "audios": list(clips)}


def asked(folder: Path, rows: list[dict[str, Any]]) -> str:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answers(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_is_wrong_is_listed_and_the_rest_is_answered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        chat("zip", "what", "zip.wav"),
        chat("first", "what do you hear", "dog.wav"),
        chat("hours", "what", "hours.wav"),
        chat("gone", "what", "nowhere.wav"),
        chat("context", "rain " * 300, "dog.wav"),
        chat("limit", "what", "long.wav"),
        {**chat("clips", "what", "dog.wav"), "audios": []},
        chat("text", "is there rain"),
        chat("two", "which comes first", "dog.wav", "dog.wav"),
    ]
    out = tmp_path / "answers.jsonl"
    options = ["--max-audio-seconds", "1", "--max-new-tokens", "3", "-o", str(out)]
    assert main(["generate", str(folder / "model"), asked(folder, rows), *options]) == 1
    assert [(row["id"], row["prompt"]) for row in answers(out)] == [
        ("first", "what do you hear"),
        ("text", "is there rain"),
        ("two", "which comes first"),
    ]
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1] == "6 of 9 questions failed"
    failed = {line.split(": ", 2)[1]: line for line in said if line.startswith("failed: ")}
    assert len(failed) == 6
    for name, reason in (
        ("zip", "not readable as audio"),
        ("hours", "longer than the limit of 1 s"),
        ("gone", "no such file"),
        ("context", "more than the context of 256 holds"),
        ("limit", "longer than the limit of 1 s"),
    ):
        assert reason in failed[name]
    assert any("questions.jsonl:7" in line for line in failed.values())
    note = json.loads(out.with_name("answers.jsonl.about.json").read_text())
    assert len(note["failed"]) == 6 and note["made_with"]["max_new_tokens"] == 3


def test_options_reach_the_words(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(folder / "model"), str(folder / "dog.wav"), "--prompt", "what do you hear"]

    def said(*options: str) -> list[str]:
        assert main([*command, "--max-new-tokens", "8", *options]) == 0
        return [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]

    (greedy,) = said()
    warm = ("--temperature", "2", "--seed", "1")
    (drawn,) = said(*warm)
    assert drawn != greedy and said(*warm) == [drawn]
    assert said(*warm, "--top-k", "1") == [greedy]
    assert said(*warm, "--top-p", "0.01") != [drawn]
    assert said("--repetition-penalty", "50") != [greedy]
    assert len(set(said("--beams", "3", "--num-return-sequences", "3"))) == 3
    out = tmp_path / "several.jsonl"
    said(*warm, "--num-return-sequences", "2", "-o", str(out))
    (row,) = answers(out)
    assert len(row["predictions"]) == 2 and row["prediction"] == row["predictions"][0] == drawn
    assert main([*command, "--beams", "2", *warm]) == 2
    assert "leave out one of the two" in capsys.readouterr().err
