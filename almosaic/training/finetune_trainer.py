"""What fine-tuning changes about the trainer: the loss, and which clips make an epoch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from almosaic.data import draws
from almosaic.training.order import EpochOrder
from almosaic.training.trainer import AlmosaicTrainer


class WeightedOrder(EpochOrder):
    """Some of the rows, drawn by weight without replacement, in an order of (seed, stage, epoch) alone."""

    def __init__(self, weights: NDArray[np.float64], count: int, seed: int, stage: str) -> None:
        super().__init__(count, seed, stage)
        self.weights = weights

    def __iter__(self) -> Iterator[int]:
        drawn = draws.generator(*self.key, "weighted", self.epoch)
        # The smallest of exponential times with these rates are a weighted draw without replacement.
        first = (drawn.exponential(size=len(self.weights)) / self.weights).argsort()[: self.rows]
        yield from first[drawn.permutation(self.rows)].tolist()


class FinetuneTrainer(AlmosaicTrainer):
    """Takes the loss of the logits here: class weights are not the model's business."""

    class_weights: Tensor | None = None

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of a batch, in float32."""
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = classification_loss(outputs.logits, labels, self.class_weights)
        self.finite.losses.append(loss.detach())
        return (loss, outputs) if return_outputs else loss

    def use_order(self, order: EpochOrder) -> None:
        """Read the rows in another order."""
        self.order = order
        self.epochs.listeners = (order, self.train_dataset)


def classification_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Binary cross-entropy for targets [B, C], cross-entropy for classes [B], of logits [B, C]."""
    with torch.autocast(logits.device.type, enabled=False):
        if labels.ndim == 2:
            return F.binary_cross_entropy_with_logits(logits.float(), labels)
        weights = None if class_weights is None else class_weights.to(logits.device)
        return F.cross_entropy(logits.float(), labels, weights)
