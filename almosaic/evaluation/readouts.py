"""Probes over all blocks, trained on cached features: a weighted sum of blocks, and attention over blocks.

The read-outs of the published probes commute with the mean over tokens: a weighted sum of blocks is taken
after it, and a LayerNorm per block is an affine map of the mean of plainly normalised tokens. So these are
trained on two vectors per block and clip (`layer_features`) and give what training on tokens would give.
"""

import hashlib
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from almosaic.data import draws
from almosaic.errors import AlmosaicError
from almosaic.evaluation.intervals import measure
from almosaic.evaluation.linear import inner_folds
from almosaic.evaluation.splits import Features, Fit, Labels, Scores, Targets
from almosaic.settings import Settings

ReadoutName = Literal["weighted_sum", "attentive"]
INNER_FOLDS = 5  # one of them chooses the learning rate
EPSILON = 1e-6
LAST_RATE = 1e-6


class ReadoutSettings(Settings):
    """How the trained probes are trained: AdamW, cosine after a warm-up, the best of `learning_rates`.

    The rate is chosen on a fifth of the training rows, then the probe is trained on all, once per seed.
    """

    heads: int = Field(default=1, ge=1)
    epochs: int = Field(default=60, ge=1)
    warmup_epochs: int = Field(default=4, ge=0)
    batch_size: int = Field(default=128, ge=1)
    learning_rates: tuple[float, ...] = Field(default=(1e-3, 1e-2), min_length=1)
    weight_decay: float = Field(default=0.01, ge=0)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)


