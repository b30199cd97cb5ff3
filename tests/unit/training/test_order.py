"""Orders: every row once, by (seed, stage, epoch) alone, shard by shard or by length, shared by processes."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from almosaic.errors import AlmosaicError
from almosaic.training.order import MIXED_SHARDS, EpochOrder, StepShares

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


SPREAD = np.random.default_rng(0).lognormal(5.0, 0.8, size=1003).astype(int).tolist()
BATCH = 16


def by_length(lengths=SPREAD, epoch=0, batch_size=BATCH, seed=0, stage="s"):
    chosen = EpochOrder(len(lengths), seed, stage, lengths=lambda: lengths, batch_size=batch_size)
    chosen.set_epoch(epoch)
    return list(chosen)


def batches(order, size=BATCH):
    return [order[first : first + size] for first in range(0, len(order), size)]


def padding(order):
    """Tokens that fill the rows of all batches up."""
    lengths = np.array(SPREAD)
    return sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in batches(order))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(1, 9), st.integers(0, 3))
def test_by_length_every_row_comes_once_and_the_longest_first(lengths, size, epoch):
    order = by_length(lengths, epoch, size)
    assert sorted(order) == list(range(len(lengths)))
    assert max(lengths) == max(lengths[row] for row in order[:size])


def test_batches_of_like_length_save_most_of_the_padding():
    for epoch in range(3):
        mixed = EpochOrder(len(SPREAD), 0, "s")
        mixed.set_epoch(epoch)
        assert padding(by_length(epoch=epoch)) < 0.3 * padding(list(mixed))


def test_the_order_by_length_is_drawn_anew_in_each_epoch_and_does_not_drift():
    same = by_length()
    assert by_length() == same
    for changes in ({"epoch": 1}, {"seed": 1}, {"stage": "t"}):
        assert by_length(**changes) != same
    first, second = ({frozenset(batch) for batch in batches(by_length(epoch=epoch))} for epoch in (0, 1))
    assert not first & second, "rows meet other rows"
    heads = np.array([SPREAD[batch[0]] for batch in batches(same)][1:-1])
    place = np.arange(len(heads))
    assert abs(np.corrcoef(place, heads)[0, 1]) < 0.3, "short and long batches alternate"


def test_lengths_are_asked_for_in_every_epoch():
    order = EpochOrder(64, 0, "s", lengths=lambda: lengths, batch_size=4)
    for longest in (5, 6):
        lengths = [1] * 64
        lengths[longest] = 9
        assert next(iter(order)) == longest


@pytest.mark.parametrize("rows", [1, 3, 12, 16, 17, 23])
@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_every_process_count_takes_the_same_rows_in_every_step(rows, size, accumulation):
    def steps(processes):
        """Rows of each step over all processes, and batches of each process."""
        order = EpochOrder(rows, 0, "s")
        shares = [
            StepShares(order, size * 6 // processes, accumulation, processes, rank)
            for rank in range(processes)
        ]
        own = [list(share) for share in shares]
        assert {len(found) for found in own} == {len(share) for share in shares} == {len(own[0])}
        assert all(len(batch) <= size * 6 // processes for found in own for batch in found)
        taken = [
            sorted(row for found in own for batch in found[first : first + accumulation] for row in batch)
            for first in range(0, len(own[0]), accumulation)
        ]
        return taken, len(own[0])

    alone = steps(1)
    assert sorted(row for step in alone[0] for row in step) == list(range(rows))
    assert steps(2) == steps(3) == alone


def test_what_is_left_is_divided_evenly_and_an_empty_batch_only_where_rows_are_fewer_than_processes():
    sizes = [[len(batch) for batch in StepShares(EpochOrder(11, 0, "s"), 2, 2, 2, rank)] for rank in (0, 1)]
    assert sizes == [[2, 2, 2], [2, 2, 1]]
    sizes = [len(next(iter(StepShares(EpochOrder(1, 0, "s"), 2, 1, 2, rank)))) for rank in (0, 1)]
    assert sorted(sizes) == [0, 1]
