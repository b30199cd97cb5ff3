"""Published AudioMosaic checkpoints to ours and back.

This file and `released_keys` are the ones that know foreign key names. Encoder tensors already carry the
published names: conversion adds or removes the prefixes of our models and checks every key and shape.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.released_keys import (
    ATTENTION_QUERY,
    WITHOUT_PLACE,
    Kind,
    Shapes,
    kind_of,
    published_shapes,
    readout_of,
    rows_of,
)
from almosaic.errors import AlmosaicError

logger = logging.getLogger(__name__)

MEL_BINS = 128
HEAD_WIDTH = 64
ARCHITECTURES: dict[Kind, str] = {
    "encoder": "AudioMosaicModel",
    "pretraining": "AudioMosaicForPreTraining",
    "classifier": "AudioMosaicForAudioClassification",
}
SINGLE, MULTI = "single_label_classification", "multi_label_classification"
PROBLEM_TYPES = {
    "audioset": MULTI,
    "esc50": SINGLE,
    "speech_commands": MULTI,
    "envsdd": SINGLE,
    "ltu": MULTI,
}
# What wraps a model in training or inside the audio-language model; at the start of a key or within it.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module)\.")
_LTU_ENCODER = "base_model.model.model.audio_encoder."
_AASIST = ("LL.weight", "pos_S", "master1", "first_bn.weight")
_OUR_PREFIXES = re.compile(r"^(?:encoder|objective|readout)\.")
_LEARNED_SCALE, _OUR_SCALE = "logit_scale", "objective.loss.log_scale"  # theirs has no axis, ours one


def from_released(
    state_dict: Mapping[str, Tensor],
    preset: str = "audioset",
    *,
    num_attention_heads: int | None = None,
    readout_layer: int | None = None,
) -> tuple[AudioMosaicConfig, dict[str, Tensor]]:
    """A published state dict to a config and the state dict of the model named in `config.architectures`.

    Args:
        state_dict: an encoder, a pretraining model, a classifier (any classes, any T), a weighted-sum or
            attentive probe, or the trained tensors of an audio-language model, whose encoder is taken;
            prefixes `module.` and `_orig_mod.` are removed wherever they stand.
        preset: data set of the release (audioset, esc50, speech_commands, envsdd, ltu): what kind of labels.
        num_attention_heads: no tensor tells it; heads of 64 channels, as published, when None.
        readout_layer: the 0-based block that a probe of one layer reads; no tensor tells it either.

    Raises:
        AlmosaicError: keys or shapes that do not fit, all of them in one line; an AASIST checkpoint.
    """
    if preset not in PROBLEM_TYPES:
        raise AlmosaicError(
            f"expected a release preset ({', '.join(PROBLEM_TYPES)}), found {preset!r}: "
            "name the data set of the release"
        )
    released = _without_wrappers(state_dict)
    kind = kind_of(released)
    config = _config_of(released, kind, num_attention_heads)
    _set_heads(config, released, kind, preset, readout_layer)
    if left_out := [key for key in released if kind == "pretraining" and key in WITHOUT_PLACE]:
        logger.info("left out %s: no part of our pretraining model uses it", ", ".join(left_out))
        released = {key: value for key, value in released.items() if key not in left_out}
    _check(released, kind, config)
    ours = {_our_key(key, kind): value for key, value in released.items()}
    if _OUR_SCALE in ours:
        ours[_OUR_SCALE] = ours[_OUR_SCALE].reshape(1)
    return config, ours


def to_released(config: AudioMosaicConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: our encoder, pretraining or classifier state dict under the published key names.

    Raises:
        AlmosaicError: keys or shapes that the published format does not have.
    """
    if not (config.patch_norm and config.pre_norm):
        raise AlmosaicError(
            "expected an encoder with patch_norm and pre_norm, as published weights have both, found "
            f"patch_norm {config.patch_norm} and pre_norm {config.pre_norm}: use the model folder as it is"
        )
    released = {_OUR_PREFIXES.sub("", key): value for key, value in state_dict.items() if key != _OUR_SCALE}
    if _OUR_SCALE in state_dict:
        released[_LEARNED_SCALE] = state_dict[_OUR_SCALE].squeeze()
    _check(released, kind_of(released), config)
    return released


