"""The model that an audio-language stage starts from: joined from parts, or that of an earlier stage."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor
from almosaic.alm.alpaca import prepare_tokenizer
from almosaic.alm.projectors import MLPProjectorSettings, ProjectorSettings
from almosaic.alm.quantization import Scheme, load_language_model, quantization_of, target_device
from almosaic.alm.sources import reach
from almosaic.alm.templates import named_template
from almosaic.encoder import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.loading import load_model, model_folder, read_config


@dataclass(frozen=True)
class Parts:
    """Where the parts come from.

    Attributes:
        audio_tower: encoder folder with its front end; with `language_model`.
        language_model: folder or hub name of a causal language model with its tokenizer.
        start: model folder of an earlier audio-language stage, instead of the two.
    """

    audio_tower: Path | None = None
    language_model: str | Path | None = None
    start: Path | None = None


def open_language_model(
    name: str | Path, dtype: Any = "auto", quantize: Scheme | None = None
) -> tuple[Any, Any]:
    """A causal language model and its tokenizer, from a folder or the hub, quantised if asked.

    Raises:
        AlmosaicError: neither is there, or it cannot be quantised here.
    """
    cached = reach(str(name))
    try:
        model = load_language_model(name, quantize, dtype, local_files_only=cached)
        return model, AutoTokenizer.from_pretrained(name, local_files_only=cached)
    except AlmosaicError:
        raise
    except (OSError, ValueError) as error:
        raise AlmosaicError(
            f"language model {str(name)!r} cannot be had ({' '.join(str(error).split())[:200]}); "
            "give a folder, download it first, or train {name: tiny}"
        ) from error


def join_parts(
    parts: Parts,
    projector: ProjectorSettings | None,
    layer: int | None,
    *,
    trains_words: bool,
    quantize: Scheme | None = None,
    chat_template: str | None = None,
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    """A model with a fresh projector and its processor; in single precision where `trains_words`.

    `quantize` loads the language model in fewer bits; `chat_template` names one, see `named_template`, and
    with `alpaca_short` padding, too, is that of LTU.

    Raises:
        AlmosaicError: a part is missing or is something else.
    """
    if parts.audio_tower is None or parts.language_model is None:
        raise AlmosaicError(
            "an audio-language stage starts from an earlier one, or from audio_tower and language_model; "
            f"found audio_tower {parts.audio_tower} and language_model {parts.language_model}"
        )
    tower, extractor = load_model(parts.audio_tower, kind="pretrain", device="cpu")
    if not isinstance(tower, AudioMosaicModel):
        raise AlmosaicError(f"audio_tower {parts.audio_tower} is not an encoder; name a pretraining stage")
    # Weights that are trained in full need single precision; frozen ones stay as they were published.
    dtype = torch.float32 if trains_words else "auto"
    language_model, tokenizer = open_language_model(parts.language_model, dtype, quantize)
    projector = projector or MLPProjectorSettings(queries=32, hidden_size=None)
    if chat_template == "alpaca_short":
        prepare_tokenizer(tokenizer)
    template = None if chat_template is None else named_template(chat_template)
    model = AlmosaicForConditionalGeneration.from_parts(
        tower, language_model, projector, tokenizer, layer=layer, chat_template=template
    )
    return model, AlmosaicProcessor(extractor, tokenizer, chat_template=template, queries=projector.queries)


def open_start(
    parts: Parts, projector: ProjectorSettings | None, layer: int | None, quantize: Scheme | None = None
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    """The model and processor of an earlier stage, whose projector, layer and quantisation stay.

    Raises:
        AlmosaicError: the folder holds something else, or the stage asks for another of the three.
    """
    if parts.audio_tower is not None or parts.language_model is not None:
        raise AlmosaicError("give an earlier stage to start from, or an audio_tower and a language_model")
    assert parts.start is not None
    model, processor = load_model(parts.start, kind="alm", device=_loading_device(parts.start))
    if not isinstance(model, AlmosaicForConditionalGeneration):
        raise AlmosaicError(f"{parts.start} is not an audio-language model; name an earlier alm stage")
    if projector is not None and projector.model_dump() != model.config.projector:
        raise AlmosaicError(
            f"projector: the stage starts from a model with {model.config.projector}; leave `projector` out"
        )
    if layer is not None and layer != model.config.layer:
        raise AlmosaicError(f"layer: the stage starts from a model with {model.config.layer}; leave it out")
    if getattr(model, "hf_quantizer", None) is not None:
        raise AlmosaicError(
            f"{parts.start} holds quantised weights, which a stage cannot go on from; start from the folder "
            "that they were quantised from"
        )
    found = quantization_of(model.language_model)
    if quantize is not None and quantize != found:
        raise AlmosaicError(
            f"quantize: the stage starts from a model trained with {found or 'full precision'}; leave "
            f"`quantize` out, or set {quantize} in the stage that joins the parts"
        )
    return model, processor


def _loading_device(start: Path) -> torch.device:
    """Where to load an earlier stage: weights are quantised where training goes on, others move later."""
    config = read_config(model_folder(start, "alm"))
    return target_device() if config.get("language_model_quantization") else torch.device("cpu")
