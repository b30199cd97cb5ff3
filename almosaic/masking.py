"""Which patches of a spectrogram the encoder may see.

A strategy turns a patch grid and drawn scores into kept and masked indices; the encoder only obeys them.
Tokens are time-major: token n = t * Fp + f. Ratios are the fraction removed (the paper's: 0.6 in time, 0.4 in
frequency, one axis per view).
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from almosaic.errors import AlmosaicError
from almosaic.settings import Settings

Layout = Literal["random", "time", "frequency", "released_time", "released_frequency"]
Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]
Generator = torch.Generator | None
Device = torch.device | str | None


@dataclass(frozen=True)
class PatchGrid:
    """A spectrogram window as `time` x `freq` square patches (Tp, Fp)."""

    time: int
    freq: int

    @property
    def patches(self) -> int:
        """N = Tp * Fp."""
        return self.time * self.freq

    @classmethod
    def of(cls, frames: int, bins: int, patch_size: int = 16) -> "PatchGrid":
        """Divide a window of T frames and F mel bins; AlmosaicError unless both divide by the patch size."""
        if frames < patch_size or bins < patch_size or frames % patch_size or bins % patch_size:
            frames_fit, bins_fit = (max(1, round(n / patch_size)) * patch_size for n in (frames, bins))
            raise AlmosaicError(
                f"expected a window whose sides are multiples of the patch size {patch_size}, found {frames} "
                f"frames x {bins} mel bins: pad or cut it to {frames_fit} x {bins_fit}"
            )
        return cls(frames // patch_size, bins // patch_size)

    def valid_patches(self, frame_mask: Tensor) -> Tensor:
        """Patches that hold at least one real frame: frame_mask [B, T] bool -> [B, N] bool."""
        if frame_mask.shape[-1] % self.time:
            raise AlmosaicError(
                f"expected a frame mask of a multiple of {self.time} frames, found {frame_mask.shape[-1]}: "
                "take the mask that the feature extractor returned beside these windows"
            )
        columns = frame_mask.bool().reshape(frame_mask.shape[0], self.time, -1).any(dim=-1)
        return columns.repeat_interleave(self.freq, dim=1)


@dataclass(frozen=True)
class PatchMask:
    """Kept and masked patches of a batch; indices are ascending in every row.

    Attributes:
        ids_keep: [B, K] int64, patches that the encoder sees.
        ids_masked: [B, M] int64, the others.
        ids_restore: [B, N] int64; `cat(kept, masked)` gathered by it is back in token order.
        valid: [B, N] bool, False where a patch is padding; losses leave those out.
    """

    ids_keep: Tensor
    ids_masked: Tensor
    ids_restore: Tensor
    valid: Tensor

    @property
    def kept(self) -> Tensor:
        """[B, N] bool, True where a patch is kept."""
        return torch.zeros_like(self.valid).scatter_(1, self.ids_keep, True)

    @property
    def kept_padding(self) -> Tensor:
        """Share of the kept patches that are padding, a scalar."""
        return 1.0 - self.valid.gather(1, self.ids_keep).float().mean()

    def to(self, device: torch.device | str) -> "PatchMask":
        """The same mask on another device."""
        return PatchMask(*(getattr(self, field.name).to(device) for field in fields(self)))


def kept_count(n: int, ratio: float) -> int:
    """How many of n groups stay when `ratio` of them is removed: floor(n (1 - ratio)), safe against rounding.

    Raises:
        AlmosaicError: nothing would stay, or the ratio is outside [0, 1).
    """
    kept = math.floor(n * (1.0 - ratio) + 1e-6) if 0.0 <= ratio < 1.0 else 0
    if kept < 1:
        raise AlmosaicError(
            f"expected a mask ratio that keeps at least one of {n} groups (0 to {1.0 - 1.0 / n:.4g}), "
            f"found {ratio:g}: lower the ratio or use a longer window"
        )
    return kept


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
    return _mask_from_kept(_kept_patches(grid, scores, ratio, layout, valid), count, valid)


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
    return _mask_from_kept(columns & bands, count, valid)


def _kept_patches(
    grid: PatchGrid, scores: Tensor, ratio: float, layout: Layout, valid: Tensor | None
) -> Tensor:
    """[B, N] bool, True where the patch's group is among the kept ones."""
    groups = group_count(grid, layout)
    if scores.ndim != 2 or scores.shape[1] != groups:
        raise AlmosaicError(
            f"expected scores [B, {groups}] for a {layout} mask on {grid.time} x {grid.freq} patches, found "
            f" {list(scores.shape)}: draw one score per group"
        )
    member = group_of_patch(grid, layout, scores.device)
    if valid is not None:
        real = torch.zeros_like(scores, dtype=torch.int64).index_add_(1, member, valid.to(torch.int64)) > 0
        scores = scores.masked_fill(~real, math.inf)
    lowest = scores.argsort(dim=1, stable=True)[:, : kept_count(groups, ratio)]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)[:, member]


