"""Masks of square blocks that touch, overlap and stick out, brought to an exact count (data2vec 2.0, EAT)."""

import math
from typing import TypedDict

import torch
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking.grid import PatchGrid, PatchMask, kept_count, mask_from_kept, rows_of
from almosaic.masking.groups import Device, Generator, uniform_numbers


class BlockShape(TypedDict):
    """Side of a block in patches, what is added to the share covered, and whether blocks are kept."""

    block: int
    adjust: float
    inverse: bool


def block_count(grid: PatchGrid, ratio: float, *, block: int, adjust: float, inverse: bool) -> int:
    """How many blocks are drawn per mask: as many as would cover the share that they make up, plus `adjust`.

    Raises:
        AlmosaicError: nothing would stay, the block is larger than the grid, or not even one is drawn.
    """
    kept_count(grid.patches, ratio)
    if not 1 <= block <= min(grid.time, grid.freq):
        raise AlmosaicError(
            f"expected block to be 1 to {min(grid.time, grid.freq)} for {grid.time} x {grid.freq} patches, "
            f"found {block}: lower block or use a larger window"
        )
    share = _in_blocks(ratio, inverse) + adjust
    count = math.floor(grid.patches * share / block**2 + 1e-6)
    if count < 1:
        raise AlmosaicError(
            f"expected a share that holds a block of {block} x {block} patches, found {share:.4g} of "
            f"{grid.patches}: lower block or change ratio"
        )
    return count


def _in_blocks(ratio: float, inverse: bool) -> float:
    """Share of the patches that blocks make up."""
    return 1.0 - ratio if inverse else ratio


def block_score_count(grid: PatchGrid, ratio: float, *, block: int, adjust: float, inverse: bool) -> int:
    """Uniform numbers per row: one per block, and one per patch for the exact count."""
    return block_count(grid, ratio, block=block, adjust=adjust, inverse=inverse) + grid.patches


def block_mask_from_uniforms(
    grid: PatchGrid,
    uniforms: Tensor,
    ratio: float,
    *,
    block: int = 5,
    adjust: float = 0.07,
    inverse: bool = True,
    valid: Tensor | None = None,
) -> PatchMask:
    """Keep (inverse) or mask a union of blocks; a pure function of its arguments.

    Centres are uniform over the grid, with replacement; a block that sticks out is cut off at the border. Of
    a union that is too large random patches are taken out, to one that is too small random ones are added.

    Args:
        grid: patch grid of the window.
        uniforms: [R, n] in [0, 1), n from `block_score_count`.
        ratio: fraction of the patches that is masked.
        block: side of a block in patches.
        adjust: added to the share that the blocks would cover if they did not overlap.
        inverse: blocks are kept, else they are masked.
        valid: [B, N] bool, R a multiple of B. Centres are real patches; padding is kept last.

    Raises:
        AlmosaicError: nothing would stay, a block that does not fit, or another number of uniform numbers.
    """
    kept = kept_count(grid.patches, ratio)
    blocks = block_count(grid, ratio, block=block, adjust=adjust, inverse=inverse)
    if uniforms.ndim != 2 or uniforms.shape[1] != blocks + grid.patches:
        raise AlmosaicError(
            f"expected uniforms [R, {blocks + grid.patches}], {blocks} of them for blocks, found "
            f"{list(uniforms.shape)}: draw as many as score_count says"
        )
    real = None if valid is None else rows_of(valid.to(uniforms.device), len(uniforms))
    centres = _centres(uniforms[:, :blocks], grid, real)
    if real is not None:  # as many blocks as on a grid of the real patches alone
        padding = (~real).sum(dim=1).double() * (adjust if inverse else 1.0 + adjust)
        area = grid.patches * (_in_blocks(ratio, inverse) + adjust) - padding
        centres = _first(centres, (area / block**2 + 1e-6).floor().clamp_min(1))
    keys = uniforms[:, blocks:] + (union_of_blocks(grid, centres, block) == inverse)
    if real is not None:  # padding comes last, the first of it first
        keys = torch.where(real, keys, -torch.arange(1.0, grid.patches + 1, device=keys.device))
    chosen = keys.topk(kept, dim=1, sorted=False).indices
    visible = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, chosen, True)
    return mask_from_kept(visible, kept, valid)


def union_of_blocks(grid: PatchGrid, centres: Tensor, block: int) -> Tensor:
    """Patches in any block around centres [R, n] (token numbers), cut off at the border: [R, N] bool."""
    offset = torch.arange(block, device=centres.device) - block // 2
    time = (centres.unsqueeze(-1) // grid.freq + offset).clamp(0, grid.time - 1)
    freq = (centres.unsqueeze(-1) % grid.freq + offset).clamp(0, grid.freq - 1)
    tokens = (time.unsqueeze(-1) * grid.freq + freq.unsqueeze(-2)).flatten(1)
    union = torch.zeros(len(centres), grid.patches, dtype=torch.bool, device=centres.device)
    return union.scatter_(1, tokens, True)


def _centres(uniforms: Tensor, grid: PatchGrid, real: Tensor | None) -> Tensor:
    """Token numbers [R, n], uniform over the grid or over the real patches [R, N] of each row."""
    if real is None:
        return (uniforms * grid.patches).long().clamp_max(grid.patches - 1)
    passed = real.cumsum(dim=1)
    number = (uniforms * passed[:, -1:]).long()
    return torch.searchsorted(passed, number, right=True).clamp_max(grid.patches - 1)


def _first(centres: Tensor, counts: Tensor) -> Tensor:
    """The first `counts` [R] of the centres [R, n]; the others move onto the first."""
    spare = torch.arange(centres.shape[1], device=centres.device) >= counts[:, None]
    return torch.where(spare, centres[:, :1], centres)


def inverse_block_mask(
    grid: PatchGrid,
    batch_size: int,
    *,
    ratio: float = 0.8,
    block: int = 5,
    adjust: float = 0.07,
    generator: Generator = None,
    device: Device = None,
) -> PatchMask:
    """Keep blocks of patches."""
    shape: BlockShape = {"block": block, "adjust": adjust, "inverse": True}
    return _draw(grid, batch_size, ratio, shape, generator, device)


def block_mask(
    grid: PatchGrid,
    batch_size: int,
    *,
    ratio: float = 0.8,
    block: int = 5,
    adjust: float = 0.07,
    generator: Generator = None,
    device: Device = None,
) -> PatchMask:
    """Remove blocks of patches."""
    shape: BlockShape = {"block": block, "adjust": adjust, "inverse": False}
    return _draw(grid, batch_size, ratio, shape, generator, device)


def _draw(
    grid: PatchGrid, batch_size: int, ratio: float, shape: BlockShape, generator: Generator, device: Device
) -> PatchMask:
    columns = block_score_count(grid, ratio, **shape)
    uniforms = uniform_numbers(batch_size, columns, generator, device)
    return block_mask_from_uniforms(grid, uniforms, ratio, **shape)
