"""Stored figures of two whole steps of MATPAC and MATPAC++, so that a lone clone notices a change.

They were written when one step agreed with the code of the authors in every array (tests/parity). Weights and
inputs are arithmetic, so that no random generator can change them.
"""

import json
from pathlib import Path

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask
from almosaic.objectives.matpac import MatpacSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

GOLDEN = Path(__file__).parents[2] / "golden" / "matpac.json"
ROWS, PATCHES, VISIBLE = 3, 32, 9
GRADIENTS = (
    "encoder.patch_embed.proj.weight",
    "encoder.blocks.0.attn.qkv.weight",
    "objective.predictor.mask_token",
    "objective.to_targets.weight",
    "objective.head.classes.gain",
)
STATE = (
    "objective.class_targets.centre",
    "objective.encoder_teacher.network.blocks.1.mlp.fc1.weight",
    "objective.head_teacher.network.mlp.2.weight",
)


def wave(*shape, pace=0.7, start=0.0):
    """sin(start), sin(start + pace), ... in this shape."""
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * pace + start
    return values.sin().float().reshape(shape)


def pretraining(hypotheses):
    settings = MatpacSettings(
        predictor={"width": 16, "depth": 2, "heads": 2},
        hypotheses=hypotheses,
        encoder_decay=(0.9, 0.99),
        classification={"hidden": 12, "bottleneck": 8, "classes": 10, "warmup": 0.8, "decay": (0.8, 0.9)},
    )
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    model = AudioMosaicForPreTraining(AudioMosaicConfig(**sizes, objective=settings.model_dump())).train()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if not name.endswith("pos_embed"):
                pace = 0.7 + 0.01 * i
                parameter.copy_(wave(*parameter.shape, pace=pace, start=i) * 0.2 + (parameter.ndim == 1))
    return model


def mask():
    order = wave(ROWS, PATCHES, pace=2.3).argsort(dim=1)
    keep, hidden = order[:, :VISIBLE].sort(dim=1).values, order[:, VISIBLE:].sort(dim=1).values
    valid = torch.arange(PATCHES) < torch.tensor([PATCHES, PATCHES - 8, PATCHES])[:, None]
    return PatchMask(keep, hidden, torch.cat([keep, hidden], dim=1).argsort(dim=1), valid)


def figures(hypotheses):
    model = pretraining(hypotheses)
    parameters, found = dict(model.named_parameters()), {}
    for step in (1, 2):
        model.zero_grad()
        output = model([wave(ROWS, 64, 128, pace=0.37 * step)], [mask()])
        output.loss.backward()
        model.after_step(step / 4)
        found[f"step {step}"] = {
            "metrics": {name: value.item() for name, value in output.metrics.items()},
            "gradient_norms": {name: parameters[name].grad.norm().item() for name in GRADIENTS},
            "state_norms": {name: model.state_dict()[name].norm().item() for name in STATE},
        }
    return found


@pytest.mark.parametrize("hypotheses", [1, 3])
def test_stored_steps(hypotheses):
    expected, found = json.loads(GOLDEN.read_text())[str(hypotheses)], figures(hypotheses)
    for step, parts in expected.items():
        for part, values in parts.items():
            assert found[step][part] == pytest.approx(values, rel=2e-3, abs=1e-6), (step, part)
