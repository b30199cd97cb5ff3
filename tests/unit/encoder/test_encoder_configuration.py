"""Config and settings: presets, overrides, refusals, saving."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel, EncoderSettings
from almosaic.encoder.configuration import PRESETS
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid


@pytest.mark.parametrize(
    "preset, parameters", [("tiny", None), ("small", None), ("base", 85_651_200 - 2 * 768)]
)
def test_presets(preset, parameters):
    config = AudioMosaicConfig.from_preset(preset, window_frames=1024)
    assert {name: getattr(config, name) for name in PRESETS[preset]} == PRESETS[preset]
    assert config.intermediate_size == 4 * config.hidden_size and config.grid == PatchGrid(64, 8)
    if parameters:
        with torch.device("meta"):
            assert AudioMosaicModel(config).num_parameters() == parameters


def test_save_and_load(tmp_path):
    config = AudioMosaicConfig.from_preset(
        "tiny",
        window_frames=256,
        intermediate_size=100,
        final_norm="layernorm",
        objective={"name": "contrastive"},
    )
    config.save_pretrained(tmp_path)
    assert AudioMosaicConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"pooling": "max"}, "expected pooling to be one of mean, mean_valid, cls, found 'max'"),
        ({"final_norm": "rms"}, "expected final_norm to be one of none, layernorm, found 'rms'"),
        ({"position_resize": "x"}, "expected position_resize to be one of time_frequency, released"),
        ({"hidden_size": 100}, "found 100 with 3 heads"),
        ({"window_frames": 1000}, "found 1000 frames x 128 mel bins: pad or cut it to 992 x 128"),
        ({"depth": 3}, "expected fields of the encoder's config, found depth: use drop_path_rate"),
    ],
)
def test_refusals(overrides, message):
    with pytest.raises(AlmosaicError, match=message):
        AudioMosaicConfig.from_preset("tiny", **overrides)


def test_an_unknown_preset():
    with pytest.raises(
        AlmosaicError, match=r"expected an encoder preset \(tiny, small, base\), found 'huge'"
    ):
        AudioMosaicConfig.from_preset("huge")


def test_settings_override_the_preset():
    config = EncoderSettings(preset="tiny", hidden_size=64, num_attention_heads=2, drop_path_rate=0.1).build(
        512
    )
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (64, 4, 256)
    assert (config.window_frames, config.drop_path_rate, config.num_mel_bins) == (512, 0.1, 128)
    assert EncoderSettings().build(128, objective={"name": "contrastive"}).objective == {
        "name": "contrastive"
    }
    for wrong in ({"preset": "huge"}, {"hidden_size": 0}, {"drop_path_rate": 1.0}, {"depth": 3}):
        with pytest.raises(ValidationError):
            EncoderSettings(**wrong)


def test_flops_are_those_of_the_matrix_products():
    config = AudioMosaicConfig.from_preset("tiny", window_frames=64, num_hidden_layers=2)
    model = AudioMosaicModel(config).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(3, 64, 128), ids_keep=torch.arange(10).expand(3, -1))
    assert counter.get_total_flops() == 3 * config.forward_flops(10)
