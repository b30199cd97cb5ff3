"""Who may stand together in a scene, dealt from shuffled decks: the rules that keep questions honest."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from almosaic.scenes.clips import Bank, Use, is_heldout
from almosaic.scenes.decks import Deck, number_pairs
from almosaic.scenes.scene import SceneSettings, Template

MIN_EVENTS = 4  # a label is counted only where this many single events of it are known


@dataclass(frozen=True, slots=True)
class Sound:
    """A member of the cast; both twins take the same excerpt of it."""

    label: str
    use: Use = "any"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member of the cast sounds in one twin; `inside` = begins while the sound of that slot lasts."""

    member: int
    slot: int
    quiet: bool = False
    short: bool = False
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Two arrangements of one cast; `asked` are the labels of the question in the order of its wording."""

    template: Template
    asked: tuple[str, ...]
    answers: tuple[str, str]  # labels, numbers, yes / no, first / second
    heldout: bool  # the pair of labels that is asked about does not occur in training
    slots: int
    cast: tuple[Sound, ...]
    twins: tuple[tuple[Place, ...], tuple[Place, ...]]
    same_excerpt: bool = False  # members of one label are the same recording


def has_heldout_pair(labels: Iterable[str]) -> bool:
    """Whether any two of the labels are kept out of training."""
    return any(is_heldout(*pair) for pair in combinations(sorted(set(labels)), 2))


class Planner:
    """Deals plans from shuffled decks of labels and numbers.

    Args:
        bank: where labels, groups and usable clips come from.
        settings: lengths and limits.
        training: keep every held-out pair of labels apart.
        rng: shuffles the decks.
    """

    def __init__(self, bank: Bank, settings: SceneSettings, training: bool, rng: np.random.Generator):
        self.bank, self.settings, self.rng = bank, settings, rng
        self.training = training and settings.heldout_label_pairs
        self.decks: dict[str, Deck[str]] = {}
        self.numbers: dict[str, Deck[int]] = {}
        self.pairs: dict[str, list[tuple[int, int]]] = {}

    def deal(
        self, role: str, labels: Sequence[str], accept: Callable[[str], bool] | None = None
    ) -> str | None:
        """A label for a role, from the deck of that role."""
        return self.decks.setdefault(role, Deck(labels, self.rng)).deal(accept)

    def number(self, role: str, choices: Sequence[int]) -> int:
        """A number for a role, every choice equally often."""
        number = self.numbers.setdefault(role, Deck(choices, self.rng)).deal()
        assert number is not None
        return number

    def number_pair(self, role: str, limit: int) -> tuple[int, int]:
        """Two different numbers up to `limit`, in balanced rounds."""
        if not self.pairs.get(role):
            self.pairs[role] = number_pairs(limit, self.rng)[::-1]
        return self.pairs[role].pop()

    def usable(self, use: Use, seconds: float = 0.0, at_least: int = 1) -> list[str]:
        """Labels with enough to cut from."""
        found = self.bank.excerpts(use, seconds)
        return [label for label, excerpts in found.items() if len(excerpts) >= at_least]

    def sure(self) -> list[str]:
        """Labels whose absence can be claimed."""
        return [label for label in self.bank.labels if not self.bank.classes[label].background_prone]

    def comparable(self, label: str, other: str) -> bool:
        """Whether the two may be the pair that is asked about."""
        return (
            label != other
            and not self.bank.confusable(label, other)
            and not (self.training and is_heldout(label, other))
        )

    def companion(self, label: str, others: Iterable[str]) -> bool:
        """Whether a label may join others beside the asked pair: never as a held-out pair."""
        apart = self.settings.heldout_label_pairs
        return all(
            label != other
            and not self.bank.confusable(label, other)
            and not (apart and is_heldout(label, other))
            for other in others
        )

    def pair(self, labels: Sequence[str], role: str = "") -> tuple[str, str] | None:
        """Two labels that may be asked about, each from a deck of its own."""
        first = self.deal(f"{role}one", labels)
        if first is None:
            return None
        second = self.deal(f"{role}two", labels, lambda label: self.comparable(label, first))
        return None if second is None else (first, second)

    def heldout(self, *pairs: tuple[str, str]) -> bool:
        """Whether any of the pairs is kept out of training."""
        return self.settings.heldout_label_pairs and any(is_heldout(*pair) for pair in pairs)

    def shuffled(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Labels in a random order, for the wording."""
        items = list(labels)
        return tuple(items[i] for i in self.rng.permutation(len(items)))
