"""Sound files that end too early: what libsndfile takes for a shorter clip is half a download."""

import io
import re
from pathlib import Path
from typing import Any, BinaryIO

_PROMISES = re.compile(
    r"^ *(?:data|SSND|BODY|riff|Riff size|Data Size) *: (\d+) \(should be ([1-9]\d*)\)", re.M
)
_STREAMED_BYTES = 0x7FF00000  # a writer that cannot know the length puts a number above this into the header
_PAGE_MARK = b"OggS\0"
_PAGE_HEADER = 27  # bytes of an Ogg page before its table of segments; the 27th is the table's length
_LONGEST_PAGE = _PAGE_HEADER + 255 + 255 * 255


def missing_seconds(opened: Any) -> float:
    """Return what a file lacks of the length in its header, 0 where the header does not say.

    WAV, AIFF, AU, W64, RF64 and 8SVX are judged by what libsndfile noted about their chunks.

    Args:
        opened: a `soundfile.SoundFile`.
    """
    found = _PROMISES.search(opened.extra_info)
    if found is None or int(found[1]) >= _STREAMED_BYTES:
        return 0.0
    return float(opened.frames / opened.samplerate * (int(found[1]) / int(found[2]) - 1.0))


def cut_page(file: str | BinaryIO) -> tuple[int, int] | None:
    """Return (bytes promised, bytes there) of the last page of an Ogg file when it is cut off, else None.

    A stream that stops between two pages is whole to every decoder, and is not reported.
    """
    if not isinstance(file, str):
        place = file.tell()
        try:
            return _cut_page(file)
        finally:
            file.seek(place)
    with Path(file).open("rb") as opened:
        return _cut_page(opened)


def _cut_page(file: BinaryIO) -> tuple[int, int] | None:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _LONGEST_PAGE))
    tail = file.read()
    start = tail.rfind(_PAGE_MARK)
    if start < 0:
        return None
    page = tail[start:]
    promised = _PAGE_HEADER
    if len(page) >= _PAGE_HEADER:
        segments = page[_PAGE_HEADER - 1]
        promised += segments + sum(page[_PAGE_HEADER : _PAGE_HEADER + segments])
    rest = page[promised:]
    if rest and len(rest) < len(_PAGE_MARK) and _PAGE_MARK.startswith(rest):
        return _PAGE_HEADER, len(rest)  # all that is left of one more page
    return (promised, len(page)) if len(page) < promised else None
