"""Scores of a classifier after each epoch; the weights of the best one are kept."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from almosaic.data.clips import BadClips, ClipSource
from almosaic.data.collate import WaveformCollator
from almosaic.data.datasets import PretrainDataset
from almosaic.data.labelled import Targets
from almosaic.errors import AlmosaicError
from almosaic.evaluation import metrics
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.training.checkpoints import whole_folder
from almosaic.training.trainer import AlmosaicTrainer

if TYPE_CHECKING:
    from almosaic.training.finetune import FinetuneSettings

Metric = Literal["accuracy", "map", "eer"]
BEST = "best"
WEIGHTS = "model.safetensors"


class Examiner:
    """Scores a classifier on clips without any augmentation, in float32, in the order of the rows.

    The logits of a clip of several windows are their mean, as in inference.
    """

    def __init__(
        self,
        source: ClipSource,
        targets: Targets,
        extractor: AudioMosaicFeatureExtractor,
        bad: BadClips,
        *,
        batch_size: int,
        workers: int,
    ) -> None:
        self.source, self.targets, self.extractor, self.bad = source, targets, extractor, bad
        self.batch_size, self.workers = batch_size, workers

    def scores(self, model: Any, loss: str) -> dict[str, float]:
        """What `classifier_scores` says of the `clips` that can be read; `bad_clips` are those left out."""
        logits, hot = self.logits(model)
        counts = {"clips": len(logits), "bad_clips": len(self.bad.reasons)}
        return {**classifier_scores(logits, hot, loss), **counts}

    @torch.no_grad()
    def logits(self, model: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits [n, C] and targets [n, C] of what can be read; the model's mode is left as found."""
        training = model.training
        model.eval()
        loader = DataLoader(
            PretrainDataset(self.source),
            batch_size=self.batch_size,
            collate_fn=WaveformCollator(),
            num_workers=self.workers,
            generator=torch.Generator(),  # the global one belongs to training
        )
        found, rows = [], []
        for batch in loader:
            self.bad.note(batch["bad_clips"])
            if "waveforms" in batch:
                found.append(self._logits(model, batch))
                rows += batch["clip_index"].tolist()
        model.train(training)
        return torch.cat(found).numpy(), self.targets.multi_hot(rows).numpy()

    def _logits(self, model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        device = model.device
        with torch.autocast(device.type, enabled=False):
            features, real, windows = self.extractor.featurize(
                batch["waveforms"].to(device), batch["lengths"].to(device)
            )
            logits: Tensor = model(features, input_features_mask=real, audio_windows=windows).logits
        return logits.float().cpu()


def classifier_scores(logits: NDArray[np.float32], hot: NDArray[np.float32], loss: str) -> dict[str, float]:
    """Scores of logits [n, C] against 0/1 targets [n, C].

    `accuracy` always; `map` and `auc` of sigmoid scores with binary cross-entropy; `eer` and `auc` of the
    second class with two classes. Classes without a positive or negative row do not count, see `classes`.
    """
    found = {"accuracy": metrics.top1_accuracy(logits, hot)}
    positive = hot.sum(axis=0)
    scored = (positive > 0) & (positive < len(hot))
    found["classes"] = float(scored.sum())
    if loss == "bce":
        found["map"] = metrics.mean_average_precision(logits[:, scored], hot[:, scored])
        found["auc"] = metrics.mean_auc(logits[:, scored], hot[:, scored])
    elif logits.shape[1] == 2:
        margin = logits[:, 1] - logits[:, 0]  # orders rows as softmax does
        found["eer"] = metrics.equal_error_rate(margin, hot[:, 1])
        found["auc"] = metrics.mean_auc(margin[:, None], hot[:, 1:])
    return found


class SelectionCallback(TrainerCallback):  # type: ignore[misc]
    """Scores the model at the end of every epoch from `first` on, and keeps the weights of the best epoch.

    Works before the step's checkpoint is written, so that a resumed run has missed no epoch. An epoch that is
    trained again after a kill has the score it had, and an equal score replaces nothing.
    """

    def __init__(
        self,
        trainer: AlmosaicTrainer,
        examiner: Examiner,
        settings: "FinetuneSettings",
        folder: Path,
        resume: bool,
    ) -> None:
        self.trainer, self.examiner, self.settings, self.folder = trainer, examiner, settings, folder
        self.best = kept_best(folder) if resume else None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Score at the last step of an epoch, and at the last of all."""
        epoch = state.epoch or 0.0
        ends = abs(epoch - round(epoch)) < 1e-6 and round(epoch) >= self.settings.evaluate_from
        if not ends and state.global_step < state.max_steps:
            return
        model, metric = self.trainer.model, self.settings.chooses_by
        scores = self.examiner.scores(model, self.settings.loss)
        self.trainer.log({f"{self.settings.select_on}_{name}": value for name, value in scores.items()})
        if self.best is None or better(metric, scores[metric], self.best["score"]):
            number = math.ceil(epoch - 1e-6)
            self.best = {"epoch": number, "step": state.global_step, "score": scores[metric]}
            with whole_folder(self.folder / BEST, write=args.should_save) as temporary:
                if args.should_save:
                    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
                    save_file(weights, temporary / WEIGHTS, {"selection": json.dumps(self.best)})


def better(metric: Metric, new: float, old: float) -> bool:
    """Whether a score is above the old one, or below it for an error rate."""
    return new < old if metric == "eer" else new > old


def kept_best(folder: Path) -> dict[str, Any] | None:
    """Epoch, step and score of the weights that are kept in a stage folder, None where there are none."""
    path = folder / BEST / WEIGHTS
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["selection"])
    return found


def load_best(model: nn.Module, folder: Path) -> dict[str, Any]:
    """Put the kept weights into the model, and return what `kept_best` says.

    Raises:
        AlmosaicError: there are none.
    """
    best = kept_best(folder)
    if best is None:
        raise AlmosaicError(f"{folder / BEST} is gone: run the stage again without --resume")
    model.load_state_dict(load_file(folder / BEST / WEIGHTS))
    return best


def forget_best(folder: Path) -> None:
    """Remove the kept weights, once the model is written."""
    shutil.rmtree(folder / BEST, ignore_errors=True)
