"""The one trainer: transformers' `Trainer` with work on the device, finite checks and whole checkpoints."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PrinterCallback, Trainer

from almosaic.data import draws
from almosaic.training import checkpoints
from almosaic.training.callbacks import (
    EpochCallback,
    FiniteCallback,
    Interrupted,
    ProgressCallback,
    StepCallback,
    StopCallback,
    worker_errors_in_one_line,
)
from almosaic.training.optim import (
    SHARDING_VARIABLE,
    OptimSettings,
    parameter_groups,
    rate_factor,
    training_arguments,
)
from almosaic.training.order import EpochOrder, StepShares

Batch = dict[str, Any]


class Spent(NamedTuple):
    """Optimizer steps of a stage, and the seconds they took, all parts of an interrupted one together."""

    steps: int
    seconds: float


class AlmosaicTrainer(Trainer):  # type: ignore[misc]
    """Trains one model for one stage.

    `prepare(batch, epoch, progress)` runs on the device, without gradients and outside autocast, right before
    the model; progress is the share of all steps that were taken before. It may add `metrics`, which are
    logged as the model's own are. `after_step(progress)` runs after
    each optimizer step. `parts` maps part names to parameter prefixes. `blocks` are the rows of each shard of
    a dataset that is better read shard by shard, `lengths` gives those of the rows in the epoch at hand, to
    group them: see `EpochOrder`. With `every_row` the last step of an epoch has the rows that are left, see
    `StepShares`; the collator then makes a batch of no rows too. Otherwise the first rows of the epoch fill
    it up where there are several processes. `layers` are the classes of those modules that a sharded model
    gathers one at a time, each of which every batch has to run through.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: OptimSettings,
        dataset: Any,
        collator: Callable[[list[Any]], Batch],
        *,
        folder: Path,
        seed: int,
        stage: str,
        parts: Mapping[str, str],
        prepare: Callable[[Batch, int, float], Batch] | None = None,
        after_step: Callable[[float], None] | None = None,
        drop_last: bool = False,
        blocks: Sequence[int] | None = None,
        lengths: Callable[[], Sequence[int]] | None = None,
        every_row: bool = False,
        layers: Sequence[str] = (),
    ) -> None:
        arguments = training_arguments(settings, folder, draws.key(seed, stage) % 2**31, layers)
        self.settings, self.parts, self.prepare, self.folder = settings, parts, prepare, folder
        arguments.dataloader_drop_last, self.every_row = drop_last, every_row
        self.order = EpochOrder(len(dataset), seed, stage, blocks, lengths, settings.batch_size)
        self.epochs = EpochCallback(self.order, dataset)
        self.progress, self.stop, self.finite = ProgressCallback(stage), StopCallback(), FiniteCallback(stage)
        self.metric_sums: dict[str, tuple[torch.Tensor, int]] = {}
        self.scores: dict[str, float] = {}
        self.saving_to: Path | None = None
        self.seconds, self.begun = 0.0, time.perf_counter()
        callbacks = [self.epochs, self.finite, self.progress, self.stop]
        callbacks += [] if after_step is None else [StepCallback(after_step)]
        super().__init__(model, arguments, data_collator=collator, train_dataset=dataset, callbacks=callbacks)
        self.remove_callback(PrinterCallback)

    def run(self, resume: bool) -> Spent:
        """Train to the end, from the last whole checkpoint if `resume`.

        Returns:
            What all of the stage took; steps after the last checkpoint that a kill undid do not count.

        Raises:
            Interrupted: stopped by the user, with a checkpoint saved.
            AlmosaicError: loss or gradients became non-finite, a checkpoint could not be written or read, or
                the data has another size than when the stage began.
        """
        found = checkpoints.latest_checkpoint(self.folder) if resume else None
        if self.args.should_save:
            checkpoints.remove_temporary(self.folder)
        rows = len(self.train_dataset)
        checkpoints.keep_count(self.folder, rows, resumes=found is not None, write=self.args.should_save)
        self.seconds, self.begun = checkpoints.seconds_of(found) if found else 0.0, time.perf_counter()
        try:
            if found and checkpoints.is_final(found, self.args.max_steps):
                self._load_from_checkpoint(str(found))
                state = checkpoints.state_of(found)
                self._write_log(state["log_history"])
                return Spent(state["global_step"], self.seconds)
            with self.stop, worker_errors_in_one_line():
                self.train(resume_from_checkpoint=str(found) if found else None)
        finally:
            self.progress.close()
            os.environ.pop(SHARDING_VARIABLE, None)  # another stage may not shard
        if self.stop.agreed(self.args.device):
            raise Interrupted(
                f"stopped at step {self.state.global_step} of {self.state.max_steps}; "
                f"checkpoint saved in {self.folder}; run the same command with --resume to go on"
            )
        self._write_log(self.state.log_history)
        return Spent(self.state.global_step, self._spent())

    def _spent(self) -> float:
        """Seconds of training so far, earlier parts included."""
        return self.seconds + time.perf_counter() - self.begun

    def _write_log(self, history: list[dict[str, float]]) -> None:
        if self.args.should_save:
            checkpoints.write_json(self.folder / "training_log.json", history)

    def on_main(self, write: Callable[[], Path]) -> Path:
        """Let the main process write `folder/model` while the others wait."""
        if self.args.should_save:
            write()
        self.accelerator.wait_for_everyone()
        return self.folder / "model"

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The loader over the rows in this trainer's own order."""
        args = self.args
        size = args.per_device_train_batch_size
        common = {
            "collate_fn": self.data_collator,
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory,
        }
        if not self.every_row:
            whole = {"batch_size": size, "sampler": self.order, "drop_last": args.dataloader_drop_last}
            loader = DataLoader(self.train_dataset, **whole, **common)
            return self.accelerator.prepare(loader)  # type: ignore[no-any-return]
        shares = StepShares(
            self.order, size, args.gradient_accumulation_steps, args.world_size, args.process_index
        )
        loader = DataLoader(self.train_dataset, batch_sampler=shares, **common)
        # The library would share the batches out once more.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, args.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The library's optimizer over our parameter groups."""
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        groups = parameter_groups(self.model if model is None else model, self.settings, self.parts)
        self.optimizer = kind(groups, **options)
        return self.optimizer  # type: ignore[no-any-return]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Our learning-rate curve."""
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer if optimizer is None else optimizer,
            lambda step: rate_factor(self.settings, step, num_training_steps),
        )
        return self.lr_scheduler

    def _prepare_inputs(self, inputs: Batch) -> Batch:
        inputs = super()._prepare_inputs(inputs)
        if self.prepare is not None:
            with torch.no_grad(), torch.autocast(self.args.device.type, enabled=False):
                progress = self.state.global_step / self.state.max_steps
                inputs = self.prepare(inputs, self.epochs.epoch, progress)
            self._note(inputs.pop("metrics", {}))
        return inputs

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss; its `metrics` are kept for the next log line."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.finite.losses.append(loss.detach())
        self._note(outputs.get("metrics") or {})
        return (loss, outputs) if return_outputs else loss

    def _note(self, metrics: Mapping[str, torch.Tensor]) -> None:
        for name, value in metrics.items():
            total, count = self.metric_sums.get(name, (torch.zeros((), device=value.device), 0))
            self.metric_sums[name] = (total + value.detach().float(), count + 1)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss with the metrics, averaged over the steps and processes since the last line."""
        if "loss" in logs:
            for name, (total, count) in sorted(self.metric_sums.items()):
                logs[name] = self.accelerator.reduce(total / count, "mean").item()
            logs |= self.scores
            self.metric_sums, self.scores = {}, {}
        super().log(logs, start_time)

    def report(self, scores: Mapping[str, float]) -> None:
        """Put scores of the main process into the next line of the log, or into one of step 0."""
        if self.state.global_step == 0:
            self.log(dict(scores))
        else:
            self.scores |= scores

    def floating_point_ops(self, inputs: Batch) -> int:
        """Not estimated: the library's formula is for text."""
        return 0

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.saving_to or self.folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        path = self.folder / f"checkpoint-{self.state.global_step}"
        main = self.args.should_save
        with checkpoints.whole_folder(path, path.name, write=main) as self.saving_to:
            self.accelerator.wait_for_everyone()  # the folder is there before another process writes into it
            super()._save_checkpoint(model, trial)
            # A pickle that nothing reads.
            (self.saving_to / path.name / "training_args.bin").unlink(missing_ok=True)
            if main:
                seconds = {"seconds": self._spent()}
                checkpoints.write_json(self.saving_to / path.name / checkpoints.SECONDS_FILE, seconds)
            self.accelerator.wait_for_everyone()
        self.saving_to = None
        if main:
            checkpoints.remove_old(self.folder, self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def write_model(self, *parts: Any) -> Path:
        """Let the main process write `folder/model`: the model, and what goes with it; the others wait."""
        tensors = checkpoints.whole_tensors(self.model) if self.is_fsdp_enabled else None
        return self.on_main(lambda: checkpoints.write_model(self.folder, self.model, *parts, tensors=tensors))

    # A sharded model, see PyTorch's `fully_shard`: the same files as of a model in one piece.

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights, which all processes gather where they are sharded."""
        if self.is_fsdp_enabled:
            self._save(output_dir, state_dict=checkpoints.whole_tensors(self.model))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        folder, write = Path(output_dir), self.args.should_save
        checkpoints.save_sharded_optimizer(folder, self.model, self.optimizer.optimizer, write=write)
        if write:
            torch.save(self.lr_scheduler.state_dict(), folder / checkpoints.SCHEDULER_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        folder = Path(checkpoint)
        checkpoints.load_sharded_optimizer(folder, self.model, self.optimizer.optimizer)
        state = torch.load(folder / checkpoints.SCHEDULER_FILE, weights_only=True)
        self.lr_scheduler.load_state_dict(state)
