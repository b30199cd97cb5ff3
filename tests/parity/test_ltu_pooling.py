"""Audio tokens of the released audio-language model, from its encoder's tokens."""

import torch
from released import arrays, close, needs_oracle

from almosaic.alm.projectors import PoolProjectorSettings, build_projector

pytestmark = needs_oracle


def test_pooled_and_projected_tokens():
    stored = arrays("ltu_audio_tokens")
    patches = stored["encoder_tokens"][:, 1:].unflatten(1, (64, 8))
    llm_width, width = stored["proj_weight"].shape
    projector = build_projector(PoolProjectorSettings(layout="released"), width, llm_width, 64)
    projector.linear.load_state_dict({"weight": stored["proj_weight"], "bias": stored["proj_bias"]})
    close(projector.pool(patches), stored["pooled_tokens"], atol=1e-6)
    close(projector(patches), stored["projected_tokens"], atol=1e-5)


def test_the_true_axes_give_other_tokens():
    """What the released code calls frequency is time: the two layouts must not be mistaken for each other."""
    patches = arrays("ltu_audio_tokens")["encoder_tokens"][:, 1:].unflatten(1, (64, 8))
    pooled = [
        build_projector(PoolProjectorSettings(layout=layout), 768, 4, 64).pool(patches)
        for layout in ("true", "released")
    ]
    assert not torch.allclose(*pooled, atol=1e-3)
