"""A model of a few weights and a dataset of numbers, enough to drive the trainer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from almosaic.data import draws
from almosaic.training.optim import OptimSettings
from almosaic.training.trainer import AlmosaicTrainer


class ToyConfig(PreTrainedConfig):
    model_type = "toy"


@dataclass
class ToyOutput(ModelOutput):
    loss: torch.Tensor | None = None
    metrics: dict | None = None


class ToyModel(PreTrainedModel):
    config_class = ToyConfig
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.body = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(3, 1)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, x, target):
        error = self.head(self.dropout(torch.tanh(self.body(x)))).squeeze(-1) - target
        return ToyOutput(loss=error.square().mean(), metrics={"mean_error": error.mean()})


class ToyRows(torch.utils.data.Dataset):
    """Row i of epoch e depends on (e, i) alone."""

    def __init__(self, rows=20):
        self.rows = rows
        self.epoch = 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.rows

    def __getitem__(self, index):
        values = torch.from_numpy(draws.uniforms(("toy", self.epoch), [index], 4)[0])
        return {"clip_index": index, "epoch": self.epoch, "x": values[:3], "target": values[3]}


def collate(rows):
    return {
        "clip_index": torch.tensor([row["clip_index"] for row in rows]),
        "epoch": torch.tensor([row["epoch"] for row in rows]),
        "x": torch.stack([row["x"] for row in rows]),
        "target": torch.stack([row["target"] for row in rows]),
    }


def toy_trainer(folder: Path, seen=None, rows=20, collator=collate, drop_last=False, **settings):
    """A trainer over the toy; batches go to `seen` as (epoch of the step, epochs of rows, clips)."""
    torch.manual_seed(0)
    given = {
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 0.05,
        "log_steps": 1,
        "save_steps": 100,
    } | settings

    def prepare(batch, epoch, progress):
        if seen is not None:
            seen.append((epoch, batch["epoch"].tolist(), batch["clip_index"].tolist()))
        return {"x": batch["x"], "target": batch["target"]}

    return AlmosaicTrainer(
        ToyModel(ToyConfig()),
        OptimSettings(**given),
        ToyRows(rows),
        collator,
        folder=folder,
        seed=3,
        stage="toy",
        parts={"body": "body", "head": "head"},
        prepare=prepare,
        drop_last=drop_last,
    )


def losses(trainer):
    """Logged losses by step."""
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
