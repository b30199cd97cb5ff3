from collections import Counter

import numpy as np

from almosaic.scenes.decks import Deck, number_pairs


def test_every_card_comes_up_equally_often():
    deck = Deck("abcde", np.random.default_rng(0))
    dealt = [deck.deal() for _ in range(25)]
    assert all(set(dealt[i : i + 5]) == set("abcde") for i in range(0, 25, 5))
    assert dealt[:5] != dealt[5:10] or dealt[5:10] != dealt[10:15]


def test_a_refused_card_keeps_its_place():
    deck = Deck("ab", np.random.default_rng(0))
    assert [deck.deal(lambda card: card == "a") for _ in range(3)] == ["a", "a", "a"]
    assert deck.deal(lambda card: card == "b") == "b"


def test_no_accepted_card_is_none():
    assert Deck("ab", np.random.default_rng(0)).deal(lambda card: False) is None


def test_number_pairs_are_balanced_within_every_round():
    for numbers in (2, 3, 4, 5):
        pairs = number_pairs(numbers, np.random.default_rng(1))
        assert len(set(pairs)) == len(pairs) == numbers * (numbers - 1)
        assert all(first != second for first, second in pairs)
        for start in range(0, len(pairs), numbers):
            chunk = pairs[start : start + numbers]
            for side in (0, 1):
                assert Counter(pair[side] for pair in chunk) == dict.fromkeys(range(1, numbers + 1), 1)
