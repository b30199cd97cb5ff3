"""Text files that are whole or not there: written beside their place, flushed, then renamed."""

import contextlib
import os
from pathlib import Path

from almosaic.errors import AlmosaicError


def write_whole(path: Path, text: str) -> Path:
    """Write `text` to `path`, folders included; a reader finds the old file or the new one, never a part.

    Raises:
        AlmosaicError: the file cannot be written, a full disk among the reasons; the old file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise AlmosaicError(
            f"{path}: cannot be written ({error.strerror or error}); make room or choose another place"
        ) from error
    return path
