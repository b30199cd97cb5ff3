"""Which patches of a spectrogram the encoder may see.

A strategy turns a patch grid and drawn numbers, and some also the spectrogram, into kept and masked indices;
the encoder only obeys them. Ratios are the fraction removed (the paper's: 0.6 in time, 0.4 in frequency, one
axis per view).
"""

from almosaic.masking.block import block_mask, block_mask_from_uniforms, inverse_block_mask
from almosaic.masking.dispersion import (
    dispersion,
    dispersion_weighted_mask,
)
from almosaic.masking.grid import PatchGrid, PatchMask, kept_count
from almosaic.masking.groups import (
    frequency_mask,
    group_count,
    group_of_patch,
    mask_from_scores,
    random_mask,
    released_frequency_mask,
    released_time_mask,
    time_frequency_mask,
    time_frequency_mask_from_scores,
    time_mask,
)
from almosaic.masking.settings import (
    BlockMask,
    DispersionWeightedFrequencyMask,
    DispersionWeightedMask,
    DispersionWeightedTimeMask,
    FrequencyMask,
    InverseBlockMask,
    MaskSettings,
    RandomMask,
    ReleasedFrequencyMask,
    ReleasedTimeMask,
    TimeFrequencyMask,
    TimeMask,
    draw_mask,
    kept_patches,
    reads_spectrogram,
    score_count,
)
from almosaic.masking.weighted import ConstantHint, HintSchedule, HintSettings, weighted_mask_from_uniforms

__all__ = [
    "BlockMask",
    "ConstantHint",
    "DispersionWeightedFrequencyMask",
    "DispersionWeightedMask",
    "DispersionWeightedTimeMask",
    "FrequencyMask",
    "HintSchedule",
    "HintSettings",
    "InverseBlockMask",
    "MaskSettings",
    "PatchGrid",
    "PatchMask",
    "RandomMask",
    "ReleasedFrequencyMask",
    "ReleasedTimeMask",
    "TimeFrequencyMask",
    "TimeMask",
    "block_mask",
    "block_mask_from_uniforms",
    "dispersion",
    "dispersion_weighted_mask",
    "draw_mask",
    "frequency_mask",
    "group_count",
    "group_of_patch",
    "inverse_block_mask",
    "kept_count",
    "kept_patches",
    "mask_from_scores",
    "random_mask",
    "reads_spectrogram",
    "released_frequency_mask",
    "released_time_mask",
    "score_count",
    "time_frequency_mask",
    "time_frequency_mask_from_scores",
    "time_mask",
    "weighted_mask_from_uniforms",
]
