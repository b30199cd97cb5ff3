"""How much a spectrogram varies within each patch, patch column or band, and masks that hide what varies.

Dispersion-weighted masking (arXiv 2603.23810) weighs single patches. The layouts that mask whole patch
columns or bands are an extension of this package, for the two views of AudioMosaic: their weight is the same
statistic over all pixels of the column or band.
"""

from typing import Literal

import torch
from torch import Tensor

from almosaic.masking.grid import PatchGrid, PatchMask
from almosaic.masking.groups import Generator, uniform_numbers
from almosaic.masking.weighted import Order, weighted_mask_from_uniforms, weighted_score_count

Statistic = Literal["mad", "variance"]
Grouping = Literal["random", "time", "frequency"]
SILENT = 1e-12  # so that a patch without any variation can still be drawn


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
        AlmosaicError: the spectrogram does not divide into the grid.
    """
    side = grid.patch_side(spectrogram)
    frames = spectrogram.detach().float().reshape(-1, grid.time, side, grid.freq * side)
    real = None
    if valid is not None and layout != "random":  # a patch that is padding is never drawn: its weight is free
        real = valid.to(frames.device).view(-1, grid.time, grid.freq)
    pixels = _pixels(grid, side, layout, real, frames.device)
    centres = _per_group(frames.sum(dim=2), grid, layout, real) / pixels
    away = frames - _per_bin(centres, grid, side, layout)
    if statistic == "mad":
        return _per_group(away.abs_().sum(dim=2), grid, layout, real) / pixels + SILENT
    return _per_group(away.square_().sum(dim=2), grid, layout, real) / (pixels - 1.0).clamp_min(1.0) + SILENT


def _per_group(values: Tensor, grid: PatchGrid, layout: Grouping, real: Tensor | None) -> Tensor:
    """Sums [B, G] of values [B, Tp, F], which are sums over the frames of a patch, where real [B, Tp, Fp]."""
    cells = values.view(len(values), grid.time, grid.freq, -1).sum(dim=3)
    return _over_cells(cells if real is None else cells * real, layout)


def _over_cells(cells: Tensor, layout: Grouping) -> Tensor:
    """Sums [B, G] over the patches [B, Tp, Fp] of each group."""
    return cells.flatten(1) if layout == "random" else cells.sum(dim=2 if layout == "time" else 1)


def _pixels(
    grid: PatchGrid, side: int, layout: Grouping, real: Tensor | None, device: torch.device
) -> Tensor:
    """How many pixels each group has, [B or 1, G], at least 1."""
    if real is None:
        real = torch.ones(1, grid.time, grid.freq, device=device)
    return (_over_cells(real, layout) * side**2).clamp_min(1).float()


def _per_bin(centres: Tensor, grid: PatchGrid, side: int, layout: Grouping) -> Tensor:
    """Centres [B, G] of groups as [B, Tp or 1, 1, F or 1], beside the frames of their pixels."""
    if layout == "time":
        return centres[:, :, None, None]
    return centres.view(len(centres), -1, 1, grid.freq).repeat_interleave(side, dim=3)


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
