"""Contrastive pretraining: two masked views of a clip attract, all other clips repel (paper, NT-Xent)."""

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchMask
from almosaic.objectives.base import Objective, ObjectiveOutput
from almosaic.objectives.heads import ProjectionHead
from almosaic.objectives.ranks import gather_ranks, own_rank, world_size
from almosaic.settings import Settings


class NTXent(nn.Module):
    """Normalised temperature-scaled cross-entropy over the 2m - 1 other vectors of m clips on all ranks."""

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    def forward(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of z [2, B, P], un-normalised; in float32 whatever the autocast dtype.

        Returns:
            The mean of -log softmax(similarity / temperature)[positive] over the 2B local anchors, and top-1
            accuracy, alignment (mean squared distance of positives) and uniformity (log mean exp(-2 d^2)).
        """
        with torch.autocast(z.device.type, enabled=False):
            z = F.normalize(z.float(), dim=-1)
            everyone = gather_ranks(z).transpose(0, 1).flatten(1, 2)
            own = torch.arange(z.shape[1], device=z.device) + own_rank() * z.shape[1]
            itself = own[:, None] == torch.arange(everyone.shape[1], device=z.device)
            across = z @ everyone.flip(0).transpose(1, 2)
            within = (z @ everyone.transpose(1, 2)).masked_fill(itself, -math.inf)
            logits = torch.cat([across, within], dim=2) / self.temperature
            loss = F.cross_entropy(logits.flatten(0, 1), own.repeat(2))
        with torch.no_grad():
            pairs = within.numel() - 2 * z.shape[1]
            metrics = {
                "contrastive_loss": loss.detach(),
                "contrastive_accuracy": (logits.argmax(dim=2) == own).float().mean(),
                "alignment": (z[0] - z[1]).square().sum(dim=1).mean(),
                "uniformity": (4.0 * within - 4.0).flatten().logsumexp(0) - math.log(max(1, pairs)),
            }
        return loss, metrics


class ContrastiveSettings(Settings):
    """NT-Xent on two views; the defaults are the published configuration."""

    name: Literal["contrastive"] = "contrastive"
    temperature: Annotated[float, Field(gt=0.0)] = 0.1
    projection_hidden: Annotated[int, Field(gt=0)] = 512
    projection_size: Annotated[int, Field(gt=0)] = 128


class ContrastiveObjective(Objective):
    """Pooled vector of each view, LayerNorm, projection, NT-Xent; BatchNorm sees one view at a time."""

    views_needed: ClassVar[int] = 2

    def __init__(self, settings: ContrastiveSettings, encoder_config: AudioMosaicConfig):
        super().__init__()
        width = encoder_config.hidden_size
        pooled_is_raw = encoder_config.final_norm == "none"
        self.fc_norm = (
            nn.LayerNorm(width, eps=encoder_config.layer_norm_eps) if pooled_is_raw else nn.Identity()
        )
        self.projector = ProjectionHead(width, settings.projection_hidden, settings.projection_size)
        self.loss = NTXent(settings.temperature)

    def forward(
        self,
        encoder: AudioMosaicModel,
        views: list[Tensor],
        masks: list[PatchMask],
        texts: list[str] | None = None,
    ) -> ObjectiveOutput:
        """Two views [B, T, F] and their masks to the loss; texts are not used.

        Raises:
            AlmosaicError: not two views with one mask each, or a single clip, which has no negatives.
        """
        if len(views) != 2 or len(masks) != 2:
            raise AlmosaicError(
                f"expected 2 views with 2 masks for the contrastive objective, found {len(views)} views and "
                f"{len(masks)} masks: name one mask per view in the recipe"
            )
        if views[0].shape[0] * world_size() < 2:
            raise AlmosaicError(
                "expected at least 2 clips in a contrastive batch, found 1: raise the batch size and drop an "
                "incomplete last batch"
            )
        z = torch.stack([self.project(encoder, view, mask) for view, mask in zip(views, masks, strict=True)])
        loss, metrics = self.loss(z)
        metrics["kept_padding"] = torch.stack([mask.kept_padding for mask in masks]).mean()
        return ObjectiveOutput(loss, metrics)

    def project(self, encoder: AudioMosaicModel, view: Tensor, mask: PatchMask | None = None) -> Tensor:
        """One view [B, T, F] to un-normalised z [B, P]; the whole window when mask is None."""
        pooled = encoder(view, ids_keep=None if mask is None else mask.ids_keep).pooler_output
        z: Tensor = self.projector(self.fc_norm(pooled))
        return z
