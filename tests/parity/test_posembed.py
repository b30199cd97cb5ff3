"""Position tables: fresh ones on the true grid, and the released way of resizing."""

import pytest
from released import arrays, close, needs_oracle

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
