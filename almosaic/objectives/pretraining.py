"""The encoder together with its objective: the model that the trainer trains and saves."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers.utils import ModelOutput

from almosaic.encoder.configuration import AudioMosaicConfig
from almosaic.encoder.modeling import AudioMosaicModel, AudioMosaicPreTrainedModel
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchMask
from almosaic.objectives import build_objective, objective_settings
from almosaic.objectives.base import SelfInitialised
from almosaic.objectives.teacher import Teacher


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

    @classmethod
    def from_pretrained(cls, folder: Any, *arguments: Any, **options: Any) -> Any:
        """Load a `pretraining` folder whole, or an encoder alone, which then gets a fresh objective.

        Raises:
            AlmosaicError: part of the objective is missing, such as its teacher; the library would draw it.
        """
        with_report = options.pop("output_loading_info", False)
        model, report = super().from_pretrained(folder, *arguments, output_loading_info=True, **options)
        own = {key for key in model.state_dict() if key.startswith("objective.")}
        missing = sorted(own & set(report["missing_keys"]))
        if missing and len(missing) < len(own):
            raise AlmosaicError(
                f"{folder} lacks {len(missing)} of the {len(own)} tensors of its objective, {missing[0]} "
                "among them: take a whole `pretraining` folder, or a `model` folder to begin anew"
            )
        for module in model.modules():  # which the library has just made trainable
            if isinstance(module, Teacher):
                module.requires_grad_(False)
        return (model, report) if with_report else model

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
