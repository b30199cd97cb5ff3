"""How much a spectrogram varies within each patch, patch column or band, and masks that hide what varies.

Dispersion-weighted masking (arXiv 2603.23810) weighs single patches. The layouts that mask whole patch
columns or bands are an extension of this package, for the two views of AudioMosaic: their weight is the same
statistic over all pixels of the column or band.
"""

from typing import Literal

import torch
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking.grid import PatchGrid, PatchMask
from almosaic.masking.groups import Generator, uniform_numbers
from almosaic.masking.weighted import Order, weighted_mask_from_uniforms, weighted_score_count

Statistic = Literal["mad", "variance"]
Grouping = Literal["random", "time", "frequency"]
SILENT = 1e-12  # so that a patch without any variation can still be drawn
PIECES = 8  # a batch on a CPU, so that what is computed from a piece stays in the cache


def dispersion(
    spectrogram: Tensor,
    grid: PatchGrid,
    *,
    statistic: Statistic = "mad",
    layout: Grouping = "random",
    valid: Tensor | None = None,
) -> Tensor:
    """Weights [B, G] float32 of a normalised spectrogram [B, T, F], one per group of the layout.

    `mad` is the mean absolute deviation of a group's pixels from their mean, `variance` the unbiased one;
    both get 1e-12. Patches that are padding (valid [B, N] False) do not count in their column or band.

    Raises:
        AlmosaicError: the spectrogram does not divide into the grid, or padding is not told per clip.
    """
    side = grid.patch_side(spectrogram)
    frames = spectrogram.detach().float().reshape(-1, grid.time, side, grid.freq * side)
    real = torch.ones(1, grid.patches, device=frames.device)
    if valid is not None and layout != "random":  # a single patch that is padding is never drawn
        if len(valid) != len(frames):
            raise AlmosaicError(
                f"expected padding of {len(frames)} clips, found {len(valid)}: give one row of valid per clip"
            )
        real = valid.to(frames)
    real = real.view(-1, grid.time, grid.freq).expand(len(frames), -1, -1)
    count = max(1, min(PIECES, len(frames))) if frames.is_cpu else 1
    pieces = frames.tensor_split(count)
    away = torch.empty_like(pieces[0])
    spread = [
        _spread(piece, its, grid, statistic, layout, away)
        for piece, its in zip(pieces, real.tensor_split(count), strict=True)
    ]
    return torch.cat(spread)


def _spread(
    frames: Tensor, real: Tensor, grid: PatchGrid, statistic: Statistic, layout: Grouping, away: Tensor
) -> Tensor:
    """Weights [B, G] of frames [B, Tp, p, F] of real patches [B, Tp, Fp]; away is scratch of their size."""
    side = frames.shape[2]
    pixels = (_over_cells(real, layout) * side**2).clamp_min(1.0)
    centres = _per_group(frames.sum(dim=2), real, layout) / pixels
    away = torch.sub(frames, _per_bin(centres, grid, side, layout), out=away[: len(frames)])
    if statistic == "mad":
        return _per_group(away.abs_().sum(dim=2), real, layout) / pixels + SILENT
    return _per_group(away.square_().sum(dim=2), real, layout) / (pixels - 1.0).clamp_min(1.0) + SILENT


def _per_group(values: Tensor, real: Tensor, layout: Grouping) -> Tensor:
    """Sums [B, G] of values [B, Tp, F], which are sums over the frames of a patch, where real [B, Tp, Fp]."""
    return _over_cells(values.view(*real.shape, values.shape[2] // real.shape[2]).sum(dim=3) * real, layout)


def _over_cells(cells: Tensor, layout: Grouping) -> Tensor:
    """Sums [B, G] over the patches [B, Tp, Fp] of each group."""
    return cells.flatten(1) if layout == "random" else cells.sum(dim=2 if layout == "time" else 1)


def _per_bin(centres: Tensor, grid: PatchGrid, side: int, layout: Grouping) -> Tensor:
    """Centres [B, G] of groups as [B, Tp or 1, 1, F or 1], beside the frames of their pixels."""
    if layout == "time":
        return centres[:, :, None, None]
    columns = grid.time if layout == "random" else 1
    return centres.view(-1, columns, 1, grid.freq).repeat_interleave(side, dim=3)


def dispersion_weighted_mask(
    spectrogram: Tensor,
    grid: PatchGrid,
    *,
    ratio: float,
    statistic: Statistic = "mad",
    order: Order = "sample",
    hint: float = 0.0,
    masks: int = 1,
    layout: Grouping = "random",
    valid: Tensor | None = None,
    generator: Generator = None,
) -> PatchMask:
    """Remove what varies more the more often, in `masks` rows side by side for every clip.

    Single patches, or with the layouts `time` and `frequency` whole patch columns and bands (our extension).
    `order` topk removes the most dispersed ones without a draw. `hint` swaps that share of what is removed
    for uniformly chosen ones; at 1 the mask is uniformly random.
    """
    weights = dispersion(spectrogram, grid, statistic=statistic, layout=layout, valid=valid)
    columns = weighted_score_count(grid, layout, swap=0.0 < hint < 1.0)
    device = spectrogram.device if generator is None else generator.device
    uniforms = uniform_numbers(len(weights) * masks, columns, generator, device).to(weights.device)
    return weighted_mask_from_uniforms(
        grid, weights, uniforms, ratio, layout=layout, order=order, hint=hint, valid=valid
    )
