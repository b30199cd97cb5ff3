"""What a conversation is made of before it is a row: turns of texts and clips, and the tags of clips."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from almosaic.errors import AlmosaicError
from almosaic.messages import ClipPart, kind

Record = Mapping[str, Any]

TAG = "<audio>"
AUDIO_TAGS = re.compile(re.escape(TAG))
SOUND_TAGS = re.compile(r"<sound(?:-(\d+))?>")
_LISTS = ("audios", "audio", "sound")


class Clip(NamedTuple):
    """A clip by its path or data URI."""

    name: str


Piece = str | Clip


class Turn(NamedTuple):
    """What one speaker says and sends."""

    role: str
    pieces: list[Piece]


class TaggedClips:
    """The clips that a record lists, given to its tags in order, or by number."""

    def __init__(self, record: Record, place: str, tag: re.Pattern[str]) -> None:
        found = [key for key in _LISTS if record.get(key) not in (None, [], "")]
        if len(found) > 1:
            raise AlmosaicError(f"{place}: expected one list of clips, found {' and '.join(found)}")
        self.key = found[0] if found else "audios"
        self.names = clip_names(record.get(self.key), self.key, place)
        self.place, self.tag = place, tag
        self.waiting = 0
        self.numbers: set[int] = set()

    def placed(self, text: str) -> list[Piece]:
        """A text with the clips that its tags stand for; a line break behind a tag is part of the tag."""
        pieces: list[Piece] = []
        start = 0
        for tag in self.tag.finditer(text):
            pieces += [text[start : tag.start()]] if tag.start() > start else []
            pieces.append(self._next() if not tag.groups() or tag[1] is None else self._numbered(int(tag[1])))
            start = tag.end() + (text[tag.end() : tag.end() + 1] == "\n")
        return [*pieces, text[start:]] if start < len(text) or not pieces else pieces

    def of(self, part: str | ClipPart) -> Piece:
        """A typed part, whose clip is its own or the next of the list."""
        if isinstance(part, str):
            return part
        if part.source is None:
            return self._next()
        if not isinstance(part.source, str):
            raise AlmosaicError(
                f"{self.place}: expected a clip by path or data URI, found {kind(part.source)}"
            )
        return Clip(part.source)

    def used(self, turns: list[Turn]) -> list[Turn]:
        """The turns, once every clip of the list has been used."""
        numbered = len(self.numbers)
        if self.waiting and numbered:
            raise AlmosaicError(f"{self.place}: expected tags with numbers or without, found both")
        if max(self.waiting, numbered) != len(self.names):
            raise AlmosaicError(
                f"{self.place}: {max(self.waiting, numbered)} {self._tags()} tags or audio parts without "
                f"a path, but {len(self.names)} `{self.key}`; give one clip for each"
            )
        return turns

    def _next(self) -> Clip:
        self.waiting += 1
        return Clip(self.names[self.waiting - 1] if self.waiting <= len(self.names) else "")

    def _numbered(self, number: int) -> Clip:
        if not 1 <= number <= len(self.names):
            raise AlmosaicError(
                f"{self.place}: <sound-{number}> names no clip, found {len(self.names)} `{self.key}`"
            )
        self.numbers.add(number)
        return Clip(self.names[number - 1])

    def _tags(self) -> str:
        return TAG if self.tag is AUDIO_TAGS else "<sound>"


def text_of(record: Record, key: str, place: str) -> str:
    """The text under a key."""
    if not isinstance(record.get(key), str):
        raise AlmosaicError(f"{place}: expected a text under {key}, found {kind(record.get(key))}")
    return str(record[key])


def clip_name(record: Record, key: str, place: str) -> str:
    """The one clip under a key."""
    return clip_names([record.get(key)], key, place)[0]


def clip_names(given: Any, key: str, place: str) -> list[str]:
    """The paths or data URIs under a key: one, or a list of them, some perhaps as `{"path": ...}`."""
    clips: list[str] = []
    for clip in given if isinstance(given, list) else [] if given is None else [given]:
        name = clip.get("path") or clip.get("url") if isinstance(clip, Mapping) else clip
        if not isinstance(name, str) or not name:
            raise AlmosaicError(f"{place}: expected `{key}` to be a list of paths, found {kind(clip)}")
        clips.append(name)
    return clips
