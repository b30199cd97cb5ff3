"""The order in which an epoch visits its rows: each once, random, the same however often it is asked."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from almosaic.data import draws
from almosaic.errors import AlmosaicError

MIXED_SHARDS = 4


class EpochOrder(Sampler[int]):
    """The rows in an order that depends on (seed, stage, epoch) alone.

    A resumed run and any number of workers or processes see the same batches. Where `blocks` gives the rows
    of each shard, shards come in random order and only the rows of a few neighbours in it are mixed: a disk
    then reads whole shards, one after the other, and the shards of other epochs are not in memory.

    Args:
        rows: how many there are.
        seed: of the order.
        stage: of the order.
        blocks: rows of each shard in the order of their numbers, None = one mix of everything.

    Raises:
        AlmosaicError: the shards hold another number of rows.
    """

    def __init__(self, rows: int, seed: int, stage: str, blocks: Sequence[int] | None = None) -> None:
        if blocks is not None and sum(blocks) != rows:
            raise AlmosaicError(
                f"expected shards of {rows} rows in all, found {sum(blocks)}; index them anew"
            )
        self.rows = rows
        self.blocks = None if blocks is None else np.asarray(blocks, dtype=np.int64)
        self.key = (seed, stage, "order")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of one epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        drawn = draws.generator(*self.key, self.epoch)
        if self.blocks is None:
            yield from drawn.permutation(self.rows).tolist()
            return
        starts = np.cumsum(self.blocks) - self.blocks
        shards = drawn.permutation(len(self.blocks))
        for first in range(0, len(shards), MIXED_SHARDS):
            together = shards[first : first + MIXED_SHARDS]
            rows: NDArray[np.int64] = np.concatenate(
                [np.arange(starts[shard], starts[shard] + self.blocks[shard]) for shard in together]
            )
            yield from drawn.permutation(rows).tolist()
