"""Captions decided by facts: which sounds, in which order, how often, which at the same time."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from almosaic.scenes.answers import normalise
from almosaic.scenes.clips import Bank
from almosaic.scenes.scene import Scene

Pair = tuple[str, str]

_TOGETHER = re.compile(
    r"\b(while|as|with|during|meanwhile|simultaneously|in background|at same time|together|overlapping)\b"
)
_REVERSED = re.compile(r"\b(after(?! (that|which|this))|follows|following|preceded by)\b")
_OPENING_AFTER = re.compile(r"\bafter$")
_APART = re.compile(r"\b(then|followed|after|before|later)\b")
_JOINTS = re.compile(r"\b(and|then|followed|while|as|before|after)\b")
_COUNTS = {"once": 1, "twice": 2, "thrice": 3}


@dataclass(frozen=True, slots=True)
class Facts:
    """What a scene holds or a caption claims; `order` has every label once, by first onset."""

    labels: frozenset[str]
    order: tuple[str, ...]
    counts: dict[str, int]
    overlaps: frozenset[Pair]


def facts(scene: Scene) -> Facts:
    """The facts of a scene's record."""
    return Facts(
        labels=frozenset(scene.labels),
        order=scene.labels,
        counts=dict(scene.relations["counts"]),
        overlaps=frozenset((first, second) for first, second in scene.relations["overlaps"]),
    )


def caption_facts(text: str, bank: Bank) -> Facts:
    """The facts that a caption claims, read from left to right by the longest phrase of a class at each word.

    Order is that of the text, turned round by "B comes after A", "B follows A" and "B preceded by A"; a sound
    named twice in one text counts twice; "three times" belongs to the sound before it.
    """
    mentions = _mentions(text, bank)
    labels = [label for label, _, _ in mentions]
    counts: dict[str, int] = {}
    for label, before, after in mentions:
        counts[label] = counts.get(label, 0) + _number(before, after)
    order: list[str] = []
    overlaps: set[Pair] = set()
    for place, (label, before, after) in enumerate(mentions):
        if place and _REVERSED.search(before) and not _opens_with_after(mentions, place):
            order.insert(order.index(labels[place - 1]), label)
        else:
            order.append(label)
        if (
            place
            and label != labels[place - 1]
            and _claims_overlap(before, after, place + 1 == len(mentions))
        ):
            first, second = sorted((labels[place - 1], label))
            overlaps.add((first, second))
    return Facts(frozenset(labels), tuple(dict.fromkeys(order)), counts, frozenset(overlaps))


def compare_facts(reference: Facts, candidate: Facts) -> dict[str, float | None]:
    """Score the facts of a caption against those of a scene.

    Returns:
        `precision`, `recall` and `f1` of the labels; `order`: 1.0 if the common labels that do not overlap
        come in the right order, None below two of them; `count`: 1.0 if every common label has the right
        count, None without common labels; `overlap`: 1.0 if exactly the right pairs are claimed to sound
        together, None when the caption does not name two sounds of the scene.
    """
    common = reference.labels & candidate.labels
    precision = len(common) / len(candidate.labels) if candidate.labels else 0.0
    recall = len(common) / len(reference.labels) if reference.labels else 0.0
    together = {label for pair in reference.overlaps for label in pair}
    wanted = [label for label in reference.order if label in common and label not in together]
    said = [label for label in candidate.order if label in wanted]
    counted = [reference.counts[label] == candidate.counts[label] for label in common]
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if common else 0.0,
        "order": float(wanted == said) if len(wanted) >= 2 else None,
        "count": float(all(counted)) if counted else None,
        "overlap": float(reference.overlaps == candidate.overlaps) if len(common) >= 2 else None,
    }


def _mentions(text: str, bank: Bank) -> list[tuple[str, str, str]]:
    """Label, the words between the mention before and this one, and the words up to the next."""
    phrases = {tuple(normalise(phrase).split()): label for phrase, label in bank.label_of_phrase.items()}
    longest = max(len(phrase) for phrase in phrases)
    words = normalise(text).split()
    labels: list[str] = []
    gaps: list[list[str]] = [[]]
    place = 0
    while place < len(words):
        for length in range(min(longest, len(words) - place), 0, -1):
            label = phrases.get(tuple(words[place : place + length]))
            if label is not None:
                labels.append(label)
                gaps.append([])
                place += length
                break
        else:
            gaps[-1].append(words[place])
            place += 1
    between = pairwise(" ".join(gap) for gap in gaps)
    return [(label, before, after) for label, (before, after) in zip(labels, between, strict=True)]


def _number(before: str, after: str) -> int:
    """How often a sound occurs: "three times" or "twice" in the words after it, "three" right before it."""
    near = _JOINTS.split(after)[0]
    found = re.search(r"\b(\d+) times?\b", near) or re.search(r"\b(\d+)$", before)
    if found:
        return int(found.group(1))
    return next((number for word, number in _COUNTS.items() if re.search(rf"\b{word}\b", near)), 1)


def _opens_with_after(mentions: Sequence[tuple[str, str, str]], place: int) -> bool:
    """Whether the text says "after A comes B", where B does come second."""
    return bool(_OPENING_AFTER.search(mentions[place - 1][1])) and "after" not in mentions[place][1]


def _claims_overlap(before: str, after: str, last: bool) -> bool:
    if _APART.search(before):
        return False
    return bool(_TOGETHER.search(before)) or (last and bool(_TOGETHER.search(after)))
