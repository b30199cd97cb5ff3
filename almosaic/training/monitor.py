"""A look at the encoder while it pretrains: how well neighbours agree on labels that it is never shown."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from almosaic.encoder import AudioMosaicModel
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.settings import Settings

Scores = Mapping[str, float]
Judge = Callable[[AudioMosaicModel, AudioMosaicFeatureExtractor], Scores]
"""Scores an encoder with its front end; the run hands it in, since training knows nothing of evaluation."""


class MonitorSettings(Settings):
    """kNN accuracy of the frozen encoder on labelled clips: at the start, regularly, and at the end.

    Args:
        manifest: of the labelled clips; None = the recipe's own sounds.
        column: whether `train` and `test` name splits or folds.
        train: where neighbours are looked for.
        test: whose labels are guessed; keep the clips of the final evaluation out of it.
        clips: at most so many of each of the two, the labels taken in turn.
        neighbours: how many of them vote, by cosine.
        steps: one look every so many steps.
    """

    manifest: Path | None = None
    column: Literal["split", "fold"] = "split"
    train: tuple[str, ...] = Field(default=("train",), min_length=1)
    test: tuple[str, ...] = Field(default=("dev",), min_length=1)
    clips: int = Field(default=1000, ge=2)
    neighbours: int = Field(default=10, ge=1)
    steps: int = Field(default=500, ge=1)


class MonitorCallback(TrainerCallback):  # type: ignore[misc]
    """Has scores ready for the log line of the start, of every `steps`-th step and of the last one.

    Only the main process computes them; the others meet it where the metrics of the line are averaged.

    Args:
        look: judges the model as it is.
        steps: how often.
        report: takes the scores before the line is written.
    """

    def __init__(self, look: Callable[[], Scores], steps: int, report: Callable[[Scores], None]) -> None:
        self.look, self.steps, self.report = look, steps, report

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The fresh encoder is where the curve begins."""
        if state.global_step == 0 and state.is_world_process_zero:
            self.report(self.look())

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask all processes for a line, and the one that writes it for the scores."""
        if state.global_step % self.steps and state.global_step != state.max_steps:
            return
        control.should_log = True
        if state.is_world_process_zero:
            self.report(self.look())
