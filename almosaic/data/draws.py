"""Stateless random draws: a number depends on its key, not on worker, batch or resume."""

import hashlib
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # the odd step of SplitMix64 (Steele, Lea and Flood 2014)


def key(*parts: int | str) -> int:
    """Hash the parts to 63 bits, the same on every machine and Python; `1` and `"1"` differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        text = part if isinstance(part, str) else str(operator.index(part))
        tag = "s" if isinstance(part, str) else "i"
        encoded = text.encode()
        digest.update(f"{tag}{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest(), "little") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """Return a PCG64 generator seeded by `key(*parts)`, for draws whose number is not known beforehand."""
    return np.random.Generator(np.random.PCG64(key(*parts)))


def uniforms(
    parts: Sequence[int | str], clip_index: Sequence[int] | NDArray[np.integer], n: int
) -> NDArray[np.float32]:
    """Draw [B, n] numbers in [0, 1), multiples of 2^-24; row b depends on `parts` and `clip_index[b]` alone.

    The first `m` columns do not depend on `n`: asking for more draws keeps the earlier ones.
    """
    clips = np.asarray(clip_index, dtype=np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is meant
        seeds = _mix(_mix(np.uint64(key(*parts)) + clips * _GAMMA) + _GAMMA)
        words = _mix(seeds[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GAMMA)
    return (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _mix(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply the SplitMix64 finaliser, a bijection of 64-bit words that spreads every bit over all others."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