def _without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Plain published keys; AlmosaicError for what is no such checkpoint although it looks like one."""
    released: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        plain = _WRAPPERS.sub("", key)
        if plain in released:
            raise AlmosaicError(
                f"expected every tensor once, found {plain} with and without a prefix such as module.: "
                "check how the file was written"
            )
        released[plain] = value
    if aasist := [key for key in _AASIST if key in released]:
        raise AlmosaicError(
            f"expected an encoder, a pretraining model or a classifier, found an AASIST checkpoint "
            f"({aasist[0]}): its back end is not supported, convert the linear release of EnvSDD"
        )
    if "encoder.pos_embed" in released:
        raise AlmosaicError(
            "expected a published checkpoint, found the key encoder.pos_embed of our own format: "
            "use the model folder as it is"
        )
    encoder = {
        key.removeprefix(_LTU_ENCODER): released[key] for key in released if key.startswith(_LTU_ENCODER)
    }
    if encoder and (others := len(released) - len(encoder)):
        logger.info("left out %d tensors of the audio-language model: only its encoder is converted", others)
    return encoder or released


def _our_key(key: str, kind: Kind) -> str:
    """The name in our model: encoder tensors in `encoder`, heads in `objective` or `readout`."""
    if kind == "encoder":
        return key
    if key == _LEARNED_SCALE:
        return _OUR_SCALE
    if kind == "pretraining":
        return f"objective.{key}" if key.startswith(("fc_norm.", "projector.")) else f"encoder.{key}"
    if key.startswith(("fc_norm.", "head.")):
        return key
    readout = key.startswith(("layer_weights", "attn_", "layer_norms."))
    return f"readout.{key}" if readout else f"encoder.{key}"


def _config_of(
    released: Mapping[str, Tensor], kind: Kind, num_attention_heads: int | None
) -> AudioMosaicConfig:
    """The encoder's part: shapes from the tensors, the rest as published."""
    needed = {"pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    if missing := [key for key, ndim in needed.items() if key not in released or released[key].ndim != ndim]:
        raise AlmosaicError(
            f"expected an AudioMosaic state dict, found no usable {', '.join(missing)} "
            f"among {len(released)} keys (first: {', '.join(list(released)[:3])}): check the file"
        )
    (_, rows, width), patch = released["pos_embed"].shape, released["patch_embed.proj.weight"].shape[-1]
    heads = width // HEAD_WIDTH if num_attention_heads is None else num_attention_heads
    if num_attention_heads is None and width % HEAD_WIDTH:
        raise AlmosaicError(
            f"expected a width that is a multiple of {HEAD_WIDTH}, found {width}: give num_attention_heads "
            "(--heads)"
        )
    blocks = {match[1] for key in released if (match := re.match(r"blocks\.(\d+)\.", key))}
    config = AudioMosaicConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=heads,
        intermediate_size=released["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=patch,
        window_frames=(rows - 1) // max(1, MEL_BINS // max(1, patch)) * patch,
        num_mel_bins=MEL_BINS,
        final_norm="layernorm" if "norm.weight" in released else "none",
        position_resize="released",
    )
    config.architectures = [ARCHITECTURES[kind]]
    return config


def _set_heads(
    config: AudioMosaicConfig,
    released: Mapping[str, Tensor],
    kind: Kind,
    preset: str,
    readout_layer: int | None,
) -> None:
    """The heads' part of the config: classes and read-out, or the projection."""
    readout = readout_of(released) if kind == "classifier" else "pooled"
    if readout_layer is not None and (kind != "classifier" or readout != "pooled"):
        found = f"{readout} probe" if kind == "classifier" else kind
        raise AlmosaicError(
            f"expected a probe of one layer for readout_layer {readout_layer}, found a checkpoint of kind "
            f"{found}: leave readout_layer out"
        )
    if kind == "classifier":
        config.num_labels = max(rows_of(released, "head.weight"), rows_of(released, "head.bias"), 1)
        config.problem_type = PROBLEM_TYPES[preset]
        chosen: dict[str, Any] = {"readout": readout}
        if readout_layer is not None:
            chosen = {"readout": "layer", "readout_layer": readout_layer}
        if readout == "attentive" and released[ATTENTION_QUERY].ndim == 4:
            chosen["readout_heads"] = released[ATTENTION_QUERY].shape[1]
        for name, value in chosen.items():
            setattr(config, name, value)
        config.check_readout()
    if kind == "pretraining":
        hidden, size = rows_of(released, "projector.0.weight"), rows_of(released, "projector.3.weight")
        config.objective = {"name": "contrastive", "projection_hidden": hidden, "projection_size": size}
        if _LEARNED_SCALE in released:
            config.objective["learnable_temperature"] = True


def _check(released: Mapping[str, Tensor], kind: Kind, config: AudioMosaicConfig) -> None:
    """One AlmosaicError that lists missing, unexpected and misshapen keys."""
    check_shapes(released, published_shapes(released, kind, config), f"a published {kind} checkpoint")


def check_shapes(found: Mapping[str, Tensor], expected: Shapes, what: str) -> None:
    """Compare every key and shape with what `what` holds.

    Raises:
        AlmosaicError: all missing, unexpected and misshapen keys in one line.
    """
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [
            f"{key} {list(found[key].shape)} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in found and tuple(found[key].shape) != shape
        ],
    }
    if listed := [f"{len(keys)} {kind} ({_shorten(keys)})" for kind, keys in problems.items() if keys]:
        raise AlmosaicError(
            f"expected the {len(expected)} tensors of {what}, found {'; '.join(listed)}: "
            "check the file and the arguments"
        )


def _shorten(keys: list[str], limit: int = 6) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")
