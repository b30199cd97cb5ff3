"""Conversion from and to published checkpoints: round trips, prefixes, and one complete error."""

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.conversion import from_released, to_released
from almosaic.errors import AlmosaicError
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

GOLDEN = Path(__file__).parents[2] / "golden" / "released_keys.json"
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "window_frames": 32}
PRETRAINING, CLASSIFIER = AudioMosaicForPreTraining, AudioMosaicForAudioClassification
KINDS = {
    "encoder": (AudioMosaicModel, {}),
    "ltu": (AudioMosaicModel, {"final_norm": "layernorm"}),
    "pretraining": (PRETRAINING, {}),
    "pretraining_norm": (PRETRAINING, {"final_norm": "layernorm"}),
    "classifier": (CLASSIFIER, {}),
    "layer": (CLASSIFIER, {"readout": "layer", "readout_layer": 1}),
    "weighted_sum": (CLASSIFIER, {"readout": "weighted_sum"}),
    "attentive": (CLASSIFIER, {"readout": "attentive", "readout_heads": 4}),
}


def model_of(kind, **overrides):
    built, fields = KINDS[kind]
    return built(AudioMosaicConfig(**{**SIZES, "num_labels": 5, **fields, **overrides}))


def released_of(kind, **overrides):
    model = model_of(kind, **overrides)
    return to_released(model.config, model.state_dict())


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, prefix):
    model = model_of(kind)
    released = to_released(model.config, model.state_dict())
    assert not any(key.startswith(("encoder.", "objective.", "readout.")) for key in released)
    prefixed = {prefix + key: value for key, value in released.items()}
    config, weights = from_released(prefixed, "esc50", readout_layer=model.config.readout_layer)
    assert config.architectures == [type(model).__name__] and config.position_resize == "released"
    for field in ("grid", "final_norm", "readout", "readout_layer", "readout_heads"):
        assert getattr(config, field) == getattr(model.config, field)
    assert weights.keys() == model.state_dict().keys()
    assert all(weights[key] is value for key, value in from_released(released, "esc50")[1].items())
    again = type(model)(config)
    again.load_state_dict(weights)
    back = to_released(again.config, again.state_dict())
    assert all(torch.equal(back[key], value) for key, value in released.items())


def test_prefixes_inside_a_key():
    released = released_of("classifier")
    compiled = {key.replace("blocks.1.", "blocks.1._orig_mod."): value for key, value in released.items()}
    wrapped = {f"module.{key}".replace(".attn.", ".module.attn."): value for key, value in compiled.items()}
    assert from_released(wrapped)[1].keys() == model_of("classifier").state_dict().keys()
    with pytest.raises(AlmosaicError, match=r"found norm_pre\.bias with and without a prefix"):
        from_released({**released, "module.norm_pre.bias": torch.zeros(64)})


def test_every_key_of_the_full_size_kinds():
    """A listing of our own, so that a clone without the reference outputs checks all kinds too."""
    golden = json.loads(GOLDEN.read_text())
    for kind, (built, fields) in KINDS.items():
        with torch.device("meta"):
            model = built(AudioMosaicConfig(num_labels=527, **(fields | {"readout_heads": 1})))
        found = {
            key: list(value.shape) for key, value in to_released(model.config, model.state_dict()).items()
        }
        assert found == golden["encoder"] | golden[kind], kind
    assert len(golden["encoder"]) == 152 and len(golden["pretraining"]) == 14


@pytest.mark.parametrize(
    ("classes", "frames", "parameters"),
    [(50, 512, 85_493_042), (35, 128, 85_334_051), (11, 128, 85_315_595), (2, 1024, 85_652_738)],
)
def test_parameters_of_the_published_classifiers(classes, frames, parameters):
    with torch.device("meta"):
        model = CLASSIFIER(AudioMosaicConfig(num_labels=classes, window_frames=frames))
    assert model.num_parameters() == parameters
    config, _ = from_released(to_released(model.config, model.state_dict()))
    assert (config.num_labels, config.window_frames) == (classes, frames)


def test_labels_come_from_the_preset_and_shapes_from_the_tensors():
    released = released_of("classifier")
    config, _ = from_released(released, preset="esc50")
    assert (config.num_labels, config.problem_type) == (5, "single_label_classification")
    assert from_released(released)[0].problem_type == "multi_label_classification"
    assert from_released(released_of("classifier", window_frames=128))[0].window_frames == 128
    with pytest.raises(AlmosaicError, match=r"release preset \(audioset, esc50, .*\), found 'as20k'"):
        from_released(released, preset="as20k")


