"""Two differentiable collectives, so that a loss over several processes equals the loss of one.

Both sum gradients over the ranks in the backward pass: with the mean that DDP takes afterwards, every rank's
local mean loss then has the gradient of the full batch. They run on gloo and NCCL alike.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train together; 1 when torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Index of this process among them."""
    return dist.get_rank() if world_size() > 1 else 0


def gather_ranks(x: Tensor) -> Tensor:
    """The tensors of all ranks, stacked in rank order: [...] -> [W, ...]; shapes must agree."""
    return x[None] if world_size() == 1 else cast(Tensor, _Gather.apply(x))  # type: ignore[no-untyped-call]


def sum_ranks(x: Tensor) -> Tensor:
    """The sum of x over all ranks, on every rank."""
    return x if world_size() == 1 else cast(Tensor, _Sum.apply(x))  # type: ignore[no-untyped-call]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total[own_rank()]


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total
