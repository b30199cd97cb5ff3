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
    """Owns its heads (and teacher, where it has one); the encoder belongs to the model around it."""

    views_needed: ClassVar[int]

    def forward(
        self,
        encoder: AudioMosaicModel,
        views: list[Tensor],
        masks: list[PatchMask],
        texts: list[str] | None = None,
    ) -> ObjectiveOutput:
        """Views, each [B, T, F], and one mask per view to a loss."""
        raise NotImplementedError

    def after_step(self, encoder: AudioMosaicModel, progress: float) -> None:
        """Called after each optimizer step with the share of training done; updates teachers, if any."""
