"""A file of published audio-language weights (LTU) to a model folder around a Llama, and back."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig

from almosaic.alm import AlmosaicConfig, AlmosaicForConditionalGeneration, AlmosaicProcessor, apply_tuning
from almosaic.alm.alpaca import ALPACA_SHORT, PUBLISHED_SAMPLING, prepare_tokenizer
from almosaic.alm.ltu import PROJECTOR, TUNE, from_released_ltu, to_released_ltu
from almosaic.alm.sources import reach
from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.training.alm_parts import open_language_model
from almosaic.training.checkpoints import whole_folder
from almosaic.weight_files import read_weights, write_weights


def convert_released_alm(
    file: Path,
    out: Path,
    language_model: Path,
    extractor: AudioMosaicFeatureExtractor,
    *,
    heads: int | None = None,
) -> None:
    """Write published audio-language weights as a model folder that `load_model` opens.

    The folder holds encoder, projector and adapters, and the name and hash of the language model; prompt and
    decoding are those of the release.

    Args:
        file: safetensors, or a torch file, which is read without running code from it.
        out: a new or empty folder.
        language_model: folder or hub name of the Llama that the adapters were trained in, with its tokenizer.
        extractor: the front end.
        heads: attention heads of the encoder; of 64 channels, as published, when None.

    Raises:
        AlmosaicError: unreadable, not such weights, or a language model that they do not fit.
    """
    tensors = read_weights(file)
    cached = reach(str(language_model))
    try:
        text_config = AutoConfig.from_pretrained(language_model, local_files_only=cached)
    except (OSError, ValueError) as error:
        raise AlmosaicError(
            f"{language_model}: expected the folder of a language model, found none "
            f"({' '.join(str(error).split())[:160]}): give one with config.json, weights and tokenizer"
        ) from None
    try:
        audio_config, weights = from_released_ltu(tensors, text_config, num_attention_heads=heads)
    except AlmosaicError as error:
        raise AlmosaicError(f"{file} and {language_model}: {error}") from None
    model, processor = _joined(audio_config, language_model, extractor)
    _put_in(model, weights)
    with whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)


def _joined(
    audio_config: AudioMosaicConfig, language_model: Path, extractor: AudioMosaicFeatureExtractor
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    """A model of the published form whose own weights are still to come, and its processor."""
    base, tokenizer = open_language_model(language_model)
    prepare_tokenizer(tokenizer)
    model = AlmosaicForConditionalGeneration.from_parts(
        AudioMosaicModel(audio_config), base, PROJECTOR, tokenizer, chat_template=ALPACA_SHORT
    )
    if model.config.language_model_source is None:
        raise AlmosaicError(
            f"{language_model}: its words differ from those in its *.safetensors files; restore the folder"
        )
    apply_tuning(model, TUNE)
    for name, value in PUBLISHED_SAMPLING.items():
        setattr(model.generation_config, name, value)
    processor = AlmosaicProcessor(extractor, tokenizer, chat_template=ALPACA_SHORT, queries=PROJECTOR.queries)
    return model, processor


@torch.no_grad()
def _put_in(model: AlmosaicForConditionalGeneration, weights: dict[str, Tensor]) -> None:
    """Copy every tensor into the parameter of its name; the checks before have matched names and shapes."""
    parameters = dict(model.named_parameters())
    untouched = {name for name, parameter in parameters.items() if parameter.requires_grad} - weights.keys()
    if untouched or weights.keys() - parameters.keys():
        listed = sorted(untouched | (weights.keys() - parameters.keys()))
        raise AlmosaicError(f"published audio-language weights do not fill {', '.join(listed[:6])}")
    for name, value in weights.items():
        parameters[name].copy_(value)


def write_released_alm(folder: Path, file: Path) -> None:
    """Write what was trained of an audio-language model under the published names.

    Raises:
        AlmosaicError: a model of another form than the published one, or one whose adapters are merged.
    """
    config = AlmosaicConfig.from_pretrained(folder)
    write_weights(to_released_ltu(config, _trained(folder)), file)


def _trained(folder: Path) -> dict[str, Any]:
    """The tensors of a folder without the language model's own, which may be too many for the memory."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118 (not a dictionary)
                if not name.startswith("language_model.") or ".lora_" in name:
                    tensors[name] = stream.get_tensor(name)
    return tensors
