"""Read-outs: what turns the outputs of the encoder's blocks into one vector, for classifiers and probes.

`weighted_sum` and `attentive` read every block, followed by the encoder's own output. Without a final norm
that output is the last block's once more: published probes count the last block twice, and so do these.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling

from almosaic.encoder.configuration import AudioMosaicConfig

Pool = Callable[[Tensor], Tensor]


class Readout(nn.Module):
    """The encoder's pooled vector as it is; the base of the others."""

    reads_layers = False

    def forward(self, encoded: BaseModelOutputWithPooling, pool: Pool) -> Tensor:
        """The encoder's output to [B, D].

        Args:
            encoded: with `hidden_states` where `reads_layers` is set.
            pool: tokens [B, 1+K, D] to one vector [B, D].
        """
        return cast(Tensor, encoded.pooler_output)

    def init_weights(self) -> None:
        """Fresh parameters, as published; the pooled vector needs none."""


class LayerReadout(Readout):
    """The pooled output of one block, before any final norm."""

    reads_layers = True

    def __init__(self, layer: int):
        super().__init__()
        self.layer = layer

    def forward(self, encoded: BaseModelOutputWithPooling, pool: Pool) -> Tensor:
        """The tokens of block `layer` (0-based), pooled: [B, D]."""
        return pool(encoded.hidden_states[self.layer + 1])


class WeightedSumReadout(Readout):
    """A learned convex combination of all layers, equal shares at first."""

    reads_layers = True

    def __init__(self, config: AudioMosaicConfig):
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(config.num_hidden_layers + 1))

    def forward(self, encoded: BaseModelOutputWithPooling, pool: Pool) -> Tensor:
        """Pooled layers, weighted by a softmax: [B, D]."""
        layers = torch.stack([pool(tokens) for tokens in _layers(encoded)], dim=1)
        return torch.einsum("l,bld->bd", self.layer_weights.softmax(dim=0).to(layers.dtype), layers)

    def init_weights(self) -> None:
        """Zeros: every layer counts the same."""
        init.zeros_(self.layer_weights)


class AttentiveReadout(Readout):
    """Learned queries, one per head, attend over layers; each layer has a LayerNorm of its own."""

    reads_layers = True

    def __init__(self, config: AudioMosaicConfig):
        super().__init__()
        width, heads = config.hidden_size, config.readout_heads
        self.attn_query = nn.Parameter(torch.zeros(1, heads, 1, width // heads))
        self.attn_key = nn.Linear(width, width, bias=False)
        self.attn_value = nn.Linear(width, width, bias=False)
        self.layer_norms = nn.ModuleList(
            nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(config.num_hidden_layers + 1)
        )

    def forward(self, encoded: BaseModelOutputWithPooling, pool: Pool) -> Tensor:
        """Normalised tokens of each layer, pooled, then attention over layers: [B, D]."""
        normed = zip(self.layer_norms, _layers(encoded), strict=True)
        layers = torch.stack([pool(norm(tokens)) for norm, tokens in normed], dim=1)
        keys, values = (self._heads(linear(layers)) for linear in (self.attn_key, self.attn_value))
        scores = self.attn_query.to(keys.dtype) @ keys.transpose(2, 3) * keys.shape[-1] ** -0.5
        return cast(Tensor, (scores.softmax(dim=-1) @ values).flatten(1))

    def _heads(self, x: Tensor) -> Tensor:
        """[B, layers, D] -> [B, heads, layers, D / heads]."""
        return x.reshape(*x.shape[:2], self.attn_query.shape[1], -1).transpose(1, 2)

    def init_weights(self) -> None:
        """Normal queries of deviation 0.02."""
        init.normal_(self.attn_query, std=0.02)


def _layers(encoded: BaseModelOutputWithPooling) -> tuple[Tensor, ...]:
    """Outputs of the blocks, then of the encoder: depth + 1 times [B, 1+K, D]."""
    return (*encoded.hidden_states[1:], encoded.last_hidden_state)


def build_readout(config: AudioMosaicConfig) -> Readout:
    """The read-out that `config.readout` names."""
    if config.readout == "layer":
        return LayerReadout(cast(int, config.readout_layer))
    if config.readout == "weighted_sum":
        return WeightedSumReadout(config)
    return AttentiveReadout(config) if config.readout == "attentive" else Readout()
