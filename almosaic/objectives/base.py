"""What every pretraining objective takes and gives."""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from almosaic.encoder.modeling import AudioMosaicModel
from almosaic.masking import PatchMask


@dataclass
class ObjectiveOutput:
    """A scalar loss to minimise and detached scalars to log."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """Owns its heads (and teacher, where it has one); the encoder belongs to the model around it.

    `measures` asks for metrics that cost time; switch it off for steps that are not logged, on all processes.
    """

    views_needed: ClassVar[int]
    measures: bool = True

    def forward(
        self,
        encoder: AudioMosaicModel,
        views: list[Tensor],
        masks: list[PatchMask],
        texts: list[str] | None = None,
        path_noise: list[Tensor] | None = None,
    ) -> ObjectiveOutput:
        """Views, each [B, T, F], with one mask and, where given, path noise [B, depth, 2] each, to a loss."""
        raise NotImplementedError

    def after_step(self, encoder: AudioMosaicModel, progress: float) -> None:
        """Called after each optimizer step with the share of training done; updates teachers, if any."""