def test_a_learned_temperature_has_its_place_and_other_extras_are_named(caplog):
    released = released_of("pretraining") | {
        "logit_scale": torch.tensor(math.log(5.0)),
        "logit_bias": torch.tensor(0.25),
        "online_classifier.weight": torch.zeros(7, 64),
        "online_classifier.bias": torch.zeros(7),
    }
    with caplog.at_level(logging.INFO):
        config, weights = from_released(released)
    assert "left out logit_bias, online_classifier.weight, online_classifier.bias" in caplog.text
    assert config.objective["learnable_temperature"] is True
    model = AudioMosaicForPreTraining(config)
    model.load_state_dict(weights)
    assert model.objective.loss.log_scale.item() == pytest.approx(math.log(5.0))
    assert torch.equal(to_released(config, model.state_dict())["logit_scale"], released["logit_scale"])


def test_the_encoder_of_an_audio_language_model(caplog):
    released = released_of("ltu")
    extra = {f"base_model.model.model.audio_encoder.{key}": value for key, value in released.items()}
    extra["base_model.model.model.audio_proj.1.bias"] = torch.zeros(4096)
    with caplog.at_level(logging.INFO):
        config, weights = from_released(extra, "ltu")
    assert weights.keys() == released.keys() and config.final_norm == "layernorm"
    assert "left out 1 tensors of the audio-language model" in caplog.text


def test_every_misfit_is_listed_in_one_line():
    released = released_of("encoder")
    del released["blocks.1.mlp.fc2.bias"]
    released["norm_pre.weight"] = torch.zeros(3)
    released["pos_embed_mel"] = torch.zeros(1)
    with pytest.raises(AlmosaicError) as error:
        from_released(released)
    text = str(error.value)
    assert "1 missing (blocks.1.mlp.fc2.bias)" in text and "1 unexpected (pos_embed_mel)" in text
    assert "norm_pre.weight [3] instead of [64]" in text and "\n" not in text


@pytest.mark.parametrize(
    ("kind", "key", "value", "expected"),
    [
        ("pretraining", "projector.0.weight", None, "1 missing (projector.0.weight)"),
        ("pretraining", "blocks.7.norm1.bias", torch.zeros(64), "unexpected (blocks.7.norm1.bias)"),
        ("classifier", "head.weight", None, "1 missing (head.weight)"),
        ("classifier", "head.weight", torch.zeros(()), "head.weight [] instead of [5, 64]"),
        ("weighted_sum", "layer_weights", torch.zeros(13), "layer_weights [13] instead of [3]"),
        ("attentive", "attn_key.weight", None, "1 missing (attn_key.weight)"),
        ("attentive", "attn_query", torch.zeros(1, 3, 1, 21), "readout_heads that divide hidden_size 64"),
        ("attentive", "layer_norms.2.bias", None, "1 missing (layer_norms.2.bias)"),
        ("classifier", "online_classifier.bias", torch.zeros(5), "1 unexpected (online_classifier.bias)"),
        ("encoder", "pos_embed", torch.zeros(1, 18, 64), "pos_embed [1, 18, 64] instead of [1, 17, 64]"),
        ("classifier", "LL.weight", torch.zeros(128, 64), "an AASIST checkpoint (LL.weight)"),
        ("encoder", "encoder.pos_embed", torch.zeros(1), "of our own format"),
    ],
)
def test_a_checkpoint_that_does_not_fit(kind, key, value, expected):
    released = released_of(kind)
    released.pop(key, None)
    if value is not None:
        released[key] = value
    with pytest.raises(AlmosaicError) as error:
        from_released(released)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("kind", "layer"), [("encoder", 1), ("attentive", 1), ("classifier", 2)])
def test_a_layer_where_none_can_be_chosen(kind, layer):
    with pytest.raises(AlmosaicError, match="readout_layer"):
        from_released(released_of(kind), readout_layer=layer)


def test_what_the_published_format_does_not_have():
    model = model_of("classifier")
    with pytest.raises(AlmosaicError, match=r"1 unexpected \(teacher\)"):
        to_released(model.config, {**model.state_dict(), "objective.teacher": torch.zeros(1)})


def test_a_foreign_file():
    with pytest.raises(AlmosaicError, match=r"found no usable pos_embed.*among 1 keys"):
        from_released({"lm_head.weight": torch.zeros(2, 2)})


def test_the_number_of_heads_is_asked_for_where_it_cannot_be_known():
    narrow = AudioMosaicModel(AudioMosaicConfig(**{**SIZES, "hidden_size": 48, "num_attention_heads": 3}))
    with pytest.raises(AlmosaicError, match="multiple of 64, found 48: give num_attention_heads"):
        from_released(narrow.state_dict())
    assert from_released(narrow.state_dict(), num_attention_heads=3)[0].num_attention_heads == 3
