"""A recipe's `optim.trainer.gradient_checkpointing` changes what is kept in memory, not what is learnt."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.llama.modeling_llama import LlamaMLP

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "training"))
from stages import make_parts, run_alm, tiny_bank

TUNE = {
    "projector": "full",
    "audio_tower": "full",
    "language_model": "lora",
    "lora_rank": 2,
    "lora_dropout": 0,
}
RATES = {"projector": 1e-2, "audio_tower": 1e-3, "language_model": 1e-2}


@pytest.mark.parametrize(
    "projector",
    [
        {"name": "mlp", "queries": 4},
        {"name": "segment_qformer", "queries": 1, "segment_columns": 13, "hidden_size": 16, "heads": 2},
    ],
    ids=lambda projector: projector["name"],
)
def test_a_stage_learns_the_same_from_activations_computed_twice(projector, tmp_path, monkeypatch):
    bank = tiny_bank()
    parts = make_parts(tmp_path / "parts", bank)
    calls = []
    forward = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda layer, x: calls.append(1) or forward(layer, x))
    found = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        optim = {"learning_rate": RATES, "steps": 3, "trainer": {"gradient_checkpointing": checkpointing}}
        losses = run_alm(folder, parts, bank, projector=projector, tune=TUNE, optim=optim)
        found.append((losses, load_file(folder / "model" / "model.safetensors"), len(calls)))
        calls.clear()
    (losses, weights, once), (again, recomputed, twice) = found
    assert once > 0 and twice == 2 * once
    assert list(again.values()) == pytest.approx(list(losses.values()), rel=1e-5)
    assert recomputed.keys() == weights.keys()
    for name, weight in weights.items():
        assert torch.allclose(recomputed[name], weight, atol=1e-5), name
