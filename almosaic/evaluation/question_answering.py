"""Questions about composed scenes, each asked of two twins and under every deaf control.

Running and scoring are apart: `run` asks a model and returns prediction records, `score` is a pure function
of records, so that it can be tried with made-up answers and applied to records read back from a file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from almosaic.audio import SAMPLING_RATE
from almosaic.data.formats import question
from almosaic.errors import AlmosaicError
from almosaic.evaluation.controls import (
    AUDIO,
    CONDITIONS,
    ORACLE,
    Record,
    conditions_of,
    derangement,
    listening_gap,
    pair_table,
)
from almosaic.inference import generate
from almosaic.scenes.bank import Bank
from almosaic.scenes.compose import render
from almosaic.scenes.questions import Question, chance, is_correct, oracle, twin_pairs
from almosaic.scenes.scene import TEMPLATES, Scene, SceneSettings, Template
from almosaic.settings import Settings


class QuestionAnsweringSettings(Settings):
    """What is asked of a model, and how it answers.

    `headline` names the templates whose mean the report leads with, beside the mean of all.
    """

    name: Literal["question_answering"] = "question_answering"
    templates: tuple[Template, ...] = TEMPLATES
    headline: tuple[Template, ...] = ()
    pairs_per_template: int = Field(default=100, ge=1)
    split: str = "test"
    seed: int = 0
    wordings: Literal["seen", "heldout", "both"] = "heldout"
    batch_size: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _headline_is_asked(self) -> Self:
        missing = [name for name in self.headline if name not in self.templates]
        if missing or not self.templates:
            raise ValueError(
                f"expected headline templates among {', '.join(self.templates)}, found {missing}"
            )
        return self


@dataclass(frozen=True)
class Asked:
    """One question of a twin pair; `side` is 0 or 1."""

    id: str
    pair_id: str
    side: int
    question: Question
    scene: Scene
    chance: float


def plan(bank: Bank, scene_settings: SceneSettings, settings: QuestionAnsweringSettings) -> list[Asked]:
    """The questions of an evaluation, template by template; the same for the same settings."""
    asked: list[Asked] = []
    for template in settings.templates:
        guessing = chance(template, bank, scene_settings)
        for pair in twin_pairs(
            bank,
            scene_settings,
            template,
            settings.pairs_per_template,
            split=settings.split,
            seed=settings.seed,
            wordings=settings.wordings,
        ):
            for side, (text, scene) in enumerate(zip(pair.questions, pair.scenes, strict=True)):
                asked.append(Asked(f"{pair.pair_id}-{side}", pair.pair_id, side, text, scene, guessing))
    return asked


def run(
    model: Any,
    processor: Any,
    bank: Bank,
    asked: Sequence[Asked],
    settings: QuestionAnsweringSettings,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Ask every question under every condition; audio is rendered batch by batch.

    Args:
        model: An `AlmosaicForConditionalGeneration`.
        processor: Its processor.
        bank: The clips of `settings.split`.
        asked: What is asked, from `plan`; several models are asked the same.
        settings: How it is answered.
        progress: Called with (answers given, answers in all).

    Returns:
        Prediction records (`id, pair_id, side, template, question, answer, options, prediction, condition,
        correct, chance, wording, label_pair`), those of the label oracle among them.
    """
    records: list[dict[str, Any]] = []
    total = len(CONDITIONS) * len(asked)
    for condition in CONDITIONS:
        answers = generate(
            model,
            processor,
            conversations(asked, bank, condition, settings.seed),
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
        )
        for item, answer in zip(asked, answers, strict=True):
            if "error" in answer:
                raise AlmosaicError(f"question {item.id} ({condition}) has no answer: {answer['error']}")
            records.append(record(item, condition, answer["prediction"], bank))
            if progress is not None:
                progress(len(records), total)
    return records + oracle_records(asked, bank)


def conversations(
    asked: Sequence[Asked], bank: Bank, condition: str, seed: int = 0
) -> Iterator[dict[str, Any]]:
    """One conversation per question under one condition, in the order of `asked`; rendered when taken."""
    heard = heard_scenes(asked, condition, seed)
    for item, scene in zip(asked, heard, strict=True):
        clips: list[tuple[NDArray[np.float32], int]] = []
        if scene is not None:
            waveform = render(scene, bank)
            clips = [(np.zeros_like(waveform) if condition == "silence" else waveform, SAMPLING_RATE)]
        messages = [question(item.question.question, len(clips))]
        yield {"id": item.id, "messages": messages, "audios": clips}


def heard_scenes(asked: Sequence[Asked], condition: str, seed: int = 0) -> list[Scene | None]:
    """The scene that is played with each question: its own, another of the same template, or none.

    Under `silence` the own scene is named: zeros of its length are played.
    """
    if condition == "question_only":
        return [None] * len(asked)
    if condition != "shuffled":
        return [item.scene for item in asked]
    scenes: list[Scene | None] = []
    for template, group in groupby(asked, key=lambda item: item.question.template):
        own = [item.scene for item in group]
        scenes += [own[partner] for partner in derangement(len(own), seed, "shuffled", template)]
    return scenes


def record(item: Asked, condition: str, prediction: str, bank: Bank) -> dict[str, Any]:
    """The prediction record of one answer."""
    asked = item.question
    return {
        "id": item.id,
        "pair_id": item.pair_id,
        "side": item.side,
        "template": asked.template,
        "question": asked.question,
        "answer": asked.answer,
        "options": list(asked.options),
        "prediction": prediction,
        "condition": condition,
        "correct": is_correct(asked.answer, prediction, bank),
        "chance": item.chance,
        "wording": asked.wording,
        "label_pair": asked.label_pair,
    }


