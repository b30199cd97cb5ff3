"""What a clip may be named by: a path, a URI, bytes, a file object, or an array; how it is opened."""

import base64
import binascii
import io
import re
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from numpy.typing import NDArray

from almosaic.errors import AudioError
from almosaic.remote import address, is_remote

AudioSource = str | Path | bytes | BinaryIO | tuple[NDArray[Any], int]
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


def describe(source: AudioSource) -> str:
    """Name the source in an error message, on one short line."""
    if isinstance(source, str) and source.startswith("data:"):
        return f"audio {source[:24]}..."
    if isinstance(source, str) and _SCHEME.match(source):
        return address(source)
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, tuple):
        return "audio array"
    if isinstance(source, bytes):
        return f"audio of {len(source)} bytes"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "audio file object"


def open_source(source: str | Path | bytes | BinaryIO, name: str) -> str | BinaryIO:
    """Return a checked path, or a file object that stands at its beginning and can be seeked."""
    if isinstance(source, str) and source.startswith("data:"):
        source = _data_uri(source, name)
    if isinstance(source, str | Path):
        return _checked_path(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if not hasattr(file, "read"):
        raise AudioError(
            f"{name}: expected a path, a URI, bytes, a file object or (array, rate), found "
            f"{type(source).__name__} {str(source)[:40]!r}"
        )
    if not isinstance(file.read(0), bytes):
        raise AudioError(f"{name}: expected a file opened in binary mode, found text; open it with 'rb'")
    file = file if file.seekable() else io.BytesIO(file.read())
    if file.seek(0, io.SEEK_END) == 0:
        raise AudioError(f"{name}: empty, no bytes to read")
    file.seek(0)
    return file


def _checked_path(path: str | Path) -> str:
    try:
        if isinstance(path, str) and (scheme := _SCHEME.match(path)):
            path = _file_address(path, scheme[0])
        if not Path(path).exists():
            raise AudioError(f"{path}: no such file; check the path")
        if not Path(path).is_file():
            raise AudioError(f"{path}: expected an audio file, found a directory or device; give one file")
        with open(path, "rb") as file:
            if not file.read(1):
                raise AudioError(f"{path}: empty file (0 bytes); fetch it again")
    except (OSError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(
            f"{str(path)[:200]!r}: cannot be opened ({getattr(error, 'strerror', error)})"
        ) from error
    return str(path)


def _file_address(url: str, scheme: str) -> str:
    """Return the path of a `file://` address on this machine; AudioError for every other address."""
    if is_remote(url):
        raise AudioError(
            f"{address(url)}: remote audio is not fetched; download it and give the local path, "
            "or ask for it with allow_remote=True"
        )
    parts = urlsplit(url)
    if parts.scheme.lower() != "file" or parts.netloc not in ("", "localhost"):
        raise AudioError(
            f"{address(url)}: expected a local path, a file:///, data:, http or https address, found {scheme}"
            f"{parts.netloc[:80]}; download it and give the local path"
        )
    return url2pathname(parts.path)


def _data_uri(uri: str, name: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise AudioError(f"{name}: expected data:audio/...;base64,... , found no comma")
    if not header.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body), validate=True)
    except binascii.Error as error:
        raise AudioError(f"{name}: the base64 of this data URI is damaged ({error})") from error
