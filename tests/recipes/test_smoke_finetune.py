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


@pytest.mark.slow
def test_two_processes_choose_and_score_as_one(data, tmp_path):
    """The same batches, draws and drop path: losses agree to rounding, and so do the scores."""
    # 18 clips in whole batches: of an incomplete one, two processes would repeat a clip.
    tuned = ["drop_path_rate=0.2", "data.validation_share=0.25", "optim.batch_size=6"]
    overrides = ["--stage", "tuned", *(f"stages.tuned.{change}" for change in tuned)]
    logs = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        first = almosaic(
            data, "train", "smoke/finetune", f"output={run}", "--stage", "encoder", *overrides[2:]
        )
        assert first.returncode == 0, first.stderr[-3000:]
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command = [sys.executable, *start, "-m", "almosaic", "train", "smoke/finetune", f"output={run}"]
        done = subprocess.run(
            [*command, *overrides],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env=os.environ | {"DATA": str(data), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        stage = run / "stages" / "tuned"
        logs.append(
            (
                json.loads((stage / "training_log.json").read_text()),
                json.loads((stage / "scores.json").read_text()),
            )
        )
    (alone, scores), (together, shared_scores) = logs
    for name in ("loss", "validation_accuracy"):
        values = [[entry[name] for entry in log if name in entry] for log in (alone, together)]
        assert values[0] and values[0] == pytest.approx(values[1], abs=1e-5)
    (row,), (shared_row,) = scores["classification"], shared_scores["classification"]
    assert (row["epoch"], row["accuracy"]) == (shared_row["epoch"], shared_row["accuracy"])
