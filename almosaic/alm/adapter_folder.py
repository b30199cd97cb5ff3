"""The adapter folder, as peft reads it: LoRA, and the projector and the encoder whole, for a named base."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.sources import portable_source
from almosaic.errors import AlmosaicError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
WHOLE_PARTS = ("audio_tower", "multi_modal_projector")
_PREFIX = "base_model.model."
_LORA = re.compile(r"(\.lora_[A-Za-z_]+)\.default(?=\.|$)")
_SAVED_LORA = re.compile(r"(\.lora_[A-Za-z_]+)(?=\.|$)")


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder says that it holds an adapter."""
    return (folder / CONFIG_FILE).is_file()


def save_adapter(model: Any, folder: Path) -> None:
    """Write configuration and weights of everything but the language model's own weights.

    Raises:
        AlmosaicError: those weights are no longer the ones of a named language model.
    """
    from peft import LoraConfig
    from peft.utils.constants import DUMMY_TARGET_MODULES

    source = portable_source(model.config.language_model_source, folder)
    if source is None:
        raise AlmosaicError(
            "an adapter needs a language model as it was published, but this one's weights were trained, "
            "merged or are nobody's; export it whole instead (--merge)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    lora = model.config.lora or {}
    LoraConfig(
        base_model_name_or_path=source["path"],
        inference_mode=True,
        **({"r": lora["rank"], "lora_alpha": lora["alpha"], "lora_dropout": lora["dropout"]} if lora else {}),
        # Without LoRA nothing is adapted; peft has a name for that, since no match is an error.
        target_modules=target_expression(model) if lora else DUMMY_TARGET_MODULES,
        modules_to_save=list(WHOLE_PARTS),
    ).save_pretrained(str(folder))
    _save_config(model, source, folder)
    model.generation_config.save_pretrained(folder)
    tensors = {
        _PREFIX + _LORA.sub(r"\1", name): tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name.startswith(tuple(f"{part}." for part in WHOLE_PARTS)) or ".lora_" in name
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def target_expression(model: Any) -> str:
    """The expression for peft that names exactly the adapted layers, all below `language_model`."""
    from peft.tuners.lora import LoraLayer

    modules = dict(model.named_modules())
    adapted = [name for name, module in modules.items() if isinstance(module, LoraLayer)]
    # Layer numbers as patterns, so that deep models need a line and not a page.
    short = dict.fromkeys(re.sub(r"(?<=\\\.)\d+(?=\\\.)", r"\\d+", re.escape(name)) for name in adapted)
    expression = "|".join(short)
    if [name for name in modules if re.fullmatch(expression, name)] == adapted:
        return expression
    return "|".join(map(re.escape, adapted))


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter folder under the model's own names.

    Raises:
        AlmosaicError: there are none.
    """
    if not (folder / WEIGHTS_FILE).is_file():
        raise AlmosaicError(f"{folder} holds {CONFIG_FILE} but no {WEIGHTS_FILE}; export the adapter again")
    return {
        _SAVED_LORA.sub(r"\1.default", name.removeprefix(_PREFIX)): tensor
        for name, tensor in load_file(folder / WEIGHTS_FILE).items()
    }


def _save_config(model: Any, source: dict[str, str], folder: Path) -> None:
    """config.json as `save_pretrained` writes it, with the source as seen from `folder`."""
    config: AlmosaicConfig = model.config
    here = config.language_model_source
    config.language_model_source, config.architectures = source, [type(model).__name__]
    try:
        config.save_pretrained(folder)
    finally:
        config.language_model_source = here
