"""Use of a trained model: embed clips, answer questions in batches, stream one answer."""

import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import StoppingCriteria, TextIteratorStreamer

from almosaic.alm.processing import Encoded, clip_sources
from almosaic.audio import AudioSource, load_audio
from almosaic.encoder import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor, frames_of
from almosaic.loading import load_model as load_model
from almosaic.masking import PatchGrid
from almosaic.pooling import check_layer, token_weights, window_weights
from almosaic.settings import Settings

Conversation = Mapping[str, Any]
# Conversations are sorted by length within this many batches: little padding, and results still come early.
_SORTED_BATCHES = 8


class SamplingSettings(Settings):
    """How words are chosen: greedy unless one of temperature, top_p, top_k is given."""

    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    num_beams: int = Field(1, ge=1)
    num_return_sequences: int = Field(1, ge=1)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = None

    @classmethod
    def of(cls, sampling: Mapping[str, Any]) -> "SamplingSettings":
        """The settings of keyword arguments, and the seed set; AlmosaicError where one does not fit."""
        try:
            settings = cls(**sampling)
        except ValidationError as error:
            wrong, known = error.errors()[0], ", ".join(cls.model_fields)
            name, reason = wrong["loc"][0], wrong["msg"].lower()
            raise AlmosaicError(f"sampling setting {name}: {reason}; known settings: {known}") from error
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        return settings

    def arguments(self) -> dict[str, Any]:
        """Arguments of the library's `generate`; None switches off what a language model brings."""
        chosen = (self.temperature, self.top_p, self.top_k)
        return {"do_sample": any(value is not None for value in chosen), **self.model_dump(exclude={"seed"})}