class WeightedSum(nn.Module):
    """A convex combination of the E entries, equal shares at first: [B, E, D] -> [B, D]."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(entries))

    def forward(self, means: Tensor) -> Tensor:
        """Sum of the pooled entries."""
        return torch.einsum("e,bed->bd", self.layer_weights.softmax(dim=0), means)


class Attentive(nn.Module):
    """One learned query per head attends over the E entries, each with a LayerNorm's weights of its own.

    A single query makes keys and values cheap: the query is taken through the key matrix once, and the value
    matrix is applied to the one vector that comes out.
    """

    def __init__(self, entries: int, width: int, heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(heads, width // heads))
        self.key = nn.Parameter(torch.zeros(width, width))
        self.value = nn.Parameter(torch.zeros(width, width))
        self.scale = nn.Parameter(torch.ones(entries, width))
        self.shift = nn.Parameter(torch.zeros(entries, width))

    def forward(self, normed: Tensor) -> Tensor:
        """[B, E, D] -> [B, D]."""
        heads, width = self.query.shape
        entries = normed * self.scale + self.shift
        asked = torch.einsum("hk,hkd->hd", self.query, self.key.view(heads, width, -1))
        shares = (torch.einsum("bed,hd->bhe", entries, asked) * width**-0.5).softmax(dim=-1)
        heard = torch.einsum("bhe,bed->bhd", shares, entries)
        return torch.einsum("bhd,hkd->bhk", heard, self.value.view(heads, width, -1)).flatten(1)


class ReadoutProbe(nn.Module):
    """Read-out, LayerNorm, linear head; scores [B, C] from cached entries [B, E, D]."""

    def __init__(self, name: ReadoutName, entries: int, width: int, classes: int, heads: int, seed: int):
        super().__init__()
        attentive = name == "attentive"
        self.readout = Attentive(entries, width, heads) if attentive else WeightedSum(entries)
        self.norm = nn.LayerNorm(width, eps=EPSILON)
        self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(draws.key(seed, "readout"))
        nn.init.trunc_normal_(self.head.weight, std=2.5e-5, generator=generator)
        nn.init.zeros_(self.head.bias)
        if isinstance(self.readout, Attentive):
            nn.init.normal_(self.readout.query, std=0.02, generator=generator)
            for matrix in (self.readout.key, self.readout.value):
                nn.init.trunc_normal_(matrix, std=0.02, generator=generator)

    def forward(self, entries: Tensor) -> Tensor:
        """[B, E, D] -> [B, C]."""
        scores: Tensor = self.head(self.norm(self.readout(entries)))
        return scores


class LearningRates:
    """The rate of each fit: chosen on held-out training rows at its first seed, the same for the others."""

    def __init__(self) -> None:
        self._chosen: dict[bytes, float] = {}

    @property
    def chosen(self) -> list[float]:
        """In the order of the fits."""
        return list(self._chosen.values())

    def choose(
        self, name: ReadoutName, labels: Labels, settings: ReadoutSettings, rows: Features, targets: Targets
    ) -> float:
        """The best of the candidates.

        Raises:
            AlmosaicError: there are several, and no row can be held out.
        """
        fitted = hashlib.sha256(rows.tobytes()).digest()
        if fitted not in self._chosen:
            self._chosen[fitted] = _best_rate(name, labels, settings, rows, targets)
        return self._chosen[fitted]


def trained(
    name: ReadoutName, labels: Labels, settings: ReadoutSettings, seed: int, rates: LearningRates
) -> Fit:
    """A probe that is trained on the training rows; `rates` is shared by all seeds."""

    def fit(train: Features, targets: Targets, test: Features) -> Scores:
        rate = rates.choose(name, labels, settings, train, targets)
        return _train(name, labels, settings, rate, seed, train, targets, test)

    return fit


def _best_rate(
    name: ReadoutName, labels: Labels, settings: ReadoutSettings, rows: Features, targets: Targets
) -> float:
    if len(settings.learning_rates) == 1:
        return settings.learning_rates[0]
    numbers = inner_folds(labels, targets, INNER_FOLDS, seed=0)
    if numbers.max(initial=0) == 0:
        raise AlmosaicError(
            f"{name}: a label has a single training clip, so that none can be held out to choose a learning "
            "rate; name one in probe.readout.learning_rates"
        )
    inside, outside = numbers != 0, numbers == 0
    found = [
        measure(
            labels,
            _train(name, labels, settings, rate, 0, rows[inside], targets[inside], rows[outside]),
            targets[outside],
        )
        for rate in settings.learning_rates
    ]
    return settings.learning_rates[int(np.argmax(found))]


def _train(
    name: ReadoutName,
    labels: Labels,
    settings: ReadoutSettings,
    rate: float,
    seed: int,
    rows: Features,
    targets: Targets,
    test: Features,
) -> Scores:
    """Scores [m, C] of test entries [m, E, D] by a probe trained on rows [n, E, D]."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    x, asked = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (rows, test))
    y = torch.from_numpy(targets).to(device)
    truth = y.float() if labels.several else y.int().argmax(dim=1)
    probe = ReadoutProbe(name, rows.shape[1], rows.shape[2], targets.shape[1], settings.heads, seed).to(
        device
    )
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=settings.weight_decay, fused=True)
    loss_of = F.binary_cross_entropy_with_logits if labels.several else F.cross_entropy
    steps = math.ceil(len(rows) / settings.batch_size)
    for epoch in range(settings.epochs):
        order = torch.from_numpy(draws.generator(seed, "readout", epoch).permutation(len(rows))).to(device)
        for number, batch in enumerate(torch.split(order, settings.batch_size)):
            for group in optimizer.param_groups:
                group["lr"] = _rate(settings, rate, epoch + number / steps)
            loss = loss_of(probe(x[batch]), truth[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.inference_mode():
        scores: NDArray[np.float32] = probe(asked).float().cpu().numpy()
    return scores


def _rate(settings: ReadoutSettings, rate: float, epoch: float) -> float:
    """Linear warm-up, then a cosine to 1e-6; `epoch` is counted in fractions."""
    warmup = min(settings.warmup_epochs, settings.epochs - 1)
    if epoch < warmup:
        return rate * epoch / warmup
    done = (epoch - warmup) / (settings.epochs - warmup)
    return LAST_RATE + (rate - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * done))
