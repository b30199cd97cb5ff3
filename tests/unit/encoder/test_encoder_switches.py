"""The switches that make the encoder that of another family: norms before the blocks, fixed positions."""

import pytest
import torch

from almosaic.encoder import (
    AudioMosaicConfig,
    AudioMosaicForAudioClassification,
    AudioMosaicModel,
    EncoderSettings,
)
from almosaic.encoder.conversion import to_released
from almosaic.encoder.positions import sincos_table
from almosaic.errors import AlmosaicError
from almosaic.loading import load_whole

PLAIN = {"patch_norm": False, "pre_norm": False, "fixed_positions": True, "final_norm": "layernorm"}
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}


def encoder(**fields):
    torch.manual_seed(0)
    return AudioMosaicModel(AudioMosaicConfig(**SIZES, initializer_range=0.2, **fields)).eval()


@pytest.mark.parametrize(
    ("switch", "key"), [("patch_norm", "patch_embed.norm.weight"), ("pre_norm", "norm_pre.weight")]
)
def test_a_norm_that_is_switched_off_has_no_tensors(switch, key):
    usual, without = encoder().state_dict(), encoder(**{switch: False}).state_dict()
    assert usual.keys() - without.keys() == {key, key.replace("weight", "bias")}
    assert not without.keys() - usual.keys()


def test_without_norms_the_blocks_read_patches_plus_positions():
    model, features = encoder(**PLAIN), torch.randn(2, 64, 128)
    patches = features.reshape(2, 4, 16, 8, 16).transpose(2, 3).reshape(2, 32, 256)
    linear = patches @ model.patch_embed.proj.weight.flatten(1).T + model.patch_embed.proj.bias
    found = model.embed(features)
    torch.testing.assert_close(found[:, 1:], linear + model.pos_embed[:, 1:])
    assert torch.equal(found[:, :1], model.cls_token.expand(2, -1, -1))
    assert not torch.allclose(encoder(**{**PLAIN, "patch_norm": True}).embed(features), found)
    assert not torch.allclose(encoder(**{**PLAIN, "pre_norm": True}).embed(features), found)


def test_fixed_positions_are_stored_and_not_trained(tmp_path):
    model = encoder(**PLAIN)
    assert "pos_embed" not in dict(model.named_parameters()) and not model.pos_embed.requires_grad
    assert "pos_embed" in dict(encoder().named_parameters())
    assert torch.equal(model.pos_embed, sincos_table(model.config.grid, 24))
    model(torch.randn(1, 64, 128)).pooler_output.sum().backward()
    assert model.pos_embed.grad is None and model.patch_embed.proj.weight.grad is not None
    model.pos_embed.add_(torch.randn_like(model.pos_embed))
    model.save_pretrained(tmp_path / "encoder")
    loaded = AudioMosaicModel.from_pretrained(tmp_path / "encoder")
    assert torch.equal(loaded.pos_embed, model.pos_embed) and loaded.config.fixed_positions
    classifier = AudioMosaicForAudioClassification(model.config)
    classifier.encoder.pos_embed.mul_(2.0)
    classifier.save_pretrained(tmp_path / "classifier")
    inside = load_whole(AudioMosaicForAudioClassification, tmp_path / "classifier").encoder
    assert torch.equal(inside.pos_embed, classifier.encoder.pos_embed)


def test_fixed_positions_still_fit_other_windows():
    model, features = encoder(**PLAIN), torch.randn(1, 32, 128)
    expected = model.patch_embed(features) + model.pos_embed[:, 1:17]
    assert torch.equal(model.embed(features)[:, 1:], expected)


def test_switches_of_a_recipe_reach_the_config(tmp_path):
    config = EncoderSettings(preset="tiny", **PLAIN).build(608, 80)
    assert {name: getattr(config, name) for name in PLAIN} == PLAIN
    config.save_pretrained(tmp_path)
    assert {name: getattr(AudioMosaicConfig.from_pretrained(tmp_path), name) for name in PLAIN} == PLAIN
    usual = EncoderSettings(preset="tiny").build(608)
    assert (usual.patch_norm, usual.pre_norm, usual.fixed_positions) == (True, True, False)
    earlier = usual.to_dict()
    for name in ("patch_norm", "pre_norm", "fixed_positions"):
        del earlier[name]
    assert AudioMosaicConfig.from_dict(earlier).to_dict() == usual.to_dict(), "folders of before the switches"


def test_published_weights_have_both_norms():
    model = encoder(patch_norm=False)
    with pytest.raises(AlmosaicError, match=r"expected an encoder with .*patch_norm False"):
        to_released(model.config, model.state_dict())
