"""Messages and their content parts in all common spellings, read and checked in one place.

Content is a string or a list of parts: `{"type": "text", "text": ...}`, and clips as `audio`, `audio_url` or
`input_audio` parts. A key whose value is None counts as absent, since columnar files fill gaps with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from almosaic.audio import SAMPLING_RATE, AudioSource
from almosaic.errors import AlmosaicError

AUDIO_TOKEN = "<|audio|>"
ROLES = ("system", "user", "assistant")
AUDIO_TYPES = ("audio", "audio_url", "input_audio")
AUDIO_KEYS = ("audio", "path", "url", "audio_url", "input_audio")
# What a mapping may hold: the first key that is there is the clip, the others belong to it.
_MAPPINGS: dict[str, tuple[str, ...]] = {
    "array": ("sampling_rate", "path"),
    "bytes": ("path",),
    "data": ("format",),
    "url": (),
    "path": (),
}
_SOURCES = "a path, a URL, a data URI, bytes, a waveform, (waveform, rate) or a dictionary with one of them"


@dataclass(frozen=True)
class ClipPart:
    """An audio part; `source` is what `load_audio` takes, None = the clip travels beside the messages."""

    source: AudioSource | None


def read_parts(content: Any, where: str) -> list[str | ClipPart]:
    """A message's content as texts and clips, in order; `where` names the message in errors.

    Raises:
        AlmosaicError: content that is no string and no list of parts; a part of unknown type, with an unknown
            key, without its text, with two clips, or with a value of the wrong type. The place is named.
    """
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise AlmosaicError(f"{where}: expected content, a string or a list of parts, found {kind(content)}")
    return [_read_part(part, f"{where}, part {number}") for number, part in enumerate(content, start=1)]


def flatten_content(content: Any, where: str) -> str:
    """A message's content as one string, each clip as `<|audio|>`; raises as `read_parts`."""
    parts = read_parts(content, where)
    return "".join(part if isinstance(part, str) else AUDIO_TOKEN for part in parts)


def flatten_messages(messages: Any, where: str = "") -> list[dict[str, str]]:
    """A conversation as `role` and `content` strings, each clip as `<|audio|>`.

    Raises:
        AlmosaicError: an empty conversation, an unknown role or key, audio in an answer; or as `read_parts`.
    """
    turns = []
    for place, message in _numbered(messages, where):
        role = message["role"]
        text = flatten_content(message["content"], place)
        if role == "assistant" and AUDIO_TOKEN in text:
            raise AlmosaicError(
                f"{place}: audio in an assistant turn, expected text; only the user and the system send clips"
            )
        turns.append({"role": str(role), "content": text})
    return turns


def clip_sources(messages: Any, where: str = "") -> list[AudioSource]:
    """The clips that the audio parts bring, in order, as `load_audio` takes them; an array alone is 16 kHz.

    Raises:
        AlmosaicError: an audio part brings none; or as `flatten_messages`.
    """
    sources: list[AudioSource] = []
    for place, message in _numbered(messages, where):
        for number, part in enumerate(read_parts(message["content"], place), start=1):
            if isinstance(part, ClipPart):
                if part.source is None:
                    raise AlmosaicError(
                        f"{place}, part {number}: an audio part brings no clip; name its path, "
                        "or pass the clips beside the messages"
                    )
                sources.append(part.source)
    return sources


def kind(value: Any) -> str:
    """What was found, for an error message: its type and its beginning."""
    if value is None:
        return "nothing"
    shown = "" if hasattr(value, "__array__") else f" {' '.join(repr(value).split())}"
    return type(value).__name__ + (shown if len(shown) <= 40 else f"{shown[:40]}...")


