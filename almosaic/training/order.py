"""The order in which an epoch visits its rows, and who takes which: each once, however often it is asked."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from almosaic.data import draws
from almosaic.errors import AlmosaicError

MIXED_SHARDS = 4
SORTED_BATCHES = 50  # that many batches are sorted by length together, fewer where there are few in all


class EpochOrder(Sampler[int]):
    """The rows in an order that depends on (seed, stage, epoch) alone.

    A resumed run and any number of workers or processes see the same batches. Where `blocks` gives the rows
    of each shard, shards come in random order and only the rows of a few neighbours in it are mixed: a disk
    then reads whole shards, one after the other, and the shards of other epochs are not in memory.

    With `lengths`, rows of like length share a batch: large groups of the mixed rows are sorted, cut into
    batches, and the batches mixed again. The batch of the longest row comes first, so that too large a batch
    runs out of memory at once; rows that fill no batch come last.

    Args:
        rows: how many there are.
        seed: of the order.
        stage: of the order.
        blocks: rows of each shard in the order of their numbers, None = one mix of everything.
        lengths: asked in each epoch for the length of every row, None = they do not matter.
        batch_size: rows of one optimizer step over all processes; with `lengths`.

    Raises:
        AlmosaicError: the shards hold another number of rows.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        stage: str,
        blocks: Sequence[int] | None = None,
        lengths: Callable[[], Sequence[int]] | None = None,
        batch_size: int = 1,
    ) -> None:
        if blocks is not None and sum(blocks) != rows:
            raise AlmosaicError(
                f"expected shards of {rows} rows in all, found {sum(blocks)}; index them anew"
            )
        self.rows = rows
        self.blocks = None if blocks is None else np.asarray(blocks, dtype=np.int64)
        self.lengths, self.batch_size = lengths, batch_size
        self.key = (seed, stage, "order")
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of one epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        drawn = draws.generator(*self.key, self.epoch)
        if self.lengths is not None:
            yield from _grouped(drawn, np.asarray(self.lengths()), self.batch_size)
            return
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


def _grouped(drawn: np.random.Generator, lengths: NDArray[np.int64], batch_size: int) -> list[int]:
    """Rows by lengths [rows], batch by batch of like length; see `EpochOrder`."""
    rows = drawn.permutation(len(lengths))
    longest = int(lengths[rows].argmax())
    rows[[0, longest]] = rows[[longest, 0]]
    group = batch_size * min(max(len(rows) // batch_size // 4, 2), SORTED_BATCHES)
    for first in range(0, len(rows), group):
        together = rows[first : first + group]
        rows[first : first + group] = together[(-lengths[together]).argsort(kind="stable")]
    whole = len(rows) // batch_size
    mixed = [0, *(1 + drawn.permutation(whole - 1))] if whole else []
    order = [*(range(batch * batch_size, (batch + 1) * batch_size) for batch in mixed)]
    order.append(range(whole * batch_size, len(rows)))
    return [int(rows[place]) for places in order for place in places]


class StepShares(Sampler[list[int]]):
    """The batches of one process, each row of the order in exactly one batch of one process.

    A step takes the next rows of the order, however many processes share them; where an epoch ends within a
    step, what is left is divided evenly. A process for which nothing is left gets an empty batch.

    Args:
        order: of the rows.
        size: rows of a batch.
        accumulation: batches of each process in one step.
        processes: how many there are.
        rank: of this one.
    """

    def __init__(
        self, order: EpochOrder, size: int, accumulation: int = 1, processes: int = 1, rank: int = 0
    ) -> None:
        self.order, self.size, self.accumulation = order, size, accumulation
        self.processes, self.rank = processes, rank

    def __len__(self) -> int:
        return -(-len(self.order) // (self.size * self.processes))

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        step = self.size * self.processes * self.accumulation
        for first in range(0, len(rows), step):
            taken = rows[first : first + step]
            batches = self.processes * -(-len(taken) // (self.size * self.processes))
            ends = [round(part * len(taken) / batches) for part in range(batches + 1)]
            for own in range(self.rank, batches, self.processes):
                yield taken[ends[own] : ends[own + 1]]
