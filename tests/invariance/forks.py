"""Trainings in processes of their own that start at once: forks of a server that has imported everything."""

import gc
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from unittest import mock

import pytest
import torch
from packaging.version import Version

import almosaic.run  # noqa: F401 (what the command imports, once for all forks)
from almosaic.cli import main

HERE = Path(__file__).parent
needs_cpu_places = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.12"),
    reason="torch 2.11 cannot read an optimizer back onto cpu:0, where each of several processes on a CPU is",
)
PLACES = ("before", "after", "half")


def start(function, log, *arguments, **environment):
    """Start `function(*arguments)` in a fork; what it prints and why it fails goes to the file `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["forks"])
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with mock.patch.dict(os.environ, PYTHONPATH=path, OMP_NUM_THREADS="1"):
        process = context.Process(target=_forked, args=(function, str(log), arguments, environment))
        process.start()
    return process


def _forked(function, log, arguments, environment):
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # loaders' workers too start at once
    gc.freeze()  # the library collects garbage at the start of a training: not in all that was imported
    try:
        function(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


def finish(*processes, log):
    """Wait for processes that must succeed."""
    for process in processes:
        process.join(600)
    assert [process.exitcode for process in processes] == [0] * len(processes), Path(log).read_text()[-3000:]


def train(folder, changes, recipe="smoke/pretrain"):
    """The command `almosaic train RECIPE --resume` into `folder`."""
    status = main(["train", recipe, f"output={folder}", *changes, "--resume"])
    assert status == 0


def train_until(folder, changes, place, step):
    """As `train`, but this process dies while it writes the checkpoint of a step.

    `half`: a file of it is half written; `before` and `after`: it is about to get its name, or just has.
    """
    name = f"checkpoint-{step}"

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def half(content, file, *_, **__):
        if name in str(file):
            Path(file).write_bytes(b"PK")
            die()
        save(content, file)

    def rename(self, target):
        if place == "before" and Path(target).name == name:
            die()
        moved = move(self, target)
        if place == "after" and Path(target).name == name:
            die()
        return moved

    save, move = torch.save, Path.rename
    chosen = half if place == "half" else save
    with mock.patch.object(torch, "save", chosen), mock.patch.object(Path, "rename", rename):
        train(folder, changes)


def train_together(folder, changes, log, processes=2):
    """As `train` in several gloo processes, each with its share of the batch; returns when all are done."""
    together(_train_as_rank, log, folder, changes, processes=processes)


def together(function, log, *arguments, processes=2):
    """Call a function in several processes that find each other, as `torchrun` would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    ranks = [
        start(function, log, *arguments, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    finish(*ranks, log=log)


def _train_as_rank(folder, changes):
    train(folder, changes)
    size = torch.distributed.get_world_size()
    Path(folder, f"rank-{os.environ['RANK']}").write_text(str(size))
    torch.distributed.destroy_process_group()


def lines(folder, stage="pretrain"):
    """Everything that a stage of a finished run has logged, step by step, but for how long it took."""
    log = json.loads((Path(folder) / f"stages/{stage}/training_log.json").read_text())
    return [line for line in log if "train_runtime" not in line]


def weights(folder):
    """The bytes of the encoder that a finished run has left."""
    return (Path(folder) / "stages/pretrain/model/model.safetensors").read_bytes()
