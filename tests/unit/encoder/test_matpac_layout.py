"""Published MATPAC encoders to ours and back: turned once, complete, and one line for what does not fit."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.matpac import from_matpac, is_matpac, to_matpac
from almosaic.encoder.positions import sincos_table
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid

GOLDEN = Path(__file__).parents[2] / "golden" / "matpac_encoder.npz"
D, DEPTH, BANDS, COLUMNS = 64, 2, 3, 4
TEACHER = {"_ema.blocks.0.norm1.weight": (D,), "_cls_head_ema.mlp.0.bias": (5,)}
TRAINING = {
    "decoder.mask_token": (1, 1, 8),
    "mcl_heads.mcl_heads.0.weight": (8, 8),
    "cls_student_head.mlp.0.weight": (5, D),
    "cls_head_loss.center": (1, 1, 5),
    "teacher_encoder.norm.weight": (D,),
    "cls_teacher_head.mlp.0.weight": (5, D),
} | TEACHER
FINE_TUNED = {"head_norm.running_mean": (D,), "head.weight": (527, D)}


def published(bands=BANDS, columns=COLUMNS, width=D, depth=DEPTH):
    """Arithmetic in place of weights, so that no random generator can change the golden tokens."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + bands * columns, width),
        "patch_embed.proj.weight": (width, 1, 16, 16),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(depth):
        block = f"student_encoder.blocks.{i}"
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        linears |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{block}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
        for name, shape in linears.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    shapes |= {f"student_encoder.norm.{kind}": (width,) for kind in ("weight", "bias")}
    return {name: wave(shape, i) for i, (name, shape) in enumerate(shapes.items())}


def wave(shape, phase):
    values = torch.arange(int(np.prod(shape)), dtype=torch.float64) * 0.7 + phase
    return (values.sin() * 0.2 + (len(shape) == 1)).float().reshape(shape)


