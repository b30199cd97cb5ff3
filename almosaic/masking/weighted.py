"""Draw masks by weight, hide more of what weighs more, and mix in uniform hints."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.masking.grid import PatchGrid, PatchMask, kept_count, mask_from_kept, rows_of
from almosaic.masking.groups import Layout, group_count, mask_from_scores, patches_of_groups, real_groups
from almosaic.settings import Settings

Order = Literal["sample", "topk"]
SMALLEST = 2.0**-25  # half a step of the uniform numbers: the logarithm of 0 would outweigh every weight
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class HintSchedule(Settings):
    """Uniformly random until `start`, then ever more by weight: a hint of 1 - progress^power.

    The defaults are those of the source: from epoch 50 of 300 on, squared.
    """

    start: Share = 1 / 6
    power: Annotated[float, Field(gt=0.0)] = 2.0

    def at(self, progress: float) -> float:
        """Hint at a progress between 0 and 1; it steps down at `start`, as in the source.

        Raises:
            AlmosaicError: progress is outside [0, 1].
        """
        if not 0.0 <= progress <= 1.0:
            raise AlmosaicError(
                f"expected a progress between 0 and 1, found {progress:g}: give the share of steps done"
            )
        return 1.0 if progress < self.start else 1.0 - progress**self.power


class ConstantHint(Settings):
    """The same hint from the first step on; 0 goes by weight alone, 1 is uniformly random."""

    constant: Share

    def at(self, progress: float) -> float:
        """The hint, at any progress."""
        return self.constant


def _hint_kind(value: Any) -> str:
    """Which of the two is meant: a mistake in one is then not reported as a key that the other lacks."""
    constant = isinstance(value, ConstantHint) or (isinstance(value, dict) and "constant" in value)
    return "constant" if constant else "schedule"


HintSettings = Annotated[
    Annotated[HintSchedule, Tag("schedule")] | Annotated[ConstantHint, Tag("constant")],
    Discriminator(_hint_kind),
]


def weighted_score_count(grid: PatchGrid, layout: Layout, *, swap: bool) -> int:
    """Uniform numbers per row: one per group for the draw and, where hints may swap, two for the swap."""
    return group_count(grid, layout) * (3 if swap else 1)


def weighted_mask_from_uniforms(
    grid: PatchGrid,
    weights: Tensor,
    uniforms: Tensor,
    ratio: float,
    *,
    layout: Layout = "random",
    order: Order = "sample",
    hint: float = 0.0,
    valid: Tensor | None = None,
) -> PatchMask:
    """Mask groups with a chance that grows with their weight; a pure function of its arguments.

    A weighted draw without replacement chooses the M masked groups. Then `int(M hint)` of them, chosen
    uniformly, become visible, and as many of all that are visible now are masked (dispersion-weighted
    masking, arXiv 2603.23810). A hint of 1 skips the weights: every group is masked equally often.

    Args:
        grid: patch grid of the window.
        weights: [B, G] positive, one per group of the layout.
        uniforms: [R, n] in [0, 1); R a multiple of B, n from `weighted_score_count`.
        ratio: fraction of the groups that is masked.
        layout: how patches form groups.
        order: `sample` draws, `topk` masks the heaviest groups without drawing.
        hint: share of the masked groups that the swap shows again.
        valid: [B, N] bool; groups made of padding alone are masked before all others and never swapped.

    Raises:
        AlmosaicError: nothing would stay, a hint outside [0, 1], or too few uniform numbers.
    """
    groups = group_count(grid, layout)
    if not 0.0 <= hint <= 1.0:
        raise AlmosaicError(
            f"expected a hint from 0 (by weight alone) to 1 (uniformly random), found {hint:g}: give the "
            "share of masked groups that is swapped"
        )
    needed = weighted_score_count(grid, layout, swap=0.0 < hint < 1.0)
    if uniforms.ndim != 2 or uniforms.shape[1] < needed:
        raise AlmosaicError(
            f"expected uniforms [R, {needed}] for a weighted {layout} mask on {grid.time} x {grid.freq} "
            f"patches, found {list(uniforms.shape)}: draw as many as score_count says"
        )
    rows, real = len(uniforms), None
    weights = rows_of(weights, rows)
    if hint >= 1.0:
        return mask_from_scores(grid, uniforms[:, :groups], ratio, layout=layout, valid=valid)
    if valid is not None:
        real = rows_of(real_groups(grid, layout, valid.to(uniforms.device)), rows)
    kept = kept_count(groups, ratio)
    # The first of exponential clocks with the weights as rates: a weighted draw without replacement.
    clocks = -1.0 if order == "topk" else uniforms[:, :groups].clamp_min(SMALLEST).log()
    keys = clocks / weights
    if real is not None:
        keys = torch.where(real, keys, torch.arange(1.0, groups + 1, device=keys.device))
    visible = ~_highest(keys, groups - kept)
    if (swaps := math.floor((groups - kept) * hint + 1e-6)) > 0:
        visible = _swap(visible, real, swaps, hint, *uniforms[:, groups : 3 * groups].chunk(2, dim=1))
    patches = patches_of_groups(grid, layout, visible)
    return mask_from_kept(patches, kept * (grid.patches // groups), valid)


def _swap(
    visible: Tensor, real: Tensor | None, swaps: int, hint: float, showing: Tensor, hiding: Tensor
) -> Tensor:
    """Show `swaps` masked groups, then mask as many of all visible ones; visible [R, G] keeps its counts."""
    hidden, counts = ~visible, None
    if real is not None:
        hidden = hidden & real
        counts = (hidden.sum(dim=1).double() * hint + 1e-6).floor()
    shown = visible | _highest(showing + hidden, swaps, counts)
    return shown & ~_highest(hiding + shown, swaps, counts)


def _highest(keys: Tensor, limit: int, counts: Tensor | None = None) -> Tensor:
    """[R, G] bool, True at the `limit` highest keys of every row, or at its own counts [R] up to that."""
    top = keys.topk(limit, dim=1, sorted=counts is not None).indices
    chosen = torch.zeros_like(keys, dtype=torch.bool)
    if counts is None:
        return chosen.scatter_(1, top, True)
    return chosen.scatter_(1, top, torch.arange(limit, device=keys.device) < counts[:, None])
