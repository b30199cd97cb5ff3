"""Answers: computed from a scene's record, and told right from wrong."""

import re
from collections.abc import Sequence

from almosaic.scenes.clips import Bank
from almosaic.scenes.scene import Scene, SceneSettings, Template

_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_TIMES = {"once": "1", "twice": "2", "thrice": "3"}


def chance(template: Template, bank: Bank, settings: SceneSettings) -> float:
    """What guessing among the possible answers gets right."""
    answers = {
        "next": len(bank.labels),
        "count": settings.count_limit,
        "distinct": settings.sounds_limit,
        "choice": 4,
    }
    return 1 / answers.get(template, 2)


def answer(scene: Scene, template: Template, asked: Sequence[str], bank: Bank) -> str | None:
    """The answer that the record gives, None where the scene does not settle the question.

    Args:
        scene: the record.
        template: what is asked.
        asked: the labels in the wording, in its order.
        bank: gives the names that sounds are answered by.
    """
    facts, order = scene.relations, scene.relations["order"]
    counts: dict[str, int] = facts["counts"]
    if template == "presence":
        return "yes" if asked[0] in counts else "no"
    if template == "choice":
        return _name(bank, [label for label in asked if label in counts])
    if template == "distinct":
        return str(len(counts))
    if any(label not in counts for label in asked):
        return None
    if template == "count":
        return str(counts[asked[0]])
    if any(counts[label] > 1 for label in asked):
        return None
    if template in ("louder", "longer"):
        return _name(bank, [facts[template]] if facts[template] in asked else [])
    if template == "overlap":
        return "yes" if sorted(asked) in facts["overlaps"] else "no"
    if template == "half":
        return _half(scene, asked[0])
    if template == "next":
        return _name(bank, _after(scene, asked[0]))
    if sorted(asked) in facts["overlaps"]:
        return None
    first = min(asked, key=order.index)
    if template == "first":
        return bank.classes[first].answer
    return "yes" if first == asked[0] else "no"


def is_correct(answer: str, prediction: str, bank: Bank) -> bool:
    """Exact match once case, punctuation and articles are dropped and aliases and number words mapped.

    A prediction that names another option as well is wrong, as is one that says anything beside the answer.
    """
    said, wanted = normalise(prediction), normalise(answer)
    if not said:
        return False
    label = bank.label_of_phrase.get(answer.lower())
    if label is not None:
        return said in {normalise(phrase) for phrase in bank.classes[label].phrases}
    if wanted in ("first", "second"):
        said = said.removesuffix(" half")
    elif wanted.isdigit():
        said = said.removesuffix(" times").removesuffix(" time")
        said = _TIMES.get(said, said)
    return said == wanted


def normalise(text: str) -> str:
    """Lower-case words without punctuation and articles; number words become digits."""
    words = re.findall(r"[^\W_]+", text.lower())
    return " ".join(_NUMBERS.get(word, word) for word in words if word not in _ARTICLES)


def _name(bank: Bank, labels: Sequence[str]) -> str | None:
    """The answer that names the one label, None when there is not exactly one."""
    return bank.classes[labels[0]].answer if len(labels) == 1 else None


def _half(scene: Scene, label: str) -> str | None:
    """None for a sound that crosses the middle."""
    event = next(event for event in scene.events if event.label == label)
    middle = scene.duration_seconds / 2
    if event.end <= middle:
        return "first"
    return "second" if event.onset >= middle else None


def _after(scene: Scene, label: str) -> list[str]:
    """The one sound that follows without overlapping, if there is one."""
    events = scene.events
    place = scene.relations["order"].index(label)
    if place + 1 >= len(events) or events[place + 1].onset < events[place].end:
        return []
    return [events[place + 1].label]
