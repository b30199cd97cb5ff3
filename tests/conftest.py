"""What all tests share: fixed seeds, one thread each, and one smoke run whose model many tests borrow."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A script's background job ignores Ctrl-C, and so would everything it starts; some tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class SmokeRun(NamedTuple):
    """A finished run of recipes/smoke/curriculum.yaml."""

    folder: Path
    printed: str


@pytest.fixture(autouse=True)
def _fixed_seeds() -> Iterator[None]:
    """The same global random state for every test, whatever ran before it."""
    np.random.seed(0)
    if "torch" in sys.modules:
        import torch

        torch.manual_seed(0)
    yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two test processes share the cores; two threads in each would make both slower."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    """The smoke recipe, run once by the real command and shared by all tests. Do not write into it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder, log = shared / "smoke-run", shared / "smoke-run.log"
    with open(shared / "smoke-run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not log.exists():
            command = [sys.executable, "-m", "almosaic", "train", "smoke/curriculum", f"output={folder}"]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, f"the smoke recipe failed:\n{done.stdout}\n{done.stderr}"
            log.write_text(done.stdout)
    return SmokeRun(folder, log.read_text())
