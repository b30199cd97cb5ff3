"""What a stage trains, part by part, and what a run checkpoint holds in consequence."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationConfig

from almosaic.alm.adapter_folder import is_adapter_folder, read_adapter
from almosaic.alm.adapters import inject_lora, merge_lora
from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.modeling import AlmosaicForConditionalGeneration, grow_vocabulary
from almosaic.alm.sources import locate_source
from almosaic.encoder.modeling import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.settings import Settings

PARTS = {
    "audio_tower": "audio_tower",
    "projector": "multi_modal_projector",
    "language_model": "language_model",
}


class TuneSettings(Settings):
    """What is trained: each part frozen or in full, the language model also through adapters."""

    projector: Literal["frozen", "full"] = "full"
    language_model: Literal["frozen", "lora", "full"] = "frozen"
    audio_tower: Literal["frozen", "full"] = "frozen"
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: float = Field(0.05, ge=0.0, lt=1.0)
    lora_targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"

    @property
    def lora(self) -> dict[str, Any]:
        """The adapters' settings as the model's configuration keeps them."""
        targets = self.lora_targets if isinstance(self.lora_targets, str) else list(self.lora_targets)
        return {
            "rank": self.lora_rank,
            "alpha": self.lora_alpha,
            "dropout": self.lora_dropout,
            "targets": targets,
        }


def apply_tuning(model: AlmosaicForConditionalGeneration, settings: TuneSettings) -> dict[str, int]:
    """Set `requires_grad` part by part and put adapters in; from here on folders hold no frozen LLM weights.

    Adapters of an earlier stage go on training when their settings are the same, stay in place when the
    language model is frozen, and are merged otherwise. A language model that is trained in full, or has
    adapters merged, no longer equals the weights it came from, and is saved whole from then on.

    Returns:
        trainable parameters of each part.
    """
    language_model, config = model.language_model, model.config
    wanted = settings.lora if settings.language_model == "lora" else None
    if config.lora is not None and settings.language_model != "frozen" and config.lora != wanted:
        merge_adapters(model)
    if wanted is not None and config.lora is None:
        inject_lora(language_model, wanted)
        config.lora = wanted
    if settings.language_model == "full":
        config.language_model_source = None
    model.audio_tower.requires_grad_(settings.audio_tower == "full")
    model.multi_modal_projector.requires_grad_(settings.projector == "full")
    for name, parameter in language_model.named_parameters():
        adapter = "lora_" in name
        parameter.requires_grad_(settings.language_model == ("lora" if adapter else "full"))
    _freeze_unread_blocks(model)
    model._keys_to_ignore_on_save = frozen_language_model_keys(model)
    model.train(model.training)
    counts = {part: _trainable(getattr(model, field)) for part, field in PARTS.items()}
    if not any(counts.values()):
        raise AlmosaicError("tune freezes every part, so there is nothing to train; set one of them to full")
    return counts


def merge_adapters(model: AlmosaicForConditionalGeneration) -> None:
    """Add the adapters to the language model's weights, which are saved whole from then on."""
    if model.config.lora is None:
        return
    merge_lora(model.language_model)
    model.config.lora = None
    model.config.language_model_source = None
    model._keys_to_ignore_on_save = set()


def frozen_language_model_keys(model: AlmosaicForConditionalGeneration) -> set[str]:
    """Keys of the frozen language model weights that its source can give back; empty without a source."""
    if model.config.language_model_source is None:
        return set()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name for name in _source_keys(model) if name not in trained}


def _source_keys(model: AlmosaicForConditionalGeneration) -> set[str]:
    return {name for name in model.state_dict() if name.startswith("language_model.") and "lora_" not in name}


def _freeze_unread_blocks(model: AlmosaicForConditionalGeneration) -> None:
    """Blocks above `config.layer` get no gradient, which distributed training would take for an error."""
    if model.config.layer is not None:
        model.audio_tower.blocks[model.config.layer + 1 :].requires_grad_(False)
        model.audio_tower.norm.requires_grad_(False)


def _trainable(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters() if parameter.requires_grad)


def load_partial(
    folder: str | Path, language_model: str | Path | None = None
) -> AlmosaicForConditionalGeneration:
    """Load a run folder without frozen weights: the language model comes from where the folder says.

    Args:
        folder: written by `save_pretrained` after `apply_tuning`.
        language_model: its folder or hub name, where it has moved; the hash must be the recorded one.

    Raises:
        AlmosaicError: the language model is not there or another one, or tensors are missing or unexpected.
    """
    folder = Path(folder)
    config = AlmosaicConfig.from_pretrained(folder)
    if config.language_model_source is None:
        raise AlmosaicError(
            f"{folder} names no language model to take weights from; load it with from_pretrained"
        )
    moved = {} if language_model is None else {"path": str(language_model)}
    config.language_model_source = source = locate_source({**config.language_model_source, **moved}, folder)
    dtype = config.text_config.dtype or torch.float32
    base = AutoModelForCausalLM.from_pretrained(source["path"], dtype=dtype)
    grow_vocabulary(base, config.text_config.vocab_size)
    model = AlmosaicForConditionalGeneration(config, AudioMosaicModel(config.audio_config), base)
    result = model.load_state_dict(_read_weights(folder), strict=False)
    missing = sorted(set(result.missing_keys) - _source_keys(model))
    if missing or result.unexpected_keys:
        raise AlmosaicError(
            f"{folder} does not fit its configuration: missing {', '.join(missing) or 'none'}; "
            f"unexpected {', '.join(result.unexpected_keys) or 'none'}"
        )
    model.generation_config = GenerationConfig.from_pretrained(folder)
    model._keys_to_ignore_on_save = _source_keys(model)
    model.eval()
    return model


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if is_adapter_folder(folder):
        return read_adapter(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AlmosaicError(
            f"{folder} holds no *.safetensors weights; the run that wrote it may not have finished"
        )
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
