"""White noise from hashed counters: every row by its own seed, all rows at once on a device."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# SplitMix64 (Steele, Lea and Flood 2014) in signed words, as `almosaic.data.draws` has it in unsigned ones.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)


def hashed_normal(seeds: Sequence[int], samples: int, device: torch.device | str) -> Tensor:
    """Draw normal noise [B, samples] from seeds [B] below 2^63.

    A row depends on its seed alone, and its first numbers do not depend on how many are drawn.
    """
    start = _mixed(torch.tensor(seeds, device=device)[:, None])
    # Each word of 64 bits gives two uniforms of 24, and they two normals (Box and Muller 1958).
    counter = torch.arange(1, (samples + 1) // 2 + 1, device=device)
    words = _mixed(start + counter * _GAMMA)
    radius = ((_shifted(words, 40) + 1) * 2.0**-24).log_().mul_(-2.0).sqrt_()
    angle = (words & 0xFFFFFF) * (2.0 * math.pi * 2.0**-24)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], 2)
    return pairs.flatten(1)[:, :samples]


def _mixed(words: Tensor) -> Tensor:
    """Apply the finaliser of SplitMix64; products wrap round."""
    words = (words ^ _shifted(words, 30)) * _FIRST
    words = (words ^ _shifted(words, 27)) * _SECOND
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """Shift words to the right without their sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
