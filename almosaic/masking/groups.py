"""Masks that keep or remove whole groups of patches: single ones, columns, bands, or the published code's."""

from typing import Literal

import torch
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking.grid import PatchGrid, PatchMask, kept_count, mask_from_kept, rows_of

Layout = Literal["random", "time", "frequency", "released_time", "released_frequency"]
Generator = torch.Generator | None
Device = torch.device | str | None
PADDING = 1e6  # a score above all drawn ones


def group_count(grid: PatchGrid, layout: Layout) -> int:
    """G, the number of groups that are kept or removed as a whole."""
    counts = {
        "random": grid.patches,
        "time": grid.time,
        "frequency": grid.freq,
        "released_time": grid.freq,
        "released_frequency": grid.time,
    }
    return counts[layout]


def group_of_patch(grid: PatchGrid, layout: Layout, device: Device = None) -> Tensor:
    """Group of every token, [N] int64 in [0, G).

    The released layouts view the time-major token axis as Fp rows of Tp columns, as the published code does:
    "time" removes rows (blocks of Tp / Fp patch columns), "frequency" removes columns (combs of one band).
    """
    tokens = torch.arange(grid.patches, device=device)
    if layout == "random":
        return tokens
    if layout == "time":
        return tokens // grid.freq
    if layout == "frequency":
        return tokens % grid.freq
    return tokens // grid.time if layout == "released_time" else tokens % grid.time


def patches_of_groups(grid: PatchGrid, layout: Layout, chosen: Tensor) -> Tensor:
    """The patches of chosen groups: [B, G] bool -> [B, N] bool."""
    return chosen if layout == "random" else chosen[:, group_of_patch(grid, layout, chosen.device)]


def real_groups(grid: PatchGrid, layout: Layout, valid: Tensor) -> Tensor:
    """Groups that hold at least one real patch: valid [B, N] bool -> [B, G] bool."""
    if layout == "random":
        return valid
    shape = (grid.freq, grid.time) if layout.startswith("released") else (grid.time, grid.freq)
    return valid.view(-1, *shape).any(dim=2 if layout.endswith("time") else 1)


def mask_from_scores(
    grid: PatchGrid, scores: Tensor, ratio: float, *, layout: Layout = "random", valid: Tensor | None = None
) -> PatchMask:
    """Keep the groups with the lowest scores; a pure function of its arguments.

    Args:
        grid: patch grid of the window.
        scores: [B, G] drawn uniformly, one per group of the layout.
        ratio: fraction of the groups that is removed.
        layout: how patches form groups.
        valid: [B, N] bool; groups made of padding alone are kept last.
    """
    groups = group_count(grid, layout)
    count = kept_count(groups, ratio) * (grid.patches // groups)
    return mask_from_kept(_kept_patches(grid, scores, ratio, layout, valid), count, valid)


def time_frequency_mask_from_scores(
    grid: PatchGrid,
    time_scores: Tensor,
    frequency_scores: Tensor,
    time_ratio: float,
    frequency_ratio: float,
    *,
    valid: Tensor | None = None,
) -> PatchMask:
    """Cut patch columns by time_scores [B, Tp], then bands by frequency_scores [B, Fp]; K is the product."""
    columns = _kept_patches(grid, time_scores, time_ratio, "time", valid)
    bands = _kept_patches(grid, frequency_scores, frequency_ratio, "frequency", None)
    count = kept_count(grid.time, time_ratio) * kept_count(grid.freq, frequency_ratio)
    return mask_from_kept(columns & bands, count, valid)


def _kept_patches(
    grid: PatchGrid, scores: Tensor, ratio: float, layout: Layout, valid: Tensor | None
) -> Tensor:
    """[B, N] bool, True where the patch's group is among the kept ones."""
    groups = group_count(grid, layout)
    if scores.ndim != 2 or scores.shape[1] != groups:
        raise AlmosaicError(
            f"expected scores [B, {groups}] for a {layout} mask on {grid.time} x {grid.freq} patches, found "
            f"{list(scores.shape)}: draw one score per group"
        )
    if valid is not None:
        real = rows_of(real_groups(grid, layout, valid.to(scores.device)), len(scores))
        scores = torch.where(real, scores, PADDING + torch.arange(groups, device=scores.device))
    lowest = scores.topk(kept_count(groups, ratio), dim=1, largest=False, sorted=False).indices
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
    return patches_of_groups(grid, layout, kept)


def _draw(
    grid: PatchGrid, batch_size: int, ratio: float, layout: Layout, generator: Generator, device: Device
) -> PatchMask:
    scores = uniform_numbers(batch_size, group_count(grid, layout), generator, device)
    return mask_from_scores(grid, scores, ratio, layout=layout)


def uniform_numbers(rows: int, columns: int, generator: Generator, device: Device) -> Tensor:
    """[rows, columns] in [0, 1), on the generator's device unless another is named."""
    if device is None and generator is not None:
        device = generator.device
    return torch.rand(rows, columns, generator=generator, device=device)


def random_mask(
    grid: PatchGrid, batch_size: int, *, ratio: float, generator: Generator = None, device: Device = None
) -> PatchMask:
    """Remove single patches."""
    return _draw(grid, batch_size, ratio, "random", generator, device)


def time_mask(
    grid: PatchGrid, batch_size: int, *, ratio: float, generator: Generator = None, device: Device = None
) -> PatchMask:
    """Remove whole patch columns: all bands of 16 frames."""
    return _draw(grid, batch_size, ratio, "time", generator, device)


def frequency_mask(
    grid: PatchGrid, batch_size: int, *, ratio: float, generator: Generator = None, device: Device = None
) -> PatchMask:
    """Remove whole bands: 16 mel bins over the full window."""
    return _draw(grid, batch_size, ratio, "frequency", generator, device)


def released_time_mask(
    grid: PatchGrid, batch_size: int, *, ratio: float, generator: Generator = None, device: Device = None
) -> PatchMask:
    """The published code's "time" mask: removes runs of Tp consecutive tokens."""
    return _draw(grid, batch_size, ratio, "released_time", generator, device)


def released_frequency_mask(
    grid: PatchGrid, batch_size: int, *, ratio: float, generator: Generator = None, device: Device = None
) -> PatchMask:
    """The published code's "frequency" mask: removes every token n with the same n mod Tp."""
    return _draw(grid, batch_size, ratio, "released_frequency", generator, device)


def time_frequency_mask(
    grid: PatchGrid,
    batch_size: int,
    *,
    time_ratio: float,
    frequency_ratio: float,
    generator: Generator = None,
    device: Device = None,
) -> PatchMask:
    """Remove patch columns and bands from the same view."""
    scores = uniform_numbers(batch_size, grid.time + grid.freq, generator, device)
    time_scores, frequency_scores = scores[:, : grid.time], scores[:, grid.time :]
    return time_frequency_mask_from_scores(grid, time_scores, frequency_scores, time_ratio, frequency_ratio)
