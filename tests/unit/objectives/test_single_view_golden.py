"""Stored figures of one step of each objective, and codes of the quantiser, so that a change is noticed.

They were written when the losses agreed with plain loops (the tests beside this one). Weights and inputs are
arithmetic, so that no random generator can change them; only the quantiser draws, from its own seed.
"""

import json
from pathlib import Path

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchGrid, PatchMask
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.token_prediction import QuantiserSettings, RandomQuantiser

GOLDEN = Path(__file__).parents[2] / "golden" / "single_view.json"
GRID, CLIPS, KEPT = PatchGrid(4, 8), 5, 12
PREDICTOR = {"width": 16, "depth": 1, "heads": 2}
OBJECTIVES = {
    "masked_autoencoder": {"predictor": PREDICTOR},
    "token_prediction": {
        "predictor": PREDICTOR,
        "quantiser": {"codes": 32, "code_width": 4, "codebooks": 2, "seed": 7},
    },
    "position_prediction": {},
}
WATCHED = ("encoder.pos_embed", "encoder.blocks.1.mlp.fc2.weight", "objective.norm.weight")


def wave(*shape, pace=0.7, start=0.0):
    """sin(start), sin(start + pace), ... in this shape."""
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * pace + start
    return values.sin().float().reshape(shape)


def step_figures(name):
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    config = AudioMosaicConfig(**sizes, drop_path_rate=0.5, objective={"name": name, **OBJECTIVES[name]})
    model = AudioMosaicForPreTraining(config).train()
    with torch.no_grad():
        for i, (key, parameter) in enumerate(model.named_parameters()):
            if not key.endswith("pos_embed"):
                parameter.copy_(wave(*parameter.shape, start=i) * 0.2 + (parameter.ndim == 1))
    order = (torch.arange(32) * 5 + torch.arange(CLIPS)[:, None]) % 32
    kept, masked = order[:, :KEPT].sort().values, order[:, KEPT:].sort().values
    valid = torch.arange(32).expand(CLIPS, -1) < torch.tensor([[32], [24], [32], [16], [32]])
    mask = PatchMask(kept, masked, torch.cat([kept, masked], dim=1).argsort(dim=1), valid)
    noise = wave(CLIPS, 2, 2, pace=2.1).abs()
    output = model([wave(CLIPS, 64, 128, pace=0.37)], [mask], path_noise=[noise])
    output.loss.backward()
    parameters = dict(model.named_parameters())
    return {
        "metrics": {key: value.item() for key, value in output.metrics.items()},
        "gradient_norms": {key: parameters[key].grad.norm().item() for key in WATCHED},
    }


def quantiser_figures():
    made = RandomQuantiser(QuantiserSettings(codebooks=2), 256)
    return {
        "codes": made.codes[:, 4095, :4].tolist(),
        "projections": made.projections[:, 128, :4].tolist(),
        "tokens": made(wave(1, 6, 256, pace=0.41)).flatten().tolist(),
    }


@pytest.mark.parametrize("name", OBJECTIVES)
def test_stored_step(name):
    expected = json.loads(GOLDEN.read_text())[name]
    found = step_figures(name)
    for part in ("metrics", "gradient_norms"):
        assert found[part] == pytest.approx(expected[part], rel=2e-3, abs=1e-5)


def test_stored_codes():
    expected, found = json.loads(GOLDEN.read_text())["quantiser"], quantiser_figures()
    for part in ("codes", "projections"):
        assert found[part] == [pytest.approx(row, rel=1e-6) for row in expected[part]]
    assert found["tokens"] == expected["tokens"]