def _mask_from_kept(kept: Tensor, count: int, valid: Tensor | None) -> PatchMask:
    """Indices from kept [B, N] bool, which is True `count` times in every row."""
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    everywhere = torch.ones_like(kept) if valid is None else valid.to(kept.device)
    return PatchMask(order[:, :count], order[:, count:], order.argsort(dim=1), everywhere)


def _draw(
    grid: PatchGrid, batch_size: int, ratio: float, layout: Layout, generator: Generator, device: Device
) -> PatchMask:
    scores = _uniforms(batch_size, group_count(grid, layout), generator, device)
    return mask_from_scores(grid, scores, ratio, layout=layout)


def _uniforms(rows: int, columns: int, generator: Generator, device: Device) -> Tensor:
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
    scores = _uniforms(batch_size, grid.time + grid.freq, generator, device)
    time_scores, frequency_scores = scores[:, : grid.time], scores[:, grid.time :]
    return time_frequency_mask_from_scores(grid, time_scores, frequency_scores, time_ratio, frequency_ratio)


class RandomMask(Settings):
    """Remove single patches."""

    name: Literal["random"] = "random"
    ratio: Ratio


class TimeMask(Settings):
    """Remove whole patch columns."""

    name: Literal["time"] = "time"
    ratio: Ratio = 0.6


class FrequencyMask(Settings):
    """Remove whole bands."""

    name: Literal["frequency"] = "frequency"
    ratio: Ratio = 0.4


class TimeFrequencyMask(Settings):
    """Remove patch columns and bands from the same view."""

    name: Literal["time_frequency"] = "time_frequency"
    time_ratio: Ratio = 0.6
    frequency_ratio: Ratio = 0.4


class ReleasedTimeMask(Settings):
    """The published code's "time" axis."""

    name: Literal["released_time"] = "released_time"
    ratio: Ratio = 0.6


class ReleasedFrequencyMask(Settings):
    """The published code's "frequency" axis."""

    name: Literal["released_frequency"] = "released_frequency"
    ratio: Ratio = 0.4


MaskSettings = Annotated[
    RandomMask | TimeMask | FrequencyMask | TimeFrequencyMask | ReleasedTimeMask | ReleasedFrequencyMask,
    Field(discriminator="name"),
]


def score_count(settings: MaskSettings, grid: PatchGrid) -> int:
    """How many uniform numbers `draw_mask` needs per row."""
    if isinstance(settings, TimeFrequencyMask):
        return grid.time + grid.freq
    return group_count(grid, settings.name)


def draw_mask(
    settings: MaskSettings, grid: PatchGrid, uniforms: Tensor, *, valid: Tensor | None = None
) -> PatchMask:
    """The mask that these settings make of uniforms [B, score_count]; draws nothing itself."""
    if isinstance(settings, TimeFrequencyMask):
        time_scores, frequency_scores = uniforms[:, : grid.time], uniforms[:, grid.time :]
        ratios = (settings.time_ratio, settings.frequency_ratio)
        return time_frequency_mask_from_scores(grid, time_scores, frequency_scores, *ratios, valid=valid)
    return mask_from_scores(grid, uniforms, settings.ratio, layout=settings.name, valid=valid)
