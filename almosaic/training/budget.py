"""How long pretraining runs by what is read: encoder tokens, the measure by which objectives are compared."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from almosaic.errors import AlmosaicError
from almosaic.masking import PatchGrid, kept_patches
from almosaic.objectives import OBJECTIVES, ObjectiveSettings
from almosaic.training.checkpoints import write_json
from almosaic.training.optim import OptimSettings
from almosaic.training.trainer import Spent
from almosaic.training.views import ViewSettings

if TYPE_CHECKING:
    from almosaic.training.pretrain import PretrainSettings

BUDGET_FILE = "budget.json"
DEFAULT_STEPS = 10_000


class PretrainOptimSettings(OptimSettings):
    """Optimisation whose length may be left to the stage's `encoder_tokens`."""

    needs_length: ClassVar[bool] = False


def default_optim(given: dict[str, Any]) -> PretrainOptimSettings:
    """The optimisation of a stage that does not name one; `given` are the stage's other settings."""
    return PretrainOptimSettings(steps=DEFAULT_STEPS if given.get("encoder_tokens") is None else None)


def check_length(settings: "PretrainSettings") -> None:
    """AlmosaicError unless exactly one of `encoder_tokens`, `optim.steps` and `optim.epochs` is given."""
    lengths = {
        "encoder_tokens": settings.encoder_tokens,
        "optim.steps": settings.optim.steps,
        "optim.epochs": settings.optim.epochs,
    }
    given = {key: value for key, value in lengths.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(f"{key} {value:g}" for key, value in given.items()) or "none of them"
        raise AlmosaicError(
            f"expected one length, {', '.join(lengths)}, found {found}; give one and set the others to null"
        )


def tokens_per_clip(objective: ObjectiveSettings, views: Sequence[ViewSettings], grid: PatchGrid) -> int:
    """Tokens that encoder and teacher read of a clip in one step, over all of its views and masks."""
    kept = [kept_patches(view.mask, grid) for view in views]
    return OBJECTIVES[type(objective)].encoder_tokens(kept, grid.patches) * views[0].masks


class Budget(NamedTuple):
    """What a stage is to read: `optim` with its length in steps or epochs."""

    optim: OptimSettings
    tokens_per_clip: int

    @classmethod
    def of(cls, settings: "PretrainSettings", grid: PatchGrid) -> "Budget":
        """From `encoder_tokens` the fewest steps that read as many, over all processes."""
        tokens = tokens_per_clip(settings.objective, settings.views, grid)
        if settings.encoder_tokens is None:
            return cls(settings.optim, tokens)
        steps = math.ceil(settings.encoder_tokens / (tokens * settings.optim.batch_size))
        return cls(settings.optim.model_copy(update={"steps": steps}), tokens)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step over all processes."""
        return self.tokens_per_clip * self.optim.batch_size

    def __str__(self) -> str:
        steps = self.optim.steps
        total = f"{steps:,} steps, {steps * self.tokens_per_step:,} tokens in all" if steps else ""
        length = total or f"{self.optim.epochs:g} epochs"
        return (
            f"encoder and teacher read {self.tokens_per_clip:,} tokens per clip, {self.tokens_per_step:,} in "
            f"a step; {length}"
        )

    def write(self, folder: Path, spent: Spent) -> None:
        """Note what was read and how long it took in `folder/budget.json`."""
        read = {
            "encoder_tokens": spent.steps * self.tokens_per_step,
            "tokens_per_clip": self.tokens_per_clip,
            "steps": spent.steps,
            "seconds": round(spent.seconds, 3),
        }
        write_json(folder / BUDGET_FILE, read)
