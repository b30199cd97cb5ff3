"""The encoder together with its objective: the model that the trainer trains and saves."""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers.utils import ModelOutput

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import AudioMosaicModel, AudioMosaicPreTrainedModel
from almosaic.masking import PatchMask
from almosaic.objectives import build_objective, objective_settings
from almosaic.objectives.base import SelfInitialised


@dataclass
class PretrainingOutput(ModelOutput):  # type: ignore[misc]
    """Scalar loss, and metrics that are only logged."""

    loss: Tensor | None = None
    metrics: dict[str, Tensor] | None = None


class AudioMosaicForPreTraining(AudioMosaicPreTrainedModel):
    """`encoder` plus the `objective` named in the config (contrastive when none is)."""

    def __init__(self, config: AudioMosaicConfig):
        super().__init__(config)
        settings = objective_settings(config.objective)
        config.objective = settings.model_dump()
        self.encoder = AudioMosaicModel(config)
        self.objective = build_objective(settings, config)
        self.post_init()

    def forward(
        self,
        views: list[Tensor],
        masks: list[PatchMask],
        texts: list[str] | None = None,
        path_noise: list[Tensor] | None = None,
    ) -> PretrainingOutput:
        """Views, each [B, T, F], and one mask per view to the objective's loss; AlmosaicError on a misfit.

        Drop path draws its own noise, or takes that of each view, [B, depth, 2].
        """
        output = self.objective(self.encoder, views, masks, texts, path_noise)
        return PretrainingOutput(loss=output.loss, metrics=output.metrics)

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, SelfInitialised):
            module.reset_parameters()

    def after_step(self, progress: float) -> None:
        """Let the objective update its teacher, if it has one; progress is the share of training done."""
        self.objective.after_step(self.encoder, progress)
