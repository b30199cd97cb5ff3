"""From conversations to model inputs: how long each will be, its tokens and clips, a padded batch."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from almosaic.alm.processing import Encoded
from almosaic.audio import SAMPLING_RATE, AudioSource
from almosaic.errors import AlmosaicError
from almosaic.features import frames_of
from almosaic.messages import clip_sources
from almosaic.token_memory import TokenMemory

Conversation = Mapping[str, Any]
"""`id`, `messages` and `audios`; without `audios`, the audio parts of the messages name their clips."""

_BYTES_PER_SECOND = 16_000  # of a compressed file whose header nobody can read, roughly


@dataclass(frozen=True)
class Prepared:
    """One conversation as tokens and decoded clips [S]; `index` is its place among all, `id` its name."""

    index: int
    id: Any
    encoded: Encoded
    waveforms: list[NDArray[np.float32]]


def prepare(
    model: Any, processor: Any, conversation: Conversation, max_new_tokens: int, index: int = 0
) -> Prepared:
    """Decode and encode one conversation.

    Raises:
        AlmosaicError: it cannot be answered: a clip or a message is wrong, or the context too short for it.
    """
    waveforms = processor.load_clips(_sources(conversation))
    encoded = _encoded(processor, conversation, [frames_of(len(waveform)) for waveform in waveforms])
    last = len(conversation["messages"])
    if conversation["messages"][-1]["role"] == "assistant":
        raise AlmosaicError(
            f"message {last}: expected a user's message last, found the assistant's; "
            "leave out the answer that the model is to write"
        )
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    if context is not None and len(encoded.input_ids) + max_new_tokens > context:
        raise AlmosaicError(
            f"the prompt has {len(encoded.input_ids)} tokens and the answer may have {max_new_tokens}, more "
            f"than the context of {context} holds; shorten the conversation or lower max_new_tokens"
        )
    return Prepared(index, name_of(conversation, index), encoded, waveforms)


def name_of(conversation: Any, index: int) -> Any:
    """A conversation's `id`, or its place among all when it has none."""
    return conversation.get("id", index) if isinstance(conversation, Mapping) else index


def longest_first(
    processor: Any, chunk: Sequence[tuple[int, Conversation]]
) -> list[tuple[int, Conversation]]:
    """Numbered conversations by the length of their prompts, those about the same clips side by side."""
    lengths = [expected_length(processor, conversation) for _, conversation in chunk]
    clips = [_same_clips(index, conversation) for index, conversation in chunk]
    longest: dict[object, int] = {}
    for length, own in zip(lengths, clips, strict=True):
        longest[own] = max(length, longest.get(own, 0))
    first = {own: place for place, own in reversed(list(enumerate(clips)))}
    order = sorted(
        range(len(chunk)), key=lambda place: (-longest[clips[place]], first[clips[place]], -lengths[place])
    )
    return [chunk[place] for place in order]


def _same_clips(index: int, conversation: Conversation) -> object:
    """Equal for conversations that name the same clips."""
    try:
        sources = _sources(conversation)
    except AlmosaicError:
        sources = []
    return tuple(s if isinstance(s, str | Path) else id(s) for s in sources) or index


def expected_length(processor: Any, conversation: Conversation) -> int:
    """Tokens of a prompt as far as headers tell, without decoding a clip; 0 where it cannot be answered."""
    try:
        frames = [
            frames_of(round(_expected_seconds(source) * SAMPLING_RATE)) for source in _sources(conversation)
        ]
        return len(_encoded(processor, conversation, [max(1, count) for count in frames]).input_ids)
    except AlmosaicError:
        return 0


def _sources(conversation: Conversation) -> list[AudioSource]:
    if not isinstance(conversation, Mapping) or "messages" not in conversation:
        found = ", ".join(map(str, conversation)) if isinstance(conversation, Mapping) else repr(conversation)
        raise AlmosaicError(f"a conversation needs messages, found {found[:80] or 'nothing'}")
    given = conversation.get("audios")
    if given is not None and not isinstance(given, list | tuple):
        raise AlmosaicError(f"audios must be a list of clips, found {type(given).__name__}")
    return clip_sources(conversation["messages"]) if given is None else list(given)


def _encoded(processor: Any, conversation: Conversation, frames: Sequence[int]) -> Encoded:
    encoded: Encoded = processor.encode(conversation["messages"], frames, add_generation_prompt=True)
    return encoded


def _expected_seconds(source: AudioSource) -> float:
    """Length of a clip by its header, or by its size: wrong costs padding, never an answer."""
    if isinstance(source, tuple):
        return float(max(np.shape(source[0]), default=0) / source[1])
    if isinstance(source, bytes) or (isinstance(source, str) and source.startswith("data:")):
        return len(source) / _BYTES_PER_SECOND
    if not isinstance(source, str | Path):
        return 0.0
    with suppress(ImportError, RuntimeError, TypeError):  # RuntimeError: the base of libsndfile's errors
        import soundfile

        return float(soundfile.info(str(source)).duration)
    with suppress(OSError, ValueError):
        return Path(source).stat().st_size / _BYTES_PER_SECOND
    return 0.0


def batch_inputs(
    processor: Any, rows: Sequence[Prepared], memory: TokenMemory, device: Any
) -> dict[str, Tensor]:
    """A left-padded batch of prompts with the patch tokens of all clips, on `device`."""
    inputs: dict[str, Tensor] = processor.pad([row.encoded for row in rows], "left")
    del inputs["labels"]
    inputs |= memory.inputs([row.waveforms for row in rows])
    return {name: tensor.to(device) for name, tensor in inputs.items()}
