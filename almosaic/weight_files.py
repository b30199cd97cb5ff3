"""Files of foreign weights: read without running code from them, written whole or not at all."""

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from almosaic.errors import AlmosaicError

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
_WRAPPING_KEYS = ("model_state_dict", "state_dict", "model")


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors or torch file; what such a file is shows its first bytes, not its name.

    Raises:
        AlmosaicError: no such file, another or an incomplete one, code in it, or values that are no numbers.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(48)
    except OSError as error:
        raise AlmosaicError(f"{file} cannot be read ({error.strerror}): give a checkpoint file") from None
    if head.startswith(b"version https://git-lfs"):
        raise AlmosaicError(f"{file} is the pointer of Git LFS, not the weights: run git lfs pull")
    if head[8:9] == b"{":
        loaded: Any = _safetensors(file)
    elif head.startswith((b"PK", b"\x80")):
        loaded = _unpickled(file)
    else:
        raise AlmosaicError(
            f"{file}: expected a safetensors or torch file, found one that starts with {head[:16]!r}: "
            "check the download"
        )
    return _tensors(loaded, file)


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(file))
    except SafetensorError as error:
        raise _incomplete(file, "safetensors", error) from None


def _unpickled(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise _incomplete(file, "torch", error) from None
        raise AlmosaicError(
            f"{file}: expected plain tensors, found {found[1]}, which could run code: save the state dict "
            "alone and give that file"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise _incomplete(file, "torch", error) from None


def _incomplete(file: Path, kind: str, error: Exception) -> AlmosaicError:
    reason = " ".join(str(error).split()).split(". ")[0][:160]
    return AlmosaicError(
        f"{file}: expected a whole {kind} file, found one that cannot be read "
        f"({reason or 'it ends too early'}): download or copy it again"
    )


def _tensors(loaded: Any, file: Path) -> dict[str, Tensor]:
    """The state dict itself, also where a training checkpoint holds it beside other things."""
    if isinstance(loaded, Mapping):
        loaded = next((loaded[key] for key in _WRAPPING_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    if not isinstance(loaded, Mapping) or not loaded:
        raise AlmosaicError(
            f"{file}: expected a dictionary of tensors, found {type(loaded).__name__}: give a state dict"
        )
    # A teacher in a checkpoint of fairseq is a dictionary within the dictionary.
    nested = {key: value for key, value in loaded.items() if isinstance(value, Mapping)}
    flat = {f"{key}.{name}": value for key, values in nested.items() for name, value in values.items()}
    loaded = {key: value for key, value in loaded.items() if key not in nested} | flat
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise AlmosaicError(
                f"{file}: expected a dictionary of tensors, found {type(value).__name__} under {key!r}: "
                "give a state dict"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise AlmosaicError(
                f"{file}: expected finite weights, found NaN or infinity in {key}: the training of these "
                "weights had failed, give an earlier checkpoint"
            )
    return dict(loaded)


def check_new_file(file: Path) -> None:
    """Refuse a name of another kind, or one that is taken, as AlmosaicError."""
    if file.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise AlmosaicError(f"{file}: expected a name that ends in .safetensors, .pt, .pth or .bin")
    if file.exists():
        raise AlmosaicError(f"{file} exists; choose another name or remove it")


def write_weights(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors or torch file by its suffix; AlmosaicError where the disk refuses."""
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".safetensors":
            save_file(tensors, partial, metadata={"format": "pt"})
        else:
            torch.save(tensors, partial)
        partial.replace(file)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise AlmosaicError(
            f"{file}: cannot be written ({error}): make room or choose another place"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
