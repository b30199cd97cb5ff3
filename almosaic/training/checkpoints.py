"""Folders that are whole or absent: written under a temporary name, flushed to the disk, then renamed."""

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from almosaic.errors import AlmosaicError
from almosaic.files import write_whole

STATE_FILE = "trainer_state.json"
ROWS_FILE = "rows.json"
SECONDS_FILE = "seconds.json"
OPTIMIZER_FILE = "optimizer.pt"
SCHEDULER_FILE = "scheduler.pt"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@contextmanager
def whole_folder(path: Path, inner: str = "", *, write: bool = True) -> Iterator[Path]:
    """Yield `tmp-<name>` beside `path` to write into; it replaces `path` on success, else it goes.

    With `inner`, only that folder within it is kept. A process with `write` False only learns the name:
    another process makes the folder and puts it in place.

    Raises:
        AlmosaicError: the disk is full or cannot be written; whatever was at `path` before is still there.
    """
    temporary = path.with_name(f"tmp-{path.name}")
    if not write:
        yield temporary
        return
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        put_in_place(temporary / inner, path)
        shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if reason := _disk_trouble(error):
            raise AlmosaicError(
                f"cannot write {path}: {reason}; free some space or choose another folder"
            ) from error
        raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def put_in_place(written: Path, path: Path) -> None:
    """Flush the folder `written` to the disk and give it the name `path`, replacing what is there."""
    for file in [*written.rglob("*"), written]:
        _flush(file)
    replaced = path.with_name(f"tmp-replaced-{path.name}")
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    written.rename(path)
    _flush(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def write_model(
    folder: Path, model: Any, *parts: Any, name: str = "model", tensors: dict[str, Any] | None = None
) -> Path:
    """Write `folder/name` with `save_pretrained` of a model and what goes with it, and return its path.

    `tensors` are those of a sharded model, see `whole_tensors`.
    """
    with whole_folder(folder / name) as temporary:
        model.save_pretrained(temporary, **({} if tensors is None else {"state_dict": tensors}))
        for part in parts:
            part.save_pretrained(temporary)
    return folder / name


def write_json(path: Path, content: Any) -> None:
    """Write one JSON file atomically."""
    write_whole(path, json.dumps(content, indent=1) + "\n")


def whole_checkpoints(folder: Path) -> list[Path]:
    """The `checkpoint-N` folders that hold a trainer state, oldest step first; anything else is ignored."""
    if not folder.is_dir():
        return []
    steps = {
        int(match[1]): entry
        for entry in folder.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d+)", entry.name))
    }
    return [steps[step] for step in sorted(steps) if (steps[step] / STATE_FILE).is_file()]


def latest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the highest step in a stage folder, or None."""
    checkpoints = whole_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def state_of(checkpoint: Path) -> dict[str, Any]:
    """What the trainer notes beside the tensors: steps, and the lines logged so far."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    return state


def seconds_of(checkpoint: Path) -> float:
    """How long training up to a checkpoint took, 0 for one that does not say."""
    place = checkpoint / SECONDS_FILE
    return float(json.loads(place.read_text(encoding="utf-8"))["seconds"]) if place.is_file() else 0.0


def is_final(checkpoint: Path, steps: int) -> bool:
    """Whether a checkpoint is the last of a stage of so many steps (-1 = as many as it was planned with)."""
    state = state_of(checkpoint)
    return bool(state["global_step"] >= (steps if steps > 0 else state["max_steps"]))


def keep_count(folder: Path, rows: int, *, resumes: bool, write: bool) -> None:
    """Note how many rows a stage trains on; AlmosaicError where one that resumes began with another number.

    The order of every epoch hangs on that number: with another it would not be the rest of the same run.
    """
    place = folder / ROWS_FILE
    if resumes and place.is_file():
        began = json.loads(place.read_text(encoding="utf-8"))["rows"]
        if began != rows:
            raise AlmosaicError(
                f"{folder}: training began with {began} clips or rows, the data now has {rows}: "
                "put the data back as it was, or train the stage anew in another folder"
            )
    elif write and not resumes:
        write_json(place, {"rows": rows})


def remove_old(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` whole checkpoints of a stage folder."""
    for checkpoint in whole_checkpoints(folder)[:-keep]:
        checkpoint.rename(checkpoint.with_name(f"tmp-removed-{checkpoint.name}"))  # never half of one
    remove_temporary(folder)


def remove_temporary(folder: Path) -> None:
    """Delete what a killed process was writing or deleting in a stage folder."""
    for entry in folder.glob("tmp-*"):
        shutil.rmtree(entry, ignore_errors=True)


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load a checkpoint's tensors into `model`, sharded or not, of which only keys it never saves may lack.

    Raises:
        AlmosaicError: a tensor is missing, unknown or of another shape.
    """
    names = [WEIGHTS_FILE]
    if (checkpoint / WEIGHTS_INDEX).is_file():
        index = json.loads((checkpoint / WEIGHTS_INDEX).read_text(encoding="utf-8"))
        names = sorted(set(index["weight_map"].values()))
    saved = {key: tensor for name in names for key, tensor in load_file(checkpoint / name).items()}
    own = model.state_dict()
    never_saved = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    # Tied tensors are saved once, under one of their names.
    present = {_storage(own[key]) for key in saved if key in own}
    missing = [
        key
        for key in own
        if key not in saved and key not in never_saved and _storage(own[key]) not in present
    ]
    wrong = [key for key in saved if key not in own or own[key].shape != saved[key].shape]
    if missing or wrong:
        raise AlmosaicError(
            f"checkpoint {checkpoint} does not fit the model of this recipe: missing {_some(missing)}, "
            f"unknown or of another shape {_some(wrong)}; resume with the recipe that wrote it, or start anew"
        )
    with torch.no_grad():
        for key, tensor in saved.items():
            _fill(own[key], tensor)


def whole_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is saved of a model that is sharded over processes, on the CPU; all of them have to call it.

    Tensors that are never saved (frozen language model weights) are not gathered.
    """
    never_saved = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    return {key: _whole(tensor) for key, tensor in model.state_dict().items() if key not in never_saved}


def save_sharded_optimizer(folder: Path, model: nn.Module, optimizer: Any, *, write: bool) -> None:
    """Write the state of an optimizer over a sharded model as one file; all processes have to call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    if write:
        torch.save(state, folder / OPTIMIZER_FILE)


def load_sharded_optimizer(folder: Path, model: nn.Module, optimizer: Any) -> None:
    """Give each process its share of the state that `save_sharded_optimizer` wrote."""
    state = torch.load(folder / OPTIMIZER_FILE, weights_only=True)
    set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


def _fill(own: torch.Tensor, values: torch.Tensor) -> None:
    """Write values into a tensor of the model, or this process's share of them."""
    if isinstance(own, DTensor):
        values = distribute_tensor(
            values.to(own.device), own.device_mesh, own.placements, src_data_rank=None
        ).to_local()
        own = own.to_local()
    own.copy_(values)


def _storage(tensor: torch.Tensor) -> int:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).data_ptr()


def _some(keys: list[str]) -> str:
    return (", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")) or "none"


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_trouble(error: BaseException) -> str | None:
    """The reason in words when the disk refused a write, else None."""
    if isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EACCES,
    ):
        return os.strerror(error.errno).lower()
    # torch and safetensors wrap what the system said in their own errors.
    text = str(error)
    if "No space left" in text or "PytorchStreamWriter failed" in text or "os error 28" in text:
        return "no space left on device"
    return None
