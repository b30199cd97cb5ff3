"""The masks that a recipe may name, and how each is made of uniform numbers."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from almosaic.masking.grid import PatchGrid, PatchMask, kept_count
from almosaic.masking.groups import group_count, mask_from_scores, time_frequency_mask_from_scores
from almosaic.settings import Settings

Ratio = Annotated[float, Field(ge=0.0, lt=1.0)]


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


def kept_patches(settings: MaskSettings, grid: PatchGrid) -> int:
    """K, how many patches these settings keep of a window.

    Raises:
        AlmosaicError: none would be kept.
    """
    if isinstance(settings, TimeFrequencyMask):
        return kept_count(grid.time, settings.time_ratio) * kept_count(grid.freq, settings.frequency_ratio)
    groups = group_count(grid, settings.name)
    return kept_count(groups, settings.ratio) * (grid.patches // groups)


def draw_mask(
    settings: MaskSettings, grid: PatchGrid, uniforms: Tensor, *, valid: Tensor | None = None
) -> PatchMask:
    """The mask that these settings make of uniforms [B, score_count]; draws nothing itself."""
    if isinstance(settings, TimeFrequencyMask):
        time_scores, frequency_scores = uniforms[:, : grid.time], uniforms[:, grid.time :]
        ratios = (settings.time_ratio, settings.frequency_ratio)
        return time_frequency_mask_from_scores(grid, time_scores, frequency_scores, *ratios, valid=valid)
    return mask_from_scores(grid, uniforms, settings.ratio, layout=settings.name, valid=valid)
