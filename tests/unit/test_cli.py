"""The command line: verbs, exit codes, and one clear line for every mistake."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from almosaic import cli
from almosaic.cli import main


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The single line on stderr."""
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    return line


def test_every_verb_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("train", "eval", "embed", "generate", "export", "check", "recipe", "demo"):
        with pytest.raises(SystemExit) as done:
            main([verb, "--help"])
        assert done.value.code == 0
    assert "MODEL" in capsys.readouterr().out


def test_recipe_list_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe", "list"]) == 0
    assert "smoke/curriculum" in capsys.readouterr().out
    assert main(["recipe", "show", "smoke/curriculum", "seed=5"]) == 0
    assert "\nseed: 5\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "nowhere"], "no recipe 'nowhere'"),
        (["train", "smoke/curriculum", "sead=1"], "did you mean seed?"),
        (["train", "smoke/curriculum", "--stage", "encodr"], "did you mean encoder?"),
        (["eval", "nowhere"], "'nowhere'"),
        (["embed", "model", "nowhere.wav", "-o", "x.npz"], "nowhere.wav"),
        (["embed", "model", __file__, "-o", "x.txt"], ".safetensors, .npz or .jsonl"),
        (["generate", "nowhere", __file__, "--prompt", "What?"], "nowhere"),
        (["generate", "nowhere", __file__], "expected --prompt TEXT"),
        (["generate", "nowhere", "questions.jsonl"], "questions.jsonl"),
        (["export", "one"], "RUN OUT"),
        (["export", "nowhere", "out"], "nowhere"),
        (["check", "nowhere.jsonl"], "nowhere.jsonl"),
        (["demo", "nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(root / "recipes")
    assert main(arguments) == 2
    line = told(capsys)
    assert line.startswith("error: ") and expected in line


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> dict[str, str]:
        raise error

    monkeypatch.setattr("almosaic.recipe.list_recipes", fail)


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"), monkeypatch)
    assert main(["recipe", "list"]) == 2
    assert "no space left on the disk" in told(capsys)


def test_ctrl_c_is_status_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    assert main(["recipe", "list"]) == 130
    assert "stopped; " in told(capsys)


def test_an_unknown_failure_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raising(ZeroDivisionError(), monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(["recipe", "list"])


def test_only_the_first_process_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    cli.say("hello")
    assert capsys.readouterr().out == ""


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m almosaic recipe list | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_ctrl_c_in_training_says_how_to_go_on(tmp_path: Path) -> None:
    """The real command, interrupted for real, ends with one line and without a traceback."""
    command = [sys.executable, "-m", "almosaic", "train", "smoke/curriculum", f"output={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "--resume" in errors.splitlines()[-1]