def embed(
    model: Any,
    sources: Iterable[AudioSource],
    layer: int | None = None,
    batch_size: int = 8,
    feature_extractor: AudioMosaicFeatureExtractor | None = None,
    failures: list[tuple[str, str]] | None = None,
    pooling: str | None = None,
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """One vector [D] per clip: pooled over the tokens of each window, then over the windows.

    A window counts as much as it has real frames, so that a last one of a few frames does not count for half.

    Args:
        model: an encoder, or an audio-language model, whose encoder is used.
        sources: paths (which are the ids of the results) or other sources (numbered from 0).
        layer: 0-based block to read; None = the encoder's pooled output.
        batch_size: clips at a time.
        feature_extractor: the front end; None = the one saved beside the model.
        failures: where to note (id, reason) of clips that cannot be used; None = the first one is raised.
        pooling: `mean` of all tokens, `mean_valid` without padding, `cls`; None = as the encoder does.

    Raises:
        AlmosaicError: the layer does not exist, or no front end is known; AudioError as `failures` says.
    """
    tower = getattr(model, "audio_tower", model)
    check_layer(tower, layer)
    extractor = feature_extractor or _saved_extractor(model)
    rows = enumerate(sources)
    while batch := list(islice(rows, batch_size)):
        loaded = []
        for index, source in batch:
            path = isinstance(source, str | Path) and not str(source).startswith("data:")
            name = str(source if path else index)
            try:
                loaded.append((name, load_audio(source)))
            except AlmosaicError as error:
                if failures is None:
                    raise
                failures.append((name, str(error)))
        if loaded:
            vectors = _vectors(tower, extractor, [waveform for _, waveform in loaded], layer, pooling)
            yield from zip([name for name, _ in loaded], vectors, strict=True)


def _saved_extractor(model: Any) -> AudioMosaicFeatureExtractor:
    try:
        found: AudioMosaicFeatureExtractor = AudioMosaicFeatureExtractor.from_pretrained(model.name_or_path)
    except OSError as error:
        raise AlmosaicError("no front end is saved beside this model; pass feature_extractor=") from error
    return found


@torch.inference_mode()
def _vectors(
    tower: AudioMosaicModel,
    extractor: AudioMosaicFeatureExtractor,
    waveforms: list[NDArray[np.float32]],
    layer: int | None,
    pooling: str | None,
) -> list[NDArray[np.float32]]:
    """One vector [D] per waveform."""
    features, mask, windows = _windows(extractor, waveforms, tower.device)
    pooled = []
    # Long clips bring many windows; the encoder still sees a few at a time.
    for part, part_mask in zip(torch.split(features, 64), torch.split(mask, 64), strict=True):
        output = tower(
            part.to(tower.dtype), input_features_mask=part_mask, output_hidden_states=layer is not None
        )
        tokens = output.last_hidden_state if layer is None else output.hidden_states[layer + 1]
        grid = PatchGrid.of(part.shape[1], part.shape[2], tower.config.patch_size)
        weights = token_weights(pooling or tower.config.pooling, part_mask, grid)
        pooled.append(torch.einsum("bl,bld->bd", weights, tokens.float()))
    weighted = torch.cat(pooled) * window_weights(mask, windows)[:, None]
    return [clip.sum(dim=0).cpu().numpy() for clip in torch.split(weighted, windows.tolist())]


def _windows(
    extractor: AudioMosaicFeatureExtractor, waveforms: list[NDArray[np.float32]], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised windows, their mask and their number per clip, computed on `device`."""
    clips = [torch.from_numpy(waveform) for waveform in waveforms]
    padded = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True).to(device)
    return extractor.featurize(padded, torch.tensor([len(clip) for clip in clips], device=device))


def generate(
    model: Any,
    processor: Any,
    conversations: Iterable[Conversation],
    *,
    batch_size: int = 8,
    max_new_tokens: int = 64,
    **sampling: Any,
) -> Iterator[dict[str, Any]]:
    """Answer conversations in batches; the results come in the order of the conversations.

    Args:
        model: an `AlmosaicForConditionalGeneration`.
        processor: its processor.
        conversations: dictionaries with `id`, `messages` and `audios`, a list of audio sources (left out
            where the audio parts of the messages name their clips).
        batch_size: conversations at a time; similar lengths are put together.
        max_new_tokens: longest answer.
        **sampling: fields of `SamplingSettings`.

    Yields:
        `id` and `prediction` (and `predictions` when several were asked for), or `id` and `error` for a
        conversation that cannot be answered; the others go on.
    """
    settings = SamplingSettings.of(sampling)
    rows = enumerate(conversations)
    while chunk := list(islice(rows, batch_size * _SORTED_BATCHES)):
        results: dict[int, dict[str, Any]] = {}
        ready = []
        for index, conversation in chunk:
            results[index] = {"id": conversation.get("id", index)}
            try:
                ready.append((index, *_prepare(model, processor, conversation, max_new_tokens)))
            except AlmosaicError as error:
                results[index]["error"] = str(error)
        ready.sort(key=lambda item: len(item[1].input_ids), reverse=True)
        for start in range(0, len(ready), batch_size):
            batch = ready[start : start + batch_size]
            inputs = _inputs(
                processor, [item[1] for item in batch], [item[2] for item in batch], model.device
            )
            answers = _answers(model, processor, inputs, max_new_tokens, settings)
            for (index, _, _), texts in zip(batch, answers, strict=True):
                results[index]["prediction"] = texts[0]
                if settings.num_return_sequences > 1:
                    results[index]["predictions"] = texts
        yield from results.values()


def stream(
    model: Any, processor: Any, conversation: Conversation, *, max_new_tokens: int = 64, **sampling: Any
) -> Iterator[str]:
    """One answer, piece by piece as it is written; stopping the iteration stops the model.

    Raises:
        AlmosaicError: the conversation cannot be answered.
        Exception: whatever the model raised while it wrote.
    """
    settings = SamplingSettings.of(sampling)
    encoded, waveforms = _prepare(model, processor, conversation, max_new_tokens)
    inputs = _inputs(processor, [encoded], [waveforms], model.device)
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = _Stop()
    raised: list[BaseException] = []

    def write() -> None:
        try:
            _token_ids(model, inputs, max_new_tokens, settings, streamer=streamer, stopping_criteria=[stop])
        except BaseException as error:
            raised.append(error)
        finally:
            # Without the end mark, whoever reads the streamer would wait for ever.
            streamer.end()

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.asked.set()
        writer.join()
    if raised:
        raise raised[0]


class _Stop(StoppingCriteria):  # type: ignore[misc]
    """Ends generation when asked to from another thread."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)


def _prepare(
    model: Any, processor: Any, conversation: Conversation, max_new_tokens: int
) -> tuple[Encoded, list[NDArray[np.float32]]]:
    """Tokens and waveforms of one conversation; AlmosaicError when it cannot be answered."""
    if "messages" not in conversation:
        raise AlmosaicError(f"a conversation needs messages, found {', '.join(conversation) or 'nothing'}")
    limit = processor.max_audio_seconds
    sources = conversation.get("audios")
    sources = clip_sources(conversation["messages"]) if sources is None else sources
    waveforms = [load_audio(source, max_seconds=limit) for source in sources]
    frames = [frames_of(len(waveform)) for waveform in waveforms]
    encoded = processor.encode(conversation["messages"], frames, add_generation_prompt=True)
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    if context is not None and len(encoded.input_ids) + max_new_tokens > context:
        raise AlmosaicError(
            f"the prompt has {len(encoded.input_ids)} tokens and the answer may have {max_new_tokens}, more "
            f"than the context of {context} holds; shorten the conversation or lower max_new_tokens"
        )
    return encoded, waveforms


def _inputs(
    processor: Any, rows: list[Encoded], audio: list[list[NDArray[np.float32]]], device: torch.device
) -> dict[str, Tensor]:
    """A left-padded batch of prompts with the windows of all clips, on `device`."""
    inputs: dict[str, Tensor] = processor.pad(rows, "left")
    del inputs["labels"]
    waveforms = [waveform for own in audio for waveform in own]
    if waveforms:
        names = ("input_features", "input_features_mask", "audio_windows")
        inputs |= dict(zip(names, _windows(processor.feature_extractor, waveforms, device), strict=True))
        inputs["audio_clips"] = torch.tensor([len(own) for own in audio])
    return {name: tensor.to(device) for name, tensor in inputs.items()}


@torch.inference_mode()
def _token_ids(
    model: Any, inputs: dict[str, Tensor], max_new_tokens: int, settings: SamplingSettings, **extra: Any
) -> Tensor:
    """New tokens [B x answers, at most max_new_tokens]."""
    training = model.training
    model.eval()
    try:
        ids: Tensor = model.generate(**inputs, max_new_tokens=max_new_tokens, **settings.arguments(), **extra)
    finally:
        model.train(training)
    return ids[:, inputs["input_ids"].shape[1] :]


def _answers(
    model: Any, processor: Any, inputs: dict[str, Tensor], max_new_tokens: int, settings: SamplingSettings
) -> list[list[str]]:
    """The answers to each prompt of a batch."""
    ids = _token_ids(model, inputs, max_new_tokens, settings)
    texts = [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]
    several = settings.num_return_sequences
    return [texts[start : start + several] for start in range(0, len(texts), several)]
