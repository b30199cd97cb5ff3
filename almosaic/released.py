"""Files of published AudioMosaic weights to model folders of ours, with their front end, and back."""

import csv
import logging
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

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.conversion import HEAD_WIDTH, from_released, to_released
from almosaic.errors import AlmosaicError
from almosaic.features import FRONT_END_PRESETS, AudioMosaicFeatureExtractor, FrontEndSettings
from almosaic.loading import model_folder, model_type
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.training.checkpoints import WEIGHTS_FILE, whole_folder

logger = logging.getLogger(__name__)

CLASSES = (AudioMosaicModel, AudioMosaicForPreTraining, AudioMosaicForAudioClassification)
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
SHIPPED_MIN_SAMPLES = 16_000  # what the preprocessing beside the released weights pads clips to
_WRAPPING_KEYS = ("model_state_dict", "state_dict", "model")


def convert_released(
    file: Path,
    out: Path,
    preset: str = "audioset",
    *,
    labels: Path | None = None,
    std_factor: float | None = None,
    heads: int | None = None,
    probe_layer: int | None = None,
) -> None:
    """Write a published AudioMosaic checkpoint as a model folder with its front end.

    Args:
        file: safetensors, or a torch file, which is read without running code from it.
        out: a new or empty folder.
        preset: of the release: front end and kind of labels.
        labels: names of a classifier's classes, see `read_labels`.
        std_factor: 2 as in training, 1 as in the preprocessing shipped beside the released weights, which
            also pads clips below 16,000 samples; None = the preset's.
        heads: attention heads; of 64 channels, as published, when None.
        probe_layer: the 0-based block of a probe that reads one layer; no tensor tells it.

    Raises:
        AlmosaicError: unreadable, not such a checkpoint, an unknown preset, labels that do not fit, or `out`
            is not empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise AlmosaicError(f"{out} exists and is not an empty folder; choose another or clear it")
    tensors = read_weights(file)
    try:
        config, weights = from_released(tensors, preset, num_attention_heads=heads, readout_layer=probe_layer)
    except AlmosaicError as error:
        raise AlmosaicError(f"{file}: {error}") from None
    if labels is not None:
        _name_classes(config, read_labels(labels), labels)
    extractor = _front_end(config, preset, std_factor)
    model_class = next(built for built in CLASSES if built.__name__ == config.architectures[0])
    with torch.device("meta"):  # nothing of it is drawn: the file has every tensor
        model = model_class(config)
    model.load_state_dict({key: _single(value) for key, value in weights.items()}, assign=True)
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        extractor.save_pretrained(temporary)


def _single(value: Tensor) -> Tensor:
    """A tensor of its own memory, in single precision where it is a floating one."""
    return value.to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)


def _front_end(
    config: AudioMosaicConfig, preset: str, std_factor: float | None
) -> AudioMosaicFeatureExtractor:
    usual = FRONT_END_PRESETS[preset].window_frames
    if config.window_frames != usual:
        logger.info(
            "the weights are for windows of %d frames, releases of preset %s have %d: check --preset",
            *(config.window_frames, preset, usual),
        )
    chosen: dict[str, Any] = {"preset": preset, "window_frames": config.window_frames}
    if std_factor is not None:
        chosen["std_factor"] = std_factor
    if std_factor == 1.0:
        chosen["min_samples"] = SHIPPED_MIN_SAMPLES
    return AudioMosaicFeatureExtractor.from_settings(FrontEndSettings.model_validate(chosen))


def _name_classes(config: AudioMosaicConfig, names: list[str], source: Path) -> None:
    if config.architectures != [AudioMosaicForAudioClassification.__name__]:
        raise AlmosaicError(
            f"{source}: expected a classifier to name the classes of, found the weights of "
            f"{config.architectures[0]}: leave labels out"
        )
    if len(names) != config.num_labels:
        raise AlmosaicError(
            f"{source}: expected {config.num_labels} labels, as many as the weights have classes, "
            f"found {len(names)}: give the list of this data set"
        )
    config.id2label = dict(enumerate(names))
    config.label2id = {name: index for index, name in enumerate(names)}


def read_labels(path: Path) -> list[str]:
    """Class names in order: a CSV with columns index and display_name, or label, or one name a line.

    Raises:
        AlmosaicError: no such file, no names in it, or an index that is left out, twice or no number.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise AlmosaicError(
            f"{path}: expected a text file of labels, found none ({error}): give another"
        ) from None
    rows = list(csv.reader(lines))
    if rows and {"index", "display_name"} <= set(rows[0]):
        number, name = rows[0].index("index"), rows[0].index("display_name")
        full = [row for row in rows[1:] if len(row) == len(rows[0])]
        named = {row[number].strip(): row[name].strip() for row in full}
        names = [named.get(str(index), "") for index in range(len(rows) - 1)]
    elif rows and "label" in rows[0]:
        names = [dict(zip(rows[0], row, strict=False)).get("label", "").strip() for row in rows[1:]]
    else:
        names = [line.strip() for line in lines]
    if not names or "" in names:
        missing = f"none for class {names.index('')}" if names else "none"
        raise AlmosaicError(
            f"{path}: expected one label for each class from 0 on, found {missing}: use a CSV with columns "
            "index, mid, display_name, one with a column label, or one label a line"
        )
    return names


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


def write_released(run_or_model: str | Path, file: Path) -> None:
    """Write an encoder, pretraining model or classifier under the published key names; whole or not at all.

    Args:
        run_or_model: a model folder, or a run, whose last stage is taken.
        file: a new .safetensors, .pt, .pth or .bin file.

    Raises:
        AlmosaicError: no such model, an audio-language model, a suffix that is none of these, or `file`
            exists.
    """
    if file.suffix not in (".safetensors", *TORCH_SUFFIXES):
        raise AlmosaicError(f"{file}: expected a name that ends in .safetensors, .pt, .pth or .bin")
    if file.exists():
        raise AlmosaicError(f"{file} exists; choose another name or remove it")
    folder = model_folder(run_or_model)
    if model_type(folder) != "audiomosaic":
        raise AlmosaicError(
            f"{folder} holds an audio-language model; the published format has a place for encoders and "
            "classifiers only"
        )
    config = AudioMosaicConfig.from_pretrained(folder)
    released = to_released(config, read_weights(folder / WEIGHTS_FILE))
    if config.hidden_size != HEAD_WIDTH * config.num_attention_heads:
        logger.info(
            "%d heads of %d channels, which no tensor tells: convert back with --heads %d",
            *(config.num_attention_heads, config.hidden_size // config.num_attention_heads),
            config.num_attention_heads,
        )
    _write(released, file)


def _write(tensors: dict[str, Tensor], file: Path) -> None:
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
