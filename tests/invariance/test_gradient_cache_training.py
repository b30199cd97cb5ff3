"""A pretraining stage in chunks, or with blocks recomputed, takes the steps of one that does neither."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from stages import ENCODER, run_pretrain

OBJECTIVE = {"name": "contrastive", "projection_hidden": 16, "projection_size": 8}
BLOCKS = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), None)


def train(folder, chunk, **trainer):
    """Logged lines of six steps on five clips, with drop path."""
    run_pretrain(
        folder,
        encoder={**ENCODER, "num_hidden_layers": 2, "drop_path_rate": 0.4},
        objective=OBJECTIVE | {"cache_chunk": chunk, "learnable_temperature": True},
        optim={"batch_size": 5, "trainer": trainer},
    )
    return [line for line in json.loads((folder / "training_log.json").read_text()) if "loss" in line]


@pytest.mark.parametrize("chunk, trainer", [(2, {}), (3, BLOCKS), (None, BLOCKS)])
def test_training_is_the_same(tmp_path, whole, chunk, trainer):
    found = train(tmp_path, chunk, **trainer)
    assert len(found) == len(whole) == 6
    for line, expected in zip(found, whole, strict=True):
        for name in ("loss", "temperature", "contrastive_accuracy"):
            assert line[name] == pytest.approx(expected[name], rel=2e-4, abs=1e-6), name
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=2e-3)  # steps enlarge rounding
        for name in ("lid_mean", "lid_var", "effective_rank"):
            assert line[name] == pytest.approx(expected[name], rel=5e-3), name
    assert found[-1]["temperature"] != pytest.approx(0.07, rel=1e-4)
