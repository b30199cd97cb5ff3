"""Language models in 4 or 8 bits through bitsandbytes: weights shrink, what is trained stays precise.

Linear layers inside the language model are quantised while they are read; its word tables, norms and output
layer keep their type, and the audio parts are never touched (QLoRA, section 3).
"""

import logging
import os
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from almosaic.errors import AlmosaicError

Scheme = Literal["nf4", "fp4", "int8"]
SCHEMES = get_args(Scheme)


def target_device() -> torch.device:
    """Where this process computes: its own GPU under `torchrun`, the first one alone, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def quantization_config(scheme: str, dtype: torch.dtype, device: str | torch.device) -> BitsAndBytesConfig:
    """The library's settings: 4 bits with double quantisation, or 8 bits with outliers in 16.

    Products are computed in bfloat16 where the GPU can; a CPU computes in the type of the weights.

    Raises:
        AlmosaicError: another scheme, or bitsandbytes is not installed.
    """
    if scheme not in SCHEMES:
        raise AlmosaicError(f"quantize: {scheme} is unknown; choose one of {', '.join(SCHEMES)}")
    _check_installed(scheme)
    if scheme == "int8":
        # It would announce its casts to float16 in every layer of every step.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    if torch.device(device).type == "cuda":
        compute = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    else:
        compute = dtype if dtype == torch.bfloat16 else torch.float32
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=scheme,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _check_installed(scheme: str) -> None:
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise AlmosaicError(
            f"quantize: {scheme} needs bitsandbytes, which cannot be imported here "
            f"({' '.join(str(error).split())[:120]}); install it with pip install 'almosaic[quant]', or "
            "leave quantize out"
        ) from error


def load_language_model(
    name: str | Path,
    quantize: str | None = None,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    *,
    local_files_only: bool = False,
) -> Any:
    """A causal language model from a folder or the hub, its linear layers quantised while they are read.

    Args:
        name: folder or hub name, in full precision.
        quantize: `nf4`, `fp4`, `int8`; None = as it is, on the CPU.
        dtype: of the weights that are not quantised; "auto" = as published.
        device: where a quantised model is put; None = `target_device()`.
        local_files_only: do not ask the hub.

    Raises:
        AlmosaicError: it cannot be quantised here, or is stored quantised.
        OSError, ValueError: there is no such model.
    """
    config = AutoConfig.from_pretrained(name, local_files_only=local_files_only)
    if getattr(config, "quantization_config", None) is not None:
        raise AlmosaicError(
            f"the language model {name} is stored quantised; name its full-precision weights, and set "
            "quantize to load them in fewer bits"
        )
    if quantize is None:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype, local_files_only=local_files_only)
    options = _options(quantize, dtype if isinstance(dtype, torch.dtype) else config.dtype, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, dtype=dtype, local_files_only=local_files_only, **options
        )
    except (RuntimeError, ImportError) as error:
        raise AlmosaicError(
            f"{name} cannot be quantised to {quantize} here ({' '.join(str(error).split())[:160]}); leave "
            "quantize out, or use a device that bitsandbytes supports"
        ) from error
    del model.config.quantization_config  # our own configuration records it
    check_quantized(model, quantize, str(name))
    keep_layout(model)
    return model


def loading_options(folder: str | Path, quantize: str, device: str | torch.device | None) -> dict[str, Any]:
    """What `from_pretrained` of a whole model folder needs, to quantise its language model.

    Raises:
        AlmosaicError: it cannot be quantised here, or is stored quantised.
    """
    config = AutoConfig.from_pretrained(folder)
    if getattr(config, "quantization_config", None) is not None:
        raise AlmosaicError(f"{folder} is stored quantised already; leave quantize out")
    return _options(quantize, config.text_config.dtype, device)


def _options(quantize: str, dtype: torch.dtype | None, device: str | torch.device | None) -> dict[str, Any]:
    device = device or target_device()
    settings = quantization_config(quantize, dtype or torch.float32, device)
    return {"quantization_config": settings, "device_map": {"": device}}


def check_quantized(language_model: nn.Module, quantize: str, name: str) -> None:
    """AlmosaicError when no layer could be quantised, for which the library has only a warning."""
    if quantization_of(language_model) is None:
        raise AlmosaicError(
            f"quantize: {quantize} needs linear layers besides the output layer, but {name} "
            f"({type(language_model).__name__}) has none; leave quantize out"
        )


def quantization_of(model: nn.Module) -> Scheme | None:
    """How the linear layers of a model are quantised now; None when they are not."""
    for layer in quantized_layers(model).values():
        if type(layer).__name__ == "Linear4bit":
            return "nf4" if getattr(layer.weight, "quant_type", "") == "nf4" else "fp4"
        return "int8"
    return None


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of bitsandbytes in a model, by name; those of peft around them have the same class names."""
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__module__.startswith("bitsandbytes.")
    }


def check_writable(language_model: nn.Module) -> None:
    """AlmosaicError for quantised weights in a folder that would not say so."""
    if scheme := quantization_of(language_model):
        raise AlmosaicError(
            f"the language model's weights are quantised to {scheme} and cannot be written with this model; "
            'load it with quantize="none" first, or export it whole and quantise that when loading'
        )


def keep_layout(model: nn.Module) -> None:
    """Keep 4-bit weights as they were quantised.

    On a CPU with bfloat16 instructions the library would repack them at the first answer: for good, with
    rounded scales, without gradients, and only in multiples of 32 rows and 64 columns.
    """
    for layer in quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, with the scales that belong to quantised ones."""
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