def _numbered(messages: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Each message with its place, once its role, keys and content are there."""
    before = f"{where}: " if where else ""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise AlmosaicError(f"{before}expected a list of messages, found {kind(messages)}")
    if not messages:
        raise AlmosaicError(f"{before}the conversation is empty, expected at least one message")
    numbered = []
    for number, message in enumerate(messages, start=1):
        place = f"{where}, message {number}" if where else f"message {number}"
        if not isinstance(message, Mapping):
            raise AlmosaicError(f"{place}: expected a dictionary of role and content, found {kind(message)}")
        if message.get("role") not in ROLES:
            raise AlmosaicError(
                f"{place}: expected a role of {', '.join(ROLES)}, found {kind(message.get('role'))}"
            )
        if message.get("content") is None:
            raise AlmosaicError(f"{place}: expected content, found the keys {', '.join(map(str, message))}")
        _no_other_keys(message, ("role", "content"), f"{place}: the message")
        numbered.append((place, message))
    return numbered


def _no_other_keys(mapping: Mapping[str, Any], known: Sequence[str], subject: str) -> None:
    unknown = sorted(str(key) for key, value in mapping.items() if value is not None and key not in known)
    if unknown:
        raise AlmosaicError(f"{subject} has the unknown key {unknown[0]!r}; known keys: {', '.join(known)}")


def _read_part(part: Any, where: str) -> str | ClipPart:
    if not isinstance(part, Mapping):
        raise AlmosaicError(f"{where}: expected a dictionary with a type, found {kind(part)}")
    name = part.get("type")
    if name == "text":
        _no_other_keys(part, ("type", "text"), f"{where}: a text part")
        if not isinstance(part.get("text"), str):
            raise AlmosaicError(
                f"{where}: expected a string under the key text, found {kind(part.get('text'))}"
            )
        return str(part["text"])
    if name not in AUDIO_TYPES:
        raise AlmosaicError(f"{where}: expected a part of type text or audio, found {kind(name)}")
    _no_other_keys(part, ("type", *AUDIO_KEYS), f"{where}: an {name} part")
    found = [key for key in AUDIO_KEYS if part.get(key) is not None]
    if len(found) > 1:
        raise AlmosaicError(
            f"{where}: expected one clip, found two, under the keys {found[0]} and {found[1]}"
        )
    return ClipPart(_source(part[found[0]], found[0], where) if found else None)


def _source(value: Any, key: str, where: str) -> AudioSource:
    """The clip under one key of an audio part."""
    if isinstance(value, Mapping):
        return _of_mapping(value, f"{where}: {key}")
    if key == "input_audio":
        raise AlmosaicError(
            f'{where}: expected input_audio as {{"data": base64, "format": ...}}, found {kind(value)}'
        )
    if hasattr(value, "__array__"):
        return np.asarray(value), SAMPLING_RATE
    usable = isinstance(value, str | Path | bytes) or hasattr(value, "read")
    if isinstance(value, tuple) and len(value) == 2:
        usable = hasattr(value[0], "__array__") and isinstance(value[1], int | float)
    if not usable or value in ("", b""):
        raise AlmosaicError(f"{where}: expected {key} to be {_SOURCES}, found {kind(value)}")
    source: AudioSource = value
    return source


def _of_mapping(mapping: Mapping[str, Any], subject: str) -> AudioSource:
    main = next((key for key in _MAPPINGS if mapping.get(key) is not None), None)
    if main is None:
        keys = ", ".join(map(str, mapping)) or "nothing"
        raise AlmosaicError(f"{subject}: expected one of {', '.join(_MAPPINGS)}, found {keys}")
    _no_other_keys(mapping, (main, *_MAPPINGS[main]), f"{subject} with {main}")
    value: Any = mapping[main]
    if main == "array":
        rate: Any = mapping.get("sampling_rate")
        if not isinstance(rate, int | float):
            raise AlmosaicError(f"{subject}: expected a number as sampling_rate, found {kind(rate)}")
        return np.asarray(value), rate  # type: ignore[return-value]
    expected = bytes if main == "bytes" else Path | str if main == "path" else str
    if not isinstance(value, expected) or not value:
        word = "bytes" if main == "bytes" else "a string"
        raise AlmosaicError(f"{subject}: expected {main} to be {word}, found {kind(value)}")
    if main == "data" and not str(value).startswith("data:"):
        return f"data:audio/{mapping.get('format') or 'wav'};base64,{value!s}"
    source: AudioSource = value
    return source
