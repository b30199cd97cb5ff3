"""Deaf controls: how well a model answers without the audio that the question is about.

Every question is asked under four conditions: `audio` (its own clip), `silence` (zeros of the same length),
`shuffled` (the clip of another question of the same template) and `question_only` (no clip at all). The
listening gap is the accuracy with audio minus that of the best deaf control.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almosaic.data import draws
from almosaic.errors import AlmosaicError
from almosaic.evaluation.metrics import RESAMPLES, percentile_interval, resample_counts

AUDIO = "audio"
DEAF_CONTROLS = ("silence", "shuffled", "question_only")
CONDITIONS = (AUDIO, *DEAF_CONTROLS)
ORACLE = "oracle"  # the right answers through the scorer: an upper check, not a control

Record = Mapping[str, Any]
"""A prediction record with `pair_id, side, template, condition, correct` and the texts."""


def derangement(count: int, *key: int | str) -> list[int]:
    """A seeded permutation of `range(count)` that leaves no element in its place: one random cycle.

    Raises:
        AlmosaicError: Fewer than two elements cannot all move.
    """
    if count < 2:
        raise AlmosaicError(f"expected at least 2 clips to shuffle, found {count}; ask more questions")
    order = draws.generator(*key).permutation(count)
    partner = np.empty(count, dtype=np.int64)
    partner[order] = np.roll(order, -1)
    return [int(index) for index in partner]


def pair_table(
    records: Sequence[Record], templates: Collection[str] | None = None
) -> dict[str, NDArray[np.int64]]:
    """Right answers per twin pair: template -> [pairs, conditions], 0 to 2, for the conditions that were run.

    Raises:
        AlmosaicError: A pair is not complete: a condition or one of its two sides is missing or doubled.
    """
    conditions = conditions_of(records)
    right: dict[tuple[str, str], dict[str, dict[Any, bool]]] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if record["condition"] not in conditions or (
            templates is not None and record["template"] not in templates
        ):
            continue
        sides = right[record["template"], record["pair_id"]][record["condition"]]
        if record["side"] in sides:
            raise AlmosaicError(
                f"pair {record['pair_id']}: {record['condition']} holds side {record['side']} twice"
            )
        sides[record["side"]] = bool(record["correct"])
    rows: dict[str, list[list[int]]] = defaultdict(list)
    for (template, pair_id), answers in right.items():
        for condition in conditions:
            if len(answers[condition]) != 2:
                count = len(answers[condition])
                raise AlmosaicError(
                    f"pair {pair_id}: expected two answers under {condition!r}, found {count}; "
                    "ask every question under the same conditions"
                )
        rows[template].append([sum(answers[condition].values()) for condition in conditions])
    missing = sorted(set(templates or ()) - set(rows))
    if missing or not rows:
        found = ", ".join(rows) or "no questions"
        raise AlmosaicError(f"expected questions of {', '.join(missing) or 'any template'}, found {found}")
    return {template: np.array(table, dtype=np.int64) for template, table in rows.items()}


def conditions_of(records: Sequence[Record]) -> tuple[str, ...]:
    """The conditions that occur, `audio` first, the label oracle left out."""
    found = {record["condition"] for record in records}
    unknown = sorted(found - {*CONDITIONS, ORACLE})
    if unknown:
        raise AlmosaicError(f"unknown condition {unknown[0]!r}; the conditions are {', '.join(CONDITIONS)}")
    return tuple(condition for condition in CONDITIONS if condition in found)


def listening_gap(
    records: Sequence[Record],
    templates: Collection[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy minus that of the best deaf control, with a 95 % bootstrap interval.

    Accuracies are means over templates. Twin pairs are resampled within their template, all conditions of a
    pair together, and the best control is chosen anew in each resample.

    Args:
        records: Prediction records with `correct`.
        templates: Only these templates; None takes all.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.

    Returns:
        `gap, low, high, accuracy, best_control, best_control_accuracy, controls {name: accuracy}, pairs`.
    """
    conditions = conditions_of(records)
    if AUDIO not in conditions or len(conditions) < 2:
        found = ", ".join(conditions) or "none"
        raise AlmosaicError(f"a gap needs the condition 'audio' and a deaf control, found {found}")
    tables = pair_table(records, templates)
    means = np.mean([table.mean(axis=0) / 2 for table in tables.values()], axis=0)
    resampled = np.zeros((resamples, len(conditions)))
    for number, table in enumerate(tables.values()):
        counts = resample_counts(len(table), resamples, seed, number)
        resampled += counts @ table / (2 * len(table) * len(tables))
    low, high = percentile_interval(resampled[:, 0] - resampled[:, 1:].max(axis=1))
    best = 1 + int(means[1:].argmax())
    return {
        "gap": float(means[0] - means[best]),
        "low": low,
        "high": high,
        "accuracy": float(means[0]),
        "best_control": conditions[best],
        "best_control_accuracy": float(means[best]),
        "controls": {name: float(mean) for name, mean in zip(conditions[1:], means[1:], strict=True)},
        "pairs": sum(len(table) for table in tables.values()),
    }
