"""Audio-language stages in two processes: the weights of one, whatever clips the batches of each hold."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from forks import together
from stages import Tones, losses, make_parts, run_alm, tiny_bank

from almosaic.training import alm
from almosaic.training.alm_parts import Parts

PROJECTORS = {
    "mlp": {"name": "mlp", "queries": 4},
    "pool": {"name": "pool", "queries": 4},
    "qformer": {"name": "qformer", "queries": 4, "hidden_size": 8, "heads": 2},
    "segment_qformer": {
        "name": "segment_qformer",
        "queries": 13,
        "segment_columns": 1,
        "hidden_size": 8,
        "heads": 2,
    },
}
HEARING = {"projector": "full", "audio_tower": "full"}
# 11 rows at 4 a step: the third step of an epoch has three rows, and two processes take two and one of them.
OPTIM = {"steps": 4, "batch_size": 4, "learning_rate": 0.1, "log_steps": 1}
STAGES = {name: {"projector": projector, "tune": HEARING} for name, projector in PROJECTORS.items()}
# Without unused parameters being looked for: a weight without gradient would hang.
STAGES["mlp"]["optim"] = {"trainer": {"ddp_find_unused_parameters": False}}
STAGES["lora"] = {
    "tune": {"projector": "full", "language_model": "lora", "lora_rank": 2, "lora_dropout": 0.0},
    "group_by_length": True,
    "optim": {"trainer": {"gradient_checkpointing": True}, "workers": 1},
}
STAGES["one row is left"] = {"optim": {"batch_size": 10, "steps": 2}}
HALVES = dict.fromkeys(STAGES, 2) | {"one row is left": 5}  # batches of one row in two processes


def write_rows(folder):
    """Eleven conversations of 0 to 2 clips of 0.4 to 3 s; answers differ in length."""
    import soundfile

    for index, seconds in enumerate((0.4, 1.0, 1.3, 2.4, 3.0)):
        samples = [*Tones().waveform(index, 0), *Tones().waveform(index + 5, 0), *Tones().waveform(9, 0)]
        soundfile.write(folder / f"{index}.wav", samples[: int(16_000 * seconds)], 16_000)
    rows = []
    for index, clips in enumerate([[], [0], [], [], [1, 2], [], [3], [4, 0], [], [2], []]):
        text = "<audio>" * len(clips) + "What is it?"
        answer = " ".join(["yes", "a dog", "then a bell rings"][: 1 + index % 3])
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
        rows.append({"id": str(index), "messages": messages, "audios": [f"{clip}.wav" for clip in clips]})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def train_stage(folder, name, accumulation):
    """One of the stages, into `folder/name accumulation`; returns the clips of each batch."""
    heard = []
    inner = alm.AudioInputs.__call__

    def noted(self, batch, epoch, progress):
        heard.append(int(batch["audio_clips"].sum()) if "audio_clips" in batch else 0)
        return inner(self, batch, epoch, progress)

    changes = {"data": [{"name": "chat", "path": str(folder / "rows.jsonl")}], **STAGES[name]}
    optim = {**OPTIM, **changes.get("optim", {}), "accumulation": accumulation}
    # Adam would turn the rounding errors of a gradient that is zero into steps.
    changes["optim"] = optim | {"trainer": {"optim": "sgd", **optim.get("trainer", {})}}
    parts = Parts(audio_tower=folder / "encoder/model", language_model=folder / "lm/model")
    alm.AudioInputs.__call__ = noted
    try:
        run_alm(folder / f"{name} {accumulation}", parts, tiny_bank(), **changes)
    finally:
        alm.AudioInputs.__call__ = inner
    return heard


def train_as_rank(folder):
    heard = {name: train_stage(folder, name, HALVES[name]) for name in STAGES}
    heard["world"] = torch.distributed.get_world_size()
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(heard))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every stage in two processes with accumulation, and what each of them heard."""
    folder = tmp_path_factory.mktemp("processes")
    make_parts(folder, tiny_bank())
    write_rows(folder)
    together(train_as_rank, folder / "log", folder)
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_batches_without_clips_occur_on_one_process_and_on_both(trained):
    _, heard = trained
    assert [found["world"] for found in heard] == [2, 2]
    for name in STAGES:
        silent = {(one == 0, two == 0) for one, two in zip(heard[0][name], heard[1][name], strict=True)}
        assert (True, True) in silent and ((True, False) in silent or (False, True) in silent)
    assert any(one != two and one and two for one, two in zip(heard[0]["mlp"], heard[1]["mlp"], strict=True))


@pytest.mark.parametrize("name", STAGES)
def test_two_processes_that_accumulate_leave_the_weights_of_one(trained, name):
    folder, _ = trained
    train_stage(folder, name, 1)
    halves = f"{name} {HALVES[name]}"
    alone, together = losses(folder / f"{name} 1"), losses(folder / halves)
    assert list(together.values()) == pytest.approx(list(alone.values()), rel=2e-4)
    left = load_file(folder / f"{name} 1/model/model.safetensors")
    right = load_file(folder / halves / "model/model.safetensors")
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert torch.allclose(tensor, right[key], atol=1e-5), key
