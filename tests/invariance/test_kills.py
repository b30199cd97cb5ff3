"""A run that is killed at any moment goes on from its last whole checkpoint as if nothing had happened."""

import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from forks import PLACES, finish, lines, start, train, train_until, weights

KILLS = 24
CHANGES = ["optim.steps=5", "optim.save_steps=1", "optim.batch_size=4", "optim.tensorboard=false"]
# Small, so that a process does little else than train and save.
CHANGES += ["crop_seconds=1.0", "min_seconds=0", "front_end.window_frames=112"]
CHANGES += ["monitor=null", "objective.cache_chunk=null"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run, and how many seconds a process takes for it once the server is there."""
    folder = tmp_path_factory.mktemp("whole")
    finish(start(train, folder / "log", folder / "first", CHANGES), log=folder / "log")
    started = time.monotonic()
    finish(start(train, folder / "log", folder / "run", CHANGES), log=folder / "log")
    return folder / "run", time.monotonic() - started


def same(folder, reference):
    return lines(folder) == lines(reference) and weights(folder) == weights(reference)


def test_random_kills_change_nothing(tmp_path, whole):
    reference, seconds = whole
    assert len(lines(reference)) == 5
    drawn, kills, log = random.Random(0), 0, tmp_path / "log"
    folders = [tmp_path / "0"]
    while kills < KILLS:
        process = start(train, log, folders[-1], CHANGES)
        process.join(drawn.uniform(0, seconds))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            folders.append(tmp_path / str(len(folders)))
        assert process.exitcode in (0, -signal.SIGKILL), log.read_text()[-3000:]
    finish(start(train, log, folders[-1], CHANGES), log=log)
    for folder in folders:
        assert same(folder, reference), f"{folder} of {len(folders)}"
        assert not list(folder.glob("stages/*/tmp-*"))


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_while_a_checkpoint_is_written(tmp_path, whole, place):
    log = tmp_path / "log"
    process = start(train_until, log, tmp_path / "run", CHANGES, place, 3)
    process.join()
    assert process.exitcode == -signal.SIGKILL, log.read_text()[-3000:]
    found = {path.name for path in (tmp_path / "run/stages/pretrain").iterdir()}
    assert ("checkpoint-3" in found) == (place == "after") and "checkpoint-2" in found
    assert any(name.startswith("tmp-") for name in found)
    finish(start(train, log, tmp_path / "run", CHANGES), log=log)
    assert same(tmp_path / "run", whole[0])
    assert not list((tmp_path / "run/stages/pretrain").glob("tmp-*"))
