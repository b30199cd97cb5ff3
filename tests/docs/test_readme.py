"""The README is run: every Python block and every `almosaic` line, against the model of the smoke run."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from almosaic.cli import main

if TYPE_CHECKING:
    from tests.conftest import SmokeRun

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
ALMOSAIC = [line.split(" #")[0].strip() for line in COMMANDS if line.startswith("almosaic ")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def desk(tmp_path: Path, smoke: "SmokeRun", monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader of the README would stand: a quickstart run, recordings, a manifest, questions."""
    import soundfile

    shutil.copytree(smoke.folder, tmp_path / "runs" / "quickstart")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    rng = np.random.default_rng(0)
    for name in ("dog", "rain"):
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(16_000), 16_000)
    row = {"id": "1", "audio": "dog.wav", "labels": ["dog"]}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    (rows,) = re.findall(r"```json\n(.*?)```", README, re.S)
    (tmp_path / "questions.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python_block(code: str, desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out, "the example shows something"


@pytest.mark.parametrize("line", [line for line in ALMOSAIC if shlex.split(line)[1] not in ("train", "demo")])
def test_command(line: str, desk: Path) -> None:
    assert main(shlex.split(line)[1:]) == 0


@pytest.mark.parametrize("line", [line for line in ALMOSAIC if shlex.split(line)[1] == "train"])
def test_training_command_resolves(line: str, desk: Path) -> None:
    """Training takes minutes; what it would run is shown instead, from the same arguments."""
    arguments = [word for word in shlex.split(line)[2:] if not word.startswith("--")]
    assert main(["recipe", "show", *arguments]) == 0


@pytest.mark.parametrize("line", [line for line in ALMOSAIC if shlex.split(line)[1] == "demo"])
def test_demo_command_opens_a_page(line: str, desk: Path) -> None:
    pytest.importorskip("gradio", reason="the demo extra is not installed")
    command = [sys.executable, "-m", *shlex.split(line), "--port", str(free_port())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None and page.stderr is not None
        first = page.stdout.readline()
        page.terminate()
        assert "http://127.0.0.1" in first, page.stderr.read()


def test_the_smoke_run_says_what_to_type_next(smoke: "SmokeRun") -> None:
    assert f"next: almosaic demo {smoke.folder}" in smoke.printed
    assert (smoke.folder / "report.html").is_file() and (smoke.folder / "results.json").is_file()


def test_the_map_of_files_is_true() -> None:
    """Every path in the README's map exists, and every module of the package is on it."""
    (block,) = re.findall(r"## Where things are\n.*?```text\n(.*?)```", README, re.S)
    named = {line.split()[0] for line in block.splitlines() if line.strip()}
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing
    package = ROOT / "almosaic"
    modules = {f"almosaic/{path.name}" for path in package.glob("*.py") if not path.name.startswith("__")}
    folders = {f"almosaic/{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    assert modules | folders <= named
