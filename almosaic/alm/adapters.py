"""LoRA adapters inside the language model, through peft: put in, merged back."""

import re
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from almosaic.errors import AlmosaicError

ALL_LINEAR = "all-linear"


def lora_names(language_model: Any, targets: str | tuple[str, ...] | list[str]) -> list[str]:
    """Names of the linear layers to adapt, below `language_model`; never its output layer.

    Raises:
        AlmosaicError: a target matches no layer.
    """
    head = language_model.get_output_embeddings()
    linear = [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    if targets == ALL_LINEAR:
        return linear
    leaves = {name.rpartition(".")[2] for name in linear}
    if missing := sorted(set(targets) - leaves):
        raise AlmosaicError(
            f"lora_targets names {missing[0]}, which this language model does not have; "
            f"it has {', '.join(sorted(leaves))} (or use {ALL_LINEAR})"
        )
    return [name for name in linear if name.rpartition(".")[2] in targets]


def inject_lora(language_model: Any, lora: dict[str, Any]) -> None:
    """Put fresh adapters into a language model and freeze the rest of it; the audio parts are out of reach.

    `lora` holds rank, alpha, dropout and targets. The start is a no-op: the second factor is zero (LoRA,
    section 4.1). Adapters are kept in float32 beside half-precision weights.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = lora_names(language_model, lora["targets"])
    transposed = all(isinstance(language_model.get_submodule(name), Conv1D) for name in names)
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        # One anchored expression: a bare name would match wherever it ends a module's name.
        target_modules="|".join(re.escape(name) for name in names),
        fan_in_fan_out=transposed,
    )
    inject_adapter_in_model(config, language_model)
    for name, parameter in language_model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()


@torch.no_grad()
def merge_lora(language_model: Any) -> None:
    """Add the adapters to the weights and take them out; nothing happens without adapters."""
    from peft.tuners.lora import LoraLayer

    layers = [
        (name, module) for name, module in language_model.named_modules() if isinstance(module, LoraLayer)
    ]
    for name, layer in layers:
        layer.merge(safe_merge=True)
        parent, _, leaf = name.rpartition(".")
        setattr(language_model.get_submodule(parent), leaf, layer.get_base_layer())
    if layers:
        del language_model.peft_config
