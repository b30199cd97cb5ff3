"""Position tables: fresh ones on the true grid, and the released way of resizing."""

import pytest
import torch
from released import arrays, close, needs_oracle

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.encoder.positions import resize_table, sincos_table
from almosaic.masking import PatchGrid

pytestmark = needs_oracle


@pytest.mark.parametrize("rows", [64, 32, 8])
def test_fresh_tables_on_the_true_grid(rows):
    close(sincos_table(PatchGrid(rows, 8), 768)[0], arrays("posembed")[f"plain_rows{rows}_cols8"], atol=1e-5)


@pytest.mark.parametrize("frames", [1024, 512, 128])
def test_the_released_table_is_the_same_function_on_swapped_axes(frames):
    """8 rows of T / 16 columns over time-major tokens: what published checkpoints were trained from."""
    found = sincos_table(PatchGrid(8, frames // 16), 768)[0]
    close(found, arrays("posembed")[f"model_spec{frames}x128"], atol=1e-5)


@pytest.mark.parametrize("frames", [512, 128])
def test_released_resizing(frames):
    stored = arrays("posembed")
    found = resize_table(stored["interp_src_1024"], PatchGrid(64, 8), PatchGrid(frames // 16, 8), "released")
    close(found, stored[f"interp_dst_{frames}"], atol=1e-6)


@pytest.mark.parametrize("frames", [512, 128])
def test_a_model_on_shorter_windows_equals_one_with_the_resized_table(frames):
    """What the released loader writes into a shorter model, ours does on the way; the default differs."""
    stored = arrays("posembed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    long, short = (
        AudioMosaicModel(AudioMosaicConfig(**sizes, window_frames=size, position_resize="released")).eval()
        for size in (1024, frames)
    )
    weights = long.state_dict()
    short.load_state_dict({**weights, "pos_embed": stored[f"interp_dst_{frames}"]})
    long.load_state_dict({**weights, "pos_embed": stored["interp_src_1024"]})
    features = torch.randn(2, frames, 128)
    expected = short(features).last_hidden_state
    close(long(features).last_hidden_state, expected, atol=2e-5)
    long.config.position_resize = "time_frequency"
    assert not torch.allclose(long(features).last_hidden_state, expected, atol=1e-3)
