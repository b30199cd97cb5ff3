"""What every augmentation step is made of: draws for a batch, ranges, circles."""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator
from torch import Tensor

from almosaic.data.draws import key, uniforms
from almosaic.data.noise import hashed_normal


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"expected (low, high), found low {bounds[0]} above high {bounds[1]}")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]


class Draws:
    """The random numbers of one batch: row b depends on the parts, the name and `clip_index[b]` alone."""

    def __init__(
        self,
        parts: Sequence[int | str],
        clip_index: Tensor | Sequence[int] | NDArray[np.integer],
        device: torch.device | str = "cpu",
    ) -> None:
        self.parts = tuple(parts)
        self.clip_index = np.asarray(
            clip_index.tolist() if isinstance(clip_index, Tensor) else clip_index, dtype=np.int64
        )
        self.device = torch.device(device)

    def uniform(self, name: str, n: int) -> Tensor:
        """Draw [B, n] float32 in [0, 1); the same on every device."""
        return torch.from_numpy(uniforms((*self.parts, name), self.clip_index, n)).to(self.device)

    def normal(self, name: str, samples: int, lengths: Tensor | None = None) -> Tensor:
        """Draw normal noise [B, samples], zero from `lengths` [B] on; the same per kind of device."""
        seeds = [key(*self.parts, name, clip) for clip in self.clip_index.tolist()]
        if self.device.type != "cpu":
            noise = hashed_normal(seeds, samples, self.device)
            if lengths is None:
                return noise
            beyond = torch.arange(samples, device=self.device) >= lengths.to(self.device)[:, None]
            return noise.masked_fill(beyond, 0.0)
        counts = [samples] * len(seeds) if lengths is None else lengths.tolist()
        noise = torch.zeros(len(seeds), samples)
        # On a core, the library's own generator is twice as fast, one row after another.
        for row, (seed, count) in enumerate(zip(seeds, counts, strict=True)):
            # Only a clip's own length is drawn: how many are drawn changes the numbers themselves.
            torch.randn(count, generator=torch.Generator().manual_seed(seed), out=noise[row, :count])
        return noise

    def chosen(self, name: str, p: float) -> NDArray[np.int64]:
        """Return the rows that a step of probability `p` meets; the host knows them without a device sync."""
        return np.flatnonzero(uniforms((*self.parts, name, "chosen"), self.clip_index, 1)[:, 0] < p)

    def rows(self, rows: NDArray[np.int64]) -> "Draws":
        """Return the draws of some rows."""
        return Draws(self.parts, self.clip_index[rows], self.device)

    def on(self, device: torch.device | str) -> "Draws":
        """Return the same draws, made on another device."""
        return Draws(self.parts, self.clip_index, device)


def between(bounds: tuple[float, float], drawn: Tensor) -> Tensor:
    """Spread draws of [0, 1) over a range."""
    return bounds[0] + (bounds[1] - bounds[0]) * drawn


def beta_ten(drawn: Tensor) -> Tensor:
    """Beta(10, 10) draws [B] of uniforms [B, 19]: the tenth smallest of nineteen has that distribution."""
    return drawn.sort(dim=1).values[:, 9]


def roll(batch: Tensor, lengths: Tensor, shift: Tensor) -> Tensor:
    """Shift each row of [B, S] or [B, S, F] to the right, in a circle of its own length."""
    if batch.device.type != "cpu":
        return roll_at_once(batch, lengths, shift)
    rolled = batch.clone()
    # Two copies a row: the index tensor of a gather would be twice as large as the batch.
    for row, (length, by) in enumerate(zip(lengths.tolist(), (shift % lengths).tolist(), strict=True)):
        rolled[row, by:length] = batch[row, : length - by]
        rolled[row, :by] = batch[row, length - by : length]
    return rolled


def roll_at_once(batch: Tensor, lengths: Tensor, shift: Tensor) -> Tensor:
    """Do the same by one gather for all rows; what lies beyond a row's length stays."""
    place = torch.arange(batch.shape[1], device=batch.device).expand(batch.shape[:2])
    source = torch.where(place < lengths[:, None], (place - shift[:, None]) % lengths[:, None], place)
    return batch.gather(1, source if batch.ndim == 2 else source[..., None].expand_as(batch))
