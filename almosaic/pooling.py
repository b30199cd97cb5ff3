"""From tokens to one vector: over the tokens of a window, then over the windows of a clip."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid

Pooling = Literal["mean", "mean_valid", "cls"]


def token_weights(pooling: str, frame_mask: Tensor, grid: PatchGrid) -> Tensor:
    """Weights [B, 1+N] of the tokens of a window that add up to 1; index 0 is CLS.

    `mean` takes all tokens, as the released model; `mean_valid` leaves out patches that are padding; `cls`
    takes the first token alone.

    Args:
        pooling: one of the three.
        frame_mask: [B, T] bool, True on real frames.
        grid: the patches of a window.
    """
    if pooling not in get_args(Pooling):
        raise AlmosaicError(f"expected pooling {', '.join(get_args(Pooling))}, found {pooling!r}")
    weights = torch.ones(len(frame_mask), 1 + grid.patches, device=frame_mask.device)
    if pooling == "mean_valid":
        weights[:, 1:] = grid.valid_patches(frame_mask).float()
    elif pooling == "cls":
        weights[:, 1:] = 0.0
    return weights / weights.sum(dim=1, keepdim=True)


def window_weights(frame_mask: Tensor, windows: Tensor) -> Tensor:
    """Weights [sum W] of the windows of each clip by their real frames; each clip's add up to 1.

    Args:
        frame_mask: [sum W, T] bool, True on real frames.
        windows: [A] windows of each clip, in order.
    """
    frames = frame_mask.sum(dim=1).float()
    numbers = torch.arange(len(windows), device=frames.device)
    clip = torch.repeat_interleave(numbers, windows.to(frames.device))
    total = torch.zeros(len(windows), device=frames.device).index_add_(0, clip, frames)
    return frames / total[clip]


def check_layer(tower: Any, layer: int | None) -> None:
    """AlmosaicError where an encoder has no such block."""
    depth = tower.config.num_hidden_layers
    if layer is not None and not 0 <= layer < depth:
        raise AlmosaicError(f"layer {layer} does not exist; the encoder has blocks 0 to {depth - 1}")