def others(shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def converted(tensors, **options):
    config, weights = from_matpac(tensors, 48, **options)
    model = AudioMosaicModel(config).eval()
    model.load_state_dict(weights)
    return model


def test_golden_tokens():
    """Stored when this conversion agreed with arrays that the authors' own code produced."""
    model = converted(published(), num_attention_heads=4)
    cells = torch.arange(64 * 48, dtype=torch.float64)
    found = model((cells * 0.37).cos().float().reshape(1, 64, 48), ids_keep=torch.tensor([[1, 5, 10]]))
    np.testing.assert_allclose(found.last_hidden_state.detach(), np.load(GOLDEN)["tokens"], atol=2e-5)


def test_tokens_and_kernels_are_turned():
    tensors = published()
    positions = torch.arange(1.0 + BANDS * COLUMNS)[None, :, None].repeat(1, 1, D)
    kernel = torch.zeros(D, 1, 16, 16)
    kernel[:, 0, 3, 7] = 1.0  # theirs: frequency, then time
    model = converted(tensors | {"pos_embed": positions, "patch_embed.proj.weight": kernel})
    assert model.config.grid == PatchGrid(COLUMNS, BANDS)
    ours = model.pos_embed[0, 1:, 0].reshape(COLUMNS, BANDS)
    theirs = 1 + torch.arange(BANDS * COLUMNS).reshape(BANDS, COLUMNS)
    assert torch.equal(ours, theirs.T.float()) and model.pos_embed[0, 0, 0] == 0
    features = torch.zeros(1, 64, 48)
    features[0, 2 * 16 + 7, 16 + 3] = 5.0  # time 7 of column 2, frequency 3 of band 1
    moved = (model.patch_embed(features) - model.patch_embed(features * 0))[0]
    assert moved[:, 0].tolist() == [0.0] * 7 + [5.0] + [0.0] * 4  # token 2 * 3 + 1


@pytest.mark.parametrize("extra", [{}, TRAINING, FINE_TUNED])
def test_round_trip(extra, caplog):
    tensors = published()
    with caplog.at_level(logging.INFO):
        model = converted(tensors | others(extra))
    back = to_matpac(model.config, model.state_dict())
    assert back.keys() == tensors.keys() and is_matpac(back)
    assert all(torch.equal(back[key], value) and back[key].is_contiguous() for key, value in tensors.items())
    assert (f"left out {len(extra)} tensors" in caplog.text) == bool(extra)
    assert all(key.split(".")[0] in caplog.text for key in extra)
    assert not is_matpac(model.state_dict())


@pytest.mark.parametrize(("rows", "grid"), [(191, PatchGrid(38, 5)), (311, PatchGrid(62, 5))])
def test_the_rows_of_the_position_table_tell_the_window(rows, grid):
    tensors = published(5, grid.time, depth=1)
    assert tensors["pos_embed"].shape[1] == rows
    config, _ = from_matpac(tensors)
    assert (config.grid, config.num_mel_bins, config.window_frames) == (grid, 80, 16 * grid.time)
    assert (config.num_attention_heads, config.num_hidden_layers, config.intermediate_size) == (1, 1, 4 * D)
    assert (config.patch_norm, config.pre_norm, config.fixed_positions) == (False, False, True)
    assert (config.final_norm, config.pooling, config.layer_norm_eps) == ("layernorm", "mean_valid", 1e-6)


def test_parameters_of_the_published_size():
    config = AudioMosaicConfig(
        window_frames=608, num_mel_bins=80, patch_norm=False, pre_norm=False, fixed_positions=True,
        final_norm="layernorm",
    )  # fmt: skip
    with torch.device("meta"):
        model = AudioMosaicModel(config)
    tensors = to_matpac(config, model.state_dict())
    assert sum(value.numel() for value in tensors.values()) == 85_400_832
    assert len(tensors) == 4 + 12 * 12 + 2


def test_the_encoder_of_a_classifier_goes_out_alone(caplog):
    config, _ = from_matpac(published(), 48)
    classifier = AudioMosaicForAudioClassification(config)
    with caplog.at_level(logging.INFO):
        back = to_matpac(config, classifier.state_dict())
    assert torch.equal(back["cls_token"], classifier.encoder.cls_token) and len(back) == len(published())
    assert "left out 4 tensors of heads" in caplog.text


def test_our_fresh_positions_turn_into_a_table_whose_halves_are_swapped():
    """Theirs have the column index in the first half of the channels, ours the band: any table is obeyed."""
    config, weights = from_matpac(published(), 48)
    back = to_matpac(config, weights | {"pos_embed": sincos_table(config.grid, D)})
    table = back["pos_embed"][0, 1:].reshape(BANDS, COLUMNS, D)
    assert torch.equal(table[:, 0, : D // 2], table[:, 3, : D // 2])
    assert torch.equal(table[0, :, D // 2 :], table[2, :, D // 2 :])


def spoilt(**changes):
    return {key: value for key, value in (published() | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("tensors", "options", "expected"),
    [
        (spoilt(cls_token=None), {}, "1 missing (cls_token)"),
        (spoilt(dist_token=torch.zeros(1)), {}, "1 unexpected (dist_token)"),
        (spoilt(**{"patch_embed.norm.weight": torch.zeros(D)}), {}, "1 unexpected (patch_embed.norm.weight)"),
        (spoilt(**{"student_encoder.norm.bias": torch.zeros(3)}), {}, "encoder.norm.bias [3] instead of"),
        (spoilt(pos_embed=None), {}, "no usable pos_embed among 29 keys (first: cls_token"),
        (spoilt(pos_embed=torch.zeros(1, 13)), {}, "no usable pos_embed"),
        (spoilt(pos_embed=torch.zeros(1, 12, D)), {}, "1 + 3 x columns rows for 48 mel bins, found 12"),
        (spoilt(pos_embed=torch.zeros(1, 1, D)), {}, "1 + 3 x columns rows for 48 mel bins, found 1"),
        (published(width=48), {}, "multiple of 64, found 48: give num_attention_heads"),
        (published(), {"num_attention_heads": 5}, "with 5 heads"),
        ({"blocks.0.norm1.weight": torch.zeros(D)}, {}, "no usable pos_embed, patch_embed.proj.weight"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(tensors, options, expected):
    with pytest.raises(AlmosaicError) as caught:
        from_matpac(tensors, 48, **options)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_an_encoder_of_another_form_is_refused():
    config, weights = from_matpac(published(), 48)
    for change in ({"patch_norm": True}, {"pre_norm": True}, {"final_norm": "none"}):
        other = AudioMosaicConfig.from_dict({**config.to_dict(), **change})
        with pytest.raises(AlmosaicError, match=f"as MATPAC's have, found .*{next(iter(change))} "):
            to_matpac(other, weights)
    with pytest.raises(AlmosaicError, match=r"1 missing \(student_encoder\.norm\.bias\)"):
        to_matpac(config, {key: value for key, value in weights.items() if key != "norm.bias"})
