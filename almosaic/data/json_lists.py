"""Where the elements of a JSON list lie in its file, found piece by piece: it may be larger than memory."""

import json
import re
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from almosaic.errors import AlmosaicError

PIECE_BYTES = 1 << 20  # read at a time
LONGEST_BYTES = 1 << 28  # an element that has not ended by then never will
_SPACE = re.compile(r"[ \t\r\n]*")
_BYTE_ORDER_MARK = "\xef\xbb\xbf"


def element_places(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """First byte, end and line of every element, [N] each; None where the file is no list.

    Raises:
        AlmosaicError: the list is not valid JSON, or cut off.
        OSError: the file cannot be read.
    """
    starts, ends, lines = array("q"), array("q"), array("q")
    with path.open("rb") as file:
        text = _Text(path, file)
        if text.next() != "[":
            return None
        text.position += 1
        if text.next() == "]":
            text.position += 1
        else:
            while True:
                text.next()
                lines.append(text.line())
                starts.append(text.base + text.position)
                text.skip_value()
                ends.append(text.base + text.position)
                mark = text.next()
                text.position += 1
                if mark == "]":
                    break
                if mark != ",":
                    found = repr(mark) if mark else "the end"
                    raise text.wrong(f"expected , or ] behind an element, found {found}")
        if text.next():
            raise text.wrong("expected nothing behind the list")
    return np.array(starts, np.int64), np.array(ends, np.int64), np.array(lines, np.int64)


class _Text:
    """A stretch of a file, each byte as one character, so that positions are those in the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.text = file.read(PIECE_BYTES).decode("latin-1")
        self.base = 0
        self.position = len(_BYTE_ORDER_MARK) if self.text.startswith(_BYTE_ORDER_MARK) else 0
        self.decoder = json.JSONDecoder()
        self._lines, self._counted = 1, 0

    def next(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            found = _SPACE.match(self.text, self.position)
            self.position = found.end() if found else self.position
            if self.position < len(self.text):
                return self.text[self.position]
            if not self._more():
                return ""

    def line(self) -> int:
        """The line of the position."""
        self._lines += self.text.count("\n", self._counted, self.position)
        self._counted = self.position
        return self._lines

    def skip_value(self) -> None:
        """Go behind the value that begins here."""
        while True:
            try:
                _, self.position = self.decoder.raw_decode(self.text, self.position)
                return
            except (json.JSONDecodeError, RecursionError) as error:
                if len(self.text) - self.position > LONGEST_BYTES or not self._more():
                    raise self.wrong(getattr(error, "msg", str(error))) from error

    def wrong(self, reason: str) -> AlmosaicError:
        """The error to raise, with the line."""
        return AlmosaicError(f"{self.path}:{self.line()}: not valid JSON ({reason})")

    def _more(self) -> bool:
        """Read on, and forget what lies behind."""
        self.line()
        piece = self.file.read(max(PIECE_BYTES, len(self.text) - self.position)).decode("latin-1")
        self.text = self.text[self.position :] + piece
        self.base += self.position
        self.position = self._counted = 0
        return bool(piece)
