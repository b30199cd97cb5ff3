"""Stored figures of the loss and of one whole step, so that a lone clone notices a change.

They were written when loss and step agreed with the released code in every array (tests/parity). Weights and
inputs are arithmetic, so that no random generator can change them.
"""

import json
from pathlib import Path

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask
from almosaic.objectives.contrastive import ContrastiveSettings, NTXent
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

GOLDEN = Path(__file__).parents[2] / "golden" / "contrastive.json"
CLIPS = 5


def wave(*shape, pace=0.7, start=0.0):
    """sin(start), sin(start + pace), ... in this shape."""
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * pace + start
    return values.sin().float().reshape(shape)


def loss_figures(temperature):
    z = wave(2, CLIPS, 8, pace=1.3)
    z[1] += z[0]
    loss_of = NTXent(learnable=True) if temperature == "learned" else NTXent(float(temperature))
    loss, metrics = loss_of(z.requires_grad_())
    loss.backward()
    found = {"loss": loss.item(), "gradient": z.grad[0, 0, :3].tolist()}
    found |= {name: metrics[name].item() for name in ("contrastive_accuracy", "alignment", "uniformity")}
    return found | ({"log_scale": loss_of.log_scale.grad.item()} if temperature == "learned" else {})


def step_figures():
    settings = ContrastiveSettings(projection_hidden=16, projection_size=8, cache_chunk=2)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    config = AudioMosaicConfig(**sizes, drop_path_rate=0.5, objective=settings.model_dump())
    model = AudioMosaicForPreTraining(config).train()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if not name.endswith("pos_embed"):
                parameter.copy_(wave(*parameter.shape, start=i) * 0.2 + (parameter.ndim == 1))
    ids_keep = (torch.arange(8) * 3 + torch.arange(CLIPS)[:, None]) % 32
    everywhere = torch.ones(CLIPS, 32, dtype=torch.bool)
    masks = [PatchMask(ids, ids[:, :0], ids[:, :0], everywhere) for ids in (ids_keep, ids_keep.flip(0))]
    noise = [wave(CLIPS, 2, 2, pace=2.1, start=view).abs() for view in (0, 1)]
    views = [wave(CLIPS, 64, 128, pace=pace) for pace in (0.37, 0.53)]
    output = model(views, masks, path_noise=noise)
    output.loss.backward()
    names = ("encoder.pos_embed", "encoder.blocks.1.mlp.fc2.weight", "objective.projector.0.weight")
    parameters = dict(model.named_parameters())
    return {
        "metrics": {name: value.item() for name, value in output.metrics.items()},
        "gradient_norms": {name: parameters[name].grad.norm().item() for name in names},
        "running_var": model.objective.projector[1].running_var.sum().item(),
    }


@pytest.mark.parametrize("temperature", ["0.1", "0.5", "learned"])
def test_stored_losses(temperature):
    expected = json.loads(GOLDEN.read_text())["losses"][temperature]
    assert loss_figures(temperature) == {
        name: pytest.approx(value, rel=1e-4, abs=1e-6) for name, value in expected.items()
    }


def test_stored_step():
    expected = json.loads(GOLDEN.read_text())["step"]
    found = step_figures()
    for part in ("metrics", "gradient_norms"):
        assert found[part] == pytest.approx(expected[part], rel=2e-3, abs=1e-6)
    assert found["running_var"] == pytest.approx(expected["running_var"], rel=1e-4)
