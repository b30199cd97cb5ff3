"""Questions about scenes: twins for evaluation, balanced draws for training.

Every evaluation question is asked of two scenes with the same wording and different answers, so whatever
reads only the text is right on one of the two at best.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from almosaic.data.draws import generator
from almosaic.errors import AlmosaicError
from almosaic.scenes.answers import answer, chance, is_correct
from almosaic.scenes.clips import Bank
from almosaic.scenes.compose import compose_plan
from almosaic.scenes.decks import Deck
from almosaic.scenes.planner import MIN_EVENTS, Plan, Planner
from almosaic.scenes.plans import next_plan
from almosaic.scenes.scene import RECIPE_VERSION, TEMPLATES, Scene, SceneSettings, Template
from almosaic.scenes.wordings import HELDOUT_WORDINGS, WORDINGS

__all__ = ["TEMPLATES", "Question", "TwinPair", "ask", "chance", "is_correct", "oracle", "twin_pairs"]

Seen = Literal["seen", "heldout"]

_OPTIONS: dict[str, tuple[str, ...]] = {
    "presence": ("yes", "no"),
    "before": ("yes", "no"),
    "overlap": ("yes", "no"),
    "half": ("first", "second"),
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its answer; `options` is empty where any sound may be the answer."""

    template: Template
    question: str
    answer: str
    options: tuple[str, ...]
    asked: tuple[str, ...]  # labels in the wording
    wording: Seen = "seen"
    label_pair: Seen = "seen"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TwinPair:
    """Two scenes, the same question of each, two different answers."""

    pair_id: str
    scenes: tuple[Scene, Scene]
    questions: tuple[Question, Question]


def twin_pairs(
    bank: Bank,
    settings: SceneSettings,
    template: Template,
    count: int,
    *,
    split: str,
    seed: int,
    wordings: Literal["seen", "heldout", "both"] = "seen",
) -> list[TwinPair]:
    """Twin pairs of one template with balanced answers; more pairs keep the earlier ones.

    Args:
        bank: the clips of `split`.
        settings: how scenes are laid out.
        template: one of `TEMPLATES`.
        count: how many pairs, that is half the number of questions.
        split: "train" keeps held-out pairs of labels apart, other splits mark them.
        seed: together with split and template it decides everything.
        wordings: the four of training, the two held-out ones, or both kinds in turn.

    Raises:
        AlmosaicError: the bank cannot give such scenes.
    """
    if template not in TEMPLATES:
        raise AlmosaicError(f"expected a template among {', '.join(TEMPLATES)}, found {template!r}")
    rng = generator("twins", RECIPE_VERSION, split, seed, template)
    planner = Planner(bank, settings, split == "train", rng)
    decks = {"seen": Deck(WORDINGS[template], rng), "heldout": Deck(HELDOUT_WORDINGS[template], rng)}
    kinds: tuple[Seen, ...] = ("seen", "heldout") if wordings == "both" else (wordings,)
    pairs = []
    for index in range(count):
        plan = next_plan(planner, template)
        kind = kinds[index % len(kinds)]
        wording = decks[kind].deal()
        assert wording is not None
        first, second = compose_plan(bank, settings, plan, split, seed, template, index)
        questions = tuple(_question(bank, settings, plan, wording, kind, planned) for planned in plan.answers)
        pairs.append(
            TwinPair(f"{split}/{seed}/{template}/{index}", (first, second), (questions[0], questions[1]))
        )
    return pairs


def oracle(scene: Scene, question: Question, bank: Bank) -> str | None:
    """The answer from the scene's record alone: the upper check of every report, always right."""
    return answer(scene, question.template, question.asked, bank)


def ask(scene: Scene, bank: Bank, template: Template, rng: np.random.Generator) -> Question | None:
    """A training question about a scene, None where the template does not fit it.

    Answers are balanced, wordings are those of training, and held-out pairs of labels are never named
    together or claimed about each other.
    """
    asked = _choose_asked(scene, bank, template, rng)
    if asked is None:
        return None
    found = answer(scene, template, asked, bank)
    if found is None:
        return None
    wording = WORDINGS[template][int(rng.integers(len(WORDINGS[template])))]
    return Question(template, _worded(bank, wording, asked), found, _options(bank, template, asked), asked)


