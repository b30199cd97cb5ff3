"""Chat data as found in the wild, read into one form: messages of typed parts and their clips, in order."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from almosaic.errors import AlmosaicError

TAG = "<audio>"
ROLES = ("system", "user", "assistant")
# Where the typed parts of different libraries keep the clip.
AUDIO_KEYS = ("audio", "path", "url", "audio_url")

Message = dict[str, Any]


class ChatRow(TypedDict):
    """One conversation; the n-th audio part of `messages` is the n-th of `audios`."""

    id: str
    messages: list[Message]
    audios: list[str]


def question(text: str, clips: int = 1) -> Message:
    """A user's turn in the one order used in training, evaluation and the demo: the clips, then the text."""
    return {"role": "user", "content": [{"type": "audio"}] * clips + [{"type": "text", "text": text}]}


def read_chat(path: str | Path, audio_root: str | Path | None = None, answers: bool = True) -> list[ChatRow]:
    """Read conversations from a `.jsonl` file (one object a line) or a `.json` file (a list of them).

    A row has `messages` (or `conversations`) of `role` and `content`. Content is a string in which each
    `<audio>` stands for the next of the row's `audios`, or a list of typed parts, `{"type": "audio", "audio":
    PATH}` and `{"type": "text", "text": ...}`. Rows without audio are welcome.

    Args:
        path: the file.
        audio_root: folder that relative audio paths start from; None = the folder of the file.
        answers: require an assistant's turn in every row, as training does.

    Raises:
        AlmosaicError: one line with file and line that says what is wrong with the row.
    """
    path = Path(path)
    root = path.parent if audio_root is None else Path(audio_root)
    rows: list[ChatRow] = []
    for place, row in _objects(path):
        messages, audios = _conversation(row, place)
        if answers and not any(message["role"] == "assistant" for message in messages):
            raise AlmosaicError(f"{place}: expected an assistant's turn to learn from, found none")
        name = row.get("id", str(len(rows)))
        resolved = [audio if audio.startswith("data:") else str(root / audio) for audio in audios]
        rows.append({"id": str(name), "messages": messages, "audios": resolved})
    if not rows:
        raise AlmosaicError(f"{path}: expected at least one conversation, found none")
    return rows


def _objects(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row with its place, `file:line` or `file: row n`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AlmosaicError(f"{path}: cannot be read ({error})") from error
    if path.suffix == ".json":
        found = _parse(text, str(path))
        if not isinstance(found, list):
            raise AlmosaicError(f"{path}: expected a list of conversations, found {type(found).__name__}")
        numbered = [(f"{path}: row {number}", row) for number, row in enumerate(found, start=1)]
    else:
        lines = [(f"{path}:{number}", line) for number, line in enumerate(text.splitlines(), start=1)]
        numbered = [(place, _parse(line, place)) for place, line in lines if line.strip()]
    for place, row in numbered:
        if not isinstance(row, dict):
            raise AlmosaicError(f"{place}: expected an object with messages, found {type(row).__name__}")
        yield place, row


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise AlmosaicError(f"{place}: not valid JSON ({error.msg} at column {error.colno})") from error


def _conversation(row: Mapping[str, Any], place: str) -> tuple[list[Message], list[str]]:
    """The row's messages in typed parts, and its audio paths in the order in which they are spoken of."""
    given = row.get("messages", row.get("conversations"))
    if not isinstance(given, list) or not given:
        raise AlmosaicError(f"{place}: expected a non-empty list `messages`, found {_kind(given)}")
    named = _audio_list(row, place)
    messages: list[Message] = []
    audios: list[str | None] = []
    for number, message in enumerate(given, start=1):
        where = f"{place}, message {number}"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise AlmosaicError(f"{where}: expected a role of {', '.join(ROLES)}, found {role!r}")
        parts, found = _parts(message.get("content"), where)
        if found and role == "assistant":
            raise AlmosaicError(f"{where}: only users and the system can send audio, found it in an answer")
        plain = all(part["type"] == "text" for part in parts)
        content: Any = "".join(part["text"] for part in parts) if plain else parts
        messages.append({"role": role, "content": content})
        audios += found
    return messages, _matched(audios, named, place)


def _audio_list(row: Mapping[str, Any], place: str) -> list[str]:
    named = row.get("audios", row.get("audio", []))
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(audio, str) and audio for audio in named):
        raise AlmosaicError(f"{place}: expected `audios` to be a list of paths, found {_kind(named)}")
    return named


def _matched(audios: list[str | None], named: list[str], place: str) -> list[str]:
    """Give the clips without a path of their own the row's `audios`, in order; the numbers must be equal."""
    waiting = sum(audio is None for audio in audios)
    if waiting != len(named):
        raise AlmosaicError(
            f"{place}: {waiting} {TAG} tags or audio parts without a path, but {len(named)} `audios`; "
            "give one clip for each"
        )
    remaining = iter(named)
    return [next(remaining) if audio is None else audio for audio in audios]


def _parts(content: Any, where: str) -> tuple[list[Message], list[str | None]]:
    """Typed parts without paths, and the path of each audio part (None = the row's `audios` has it)."""
    if isinstance(content, str):
        pieces = content.split(TAG)
        parts: list[Message] = []
        for index, piece in enumerate(pieces):
            parts += [{"type": "audio"}] if index else []
            # The line break that conventionally follows a tag is part of the tag.
            piece = piece.removeprefix("\n") if index else piece
            parts += [{"type": "text", "text": piece}] if piece or len(pieces) == 1 else []
        return parts, [None] * (len(pieces) - 1)
    if not isinstance(content, list) or not content:
        raise AlmosaicError(
            f"{where}: expected content as a string or a list of parts, found {_kind(content)}"
        )
    found: list[str | None] = []
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        elif kind in ("audio", "audio_url"):
            found.append(_path(part, where))
            parts.append({"type": "audio"})
        else:
            raise AlmosaicError(f"{where}: expected parts of type text or audio, found {kind!r}")
    return parts, found


def _path(part: Mapping[str, Any], where: str) -> str | None:
    value = next((part[key] for key in AUDIO_KEYS if key in part), None)
    if isinstance(value, dict):
        value = value.get("path") or value.get("url")
    if value is not None and (not isinstance(value, str) or not value):
        raise AlmosaicError(f"{where}: expected the audio part's path as a string, found {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"
