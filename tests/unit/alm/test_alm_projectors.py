"""Projectors: shapes, what each token hears, scale, gradient checkpointing."""

import pytest
import torch
from pydantic import ValidationError

from almosaic.alm.projectors import (
    MLPProjectorSettings,
    PoolProjectorSettings,
    QFormerProjectorSettings,
    SegmentQFormerProjectorSettings,
    build_projector,
    projector_settings,
)
from almosaic.errors import AlmosaicError

SETTINGS = [
    MLPProjectorSettings(queries=4),
    QFormerProjectorSettings(queries=4, hidden_size=16, heads=2),
    SegmentQFormerProjectorSettings(queries=4, segment_columns=4, hidden_size=16, heads=2),
    PoolProjectorSettings(queries=4),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)
def test_windows_become_q_tokens_of_the_wanted_scale(settings):
    projector = build_projector(settings, 24, 40, 8)
    projector.set_output_scale(0.02)
    tokens = projector(torch.randn(3, 8, 2, 24))
    assert tokens.shape == (3, 4, 40)
    assert tokens.std().item() == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: settings.name)
def test_a_window_does_not_hear_its_neighbours(settings):
    projector = build_projector(settings, 24, 40, 8).eval()
    windows = torch.randn(3, 8, 2, 24)
    assert torch.allclose(projector(windows)[1:2], projector(windows[1:2]), atol=1e-6)


@pytest.mark.parametrize("settings", [SETTINGS[0], SETTINGS[3]], ids=lambda settings: settings.name)
def test_token_q_hears_its_share_of_time_and_every_frequency(settings):
    projector = build_projector(settings, 24, 40, 8)
    tokens = torch.randn(1, 8, 2, 24)
    before = projector(tokens)
    tokens[0, 5, 1, 0] += 1.0
    changed = (projector(tokens) - before).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_the_released_layout_hears_all_times_and_two_bands():
    """Patch (time 10, band 5) of 16 x 8 is token 85, read as row 5 of 8 and column 5 of 16: audio token 2."""
    projector = build_projector(PoolProjectorSettings(queries=8, layout="released"), 24, 40, 16)
    tokens = torch.randn(1, 16, 8, 24)
    before = projector(tokens)
    tokens[0, 10, 5, 0] += 1.0
    changed = (projector(tokens) - before).abs().amax(-1)[0] > 1e-6
    assert changed.nonzero().flatten().tolist() == [2]


def test_pooled_tokens_do_not_depend_on_the_loudness_of_the_encoder():
    projector = build_projector(PoolProjectorSettings(queries=4), 24, 40, 8)
    tokens = 50.0 * torch.randn(1, 8, 2, 24)
    assert torch.allclose(projector(4.0 * tokens), projector(tokens), atol=1e-3)
    assert not torch.allclose(projector(0.001 * tokens), projector(tokens), atol=1e-3)


def test_mlp_pools_a_time_axis_that_does_not_divide():
    projector = build_projector(MLPProjectorSettings(queries=3, hidden_size=8), 24, 40, 8)
    assert projector(torch.randn(1, 8, 2, 24)).shape == (1, 3, 40)


def test_mlp_refuses_more_queries_than_time_patches():
    with pytest.raises(AlmosaicError, match="9 tokens but a window has 8 time patches"):
        build_projector(MLPProjectorSettings(queries=9), 24, 40, 8)(torch.randn(1, 8, 2, 24))
    with pytest.raises(AlmosaicError, match="the pool projector pools time to 9 tokens"):
        build_projector(PoolProjectorSettings(queries=9), 24, 40, 8)(torch.randn(1, 8, 2, 24))


def test_segment_tokens_hear_their_own_columns_and_every_frequency():
    """8 columns in segments of 2: column 5 is heard by the third pair of 8 tokens, whichever its band."""
    settings = SegmentQFormerProjectorSettings(queries=8, segment_columns=2, hidden_size=16, heads=2)
    projector = build_projector(settings, 24, 40, 8)
    for band in (0, 1):
        tokens = torch.randn(2, 8, 2, 24)
        before = projector(tokens)
        tokens[1, 5, band, 0] += 1.0
        changed = (projector(tokens) - before).abs().amax(-1) > 1e-6
        assert not changed[0].any()
        assert changed[1].tolist() == [False] * 4 + [True] * 2 + [False] * 2


def test_segments_share_their_queries():
    settings = SegmentQFormerProjectorSettings(queries=8, segment_columns=2, hidden_size=16, heads=2)
    projector = build_projector(settings, 24, 40, 8)
    assert projector.query_tokens.shape == (2, 16)
    segment = torch.randn(1, 2, 2, 24)
    tokens = projector(segment.repeat(1, 4, 1, 1)).unflatten(1, (4, 2))
    assert torch.allclose(tokens, tokens[:, :1].expand_as(tokens), atol=1e-6)
    assert not torch.allclose(tokens[:, :, 0], tokens[:, :, 1], atol=1e-3)


def test_segments_that_do_not_come_out_even_are_refused_with_the_numbers():
    with pytest.raises(AlmosaicError, match="8 time patches, which do not divide into segments of 3"):
        build_projector(SegmentQFormerProjectorSettings(queries=4, segment_columns=3), 24, 40, 8)
    with pytest.raises(AlmosaicError, match="queries 6 do not divide among the 4 segments of a window"):
        build_projector(SegmentQFormerProjectorSettings(queries=6, segment_columns=2), 24, 40, 8)
    with pytest.raises(AlmosaicError, match="8 time patches, which do not divide into segments of 16"):
        build_projector(SegmentQFormerProjectorSettings(queries=4, segment_columns=16), 24, 40, 8)
    projector = build_projector(
        SegmentQFormerProjectorSettings(queries=4, segment_columns=4, hidden_size=16, heads=2), 24, 40, 8
    )
    with pytest.raises(AlmosaicError, match="windows of 8 time patches but a window has 12"):
        projector(torch.randn(1, 12, 2, 24))


def test_the_base_sizes_give_two_tokens_per_four_columns():
    projector = build_projector(SegmentQFormerProjectorSettings(), 24, 40, 64)
    assert projector.query_tokens.shape == (2, 256)


def test_every_qformer_block_listens():
    projector = build_projector(
        QFormerProjectorSettings(queries=2, hidden_size=16, layers=3, heads=2), 24, 40, 8
    )
    projector(torch.randn(2, 8, 2, 24)).square().sum().backward()
    silent = [name for name, parameter in projector.named_parameters() if parameter.grad is None]
    assert not silent
    assert (
        sum("crossattention.attention.value.weight" in name for name, _ in projector.named_parameters()) == 3
    )


def test_qformer_heads_must_divide_its_width():
    with pytest.raises(AlmosaicError, match="hidden_size 10 does not divide into 4 heads"):
        build_projector(QFormerProjectorSettings(hidden_size=10), 24, 40, 8)


def test_settings_survive_a_saved_configuration_and_refuse_unknown_keys():
    for settings in SETTINGS:
        assert projector_settings(settings.model_dump()) == settings
    with pytest.raises(ValidationError):
        projector_settings({"name": "mlp", "layers": 2})
