"""Weights of a mixture: how often an epoch visits the conversations of one kind of data."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from almosaic.data import draws
from almosaic.data.clips import TimedClips
from almosaic.data.datasets import ChatData, Conversation
from almosaic.errors import AlmosaicError


class WeightedChat(Dataset[Conversation]):
    """`round(weight * rows)` conversations an epoch: whole passes over the rows, then a part of a pass.

    The parts of successive epochs follow one another through random orders of all rows, so that no row has
    its second turn in them before every row has had its first. Which rows they are depends on (seed, epoch)
    alone. Each repetition is an epoch of its own to the data: a composed scene is asked something else.

    Args:
        part: the conversations.
        weight: passes an epoch, above 0.
        seed: of the random orders.

    Raises:
        AlmosaicError: the weight leaves no row.
    """

    def __init__(self, part: ChatData, weight: float, seed: int) -> None:
        self.part, self.seed = part, seed
        rows = len(part)
        self.length = round(weight * rows)
        if self.length < 1:
            raise AlmosaicError(
                f"weight {weight:g} of {rows} rows leaves none of them; give {1 / rows:.2g} or more, "
                "or leave the data out"
            )
        self.passes, self.rest = divmod(self.length, rows)
        self.epoch = 0
        self._orders: dict[int, NDArray[np.int64]] = {}

    @property
    def source(self) -> TimedClips:
        """The clips of the data."""
        return self.part.source

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Conversation:
        return self.part[self._turn(index)]

    def outline(self, index: int) -> Conversation:
        """A conversation of nearly the same length, where the data has cheaper ones."""
        found: Any = getattr(self.part, "outline", self.part.__getitem__)
        row: Conversation = found(self._turn(index))
        return row

    def _turn(self, index: int) -> int:
        """The row at a place of this epoch, once the data knows which of its own epochs that is."""
        repetition, row = divmod(index, len(self.part))
        turns = self.passes + (self.rest > 0)
        self.part.set_epoch(self.epoch * turns + repetition)
        return row if repetition < self.passes else self._drawn(self.epoch * self.rest + row)

    def _drawn(self, place: int) -> int:
        """The row at a place of the endless sequence of random orders."""
        rows = len(self.part)
        number, within = divmod(place, rows)
        if number not in self._orders:
            self._orders = {n: order for n, order in self._orders.items() if n == number - 1}
            self._orders[number] = draws.generator(self.seed, "mixture", number).permutation(rows)
        return int(self._orders[number][within])
