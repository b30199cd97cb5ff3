"""What the pretraining of a probed encoder took: tokens through encoder and teacher, and wall time."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from almosaic.errors import AlmosaicError

BUDGET_FILE = "budget.json"  # beside the folder `model` of a pretraining stage
FIELDS = ("encoder_tokens", "seconds")


def budgets(encoders: Mapping[str, Path], things: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Name -> `encoder_tokens` and `seconds`, of several repetitions their mean; those that are known.

    Args:
        encoders: The model folder of each encoder.
        things: Which encoders are repetitions of one thing, see `probe.Things`.
    """
    owner = {name: thing for thing, names in things.items() for name in names}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, folder in encoders.items():
        if (budget := _read(folder.parent / BUDGET_FILE)) is not None:
            found.setdefault(owner.get(name, name), []).append(budget)
    return {
        name: {field: sum(one[field] for one in own) / len(own) for field in FIELDS}
        for name, own in found.items()
        if len(own) == len(things.get(name, (name,)))
    }


def _read(path: Path) -> dict[str, Any] | None:
    """What a stage noted, None where it noted nothing."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {field: float(found[field]) for field in FIELDS}
    except (ValueError, KeyError, TypeError) as error:
        raise AlmosaicError(
            f"{path} is damaged ({type(error).__name__}: {error}); run its stage again, or remove the file"
        ) from None


def shown_tokens(budget: Mapping[str, float] | None) -> str:
    """12.3M tokens, or a dash."""
    return "–" if budget is None else f"{budget['encoder_tokens'] / 1e6:.1f}M"


def shown_minutes(budget: Mapping[str, float] | None) -> str:
    """Wall time in minutes, or a dash."""
    return "–" if budget is None else f"{budget['seconds'] / 60:.1f}"
