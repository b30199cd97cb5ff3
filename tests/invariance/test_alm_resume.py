"""Audio-language stages of every kind go on exactly: after a cut, in two processes, killed at any moment."""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from forks import finish, needs_cpu_places, start, together
from stages import losses, make_parts, run_alm, tiny_bank
from test_alm_processes import write_rows

from almosaic.training.alm_parts import Parts
from almosaic.training.checkpoints import latest_checkpoint

LORA = {"projector": "full", "language_model": "lora", "lora_rank": 2, "lora_dropout": 0.3}
QFORMER = {"name": "qformer", "queries": 4, "hidden_size": 8, "heads": 2}
# A checkpoint after step 4 lies in an epoch of three steps, and after two batches of its second step.
OPTIM = {"steps": 7, "save_steps": 4, "batch_size": 4, "learning_rate": 1e-2, "log_steps": 1}
STAGES = {
    "align": {"group_by_length": True, "cache_features": True},
    "hear": {"tune": {"projector": "full", "audio_tower": "full"}, "projector": QFORMER},
    "everything": {
        "tune": {**LORA, "audio_tower": "full"},
        "group_by_length": True,
        "mix": True,
        "train_on_prompt": True,
        "optim": {"trainer": {"gradient_checkpointing": True}, "accumulation": 2, "workers": 1},
    },
}
KILLS = 5


def train_stage(folder, name, output, **optim):
    """A stage into `folder/output`, from its last checkpoint where there is one."""
    changes = dict(STAGES[name])
    files = {"name": "chat", "path": str(folder / "rows.jsonl")}
    mixed = [files | {"weight": 1.3}, {"name": "scenes", "scenes": 8, "captions": 0.3, "weight": 0.5}]
    changes["data"] = mixed if changes.pop("mix", False) else [files]
    changes["optim"] = {**OPTIM, **changes.get("optim", {}), **optim}
    parts = Parts(audio_tower=folder / "encoder/model", language_model=folder / "lm/model")
    run_alm(folder / output, parts, tiny_bank(), resume=True, **changes)


def cut_back(folder, whole, output, step=4):
    """Leave in `folder/output` what an interruption after a step of the run `whole` would."""
    shutil.copytree(folder / whole / f"checkpoint-{step}", folder / output / f"checkpoint-{step}")
    shutil.copy(folder / whole / "rows.json", folder / output)


def same(folder, first, second):
    left, right = (load_file(folder / run / "model/model.safetensors") for run in (first, second))
    equal = left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    return equal and losses(folder / first) == losses(folder / second)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Parts, rows, and an uninterrupted run of every stage."""
    folder = tmp_path_factory.mktemp("resume")
    make_parts(folder, tiny_bank())
    write_rows(folder)
    for name in STAGES:
        train_stage(folder, name, f"{name} whole")
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_a_resumed_stage_equals_an_uninterrupted_one(folder, name):
    cut_back(folder, f"{name} whole", f"{name} resumed")
    train_stage(folder, name, f"{name} resumed")
    assert len(losses(folder / f"{name} whole")) == 7
    assert same(folder, f"{name} whole", f"{name} resumed")


def train_twice(folder):
    """In each of two processes: a whole run, and one that goes on from its checkpoint."""
    train_stage(folder, "everything", "shared whole")
    if os.environ["RANK"] == "0":
        cut_back(folder, "shared whole", "shared resumed")
    torch.distributed.barrier()
    train_stage(folder, "everything", "shared resumed")
    (folder / f"rank-{os.environ['RANK']}").write_text(str(torch.distributed.get_world_size()))
    torch.distributed.destroy_process_group()


@needs_cpu_places
def test_two_processes_go_on_as_two_processes_do(folder):
    together(train_twice, folder / "log", folder)
    assert [(folder / f"rank-{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert same(folder, "shared whole", "shared resumed")


def train_often_saved(folder, output):
    train_stage(folder, "everything", output, save_steps=1)


def test_kills_at_random_moments_change_nothing(folder):
    """Each process dies a moment after it has written one more checkpoint: in a step, or while it writes."""
    log, drawn, killed = folder / "kills", random.Random(0), 0
    for number in range(KILLS):
        process = start(train_often_saved, log, folder, "killed")
        while process.is_alive() and _saved(folder / "killed") <= number:
            time.sleep(0.002)
        process.join(drawn.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()[-3000:]
        killed += process.exitcode == -signal.SIGKILL
    finish(start(train_often_saved, log, folder, "killed"), log=log)
    assert killed >= 3
    assert same(folder, "everything whole", "killed")
    assert not list((folder / "killed").glob("tmp-*"))


def _saved(run):
    found = latest_checkpoint(run)
    return 0 if found is None else int(found.name.partition("-")[2])
