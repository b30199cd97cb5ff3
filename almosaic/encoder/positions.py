"""The position table: sin-cos on the true patch grid, and its resizing for windows of another length."""

import torch
import torch.nn.functional as F
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid


def sincos_table(grid: PatchGrid, width: int) -> Tensor:
    """Fresh table [1, 1+N, D]: first half of the channels frequency, second half time, zeros for CLS."""
    tokens = torch.arange(grid.patches)
    patches = torch.cat(
        [_sincos(tokens % grid.freq, width // 2), _sincos(tokens // grid.freq, width // 2)], dim=1
    )
    return torch.cat([torch.zeros(1, width), patches])[None]


def _sincos(positions: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of positions [N] at channels / 2 geometric frequencies: [N, channels]."""
    half = channels // 2
    rates = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = positions.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def resize_table(table: Tensor, source: PatchGrid, target: PatchGrid, mode: str) -> Tensor:
    """Fit table [1, 1+N, D] to another grid with as many bands; the CLS row is kept.

    Args:
        table: stored on `source`.
        source: grid of the stored table.
        target: grid that is needed.
        mode: `time_frequency` crops a shorter window and stretches time linearly for a longer one; `released`
            repeats the published loader, bilinear on its own reading of the token axis (Fp rows).

    Raises:
        AlmosaicError: another number of bands, or of columns that `released` cannot serve.
    """
    if source == target:
        return table
    if source.freq != target.freq:
        raise AlmosaicError(
            f"expected windows of {source.freq} patches in frequency, as the stored positions have, found "
            f"{target.freq}: use a front end with as many mel bins as the encoder was trained with"
        )
    cls, patches = table[:, :1], table[:, 1:]
    if mode == "released":
        rows, columns = source.patches // target.time, target.time
        if rows * columns != source.patches:
            raise AlmosaicError(
                f"expected a window whose patch columns divide the {source.patches} stored positions "
                f"(position_resize: released), found {target.time}: use position_resize: time_frequency"
            )
        image = patches.reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(target.freq, columns), mode="bilinear", align_corners=False)
        patches = image.permute(0, 2, 3, 1).flatten(1, 2)
    elif target.time < source.time:
        patches = patches[:, : target.patches]
    else:
        lines = patches.reshape(1, source.time, -1).transpose(1, 2)
        lines = F.interpolate(lines, size=target.time, mode="linear", align_corners=False)
        patches = lines.transpose(1, 2).reshape(1, target.patches, -1)
    return torch.cat([cls, patches], dim=1)
