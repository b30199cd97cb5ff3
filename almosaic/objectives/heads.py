"""Heads that map pooled encoder vectors to the space of a loss."""

import torch
from torch import Tensor, nn

from almosaic.objectives.ranks import sum_ranks, world_size


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
