"""The predictor puts every token where it belongs and gives back the masked ones."""

import pytest
import torch
from pydantic import ValidationError

from almosaic.encoder import AudioMosaicConfig
from almosaic.encoder.positions import sincos_table
from almosaic.masking import PatchGrid, PatchMask, random_mask
from almosaic.objectives.predictor import Predictor, PredictorSettings

GRID, WIDTH = PatchGrid(4, 8), 16


def predictor(seed=0, depth=2):
    torch.manual_seed(seed)
    config = AudioMosaicConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, window_frames=64, num_mel_bins=128
    )
    built = Predictor(PredictorSettings(width=WIDTH, depth=depth, heads=4), config)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(std=0.3)
    return built


def masked(batch=3, ratio=0.7, grid=GRID, seed=1):
    return random_mask(grid, batch, ratio=ratio, generator=torch.Generator().manual_seed(seed))


def slow(predictor, tokens, mask, grid):
    """One row at a time, without gathers: the masked patches of every row through the same layers."""
    table, rows = sincos_table(grid, WIDTH)[0], []
    for row, keep, hidden in zip(tokens, mask.ids_keep.tolist(), mask.ids_masked.tolist(), strict=True):
        visible = predictor.embed(row)
        x = [visible[0] + table[0]]
        for n in range(grid.patches):
            token = visible[1 + keep.index(n)] if n in keep else predictor.mask_token[0, 0]
            x.append(token + table[1 + n])
        x = torch.stack(x)[None]
        for block in predictor.blocks:
            x = block(x)
        rows.append(predictor.norm(x[0, [1 + n for n in hidden]]))
    return torch.stack(rows)


def test_against_one_row_at_a_time():
    model, mask = predictor(), masked()
    tokens = torch.randn(3, 1 + mask.ids_keep.shape[1], 24)
    found = model(tokens, mask, GRID)
    assert found.shape == (3, mask.ids_masked.shape[1], WIDTH)
    torch.testing.assert_close(found, slow(model, tokens, mask, GRID), atol=1e-5, rtol=1e-4)


def test_a_shorter_window_takes_the_positions_of_its_columns():
    model, grid = predictor(), PatchGrid(2, 8)
    mask = masked(grid=grid)
    tokens = torch.randn(3, 1 + mask.ids_keep.shape[1], 24)
    torch.testing.assert_close(
        model(tokens, mask, grid), slow(model, tokens, mask, grid), atol=1e-5, rtol=1e-4
    )


def test_rows_do_not_see_each_other_and_any_number_may_be_masked():
    model = predictor()
    for ratio in (0.0, 0.9):
        mask = masked(ratio=ratio)
        tokens = torch.randn(3, 1 + mask.ids_keep.shape[1], 24)
        alone = PatchMask(*(part[1:2] for part in vars(mask).values()))
        torch.testing.assert_close(
            model(tokens[1:2], alone, GRID)[0], model(tokens, mask, GRID)[1], atol=1e-6, rtol=1e-5
        )


def test_positions_are_kept_with_the_weights_and_never_trained():
    model, mask = predictor(), masked()
    assert "positions" in model.state_dict()
    model(torch.randn(3, 1 + mask.ids_keep.shape[1], 24), mask, GRID).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    assert not model.positions.requires_grad


def test_bfloat16():
    model, mask = predictor(), masked()
    tokens = torch.randn(3, 1 + mask.ids_keep.shape[1], 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(tokens, mask, GRID)
    torch.testing.assert_close(found.float(), model(tokens, mask, GRID), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("sizes", [{"width": 30, "heads": 5}, {"width": 32, "heads": 5}])
def test_a_width_that_does_not_divide(sizes):
    with pytest.raises(ValidationError, match=r"divides by its heads and by 4, found 3\d with 5 heads"):
        PredictorSettings(**sizes)
