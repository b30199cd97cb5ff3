"""Two processes train as one does, and workers change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from stages import ENCODER, losses, make_parts, run_alm, run_pretrain, tiny_bank

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, {helpers!r})
import torch.distributed as dist
from stages import run_alm, run_pretrain, tiny_bank
from almosaic.training.alm_parts import Parts

folder = Path(sys.argv[1])
run_pretrain(folder / "pretrain", **json.loads(sys.argv[2]))
assert dist.get_world_size() == 2, dist.get_world_size()
parts = Parts(audio_tower=folder / "encoder/model", language_model=folder / "lm/model")
run_alm(folder / "alm", parts, tiny_bank(), **json.loads(sys.argv[3]))
(folder / f"world-{{dist.get_rank()}}").write_text(str(dist.get_world_size()))
"""
PRETRAIN = {
    "encoder": ENCODER | {"num_hidden_layers": 2, "drop_path_rate": 0.3},
    "optim": {"steps": 6, "batch_size": 8, "learning_rate": 3e-4},
}
OBJECTIVE = {"name": "contrastive", "projection_hidden": 16, "projection_size": 8}
IN_CHUNKS = {"objective": OBJECTIVE | {"cache_chunk": 3}}  # of the four clips that each process has
ALM = {"cache_features": True, "optim": {"steps": 4, "batch_size": 4, "learning_rate": 1e-3}}


def test_two_gloo_processes_train_as_one(tmp_path):
    parts = make_parts(tmp_path, tiny_bank())
    assert parts.audio_tower == tmp_path / "encoder/model"
    (tmp_path / "script.py").write_text(
        SCRIPT.format(helpers=str(Path(__file__).parents[1] / "unit/training"))
    )
    arguments = [str(tmp_path), json.dumps(PRETRAIN | IN_CHUNKS), json.dumps(ALM)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "script.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [(tmp_path / f"world-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    one = run_pretrain(tmp_path / "one", **PRETRAIN)
    assert list(losses(tmp_path / "pretrain").values()) == pytest.approx(list(one.values()), rel=2e-4)
    alone = run_alm(tmp_path / "alone", parts, tiny_bank(), **ALM)
    assert list(losses(tmp_path / "alm").values()) == pytest.approx(list(alone.values()), rel=2e-4)


@pytest.mark.parametrize("cache", [False, True])
def test_workers_change_nothing(tmp_path, cache):
    settings = {"cache": cache, "optim": {"steps": 6}}
    none = run_pretrain(tmp_path / "none", **settings)
    settings["optim"]["workers"] = 2
    assert run_pretrain(tmp_path / "two", **settings) == none
