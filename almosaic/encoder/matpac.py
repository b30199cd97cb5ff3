"""Published MATPAC and MATPAC++ encoders (Quelennec et al. 2025) to ours and back.

The one file that knows their key names, and that they read spectrograms as [B, F, T]: their tokens run
through time first (n = f * Tp + t) and their patch kernels are [D, 1, frequency, time]. Both are turned here,
so that nothing else has to know. A file may hold a whole training state: the student's encoder is used.
"""

import logging
import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.conversion import HEAD_WIDTH, check_shapes
from almosaic.encoder.released_keys import Shapes, block_shapes, norm_shapes
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid

logger = logging.getLogger(__name__)

MEL_BINS = 80
WINDOW_FRAMES = (608, 992)  # as pretrained, and as fine-tuned on AudioSet
_BLOCKS = "student_encoder."
_POSITIONS, _KERNEL = "pos_embed", "patch_embed.proj.weight"
_NEEDED = {_POSITIONS: 3, _KERNEL: 4, f"{_BLOCKS}blocks.0.mlp.fc1.weight": 2}
# Predictor, heads, centre and teachers of a training checkpoint; the head of a fine-tuned file.
_OTHERS = re.compile(
    r"(decoder|mcl_heads|cls_student_head|cls_head_loss|teacher_encoder|cls_teacher_head|_ema|_cls_head_ema"
    r"|head_norm|head)\."
)


def is_matpac(keys: Iterable[str]) -> bool:
    """Whether these keys are those of a published MATPAC encoder."""
    return any(key.startswith(_BLOCKS) for key in keys)


def from_matpac(
    state_dict: Mapping[str, Tensor], num_mel_bins: int = MEL_BINS, *, num_attention_heads: int | None = None
) -> tuple[AudioMosaicConfig, dict[str, Tensor]]:
    """A published state dict to the config and the state dict of an `AudioMosaicModel`.

    Args:
        state_dict: the encoder, alone or among the other tensors of a training checkpoint or a fine-tuned
            model, which are left out and counted in the log.
        num_mel_bins: no tensor tells it; together with the rows of the position table it gives the window:
            191 rows are 38 columns of 5 bands (608 frames), 311 are 62 (992 frames).
        num_attention_heads: no tensor tells it either; heads of 64 channels, as published, when None.

    Raises:
        AlmosaicError: keys or shapes that do not fit, all of them in one line.
    """
    others = [key for key in state_dict if _OTHERS.match(key)]
    released = {key: value for key, value in state_dict.items() if key not in set(others)}
    config = _config_of(released, num_mel_bins, num_attention_heads)
    check_shapes(released, _shapes(config), "a published MATPAC encoder")
    if others:
        parts = dict.fromkeys(key.split(".")[0] for key in others)
        logger.info("left out %d tensors (%s): only the encoder is converted", len(others), ", ".join(parts))
    ours = {key.removeprefix(_BLOCKS): value for key, value in released.items()}
    ours[_KERNEL] = ours[_KERNEL].transpose(2, 3).contiguous()
    ours[_POSITIONS] = _turned(ours[_POSITIONS], config.grid.freq)
    return config, ours


def to_matpac(config: AudioMosaicConfig, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse: an encoder of ours, or that of a model with heads, under the published key names.

    Raises:
        AlmosaicError: an encoder of another form, or keys and shapes that the published one does not have.
    """
    found = {"patch_norm": config.patch_norm, "pre_norm": config.pre_norm, "final_norm": config.final_norm}
    if found != {"patch_norm": False, "pre_norm": False, "final_norm": "layernorm"}:
        raise AlmosaicError(
            "expected an encoder with patch_norm False, pre_norm False and final_norm layernorm, as MATPAC's "
            f"have, found {', '.join(f'{name} {value}' for name, value in found.items())}: "
            "use the model folder as it is"
        )
    inside = {key: value for key, value in state_dict.items() if key.startswith("encoder.")}
    if inside and (others := len(state_dict) - len(inside)):
        logger.info("left out %d tensors of heads: the published format holds an encoder alone", others)
    ours = {key.removeprefix("encoder."): value for key, value in (inside or state_dict).items()}
    released = {
        f"{_BLOCKS}{key}" if key.startswith(("blocks.", "norm.")) else key: value
        for key, value in ours.items()
    }
    check_shapes(released, _shapes(config), "a published MATPAC encoder")
    released[_KERNEL] = released[_KERNEL].transpose(2, 3).contiguous()
    released[_POSITIONS] = _turned(released[_POSITIONS], config.grid.time)
    return released


def _turned(table: Tensor, slow: int) -> Tensor:
    """Positions [1, 1+N, D] that run through `slow` groups one by one, to running across them."""
    patches = table[:, 1:].reshape(1, slow, -1, table.shape[2]).transpose(1, 2)
    return torch.cat([table[:, :1], patches.flatten(1, 2)], dim=1)


def _config_of(
    released: Mapping[str, Tensor], num_mel_bins: int, num_attention_heads: int | None
) -> AudioMosaicConfig:
    """Shapes from the tensors, the rest as published."""
    if missing := [key for key, n in _NEEDED.items() if key not in released or released[key].ndim != n]:
        raise AlmosaicError(
            f"expected a published MATPAC encoder, found no usable {', '.join(missing)} among "
            f"{len(released)} keys (first: {', '.join(list(released)[:3])}): check the file and the preset"
        )
    (_, rows, width), patch = released[_POSITIONS].shape, released[_KERNEL].shape[-1]
    if num_attention_heads is None and width % HEAD_WIDTH:
        raise AlmosaicError(
            f"expected a width that is a multiple of {HEAD_WIDTH}, found {width}: give num_attention_heads "
            "(--heads)"
        )
    bands = PatchGrid.of(patch, num_mel_bins, patch).freq
    if rows < 1 + bands or (rows - 1) % bands:
        raise AlmosaicError(
            f"expected a position table of 1 + {bands} x columns rows for {num_mel_bins} mel bins, "
            f"found {rows}: check num_mel_bins"
        )
    blocks = {match[1] for key in released if (match := re.match(rf"{_BLOCKS}blocks\.(\d+)\.", key))}
    config = AudioMosaicConfig(
        hidden_size=width,
        num_hidden_layers=len(blocks),
        num_attention_heads=num_attention_heads or width // HEAD_WIDTH,
        intermediate_size=released[f"{_BLOCKS}blocks.0.mlp.fc1.weight"].shape[0],
        patch_size=patch,
        window_frames=(rows - 1) // bands * patch,
        num_mel_bins=num_mel_bins,
        patch_norm=False,
        pre_norm=False,
        fixed_positions=True,
        final_norm="layernorm",
        pooling="mean_valid",
    )
    config.architectures = ["AudioMosaicModel"]
    return config


def _shapes(config: AudioMosaicConfig) -> Shapes:
    """Every key of a published encoder, with its shape."""
    width, patch = config.hidden_size, config.patch_size
    shapes: Shapes = {
        "cls_token": (1, 1, width),
        _POSITIONS: (1, 1 + config.grid.patches, width),
        _KERNEL: (width, 1, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for i in range(config.num_hidden_layers):
        shapes |= block_shapes(f"{_BLOCKS}blocks.{i}", width, int(config.intermediate_size or 0))
    return shapes | norm_shapes(f"{_BLOCKS}norm", width)
