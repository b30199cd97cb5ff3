"""The classifier that a stage trains: an earlier encoder with a new head, or a fresh one."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator
from safetensors import SafetensorError

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.positions import resize_table
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor, FrontEndSettings
from almosaic.loading import load_whole, model_type
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.settings import Settings

if TYPE_CHECKING:
    from almosaic.training.finetune import FinetuneSettings

logger = logging.getLogger(__name__)
CLASSES = {
    "AudioMosaicForPreTraining": AudioMosaicForPreTraining,
    "AudioMosaicForAudioClassification": AudioMosaicForAudioClassification,
}


class ProbeHead(Settings):
    """What is trained on a frozen encoder: a head, on what the read-out makes of the blocks' outputs.

    `layer` is the 0-based block of the read-out `layer`; `heads` belong to the read-out `attentive`.
    """

    readout: Literal["pooled", "layer", "weighted_sum", "attentive"] = "pooled"
    layer: int | None = Field(default=None, ge=0)
    heads: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "ProbeHead":
        if (self.readout == "layer") != (self.layer is not None):
            raise AlmosaicError(
                f"probe.layer goes with readout: layer, found readout: {self.readout} and layer: {self.layer}"
            )
        return self


def front_end_of(settings: "FinetuneSettings", start: Path | None) -> AudioMosaicFeatureExtractor:
    """The recipe's front end, else that of the earlier model, else AudioSet's.

    Raises:
        AlmosaicError: the earlier model has none.
    """
    if settings.front_end is not None or start is None:
        return AudioMosaicFeatureExtractor.from_settings(settings.front_end or FrontEndSettings())
    try:
        found: AudioMosaicFeatureExtractor = AudioMosaicFeatureExtractor.from_pretrained(start)
    except OSError as error:
        raise AlmosaicError(
            f"{start} has no preprocessor_config.json; set front_end in the recipe"
        ) from error
    return found


def build_classifier(
    settings: "FinetuneSettings",
    extractor: AudioMosaicFeatureExtractor,
    classes: Sequence[str],
    start: Path | None,
) -> AudioMosaicForAudioClassification:
    """The model before its first step; the encoder is frozen under a probe.

    An earlier model gives the encoder, its position table fitted to the window, and the LayerNorm of the
    pooled vector where it has one; the head is always new.

    Raises:
        AlmosaicError: `start` holds no encoder of ours, or not all of it.
    """
    earlier = None if start is None else _earlier(start)
    config = (
        settings.encoder.build(extractor.window_frames, extractor.num_mel_bins)
        if earlier is None
        else earlier.config
    )
    probe = settings.probe or ProbeHead()
    if probe.layer is not None and probe.layer >= config.num_hidden_layers:
        raise AlmosaicError(
            f"probe.layer {probe.layer} is beyond the {config.num_hidden_layers} blocks of the encoder; "
            f"give 0 to {config.num_hidden_layers - 1}"
        )
    changes = {
        "window_frames": extractor.window_frames,
        "num_mel_bins": extractor.num_mel_bins,
        "drop_path_rate": _drop_path(settings, config),
        "objective": None,
        "id2label": dict(enumerate(classes)),
        "label2id": {label: index for index, label in enumerate(classes)},
        "problem_type": f"{'multi' if settings.loss == 'bce' else 'single'}_label_classification",
        "readout": probe.readout,
        "readout_layer": probe.layer,
        "readout_heads": probe.heads,
    }
    model = AudioMosaicForAudioClassification(AudioMosaicConfig.from_dict({**config.to_dict(), **changes}))
    if earlier is not None:
        _inherit(model, earlier)
    if settings.probe is not None:
        model.encoder.requires_grad_(False)
    return model


def _drop_path(settings: "FinetuneSettings", config: AudioMosaicConfig) -> float:
    if settings.probe is not None:  # the encoder is frozen: nothing of it is left out
        return 0.0
    return config.drop_path_rate if settings.drop_path_rate is None else settings.drop_path_rate


def _earlier(start: Path) -> Any:
    """The model in a folder; that of a pretraining stage with its heads, one of which is inherited."""
    beside = start.parent / "pretraining"
    if start.name == "model" and (beside / "config.json").is_file():
        start = beside
    if model_type(start) != "audiomosaic":
        raise AlmosaicError(
            f"{start} holds an audio-language model; expected an encoder, a pretraining run or a classifier"
        )
    config = AudioMosaicConfig.from_pretrained(start)
    model_class = CLASSES.get((config.architectures or [""])[0], AudioMosaicModel)
    try:
        return load_whole(model_class, start)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise AlmosaicError(f"{start} cannot be loaded: {reason}; restore or retrain it") from error


@torch.no_grad()
def _inherit(model: AudioMosaicForAudioClassification, earlier: Any) -> None:
    """Copy the encoder, its positions fitted to the new window, and the LayerNorm behind the pooling."""
    encoder = earlier if isinstance(earlier, AudioMosaicModel) else earlier.encoder
    weights = encoder.state_dict()
    old, new = encoder.config.grid, model.config.grid
    weights["pos_embed"] = resize_table(weights["pos_embed"], old, new, model.config.position_resize)
    model.encoder.load_state_dict(weights)
    norm = getattr(getattr(earlier, "objective", earlier), "fc_norm", None)
    if isinstance(norm, torch.nn.LayerNorm):
        model.fc_norm.load_state_dict(norm.state_dict())
    if old != new:
        logger.info(
            "position table: %d x %d patches fitted to %d x %d (%s)",
            *(old.time, old.freq, new.time, new.freq, model.config.position_resize),
        )
