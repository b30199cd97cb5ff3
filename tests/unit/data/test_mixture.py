"""Weights: whole passes and a part of one, every row in its turn, the same however it is asked."""

from collections import Counter

import pytest
from torch.utils.data import DataLoader

from almosaic.data.mixture import WeightedChat
from almosaic.errors import AlmosaicError


class Numbered:
    """Row i of the data's own epoch e says so."""

    def __init__(self, rows):
        self.rows, self.epoch, self.source = rows, 0, f"{rows} clips"

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        assert 0 <= index < self.rows
        return (index, self.epoch)


def epoch(data, number):
    data.set_epoch(number)
    return [data[index] for index in range(len(data))]


@pytest.mark.parametrize(("weight", "length"), [(0.5, 5), (1.0, 10), (2.5, 25), (0.1, 1), (1.13, 11)])
def test_an_epoch_has_whole_passes_and_a_part_of_one(weight, length):
    data = WeightedChat(Numbered(10), weight, seed=3)
    assert len(data) == length and data.source == "10 clips"
    for number in range(4):
        counts = Counter(row for row, _ in epoch(data, number))
        whole = length // 10
        assert sum(counts.values()) == length
        assert all(whole <= counts[row] <= whole + 1 for row in range(10))


@pytest.mark.parametrize("weight", [0.3, 0.5, 2.7])
def test_every_row_has_its_turn_before_any_has_a_second(weight):
    data = WeightedChat(Numbered(10), weight, seed=3)
    drawn = []
    for number in range(20):
        drawn += [row for row, _ in epoch(data, number)[data.passes * 10 :]]
        full = len(drawn) // 10 * 10
        assert all(sorted(drawn[start : start + 10]) == list(range(10)) for start in range(0, full, 10))
    assert drawn[:10] != drawn[10:20] != sorted(drawn[10:20])


def test_each_repetition_is_an_epoch_of_its_own_to_the_data():
    data = WeightedChat(Numbered(4), 2.5, seed=0)
    own = [[when for _, when in epoch(data, number)] for number in (0, 1)]
    assert own == [[0] * 4 + [1] * 4 + [2] * 2, [3] * 4 + [4] * 4 + [5] * 2]
    half = WeightedChat(Numbered(4), 0.5, seed=0)
    assert [when for _, when in epoch(half, 7)] == [7, 7]


def test_rows_do_not_depend_on_order_workers_or_what_came_before():
    data = WeightedChat(Numbered(10), 1.7, seed=5)
    uninterrupted = [epoch(data, number) for number in range(5)]
    resumed = WeightedChat(Numbered(10), 1.7, seed=5)
    resumed.set_epoch(4)
    assert [resumed[index] for index in reversed(range(17))] == uninterrupted[4][::-1]
    resumed.set_epoch(2)
    loader = DataLoader(resumed, batch_size=3, num_workers=2, collate_fn=list, multiprocessing_context="fork")
    assert [row for batch in loader for row in batch] == uninterrupted[2]
    assert epoch(WeightedChat(Numbered(10), 1.7, seed=6), 2) != uninterrupted[2]


class Outlined(Numbered):
    def outline(self, index):
        return ("outline", *self[index])


def test_outlines_are_of_the_same_rows():
    data = WeightedChat(Outlined(10), 1.5, seed=1)
    data.set_epoch(3)
    assert [data.outline(index) for index in range(15)] == [("outline", *data[index]) for index in range(15)]
    plain = WeightedChat(Numbered(10), 1.5, seed=1)
    assert plain.outline(12) == plain[12]


def test_a_weight_that_leaves_nothing_is_an_error():
    with pytest.raises(
        AlmosaicError, match=r"weight 0\.04 of 10 rows leaves none of them; give 0\.1 or more"
    ):
        WeightedChat(Numbered(10), 0.04, seed=0)
