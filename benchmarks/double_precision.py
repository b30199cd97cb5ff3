"""The command `almosaic`, with pretraining in float64: does a difference between two runs come from rounding?

    python -m benchmarks.double_precision train smoke/pretrain

Views are made in float32 as always; encoder, objective and loss work in float64, also where they ask for
float32 by name. Only for such a question: nothing in the package knows of it.
"""

import sys
from typing import Any
from unittest import mock

import torch

from almosaic.cli import main
from almosaic.masking import PatchMask
from almosaic.objectives.pretraining import AudioMosaicForPreTraining, PretrainingOutput

BUILD, FORWARD = AudioMosaicForPreTraining.__init__, AudioMosaicForPreTraining.forward


def built(self: AudioMosaicForPreTraining, *given: Any, **named: Any) -> None:
    """The model with weights in float64."""
    BUILD(self, *given, **named)
    self.double()


def forward(
    self: AudioMosaicForPreTraining,
    views: list[torch.Tensor],
    masks: list[PatchMask],
    texts: list[str] | None = None,
    path_noise: list[torch.Tensor] | None = None,
) -> PretrainingOutput:
    """The forward pass in float64, where `.float()` means double precision too."""
    noise = None if path_noise is None else [one.double() for one in path_noise]
    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        return FORWARD(self, [view.double() for view in views], masks, texts, noise)


if __name__ == "__main__":
    with (
        mock.patch.object(AudioMosaicForPreTraining, "__init__", built),
        mock.patch.object(AudioMosaicForPreTraining, "forward", forward),
    ):
        sys.exit(main(sys.argv[1:]))
