"""What a stage trains, part by part, and what a run checkpoint holds in consequence."""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import nn
from transformers import GenerationConfig

from almosaic.alm.adapter_folder import is_adapter_folder, read_adapter
from almosaic.alm.adapters import inject_lora, merge_lora
from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.modeling import AlmosaicForConditionalGeneration
from almosaic.alm.quantization import Scheme, load_language_model, quantization_of
from almosaic.alm.sources import locate_source, weights_folder, weights_sha256
from almosaic.alm.vocabulary import grow_vocabulary
from almosaic.encoder.modeling import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.settings import Settings

PARTS = {
    "audio_tower": "audio_tower",
    "projector": "multi_modal_projector",
    "language_model": "language_model",
}


class TuneSettings(Settings):
    """What is trained: each part frozen or in full, the language model also through adapters.

    `audio_tower: norms` trains the encoder's first and last norm alone, as the first stage of LTU does.
    """

    projector: Literal["frozen", "full"] = "full"
    language_model: Literal["frozen", "lora", "full"] = "frozen"
    audio_tower: Literal["frozen", "norms", "full"] = "frozen"
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
    adapters merged, no longer equals the weights it came from, and is saved whole from then on. A quantised
    one can be neither.

    Returns:
        trainable parameters of each part.

    Raises:
        AlmosaicError: nothing is trained, or a quantised language model would have to change its weights.
    """
    language_model, config = model.language_model, model.config
    wanted = settings.lora if settings.language_model == "lora" else None
    merges = config.lora is not None and settings.language_model != "frozen" and config.lora != wanted
    if quantized := quantization_of(language_model):
        _check_quantized_tuning(quantized, settings, config.lora if merges else None)
    if merges:
        merge_adapters(model)
    if wanted is not None and config.lora is None:
        inject_lora(language_model, wanted)
        config.lora = wanted
    if settings.language_model == "full":
        config.language_model_source = None
    model.audio_tower.requires_grad_(settings.audio_tower == "full")
    for norm in (model.audio_tower.norm_pre, model.audio_tower.norm):
        norm.requires_grad_(settings.audio_tower != "frozen")
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


def _check_quantized_tuning(quantized: str, settings: TuneSettings, merged: dict[str, Any] | None) -> None:
    if settings.language_model == "full":
        raise AlmosaicError(
            f"tune.language_model: full cannot train weights quantised to {quantized}; use lora, or leave "
            "quantize out"
        )
    if merged is not None:
        raise AlmosaicError(
            f"this stage would merge adapters ({_described(merged)}) into weights quantised to {quantized}, "
            f"which rounds them; keep those settings (found {_described(settings.lora)}), or export the "
            "merged model and start from it"
        )


def _described(lora: dict[str, Any]) -> str:
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    return f"rank {lora['rank']}, alpha {lora['alpha']}, dropout {lora['dropout']:g}, {targets}"


def merge_adapters(model: AlmosaicForConditionalGeneration) -> None:
    """Add the adapters to the language model's weights, which are saved whole from then on.

    A quantised language model is replaced by the weights it was quantised from before anything is added, so
    that nothing is rounded: the result is the full-precision model with these adapters, and differs from the
    quantised one by what quantising it cost.

    Raises:
        AlmosaicError: the weights that a language model was quantised from are not there.
    """
    config = model.config
    if config.lora is None:
        return
    if quantization_of(model.language_model) is not None:
        _restore_precision(model)
    merge_lora(model.language_model)
    config.lora = config.language_model_quantization = config.language_model_source = None
    model._keys_to_ignore_on_save = set()


def _restore_precision(model: AlmosaicForConditionalGeneration) -> None:
    """Put the language model that was quantised back in full precision, with the same adapters."""
    quantized, config = model.language_model, model.config
    if config.language_model_source is None:
        raise AlmosaicError(
            "the adapters sit on quantised weights whose originals are not recorded, so they cannot be "
            "merged; load the folder they came from in full precision"
        )
    path, hashed = config.language_model_source["path"], config.language_model_source["sha256"]
    if (found := weights_sha256(weights_folder(path))) != hashed:
        raise AlmosaicError(
            f"the language model {path} was quantised from weights with sha256 {hashed[:12]}, but now has "
            f"{found[:12]}; restore the original weights"
        )
    base = _load_base(config, path, None, None)
    if config.lora is not None:
        inject_lora(base, config.lora)
    adapters = {name: tensor for name, tensor in quantized.state_dict().items() if "lora_" in name}
    base.load_state_dict(adapters, strict=False)
    model.language_model = base.to(model.device).train(quantized.training)


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
    folder: str | Path,
    language_model: str | Path | None = None,
    *,
    quantize: Scheme | Literal["none"] | None = None,
    device: str | torch.device | None = None,
) -> AlmosaicForConditionalGeneration:
    """Load a run folder without frozen weights: the language model comes from where the folder says.

    Args:
        folder: written by `save_pretrained` after `apply_tuning`.
        language_model: its folder or hub name, where it has moved; the hash must be the recorded one.
        quantize: how to quantise the language model; None = as when the folder was trained, `none` = in full
            precision.
        device: where to put a quantised language model; None = the GPU when there is one.

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
    scheme = quantize or config.language_model_quantization
    base = _load_base(config, source["path"], None if scheme == "none" else scheme, device)
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


def _load_base(
    config: AlmosaicConfig, path: str, scheme: str | None, device: str | torch.device | None
) -> Any:
    """The frozen language model as the stage had it: its type, its rows, quantised to `scheme`."""
    dtype = config.text_config.dtype or torch.float32
    base = load_language_model(path, scheme, dtype, device, local_files_only=True)
    grow_vocabulary(base, config.text_config.vocab_size)
    return base


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if is_adapter_folder(folder):
        return read_adapter(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise AlmosaicError(
            f"{folder} holds no *.safetensors weights; the run that wrote it may not have finished"
        )
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