def _question(
    bank: Bank, settings: SceneSettings, plan: Plan, wording: str, kind: Seen, planned: str
) -> Question:
    options = _options(bank, plan.template, plan.asked)
    if plan.template in ("count", "distinct"):
        limit = settings.count_limit if plan.template == "count" else settings.sounds_limit
        options = tuple(str(number) for number in range(1, limit + 1))
    named = bank.classes[planned].answer if planned in bank.classes else planned
    return Question(
        template=plan.template,
        question=_worded(bank, wording, plan.asked),
        answer=named,
        options=options,
        asked=plan.asked,
        wording=kind,
        label_pair="heldout" if plan.heldout else "seen",
    )


def _worded(bank: Bank, wording: str, asked: Sequence[str]) -> str:
    phrases = {name: bank.classes[label].noun_phrase for name, label in zip("xy", asked, strict=False)}
    names = {name: bank.classes[label].answer for name, label in zip("abcd", asked, strict=False)}
    return wording.format(**phrases, **names)


def _options(bank: Bank, template: Template, asked: Sequence[str]) -> tuple[str, ...]:
    """What the answer is one of, as far as the wording tells."""
    if template in ("first", "louder", "longer", "choice"):
        return tuple(bank.classes[label].answer for label in asked)
    return _OPTIONS.get(template, ())


def _choose_asked(
    scene: Scene, bank: Bank, template: Template, rng: np.random.Generator
) -> tuple[str, ...] | None:
    """The labels to ask about, such that every answer of the template comes up equally often."""
    counts: dict[str, int] = scene.relations["counts"]
    single = [label for label, number in counts.items() if number == 1]
    if template in ("count", "distinct", "overlap", "louder", "longer"):
        # Only scenes laid out for it: in others nearly all answers would be the same.
        if scene.template != template:
            return None
        return () if template == "distinct" else _shuffled(list(counts), rng)
    if template in ("presence", "choice"):
        return _exchanged(scene, bank, template, rng)
    if template in ("first", "before"):
        return _shuffled(single, rng)[:2] if len(single) >= 2 else None
    answers = {label: answer(scene, template, (label,), bank) for label in single}
    if template == "half":  # sounds stand at the start of their slots: without a coin, "first" would lead
        wanted = "first" if rng.random() < 0.5 else "second"
        answers = {label: found for label, found in answers.items() if found == wanted}
    fitting = [label for label, found in answers.items() if found is not None]
    return (fitting[int(rng.integers(len(fitting)))],) if fitting else None


def _exchanged(
    scene: Scene, bank: Bank, template: Template, rng: np.random.Generator
) -> tuple[str, ...] | None:
    """One label for presence, four for choice; labels that are never absent are never asked about."""
    labels = _population(scene, bank)
    present = [label for label in scene.labels if label in labels]
    missing = [label for label in labels if bank.apart_in_training[label].issuperset(scene.labels)]
    if not present or len(missing) < (1 if template == "presence" else 3):
        return None
    right = present[int(rng.integers(len(present)))]
    if template == "presence" and rng.random() < 0.5:
        return (right,)
    # Labels with few others to stand apart from are seldom missing; weights make up for it.
    weights = np.array([float(len(bank.apart_in_training[label])) ** -len(scene.labels) for label in missing])
    order = np.argsort(rng.exponential(size=len(missing)) / weights)
    if template == "presence":
        return (missing[order[0]],)
    options = [right]
    for place in order:
        # Each of another group, as the right one is: otherwise the odd one out would be the answer.
        if len(options) < 4 and bank.apart_in_training[missing[place]].issuperset(options):
            options.append(missing[place])
    return _shuffled(options, rng) if len(options) == 4 else None


def _population(scene: Scene, bank: Bank) -> list[str]:
    """The labels that scenes of this template draw from, but for those whose absence cannot be claimed."""
    sure = [label for label in bank.labels if not bank.classes[label].background_prone]
    if scene.template == "count":
        events = bank.excerpts("event")
        return [label for label in sure if len(events.get(label, ())) >= MIN_EVENTS]
    if scene.template == "longer":
        return [label for label in sure if bank.classes[label].kind == "texture"]
    return sure


def _shuffled(labels: Sequence[str], rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(labels[i] for i in rng.permutation(len(labels)))