def oracle_records(asked: Sequence[Asked], bank: Bank) -> list[dict[str, Any]]:
    """Answers computed from the scene records, and scored as a model's: all must be right.

    One is right when the scorer takes it and refuses the twin's answer.
    """
    answers = {(item.pair_id, item.side): item.question.answer for item in asked}
    records = []
    for item in asked:
        own = record(item, ORACLE, oracle(item.scene, item.question, bank) or "", bank)
        fooled = is_correct(item.question.answer, answers[item.pair_id, 1 - item.side], bank)
        records.append({**own, "correct": own["correct"] and not fooled})
    return records


def score(records: Sequence[Record], headline: Sequence[str] = ()) -> dict[str, Any]:
    """Accuracy and pair accuracy per template and condition, and the listening gap.

    Args:
        records: What `run` returned, or the same read back from a file.
        headline: Templates whose mean is reported first; empty = all.

    Returns:
        `questions, pairs, templates {name: {condition: {accuracy, pair_accuracy}, pairs, chance, gap}}`,
        `mean` (the same over templates), `gap` (of the headline templates), `gap_all`, `headline`, `wording`
        and `label_pair` (seen and heldout apart, with audio), `label_oracle`.
    """
    conditions = conditions_of(records)
    tables = pair_table(records)
    chances = {record["template"]: record.get("chance") for record in records}
    templates: dict[str, Any] = {}
    for template, table in tables.items():
        columns = zip(conditions, table.T, strict=True)
        templates[template] = {condition: _accuracies(right) for condition, right in columns}
        templates[template] |= {
            "pairs": len(table),
            "chance": chances[template],
            "gap": listening_gap(records, [template]),
        }
    mean = {
        condition: {
            measure: float(np.mean([templates[template][condition][measure] for template in tables]))
            for measure in ("accuracy", "pair_accuracy")
        }
        for condition in conditions
    }
    oracle = [bool(record["correct"]) for record in records if record["condition"] == ORACLE]
    return {
        "questions": 2 * sum(len(table) for table in tables.values()),
        "pairs": sum(len(table) for table in tables.values()),
        "templates": templates,
        "mean": mean,
        "headline": list(headline) or list(tables),
        "gap": listening_gap(records, headline or None),
        "gap_all": listening_gap(records),
        "wording": _parts(records, "wording"),
        "label_pair": _parts(records, "label_pair"),
        "label_oracle": float(np.mean(oracle)) if oracle else None,
    }


def _accuracies(right: NDArray[np.int64]) -> dict[str, float]:
    """From right answers per pair [pairs], 0 to 2."""
    return {"accuracy": float(right.mean() / 2), "pair_accuracy": float((right == 2).mean())}


def _parts(records: Sequence[Record], field: str) -> dict[str, Any]:
    """Answers with audio, "seen" and "heldout" apart: mean over the templates that occur in each part.

    A pair with one held-out side is held out.
    """
    heard = [record for record in records if record["condition"] == AUDIO]
    heldout = {record["pair_id"] for record in heard if record[field] == "heldout"}
    parts: dict[str, Any] = {}
    for value in ("seen", "heldout"):
        members = [record for record in heard if (record["pair_id"] in heldout) == (value == "heldout")]
        if not members:
            continue
        tables = pair_table(members)
        scores = [_accuracies(table[:, 0]) for table in tables.values()]
        parts[value] = {
            "pairs": sum(len(table) for table in tables.values()),
            "accuracy": float(np.mean([one["accuracy"] for one in scores])),
            "pair_accuracy": float(np.mean([one["pair_accuracy"] for one in scores])),
        }
    return parts


def examples(
    records: Iterable[Record], asked: Sequence[Asked], bank: Bank, count: int = 8
) -> list[dict[str, Any]]:
    """Questions to show: whole twin pairs, spread over the templates, with audio and all answers.

    Returns:
        `id, pair_id, template, question, answer, waveform [S], events [{name, start, end}], predictions
        {condition: {text, correct}}`.
    """
    answers: dict[str, dict[str, dict[str, Any]]] = {}
    for one in records:
        if one["condition"] != ORACLE:
            shown = {"text": one["prediction"], "correct": bool(one["correct"])}
            answers.setdefault(str(one["id"]), {})[one["condition"]] = shown
    pairs: dict[str, list[str]] = {}
    for item in asked:
        if item.id in answers and item.pair_id not in pairs.setdefault(item.question.template, []):
            pairs[item.question.template].append(item.pair_id)
    rounds = max((len(names) for names in pairs.values()), default=0)
    order = [names[i] for i in range(rounds) for names in pairs.values() if i < len(names)]
    chosen = order[: count // 2]
    return [
        {
            "id": item.id,
            "pair_id": item.pair_id,
            "template": item.question.template,
            "question": item.question.question,
            "answer": item.question.answer,
            "waveform": render(item.scene, bank),
            "events": [
                {"name": bank.classes[event.label].answer, "start": event.onset, "end": event.end}
                for event in item.scene.events
            ],
            "predictions": answers[item.id],
        }
        for item in sorted(
            asked, key=lambda item: (item.pair_id in chosen and chosen.index(item.pair_id), item.side)
        )
        if item.pair_id in chosen and item.id in answers
    ]
