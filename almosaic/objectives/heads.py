"""Heads that map vectors of the encoder to the space of a loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.objectives.base import SelfInitialised
from almosaic.objectives.ranks import sum_ranks, world_size


def norm_where_missing(encoder_config: AudioMosaicConfig) -> nn.Module:
    """LayerNorm over D for the tokens of an encoder that has no final norm, the identity for others."""
    if encoder_config.final_norm != "none":
        return nn.Identity()
    return nn.LayerNorm(encoder_config.hidden_size, eps=encoder_config.layer_norm_eps)


class RankBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm over the rows of all processes; plain BatchNorm1d in a single one.

    torch's SyncBatchNorm needs a GPU and a conversion step; this one also runs on gloo and needs none.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, D] -> [B, D]; running statistics are updated once per call in training."""
        if not self.training or world_size() == 1:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.float()
            sums = sum_ranks(torch.cat([rows.sum(dim=0), rows.new_full((1,), rows.shape[0])]))
            mean, count = sums[:-1] / sums[-1], sums[-1].detach()
            centred = rows - mean
            variance = sum_ranks(centred.square().sum(dim=0)) / count
            self._track(mean.detach(), variance.detach() * count / (count - 1))
            return centred * (variance + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        momentum = 0.1 if self.momentum is None else self.momentum
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased_variance)):
            assert running is not None
            running.lerp_(now.to(running.dtype), momentum)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1


class ProjectionHead(nn.Sequential):
    """Linear - BatchNorm - ReLU - Linear - BatchNorm: [B, D] -> [B, P]; the last bias is frozen at 0."""

    def __init__(self, width: int, hidden: int, size: int):
        super().__init__(
            nn.Linear(width, hidden, bias=False),
            RankBatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, size, bias=False),
            RankBatchNorm1d(size),
        )
        # A buffer, not a frozen parameter: loading a checkpoint would make a parameter trainable again.
        del self[4].bias
        self[4].register_buffer("bias", torch.zeros(size))


class NormedLinear(SelfInitialised):
    """Linear map by unit vectors, each with a trained gain: [..., D] -> [..., C], without a bias."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.direction = nn.Parameter(torch.empty(size, width))
        self.gain = nn.Parameter(torch.empty(size, 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random directions, gain 1."""
        init.normal_(self.direction)
        init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """The cosines of x with every direction, times length of x and gain."""
        return F.linear(x, self.gain * F.normalize(self.direction, dim=1))


class XavierLinear(nn.Linear, SelfInitialised):
    """A linear layer that starts as Xavier uniform, whatever the model's rule for layers is."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Uniform within sqrt(6 / (inputs + outputs)); the bias is 0."""
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class ClassHead(nn.Module):
    """Tokens to soft classes: an MLP with GELU, length 1, then a normed linear map: [..., D] -> [..., C].

    The classes are learned, nobody names them (DINO's head; MATPAC).
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, classes: int, linear: type[nn.Linear]):
        super().__init__()
        self.mlp = nn.Sequential(
            linear(width, hidden), nn.GELU(), linear(hidden, hidden), nn.GELU(), linear(hidden, bottleneck)
        )
        self.classes = NormedLinear(bottleneck, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, in float32 from the last layer on: temperatures divide them by as little as 0.04."""
        x = self.mlp(tokens)
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.classes(F.normalize(x.float(), dim=-1))
        return logits
