"""Published weights of LTU with an AudioMosaic encoder, to our names and back.

Encoder, projector and adapters. This file knows the key names of that release; those of the encoder alone
are in `encoder.conversion`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.projectors import PoolProjectorSettings
from almosaic.alm.tuning import TuneSettings
from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.conversion import check_shapes, from_released
from almosaic.encoder.released_keys import Shapes, published_shapes
from almosaic.errors import AlmosaicError

BLOCKS, WINDOW_FRAMES = 12, 1024
PROJECTOR = PoolProjectorSettings(queries=32, layout="released")
TUNE = TuneSettings(
    projector="full",
    language_model="lora",
    audio_tower="full",
    lora_rank=8,
    lora_alpha=16,
    lora_dropout=0.05,
    lora_targets=("q_proj", "v_proj"),
)
# Their prefixes in the order in which a key is tried, and ours.
_PREFIXES = {
    "base_model.model.model.audio_encoder.": "audio_tower.",
    "base_model.model.model.audio_proj.1.": "multi_modal_projector.linear.",
    "base_model.model.model.layers.": "language_model.model.layers.",
}
_ENCODER, _PROJECTOR, _LAYERS = _PREFIXES


def with_final_norm(released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder that LTU starts from: a pretraining checkpoint whose `fc_norm` becomes the final norm.

    Any other checkpoint comes back as it is.
    """
    names = {f"fc_norm.{kind}": f"norm.{kind}" for kind in ("weight", "bias")}
    if not names.keys() <= released.keys() or not any(key.startswith("projector.") for key in released):
        return dict(released)
    heads = ("projector.", "logit_", "online_classifier.")
    return {names.get(key, key): value for key, value in released.items() if not key.startswith(heads)}


def from_released_ltu(
    released: Mapping[str, Tensor], text_config: Any, *, num_attention_heads: int | None = None
) -> tuple[AudioMosaicConfig, dict[str, Tensor]]:
    """The encoder's config and the tensors under our names, for a Llama of this configuration.

    Args:
        released: encoder, projector and adapters as published, 284 tensors for a Llama of 32 layers.
        text_config: the language model's configuration.
        num_attention_heads: of the encoder; heads of 64 channels, as published, when None.

    Raises:
        AlmosaicError: no such weights, a language model of another kind, width or depth, or keys and shapes
            that do not fit, all of them in one line.
    """
    encoder = {
        key.removeprefix(_ENCODER): value for key, value in released.items() if key.startswith(_ENCODER)
    }
    if not encoder or f"{_PROJECTOR}weight" not in released:
        raise AlmosaicError(
            f"expected an encoder, a projector and adapters ({_ENCODER}* and so on), found {len(released)} "
            f"other keys (first: {', '.join(list(released)[:3])}): for an encoder alone leave the language "
            "model out"
        )
    _check_language_model(released, text_config)
    config, _ = from_released(encoder, "ltu", num_attention_heads=num_attention_heads)
    if (size := (config.num_hidden_layers, config.window_frames)) != (BLOCKS, WINDOW_FRAMES):
        raise AlmosaicError(
            f"expected an encoder of {BLOCKS} blocks over windows of {WINDOW_FRAMES} frames, found one of "
            f"{size[0]} blocks over {size[1]} frames: check the file"
        )
    config.final_norm = "layernorm"
    config.architectures = None
    check_shapes(released, _published(config, text_config), "published audio-language weights")
    return config, {_renamed(key, _PREFIXES): value for key, value in released.items()}


def to_released_ltu(config: AlmosaicConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: what was trained of our model under the published names.

    Raises:
        AlmosaicError: another projector, other adapters, or an encoder without a final norm.
    """
    wanted = {"projector": PROJECTOR.model_dump(), "lora": TUNE.lora}
    for name, expected in wanted.items():
        if (found := getattr(config, name)) != expected:
            raise AlmosaicError(
                f"expected {name} {expected}, which published audio-language weights have, found {found}: "
                "export it as it is"
            )
    back = {ours: theirs for theirs, ours in _PREFIXES.items()}
    trained = {
        key: value
        for key, value in state_dict.items()
        if not key.startswith("language_model.") or ".lora_" in key
    }
    released = {_renamed(key, back): value for key, value in trained.items()}
    check_shapes(
        released, _published(config.audio_config, config.text_config), "published audio-language weights"
    )
    return released


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    old = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
    return prefixes.get(old, "") + key.removeprefix(old)


def _check_language_model(released: Mapping[str, Tensor], text_config: Any) -> None:
    """Compare kind, width and depth, which say more than a list of shapes."""
    layer = re.compile(rf"{re.escape(_LAYERS)}(\d+)\.")
    depth = 1 + max((int(match[1]) for key in released if (match := layer.match(key))), default=-1)
    expected = ("llama", released[f"{_PROJECTOR}weight"].shape[0], depth)
    found = (text_config.model_type, text_config.hidden_size, text_config.num_hidden_layers)
    if expected != found:
        kinds = [
            f"a {kind} of width {width} with {layers} layers" for kind, width, layers in (expected, found)
        ]
        raise AlmosaicError(
            f"expected {kinds[0]}, on which these weights were trained, found {kinds[1]}: "
            "give the folder of that language model"
        )


def _published(config: AudioMosaicConfig, text_config: Any) -> Shapes:
    """Every published key with its shape."""
    encoder = published_shapes({}, "encoder", config)
    width, rank = text_config.hidden_size, TUNE.lora_rank
    shapes: Shapes = {f"{_ENCODER}{key}": shape for key, shape in encoder.items()}
    shapes[f"{_PROJECTOR}weight"] = (width, config.hidden_size)
    shapes[f"{_PROJECTOR}bias"] = (width,)
    head = getattr(text_config, "head_dim", None) or width // text_config.num_attention_heads
    rows = {
        "q_proj": head * text_config.num_attention_heads,
        "v_proj": head * (text_config.num_key_value_heads or text_config.num_attention_heads),
    }
    for layer in range(text_config.num_hidden_layers):
        for name, outputs in rows.items():
            place = f"{_LAYERS}{layer}.self_attn.{name}.lora_"
            shapes[f"{place}A.default.weight"] = (rank, width)
            shapes[f"{place}B.default.weight"] = (outputs, rank)
    return shapes
