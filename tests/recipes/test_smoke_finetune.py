"""The fine-tuning smoke recipe through the real command: table, results, another fold, bad folds, resume."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.data.labelled_manifest import folds, write_tones

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_tones(folder / "sounds", folds())
    return folder


def almosaic(data, *arguments):
    command = [sys.executable, "-m", "almosaic", *arguments]
    environment = os.environ | {"DATA": str(data)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_a_run_prints_and_keeps_its_scores(data, tmp_path):
    run = tmp_path / "run"
    done = almosaic(data, "train", "smoke/finetune", f"output={run}", "stages.tuned.data.fold=2")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Classifiers" in done.stdout and "fold 2" in done.stdout and "probe: weighted_sum" in done.stdout
    tuned, probed = json.loads((run / "results.json").read_text())["classification"]
    assert (tuned["model"], tuned["test"], tuned["select_on"]) == ("tuned", "fold 2", "validation")
    assert (probed["model"], probed["test"], probed["select_on"]) == ("probed", "fold 3", "last")
    assert "Scored once, after training" in (run / "report.html").read_text()
    wrong = almosaic(data, "train", "smoke/finetune", f"output={tmp_path / 'x'}", "stages.tuned.data.fold=9")
    assert wrong.returncode != 0 and "has no fold 9; there are: 1, 2, 3" in wrong.stderr
    assert "Traceback" not in wrong.stderr
