"""Values that change over a training, as functions of the share of it that is done."""

import torch
from torch import Tensor
from transformers import initialization as init

from almosaic.errors import AlmosaicError
from almosaic.objectives.base import SelfInitialised

Ends = tuple[float, float]
"""A value at the start and at the end."""


class Progress(SelfInitialised):
    """The share of the training that is done, kept in checkpoints: what resumes, resumes every schedule.

    It stays on the device, so that reading a schedule does not wait for it.
    """

    done: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Nothing is done."""
        init.zeros_(self.done)

    @torch.no_grad()
    def set(self, share: float) -> None:
        """Note how far training is; AlmosaicError outside [0, 1]."""
        if not 0.0 <= share <= 1.0:
            raise AlmosaicError(
                f"expected progress as a share of the training from 0 to 1, found {share:g}: "
                "divide the steps that are done by all steps"
            )
        self.done.fill_(share)

    def linear(self, ends: Ends, warmup: float = 1.0) -> Tensor:
        """From the first value to the last over a share `warmup` of the training, then constant: a scalar."""
        share = (self.done / warmup).clamp_max(1.0) if warmup > 0 else torch.ones_like(self.done)
        return torch.lerp(torch.full_like(share, ends[0]), torch.full_like(share, ends[1]), share).float()

    def geometric(self, ends: Ends) -> Tensor:
        """From the first value to the last by equal factors: a scalar."""
        return (ends[0] * (ends[1] / ends[0]) ** self.done).float()


def linear_at(ends: Ends, share: float) -> float:
    """What `Progress.linear` gives for a number."""
    return ends[0] + (ends[1] - ends[0]) * share
