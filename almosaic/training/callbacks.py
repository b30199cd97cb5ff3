"""What happens around the steps of a stage: epochs for the data, one progress bar, a clean stop on Ctrl-C."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed
from torch.distributed.tensor import DTensor
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging as library_logging

from almosaic.errors import AlmosaicError

logger = logging.getLogger(__name__)


class _BesideBars(logging.Handler):
    """Writes log lines to stderr without breaking into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def quiet_library() -> Iterator[None]:
    """Silence transformers' own bars and chatter while a stage runs; our warnings have lines of their own."""
    verbosity, bars = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity_error()
    library_logging.disable_progress_bar()
    ours = logging.getLogger("almosaic")
    handler = None if ours.hasHandlers() else _BesideBars()
    if handler is not None:
        ours.addHandler(handler)
    try:
        yield
    finally:
        if handler is not None:
            ours.removeHandler(handler)
        library_logging.set_verbosity(verbosity)
        if bars:
            library_logging.enable_progress_bar()


@contextmanager
def worker_errors_in_one_line() -> Iterator[None]:
    """Take the message out of an error of ours that a loader's worker sends with its traceback as text."""
    try:
        yield
    except AlmosaicError as error:
        *trace, line = str(error).strip().splitlines()
        if not trace:
            raise
        raise AlmosaicError(line.partition(": ")[2]) from error


class Interrupted(AlmosaicError):
    """The user stopped a stage; its checkpoint is whole and `--resume` goes on from it."""


class EpochCallback(TrainerCallback):  # type: ignore[misc]
    """Tells the sampler and the data which epoch begins, before the loader's iterator and its workers start.

    The loader's own `set_epoch` reaches the data only in some set-ups (not with several processes, where the
    sampler is wrapped twice), so it is not relied on. The epoch is counted from steps, which is exact after a
    resume too.
    """

    def __init__(self, *listeners: Any) -> None:
        self.listeners = listeners
        self.epoch = 0

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch; `state.epoch` is a multiple of one here, or lies inside the epoch being resumed."""
        self.epoch = int((state.epoch or 0) + 1e-6)
        for listener in self.listeners:
            listener.set_epoch(self.epoch)


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """One bar per stage on stderr, with the last logged loss."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.bar: tqdm[Any] | None = None
        self.last: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar at the step training starts from."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.title,
                unit="step",
                file=sys.stderr,
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move on."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Any = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss, and how the neighbours of a monitor vote."""
        shown = {"loss": "loss", "knn_accuracy": "knn"}
        self.last |= {short: logs[name] for name, short in shown.items() if name in (logs or {})}
        if self.bar is not None and self.last:
            self.bar.set_postfix({name: f"{value:.3f}" for name, value in self.last.items()})

    def close(self) -> None:
        """End the bar's line, also after an error."""
        if self.bar is not None:
            self.bar.close()


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """First Ctrl-C (or SIGTERM): save at the end of the running step and stop. Second: stop at once.

    Use as a context around training; `agreed` tells afterwards whether to stop, also where the last step was
    running already: whatever comes behind the training must not start.
    """

    def __init__(self) -> None:
        self.asked = False
        self._owner = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopCallback":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        if os.getpid() != self._owner:  # a loader's worker, which inherits this handler and works on
            return
        logger.warning("stopping after this step and saving a checkpoint; again to stop at once")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop all processes at the same step."""
        if self.agreed(args.device) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        # A line before every checkpoint: no average spans one, and a resumed run logs the same lines.
        control.should_log |= control.should_save

    def agreed(self, device: torch.device) -> bool:
        """Whether any process was asked to stop; all of them have to call this."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return self.asked
        votes = torch.tensor(float(self.asked), device=device)
        distributed.all_reduce(votes)
        return bool(votes.item() > 0)


class FiniteCallback(TrainerCallback):  # type: ignore[misc]
    """Stops before the optimizer step when the loss or a gradient is not finite: no weight is spoiled."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.losses: list[torch.Tensor] = []

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        """Look at all gradients at once; names are only searched for once something is wrong."""
        loss = torch.stack(self.losses).mean()
        self.losses = []
        named = [(name, value.grad) for name, value in model.named_parameters() if value.grad is not None]
        norm = torch.nn.utils.get_total_norm([gradient for _, gradient in named])
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # of a sharded model
        if not torch.isfinite(loss + norm):
            first = next((name for name, gradient in named if not torch.isfinite(gradient).all()), "none")
            raise AlmosaicError(
                f"stage {self.stage}: expected a finite loss and gradients, found loss {loss.item():.4g} and "
                f"the first bad gradient in {first} at step {state.global_step + 1}; the step was not taken; "
                "lower the learning rate or check the data"
            )


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """Calls a function after every optimizer step, with the share of training done."""

    def __init__(self, function: Callable[[float], None]) -> None:
        self.function = function

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Run it before anything is saved."""
        self.function(state.global_step / state.max_steps)


class MeasureCallback(TrainerCallback):  # type: ignore[misc]
    """Asks an objective for the metrics that cost time only in steps after which a line is logged.

    Args:
        objective: has a switch `measures`.
        every: lines come after each multiple of one of these steps, and after the last step.
    """

    def __init__(self, objective: Any, every: Collection[int]) -> None:
        self.objective, self.every = objective, every

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The same in all processes, which measure together."""
        step = state.global_step + 1
        self.objective.measures = step == state.max_steps or any(step % every == 0 for every in self.every)
