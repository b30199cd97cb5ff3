"""What a published checkpoint holds: every kind, every key, every shape."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from almosaic.encoder.configuration import AudioMosaicConfig

Kind = Literal["encoder", "pretraining", "classifier"]
Shapes = dict[str, tuple[int, ...]]

# Of an online classifier and of a loss that a softmax does not feel: our models have no place for them.
WITHOUT_PLACE = ("logit_bias", "online_classifier.weight", "online_classifier.bias")
LAYER_WEIGHTS, ATTENTION_QUERY = "layer_weights", "attn_query"


def kind_of(released: Mapping[str, Tensor]) -> Kind:
    """The model that these keys belong to; parts of one are enough."""
    if any(key.startswith("projector.") for key in released):
        return "pretraining"
    return "classifier" if any(key.startswith("head.") for key in released) else "encoder"


def readout_of(released: Mapping[str, Tensor]) -> str:
    """The read-out of a classifier; a probe of one layer has the keys of `pooled`."""
    if LAYER_WEIGHTS in released:
        return "weighted_sum"
    return "attentive" if ATTENTION_QUERY in released else "pooled"


def rows_of(released: Mapping[str, Tensor], key: str) -> int:
    """First axis of a tensor, 0 where there is none."""
    return released[key].shape[0] if key in released and released[key].ndim else 0


def published_shapes(released: Mapping[str, Tensor], kind: Kind, config: AudioMosaicConfig) -> Shapes:
    """Every key of a published checkpoint of this kind and config, with its shape."""
    width, patch = config.hidden_size, config.patch_size
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + config.grid.patches, width),
        "patch_embed.proj.weight": (width, 1, patch, patch),
        "patch_embed.proj.bias": (width,),
        **norm_shapes("patch_embed.norm", width),
        **norm_shapes("norm_pre", width),
    }
    for i in range(config.num_hidden_layers):
        shapes |= block_shapes(f"blocks.{i}", width, int(config.intermediate_size or 0))
    if config.final_norm == "layernorm":
        shapes |= norm_shapes("norm", width)
    if kind == "classifier" or (kind == "pretraining" and config.final_norm == "none"):
        shapes |= norm_shapes("fc_norm", width)
    if kind == "classifier":
        shapes |= {"head.weight": (config.num_labels, width), "head.bias": (config.num_labels,)}
        shapes |= _readout(config)
    if kind == "pretraining":
        hidden, size = rows_of(released, "projector.0.weight"), rows_of(released, "projector.3.weight")
        shapes |= {"projector.0.weight": (hidden, width), "projector.3.weight": (size, hidden)}
        shapes |= _batch_norm("projector.1", hidden) | _batch_norm("projector.4", size)
        if (config.objective or {}).get("learnable_temperature"):
            shapes["logit_scale"] = ()
    return shapes


def _readout(config: AudioMosaicConfig) -> Shapes:
    width, heads, layers = config.hidden_size, config.readout_heads, config.num_hidden_layers + 1
    if config.readout == "weighted_sum":
        return {LAYER_WEIGHTS: (layers,)}
    if config.readout != "attentive":
        return {}
    shapes: Shapes = {ATTENTION_QUERY: (1, heads, 1, width // heads)}
    shapes |= {"attn_key.weight": (width, width), "attn_value.weight": (width, width)}
    for i in range(layers):
        shapes |= norm_shapes(f"layer_norms.{i}", width)
    return shapes


def norm_shapes(name: str, width: int) -> Shapes:
    """A LayerNorm."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _batch_norm(name: str, width: int) -> Shapes:
    statistics: Shapes = {f"{name}.running_mean": (width,), f"{name}.running_var": (width,)}
    return norm_shapes(name, width) | statistics | {f"{name}.num_batches_tracked": ()}


def block_shapes(name: str, width: int, inner: int) -> Shapes:
    """A transformer block with the names of timm."""
    linears = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    shapes = norm_shapes(f"{name}.norm1", width) | norm_shapes(f"{name}.norm2", width)
    for layer, (rows, columns) in linears.items():
        shapes |= {f"{name}.{layer}.weight": (rows, columns), f"{name}.{layer}.bias": (rows,)}
    return shapes
