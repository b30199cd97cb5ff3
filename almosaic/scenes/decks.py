"""Shuffled decks: every card comes up equally often, so that no answer is worth guessing."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np

Card = TypeVar("Card")


class Deck(Generic[Card]):
    """Cards in random order; each comes again only after the whole deck was dealt, where rules allow."""

    def __init__(self, cards: Sequence[Card], rng: np.random.Generator):
        self._cards = list(cards)
        self._rng = rng
        self._pile: list[Card] = []

    def deal(self, accept: Callable[[Card], bool] | None = None) -> Card | None:
        """The first card of the pile that is accepted, None if no card is; refused cards keep their place."""
        for _ in range(2):
            for place, card in enumerate(self._pile):
                if accept is None or accept(card):
                    return self._pile.pop(place)
            self._pile.extend(self._cards[i] for i in self._rng.permutation(len(self._cards)))
        return None


def number_pairs(numbers: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """All ordered pairs of two different numbers from 1 to `numbers`, shuffled in balanced rounds.

    Within every round of `numbers` pairs each number stands first once and second once: cut after any round,
    all numbers are the right answer equally often.
    """
    pairs = []
    for step in rng.permutation(np.arange(1, numbers)):
        for first in rng.permutation(numbers):
            pairs.append((int(first) + 1, int(first + step) % numbers + 1))
    return pairs
