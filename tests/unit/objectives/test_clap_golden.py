"""Stored figures of one whole step of audio-text alignment, so that a lone clone notices a change.

Weights and inputs are arithmetic, so that no random generator can change them.
"""

import json
from pathlib import Path

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig
from almosaic.masking import PatchMask
from almosaic.objectives.clap import ClapSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.text_encoder import TextEncoderSettings

GOLDEN = Path(__file__).parents[2] / "golden" / "clap.json"
TEXTS = ["a dog barks", "rain", "a dog barks", "Türklingel", "rain, then thunder"]
PARAMETERS = (
    "encoder.patch_embed.proj.weight",
    "encoder.blocks.1.mlp.fc2.weight",
    "objective.audio_projector.0.weight",
    "objective.text_encoder.byte_embed.weight",
    "objective.text_encoder.blocks.layers.0.self_attn.in_proj_weight",
    "objective.text_projector.3.weight",
    "objective.loss.log_scale",
)


def wave(*shape, pace=0.7, start=0.0):
    """sin(start), sin(start + pace), ... in this shape."""
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64) * pace + start
    return values.sin().float().reshape(shape)


def figures():
    text = TextEncoderSettings(width=16, layers=2, heads=2, max_bytes=32)
    settings = ClapSettings(text_encoder=text, projection_hidden=16, projection_size=8, cache_chunk=2)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    config = AudioMosaicConfig(**sizes, drop_path_rate=0.5, objective=settings.model_dump())
    model = AudioMosaicForPreTraining(config).train()
    with torch.no_grad():
        for i, (name, parameter) in enumerate(model.named_parameters()):
            if not name.endswith(("pos_embed", "log_scale")):
                parameter.copy_(wave(*parameter.shape, start=i) * 0.2 + (parameter.ndim == 1))
    clips = len(TEXTS)
    ids_keep = (torch.arange(8) * 3 + torch.arange(clips)[:, None]) % 32
    mask = PatchMask(ids_keep, ids_keep[:, :0], ids_keep[:, :0], torch.ones(clips, 32, dtype=torch.bool))
    noise = wave(clips, 2, 2, pace=2.1).abs()
    output = model([wave(clips, 64, 128, pace=0.37)], [mask], TEXTS, path_noise=[noise])
    output.loss.backward()
    parameters = dict(model.named_parameters())
    model.eval()
    with torch.no_grad():
        vectors = model.objective.embed_texts(TEXTS[:2])
    return {
        "metrics": {name: value.item() for name, value in output.metrics.items()},
        "gradient_norms": {name: parameters[name].grad.norm().item() for name in PARAMETERS},
        "text_vectors": vectors[:, :4].flatten().tolist(),
    }


def test_stored_step():
    expected, found = json.loads(GOLDEN.read_text()), figures()
    for part in ("metrics", "gradient_norms"):
        assert found[part] == pytest.approx(expected[part], rel=2e-3, abs=1e-6)
    assert found["text_vectors"] == pytest.approx(expected["text_vectors"], rel=1e-3, abs=1e-4)
