"""Published AudioMosaic checkpoints to ours and back; the one file that knows foreign key names.

Encoder tensors already carry the published names: conversion adds or removes the prefixes of our models and
checks every key and shape.
"""

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.errors import AlmosaicError

Kind = Literal["encoder", "pretraining", "classifier"]
Shapes = dict[str, tuple[int, ...]]

MEL_BINS = 128
HEAD_WIDTH = 64
ARCHITECTURES: dict[Kind, str] = {
    "encoder": "AudioMosaicModel",
    "pretraining": "AudioMosaicForPreTraining",
    "classifier": "AudioMosaicForAudioClassification",
}
PROBLEM_TYPES = {
    "audioset": "multi_label_classification",
    "esc50": "single_label_classification",
    "speech_commands": "multi_label_classification",
}


def from_released(
    state_dict: Mapping[str, Tensor], preset: str = "audioset", *, num_attention_heads: int | None = None
) -> tuple[AudioMosaicConfig, dict[str, Tensor]]:
    """A published state dict to a config and the state dict of the model named in `config.architectures`.

    Args:
        state_dict: encoder, pretraining or classifier; prefixes `module.` and `_orig_mod.` are removed.
        preset: data set of the release (audioset, esc50, speech_commands): what kind of labels it has.
        num_attention_heads: no tensor tells it; heads of 64 channels, as published, when None.

    Raises:
        AlmosaicError: keys or shapes that do not fit, all of them in one line.
    """
    if preset not in PROBLEM_TYPES:
        raise AlmosaicError(
            f"expected a release preset ({', '.join(PROBLEM_TYPES)}), found {preset!r}: "
            "name the data set of the release"
        )
    released = {re.sub(r"^(?:module\.|_orig_mod\.)+", "", key): value for key, value in state_dict.items()}
    kind = _kind_of(released)
    config = _config_of(released, kind, preset, num_attention_heads)
    _check(released, kind, config)
    return config, {_our_key(key, kind): value for key, value in released.items()}


def to_released(config: AudioMosaicConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: our encoder, pretraining or classifier state dict under the published key names.

    Raises:
        AlmosaicError: keys or shapes that the published format does not have.
    """
    released = {re.sub(r"^(?:encoder|objective)\.", "", key): value for key, value in state_dict.items()}
    _check(released, _kind_of(released), config)
    return released


def _kind_of(released: Mapping[str, Tensor]) -> Kind:
    if "projector.0.weight" in released:
        return "pretraining"
    return "classifier" if "head.weight" in released else "encoder"


def _our_key(key: str, kind: Kind) -> str:
    if kind == "encoder":
        return key
    if key.startswith(("fc_norm.", "projector.")):
        return f"objective.{key}" if kind == "pretraining" else key
    return key if key.startswith("head.") else f"encoder.{key}"


def _config_of(
    released: Mapping[str, Tensor], kind: Kind, preset: str, num_attention_heads: int | None
) -> AudioMosaicConfig:
    """Shapes from the tensors, the rest as published."""
    needed = {"pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    if missing := [key for key, ndim in needed.items() if key not in released or released[key].ndim != ndim]:
        raise AlmosaicError(
            f"expected an AudioMosaic state dict, found no usable {', '.join(missing)} "
            f"among {len(released)} keys (first: {', '.join(list(released)[:3])}): check the file"
        )
    (_, rows, width), patch = released["pos_embed"].shape, released["patch_embed.proj.weight"].shape[-1]
    heads = num_attention_heads or width // HEAD_WIDTH
    if num_attention_heads is None and width % HEAD_WIDTH:
        raise AlmosaicError(
            f"expected a width that is a multiple of {HEAD_WIDTH}, found {width}: give num_attention_heads"
        )
    config = AudioMosaicConfig(
        hidden_size=width,
        num_hidden_layers=1 + max(int(key.split(".")[1]) for key in released if key.startswith("blocks.")),
        num_attention_heads=heads,
        intermediate_size=released["blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=patch,
        window_frames=(rows - 1) // max(1, MEL_BINS // patch) * patch,
        num_mel_bins=MEL_BINS,
        final_norm="layernorm" if "norm.weight" in released else "none",
        position_resize="released",
    )
    config.architectures = [ARCHITECTURES[kind]]
    if kind == "classifier":
        config.num_labels = released["head.weight"].shape[0]
        config.problem_type = PROBLEM_TYPES[preset]
    if kind == "pretraining":
        hidden, size = released["projector.0.weight"].shape[0], _rows(released, "projector.3.weight")
        config.objective = {"name": "contrastive", "projection_hidden": hidden, "projection_size": size}
    return config


def _rows(released: Mapping[str, Tensor], key: str) -> int:
    return released[key].shape[0] if key in released else 0


def _check(released: Mapping[str, Tensor], kind: Kind, config: AudioMosaicConfig) -> None:
    """One AlmosaicError that lists missing, unexpected and misshapen keys."""
    expected = _published_shapes(released, kind, config)
    problems = {
        "missing": [key for key in expected if key not in released],
        "unexpected": [key for key in released if key not in expected],
        "of another shape": [
            f"{key} {list(released[key].shape)} instead of {list(shape)}"
            for key, shape in expected.items()
            if key in released and tuple(released[key].shape) != shape
        ],
    }
    found = [f"{len(keys)} {what} ({_shorten(keys)})" for what, keys in problems.items() if keys]
    if found:
        raise AlmosaicError(
            f"expected the {len(expected)} tensors of a published {kind} checkpoint, "
            f"found {'; '.join(found)}: check the file and the arguments"
        )


def _shorten(keys: list[str], limit: int = 12) -> str:
    return ", ".join(keys[:limit]) + (f" and {len(keys) - limit} more" if len(keys) > limit else "")


def _published_shapes(released: Mapping[str, Tensor], kind: Kind, config: AudioMosaicConfig) -> Shapes:
    """Every key of a published checkpoint with its shape."""
    width, patch = config.hidden_size, config.patch_size
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + config.grid.patches, width),
        "patch_embed.proj.weight": (width, 1, patch, patch),
        "patch_embed.proj.bias": (width,),
        **_norm("patch_embed.norm", width),
        **_norm("norm_pre", width),
    }
    for i in range(config.num_hidden_layers):
        shapes |= _block(f"blocks.{i}", width, int(config.intermediate_size or 0))
    if config.final_norm == "layernorm":
        shapes |= _norm("norm", width)
    if kind == "classifier" or (kind == "pretraining" and config.final_norm == "none"):
        shapes |= _norm("fc_norm", width)
    if kind == "classifier":
        shapes |= {"head.weight": (config.num_labels, width), "head.bias": (config.num_labels,)}
    if kind == "pretraining":
        hidden, size = released["projector.0.weight"].shape[0], _rows(released, "projector.3.weight")
        shapes |= {"projector.0.weight": (hidden, width), "projector.3.weight": (size, hidden)}
        shapes |= _batch_norm("projector.1", hidden) | _batch_norm("projector.4", size)
    return shapes


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _batch_norm(name: str, width: int) -> Shapes:
    statistics: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return _norm(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def _block(name: str, width: int, inner: int) -> Shapes:
    linears = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    shapes = _norm(f"{name}.norm1", width) | _norm(f"{name}.norm2", width)
    for layer, (rows, columns) in linears.items():
        shapes |= {f"{name}.{layer}.weight": (rows, columns), f"{name}.{layer}.bias": (rows,)}
    return shapes
