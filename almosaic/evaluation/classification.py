"""Classifiers that were trained and scored: one line per model and scored part."""

from collections.abc import Mapping, Sequence
from typing import Any

from almosaic.evaluation.cells import Table, percent

FIGURES = {"accuracy": "accuracy", "map": "mAP", "auc": "AUC", "eer": "EER"}
CHOICES = {
    "validation": "validation",
    "test": "test (published protocol)",
    "last": "no choice",
}


def classification_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What `finetune` left in scores.json; figures that no row has are left out."""
    shown = [name for name in FIGURES if any(name in row for row in rows)]
    header = ["classifier", "scored on", "trained", *(FIGURES[name] for name in shown)]
    header += ["epoch chosen on", "epoch", "clips train / test"]
    return Table("Classifiers", header, [_cells(row, shown) for row in rows])


def _cells(row: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    trained = row["trained"] if row.get("layer") is None else f"{row['trained']} {row['layer']}"
    figures = [percent(row.get(name)) for name in shown]
    epoch = "last" if row["epoch"] is None else str(row["epoch"])
    counts = f"{row['n_train']} / {row['clips']}"
    return [row["model"], row["test"], trained, *figures, CHOICES[row["select_on"]], epoch, counts]
