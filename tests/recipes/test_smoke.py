"""The smoke recipe through the real command: what a run leaves behind, alone and with two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from almosaic.recipe import load_recipe

if TYPE_CHECKING:
    from tests.conftest import SmokeRun

ROOT = Path(__file__).parents[2]


def test_a_run_leaves_what_it_promises(smoke: "SmokeRun") -> None:
    results = json.loads((smoke.folder / "results.json").read_text())
    assert set(results["question_answering"]) == {"instruct", "aligned"}
    controls = {"untrained", "hand features", "majority class"}
    assert {row["features"] for row in results["probe"]} == {"pretrained"} | controls
    assert results["about"]["seed"] == 1 and results["about"]["versions"]["torch"]
    assert "data:image" in (smoke.folder / "report.html").read_text()
    notes = [json.loads(path.read_text()) for path in smoke.folder.glob("stages/*/stage.json")]
    assert len(notes) == 6 and all(note["done"] for note in notes)
    assert not (smoke.folder / "features").exists()
    assert [stage.id for stage in load_recipe(smoke.folder / "recipe.yaml").stages][-1] == "eval"


def test_every_answer_is_kept_with_its_controls(smoke: "SmokeRun") -> None:
    lines = (smoke.folder / "stages" / "eval" / "questions-instruct.jsonl").read_text().splitlines()
    conditions = {json.loads(line)["condition"] for line in lines}
    assert conditions == {"audio", "silence", "shuffled", "question_only", "oracle"}


@pytest.mark.slow
def test_two_processes_train_and_one_evaluates(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    overrides = [f"output={tmp_path / 'run'}", "stages.eval.probe=null", "stages.eval.encoders={}"]
    command = [*torchrun, "-m", "almosaic", "train", "smoke/curriculum", *overrides]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("[1/6] lm") == 1, "only the first process speaks"
    log = json.loads((tmp_path / "run" / "stages" / "encoder" / "training_log.json").read_text())
    assert log and (tmp_path / "run" / "report.html").is_file()
