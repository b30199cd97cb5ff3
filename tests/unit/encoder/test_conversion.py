"""Conversion from and to published checkpoints: round trips, prefixes, and one complete error."""

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.conversion import from_released, to_released
from almosaic.errors import AlmosaicError
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "window_frames": 32}
KINDS = {
    "AudioMosaicModel": AudioMosaicModel,
    "AudioMosaicForPreTraining": AudioMosaicForPreTraining,
    "AudioMosaicForAudioClassification": AudioMosaicForAudioClassification,
}


def model_of(name, **overrides):
    return KINDS[name](AudioMosaicConfig(**SIZES, num_labels=5, **overrides))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("final_norm", ["none", "layernorm"])
def test_round_trip(name, final_norm):
    model = model_of(name, final_norm=final_norm)
    released = to_released(model.config, model.state_dict())
    assert not any(key.startswith(("encoder.", "objective.")) for key in released)
    prefixed = {f"module._orig_mod.{key}": value for key, value in released.items()}
    config, weights = from_released(prefixed, preset="esc50")
    assert config.architectures == [name] and config.position_resize == "released"
    assert (config.grid, config.final_norm) == (model.config.grid, final_norm)
    KINDS[name](config).load_state_dict(weights)
    assert weights.keys() == model.state_dict().keys()
    assert all(
        weights[key] is released[key.split(".", 1)[1]] for key in weights if key.startswith("encoder.")
    )


def test_labels_come_from_the_preset_and_shapes_from_the_tensors():
    released = to_released(
        model_of("AudioMosaicForAudioClassification").config,
        model_of("AudioMosaicForAudioClassification").state_dict(),
    )
    config, _ = from_released(released, preset="esc50")
    assert (config.num_labels, config.problem_type) == (5, "single_label_classification")
    assert from_released(released)[0].problem_type == "multi_label_classification"
    with pytest.raises(
        AlmosaicError, match=r"release preset \(audioset, esc50, speech_commands\), found 'as20k'"
    ):
        from_released(released, preset="as20k")


def test_every_misfit_is_listed_in_one_line():
    released = to_released(model_of("AudioMosaicModel").config, model_of("AudioMosaicModel").state_dict())
    del released["blocks.1.mlp.fc2.bias"]
    released["norm_pre.weight"] = torch.zeros(3)
    released["pos_S"] = torch.zeros(1)
    with pytest.raises(AlmosaicError) as error:
        from_released(released)
    text = str(error.value)
    assert "1 missing (blocks.1.mlp.fc2.bias)" in text and "1 unexpected (pos_S)" in text
    assert "norm_pre.weight [3] instead of [64]" in text and "\n" not in text


def test_a_foreign_file():
    with pytest.raises(AlmosaicError, match=r"found no usable pos_embed.*among 1 keys"):
        from_released({"lm_head.weight": torch.zeros(2, 2)})


def test_the_number_of_heads_is_asked_for_where_it_cannot_be_known():
    narrow = AudioMosaicModel(AudioMosaicConfig(**{**SIZES, "hidden_size": 48, "num_attention_heads": 3}))
    with pytest.raises(AlmosaicError, match="multiple of 64, found 48: give num_attention_heads"):
        from_released(narrow.state_dict())
    assert from_released(narrow.state_dict(), num_attention_heads=3)[0].num_attention_heads == 3
