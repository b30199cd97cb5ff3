"""The loss of fine-tuning, and epochs of weighted clips."""

from collections import Counter

import numpy as np
import pytest
import torch

from almosaic.training.finetune_trainer import WeightedOrder, classification_loss


def test_losses_of_classes_and_of_targets():
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
    classes = torch.tensor([0, 1])
    per_row = -logits.log_softmax(1)[[0, 1], classes]
    assert classification_loss(logits, classes).item() == pytest.approx(per_row.mean().item())
    weighted = classification_loss(logits, classes, torch.tensor([3.0, 1.0, 1.0])).item()
    assert weighted == pytest.approx(((3 * per_row[0] + per_row[1]) / 4).item())
    targets = torch.tensor([[1.0, 0.0, 0.3], [0.0, 0.7, 1.0]])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    assert classification_loss(logits, targets).item() == pytest.approx(expected.item())
    assert classification_loss(logits.bfloat16(), targets).dtype == torch.float32


def test_an_epoch_holds_every_clip_at_most_once_and_heavy_ones_more_often():
    weights = np.array([1.0] * 50 + [9.0] * 50)
    order = WeightedOrder(weights, 20, seed=1, stage="stage")
    drawn = Counter()
    for epoch in range(200):
        order.set_epoch(epoch)
        rows = list(order)
        assert len(rows) == len(order) == 20 == len(set(rows))
        drawn.update(row >= 50 for row in rows)
    assert 0.85 < drawn[True] / 4000 < 0.9, "9 to 1, a little less as heavy clips are used up"


def test_heavy_clips_do_not_come_first():
    order = WeightedOrder(np.array([1.0] * 50 + [9.0] * 10), 40, seed=1, stage="stage")
    ahead = 0
    for epoch in range(50):
        order.set_epoch(epoch)
        heavy = [row >= 50 for row in order]
        ahead += sum(heavy[:20]) - sum(heavy[20:])
    assert abs(ahead) < 120


def test_an_epoch_depends_on_its_key_alone():
    def rows(epoch, **changes):
        order = WeightedOrder(np.ones(30), 10, **{"seed": 1, "stage": "stage", **changes})
        order.set_epoch(epoch)
        return list(order)

    assert rows(2) == rows(2) and rows(2) != rows(3)
    assert rows(2) != rows(2, seed=2) and rows(2) != rows(2, stage="other")
