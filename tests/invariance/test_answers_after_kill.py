"""A command that answers many files, killed in the middle: no answer is lost, doubled or different."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from helpers_tiny import tiny_model, waveform

from almosaic.cli import main

COUNT = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder and clips of several lengths, some of which cannot be used."""
    folder = tmp_path_factory.mktemp("killed")
    model, processor = tiny_model(folder)
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    clips = folder / "clips"
    clips.mkdir()
    for index in range(COUNT):
        soundfile.write(clips / f"{index:03d}.wav", waveform(0.2 + 0.03 * (index * 7 % COUNT), index), 16_000)
    (clips / "zipped.wav").write_bytes(b"PK\x03\x04" + bytes(200))
    (clips / "empty.wav").touch()
    with soundfile.SoundFile(clips / "hours.flac", "w", 8000, 1) as file:
        for _ in range(180):
            file.write(waveform(1.0)[:1].repeat(8000 * 60))
    return folder


def command(folder: Path, out: Path) -> list[str]:
    sampling = ["--temperature", "0.7", "--seed", "1", "--batch-size", "2", "--max-new-tokens", "6"]
    return [
        *("generate", str(folder / "model"), str(folder / "clips")),
        *("--prompt", "what do you hear", "-o", str(out), *sampling),
    ]


def test_a_killed_command_goes_on_where_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, killed = folder / "whole.jsonl", folder / "killed.jsonl"
    assert main(command(folder, whole)) == 1
    said = capsys.readouterr().err
    assert f"3 of {COUNT + 3} questions failed" in said
    for name, reason in (
        ("zipped.wav", "not readable"),
        ("empty.wav", "empty"),
        ("hours.flac", "limit of 300 s"),
    ):
        assert any(
            name in line and reason in line for line in said.splitlines() if line.startswith("failed: ")
        )

    process = subprocess.Popen(
        [sys.executable, "-m", "almosaic", *command(folder, killed)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if killed.is_file() and killed.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    begun = killed.read_bytes()
    assert 4 <= begun.count(b"\n") < COUNT
    with killed.open("ab") as file:
        file.write(b'{"id": "torn')

    assert main(command(folder, killed)) == 1
    capsys.readouterr()
    assert killed.read_bytes() == whole.read_bytes()
    answers = [json.loads(line) for line in killed.read_text().splitlines()]
    assert [Path(answer["id"]).name for answer in answers] == [f"{index:03d}.wav" for index in range(COUNT)]
    notes = [json.loads(path.with_name(f"{path.name}.about.json").read_text()) for path in (whole, killed)]
    assert notes[0] == notes[1] and len(notes[0]["failed"]) == 3
