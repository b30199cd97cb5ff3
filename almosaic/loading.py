"""Open a model folder, or the last stage of a run folder, ready for use."""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import AutoProcessor

from almosaic.alm import AlmosaicConfig, AlmosaicForConditionalGeneration, load_partial
from almosaic.alm.quantization import Scheme, loading_options
from almosaic.encoder import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor

Kind = Literal["alm", "pretrain", "finetune"]


def load_model(
    folder: str | Path,
    *,
    kind: Kind | None = None,
    device: str | torch.device | None = None,
    language_model: str | Path | None = None,
    quantize: Scheme | Literal["none"] | None = None,
) -> tuple[Any, Any]:
    """Model and processor of a model folder, or of the last stage of a run folder, ready for use.

    Args:
        folder: an audio-language model, with or without its frozen language model, or an encoder (whose
            processor is its feature extractor), or a run folder.
        kind: which stages of a run count; None = both.
        device: where to put it; None = the GPU when there is one.
        language_model: folder or hub name of the frozen language model of a run or an adapter folder, where
            it is no longer where the folder says.
        quantize: load the language model in 4 (`nf4`, `fp4`) or 8 (`int8`) bits through bitsandbytes; the
            audio parts and the output layer stay as they are. None = as the folder was trained, `none` = in
            full precision.

    Raises:
        AlmosaicError: the folder holds no model, its weights do not fit its configuration, or they cannot be
            quantised here.
    """
    folder = model_folder(folder, kind)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if model_type(folder) == "audiomosaic":
            if quantize is not None:
                raise AlmosaicError(
                    f"{folder} is an encoder, and quantize is for language models; leave it out"
                )
            encoder = load_whole(AudioMosaicModel, folder)
            return encoder.to(device).eval(), AudioMosaicFeatureExtractor.from_pretrained(folder)
        partial = AlmosaicConfig.from_pretrained(folder).language_model_source is not None
        if partial:
            model = load_partial(folder, _absolute(language_model), quantize=quantize, device=device)
        else:
            if language_model is not None:
                raise AlmosaicError(
                    f"{folder} holds its language model's weights; leave language_model {language_model} out"
                )
            options = {} if quantize in (None, "none") else loading_options(folder, quantize, device)
            model = load_whole(AlmosaicForConditionalGeneration, folder, **options)
        model.name_or_path = str(folder)  # where `embed` looks for the front end
        return model.to(device).eval(), AutoProcessor.from_pretrained(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise AlmosaicError(f"{folder} cannot be loaded: {reason}; restore or retrain it") from error


def _absolute(name: str | Path | None) -> str | Path | None:
    """A folder by its whole path, since a model remembers it; a hub name as it is."""
    return Path(name).resolve() if name is not None and Path(name).is_dir() else name


def load_whole(model_class: Any, folder: Path, **options: Any) -> Any:
    """A model of which no weight is missing: the library would fill gaps with random numbers."""
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):
        raise AlmosaicError(
            f"{folder} lacks {len(missing)} weights that its configuration asks for, {missing[0]} among "
            "them; restore or retrain it"
        )
    return model


def model_folder(folder: str | Path, kind: Kind | None = None) -> Path:
    """The folder itself when it holds a model, else that of the last stage of the run, else AlmosaicError."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return folder
    if not folder.is_dir():
        raise AlmosaicError(f"{folder} is not a folder; give a model folder or a run folder")
    wanted = ("alm", "pretrain", "finetune") if kind is None else (kind,)
    stages: list[tuple[int, Path]] = []
    for note in folder.glob("stages/*/stage.json"):
        stage = json.loads(note.read_text(encoding="utf-8"))
        model = note.parent / "model"
        if stage["kind"] in wanted and (model / "config.json").is_file():
            stages.append((int(stage["order"]), model))
    if not stages:
        raise AlmosaicError(
            f"{folder} holds neither config.json nor a finished stage of kind {' or '.join(wanted)}; "
            "give a model folder, or a run whose training has finished"
        )
    return max(stages)[1]


def model_type(folder: Path) -> str:
    """`audiomosaic` (an encoder) or `almosaic`; AlmosaicError for any other model."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if found not in ("audiomosaic", "almosaic"):
        raise AlmosaicError(
            f"{folder} holds a model of type {found}; expected audiomosaic (an encoder) or almosaic; "
            "give another folder"
        )
    return str(found)
