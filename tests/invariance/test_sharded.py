"""A model sharded over two processes trains as in one, and leaves the same files.

The library shards on GPUs alone and would quietly not do so here, so it is told that gloo will do.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from forks import together
from stages import losses, make_parts, run_alm, tiny_bank
from test_alm_processes import write_rows

from almosaic.export import export
from almosaic.loading import load_model
from almosaic.training import optim
from almosaic.training.alm_parts import Parts
from almosaic.training.trainer import AlmosaicTrainer

LORA = {"language_model": "lora", "lora_rank": 2, "lora_dropout": 0.0}
STAGES = {
    "align": {"tune": {"projector": "full"}},
    # Adapters and audio parts in single precision beside a language model in half.
    "lora": {"tune": {"projector": "full", "audio_tower": "full", **LORA}},
    "full": {"tune": {"projector": "full", "language_model": "full"}},
}
TOLERANCE = {"align": 1e-4, "lora": 1e-2, "full": 1e-4}
OPTIM = {"steps": 5, "save_steps": 3, "batch_size": 4, "learning_rate": 1e-2, "log_steps": 1}


def train_stage(folder, name, output, trainer, resume=False):
    """Losses of one of the stages, trained into `folder/output`."""
    changes = {"data": [{"name": "chat", "path": str(folder / "rows.jsonl")}], **STAGES[name]}
    # A large epsilon: Adam would turn the rounding errors of a gradient that is zero into steps.
    changes["optim"] = OPTIM | {"trainer": {"adam_epsilon": 1e-3, **trainer}}
    words = folder / ("half" if name == "lora" else "lm/model")
    parts = Parts(audio_tower=folder / "encoder/model", language_model=words)
    return run_alm(folder / output, parts, tiny_bank(), resume=resume, **changes)


def sharding_on_cpus():
    """Let accelerate shard although there is no GPU."""
    inner = AcceleratorState.__init__

    def init(self, *args, fsdp_plugin=None, **kwargs):
        inner(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            PartialState._shared_state["distributed_type"] = self.distributed_type

    return mock.patch.object(AcceleratorState, "__init__", init)


def train_as_rank(folder):
    """In each of two processes: every stage sharded, one of them twice over, and one stage that is not."""
    main, units, inner = os.environ["RANK"] == "0", [], AlmosaicTrainer.write_model

    def noted(self, *parts):
        sharded = {name for name, module in self.model.named_modules() if isinstance(module, FSDPModule)}
        assert all(isinstance(value, DTensor) == bool(sharded) for value in self.model.parameters())
        units.append(sorted(sharded))
        return inner(self, *parts)

    with mock.patch.object(AlmosaicTrainer, "write_model", noted):
        with mock.patch.object(optim, "check_sharding"), sharding_on_cpus():
            for name in STAGES:
                train_stage(folder, name, f"{name} sharded", {"fsdp": True})
            if main:
                (folder / "resumed").mkdir()
                shutil.copytree(folder / "lora sharded/checkpoint-3", folder / "resumed/checkpoint-3")
            torch.distributed.barrier()
            train_stage(folder, "lora", "resumed", {"fsdp": True}, resume=True)
        train_stage(folder, "align", "not sharded", {})
    seen = {"units": units, "world": torch.distributed.get_world_size()}
    (folder / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Every stage in one process and sharded over two, and what the model was sharded into."""
    folder = tmp_path_factory.mktemp("sharded")
    parts = make_parts(folder, tiny_bank())
    write_rows(folder)
    AutoModelForCausalLM.from_pretrained(parts.language_model, dtype=torch.bfloat16).save_pretrained(
        folder / "half"
    )
    AutoTokenizer.from_pretrained(parts.language_model).save_pretrained(folder / "half")
    together(train_as_rank, folder / "log", folder)
    for name in STAGES:
        train_stage(folder, name, f"{name} whole", {})
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_layers_are_shards_of_their_own_and_the_audio_parts_lie_with_the_rest(trained):
    _, seen = trained
    for found in seen:
        assert found["world"] == 2 and len(found["units"]) == len(STAGES) + 2
        for units in found["units"][:-1]:
            assert "" in units and "language_model.model.layers.0" in units
            assert not any(name.startswith(("audio_tower", "multi_modal")) for name in units)
        assert found["units"][-1] == [], "the next stage does not shard unless told to"


@pytest.mark.parametrize("name", STAGES)
def test_a_sharded_model_leaves_the_losses_weights_and_keys_of_a_whole_one(trained, name):
    folder, _ = trained
    alone, shared = losses(folder / f"{name} whole"), losses(folder / f"{name} sharded")
    assert len(alone) == 5
    assert list(shared.values()) == pytest.approx(list(alone.values()), rel=TOLERANCE[name])
    for place in ("checkpoint-3", "model"):
        left, right = tensors(folder / f"{name} whole" / place), tensors(folder / f"{name} sharded" / place)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert tensor.dtype == right[key].dtype, key
            assert torch.allclose(tensor, right[key], atol=TOLERANCE[name]), key
    words = {key for key in right if key.startswith("language_model")}
    assert {"align": not words, "lora": all("lora_" in key for key in words), "full": words}[name]


def test_a_resumed_sharded_run_equals_an_uninterrupted_one(trained):
    folder, _ = trained
    assert losses(folder / "resumed") == losses(folder / "lora sharded")
    left, right = tensors(folder / "lora sharded/model"), tensors(folder / "resumed/model")
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def test_what_a_sharded_run_has_left_is_loaded_and_exported_as_any_other(trained):
    folder, _ = trained
    model, _ = load_model(folder / "lora sharded/model", device="cpu")
    export(folder / "lora sharded/model", folder / "exported")
    merged, _ = load_model(folder / "exported", device="cpu")
    ids = torch.tensor([[20, 21, 22, 23]])
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, merged(input_ids=ids).logits, atol=0.1)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="the library shards over GPUs, two at least")
def test_sharded_over_gpus(tmp_path):
    """Not yet run: the same command as users type."""
    make_parts(tmp_path, tiny_bank())
    write_rows(tmp_path)
    together(train_stage, tmp_path / "log", tmp_path, "align", "gpus", {"fsdp": True})
    train_stage(tmp_path, "align", "whole", {})
    found, expected = losses(tmp_path / "gpus"), losses(tmp_path / "whole")
    assert list(found.values()) == pytest.approx(list(expected.values()), rel=0.05)
