"""Orders: every row once, by (seed, stage, epoch) alone, and shard by shard where there are shards."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almosaic.errors import AlmosaicError
from almosaic.training.order import MIXED_SHARDS, EpochOrder

BLOCKS = [7, 1, 12, 5, 9, 3, 8, 8, 4, 11, 6, 2]


def order(epoch=0, blocks=BLOCKS, seed=0, stage="s"):
    chosen = EpochOrder(sum(BLOCKS), seed, stage, blocks)
    chosen.set_epoch(epoch)
    return list(chosen)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=15), st.integers(0, 3))
def test_every_row_comes_once(blocks, epoch):
    chosen = EpochOrder(sum(blocks), 0, "s", blocks)
    chosen.set_epoch(epoch)
    assert sorted(chosen) == list(range(sum(blocks))) and len(chosen) == sum(blocks)


@pytest.mark.parametrize("blocks", [None, BLOCKS])
def test_the_order_depends_on_seed_stage_and_epoch_alone(blocks):
    same = order(blocks=blocks)
    assert order(blocks=blocks) == same
    for changes in ({"epoch": 1}, {"seed": 1}, {"stage": "t"}):
        assert order(blocks=blocks, **changes) != same


def test_only_a_few_shards_are_open_at_a_time_and_their_clips_are_mixed():
    shard_of = np.repeat(np.arange(len(BLOCKS)), BLOCKS)
    visited = []
    for epoch in range(3):
        found = order(epoch)
        shards = shard_of[found]
        starts = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in range(len(BLOCKS))}
        ends = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in range(len(BLOCKS))}
        opened = [
            sum(starts[shard] <= place <= ends[shard] for shard in range(len(BLOCKS)))
            for place in range(len(found))
        ]
        assert max(opened) == MIXED_SHARDS
        switches = sum(left != right for left, right in pairwise(shards))
        assert switches > len(found) / 2, "clips of neighbours alternate"
        assert any(right < left for left, right in pairwise(found)), "a shard is not read from front to end"
        visited.append(tuple(sorted(range(len(BLOCKS)), key=starts.get)))
    assert len(set(visited)) == 3, "shards come in another order each epoch"


def test_shards_of_another_number_of_rows_are_refused():
    with pytest.raises(AlmosaicError, match="expected shards of 10 rows in all, found 7"):
        EpochOrder(10, 0, "s", [3, 4])
