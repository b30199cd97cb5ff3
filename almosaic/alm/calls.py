"""What a call of the processor may bring: prompts or conversations, one or many, and the clips of each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

from almosaic.audio import AudioSource
from almosaic.errors import AlmosaicError
from almosaic.messages import AUDIO_TOKEN, ClipPart, clip_sources, flatten_messages, kind, read_parts

Row = str | Sequence[Mapping[str, Any]]  # a prompt that a chat template wrote, or messages


@contextmanager
def located(place: str) -> Iterator[None]:
    """Errors inside begin with the place, where there is one to name."""
    try:
        yield
    except AlmosaicError as error:
        if not place:
            raise
        raise type(error)(f"{place}: {error}") from error


def refuse_arguments(padding: bool | str, return_tensors: str | None, images: object, videos: object) -> None:
    """AlmosaicError for what the library's convention knows and this model cannot obey."""
    if images is not None or videos is not None:
        raise AlmosaicError("expected text and audio alone, found images or videos; this model does not see")
    if padding not in (True, "longest"):
        raise AlmosaicError(f"expected padding True (to the longest row), found {padding!r}")
    if return_tensors not in ("pt", None):
        raise AlmosaicError(f"expected return_tensors 'pt', found {return_tensors!r}")


def read_rows(text: Any) -> tuple[list[Row], bool]:
    """The rows of a call, and whether it brought one row that stands alone.

    Raises:
        AlmosaicError: nothing was given, or neither prompts nor conversations.
    """
    if isinstance(text, str):
        return [text], True
    if not isinstance(text, Sequence) or isinstance(text, bytes):
        raise AlmosaicError(f"expected a conversation, a prompt, or a list of them, found {kind(text)}")
    if not text:
        raise AlmosaicError("no conversation was given, expected at least one list of messages or prompt")
    if isinstance(text[0], Mapping):
        return [text], True
    for row in text:
        if not isinstance(row, str) and (not isinstance(row, Sequence) or isinstance(row, bytes)):
            raise AlmosaicError(f"expected a list of messages or a prompt in each row, found {kind(row)}")
    return list(text), False


def places(rows: Sequence[Any], name: str) -> list[str]:
    """What errors call each of several rows; nothing where there is only one."""
    return [f"{name} {number} of {len(rows)}" if len(rows) > 1 else "" for number in range(1, len(rows) + 1)]


def assign_clips(audio: Any, rows: Sequence[Row], alone: bool) -> list[list[AudioSource]]:
    """The clips of each row.

    Args:
        audio: None = those that the audio parts bring; a clip; a list of clips, which the placeholders of all
            rows take in order; or a list of such lists, one for each row.
        rows: from `read_rows`, as is `alone`.
        alone: one row that stands alone.

    Raises:
        AlmosaicError: clips and rows or placeholders differ in number, or a clip is named twice.
    """
    if audio is None:
        return [_own_clips(row, place) for row, place in zip(rows, places(rows, "conversation"), strict=True)]
    for row, place in zip(rows, places(rows, "conversation"), strict=True):
        with located(place):
            _refuse_own_clips(row)
    clips = [audio] if _is_clip(audio) else list(audio)
    nested = [not _is_clip(item) for item in clips]
    if any(nested):
        if not all(nested):
            raise AlmosaicError(
                f"expected a list of clips or a list of such lists, found {sum(nested)} lists among "
                f"{len(clips)} items"
            )
        if len(clips) != len(rows):
            raise AlmosaicError(
                f"{len(rows)} conversations came with {len(clips)} lists of clips; pass one list for each"
            )
        return [list(item) for item in clips]
    if alone:
        return [clips]
    counts = _placeholder_counts(rows)
    if sum(counts) != len(clips):
        raise AlmosaicError(
            f"{len(rows)} conversations have {sum(counts)} audio placeholders but {len(clips)} clips came "
            "with them; give one clip per placeholder, in order"
        )
    remaining = iter(clips)
    return [[next(remaining) for _ in range(count)] for count in counts]


def _is_clip(item: Any) -> bool:
    """Whether an item stands for one clip: no list, and no tuple but (array, rate)."""
    if isinstance(item, tuple):
        return len(item) == 2 and hasattr(item[0], "__array__") and isinstance(item[1], Real)
    return not isinstance(item, list)


def _placeholder_counts(rows: Sequence[Row]) -> list[int]:
    counts = []
    for row, place in zip(rows, places(rows, "conversation"), strict=True):
        with located(place):
            texts = [row] if isinstance(row, str) else [turn["content"] for turn in flatten_messages(row)]
        counts.append(sum(text.count(AUDIO_TOKEN) for text in texts))
    return counts


def _own_clips(row: Row, place: str) -> list[AudioSource]:
    if isinstance(row, str):
        return []
    with located(place):
        return clip_sources(row)


def _refuse_own_clips(row: Row) -> None:
    """AlmosaicError where an audio part brings a clip though clips come beside the messages."""
    for number, message in enumerate(() if isinstance(row, str) else row, start=1):
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in read_parts(content, f"message {number}") if isinstance(content, list) and content else []:
            if isinstance(part, ClipPart) and part.source is not None:
                raise AlmosaicError(
                    f"message {number}: an audio part brings a clip of its own, though clips came beside the "
                    "messages; name each clip in one of the two places"
                )
