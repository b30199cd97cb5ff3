"""Audio from http and https addresses, for callers that ask for it: bounded in size and in time."""

import time
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from almosaic.errors import AudioError

SCHEMES = ("http", "https")
MAX_BYTES = 256 * 2**20  # five minutes of stereo WAV at 96 kHz and 32 bits are 230 MB
TIMEOUT_SECONDS = 30.0  # without a byte
DEADLINE_SECONDS = 300.0  # for the whole clip
_PIECE_BYTES = 2**18


def is_remote(source: object) -> bool:
    """Whether a source is an http or https address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def fetch(
    url: str,
    *,
    max_bytes: int = MAX_BYTES,
    timeout_seconds: float = TIMEOUT_SECONDS,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> bytes:
    """The body behind an http or https address, after redirects to such addresses only.

    Raises:
        AudioError: another scheme (also of a redirect), no answer, a status other than success, more than
            `max_bytes`, fewer bytes than announced, silence for `timeout_seconds`, or not all of it within
            `deadline_seconds`.
    """
    name = address(url)
    ends = time.monotonic() + deadline_seconds
    try:
        if urlsplit(url).scheme.lower() not in SCHEMES:
            raise AudioError(f"{name}: expected an http or https address")
        with _opener().open(Request(url), timeout=timeout_seconds) as response:
            return _body(response, name, max_bytes, ends, deadline_seconds)
    except HTTPError as error:
        raise AudioError(f"{name}: expected a file, found the answer {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        raise AudioError(f"{name}: cannot be fetched ({reason}); check the address") from error


def address(url: str) -> str:
    """An address as it may be shown: on one short line, without its query, where keys are kept."""
    return " ".join(url.partition("?")[0].split())[:200]


class _RedirectWithinHttp(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        """Follow to http and https alone; the library would also go to ftp."""
        if urlsplit(newurl).scheme.lower() not in SCHEMES:
            raise AudioError(
                f"{address(req.full_url)}: expected a redirect to http or https, found {address(newurl)}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> OpenerDirector:
    """An opener without the handlers of files, ftp and data that the library's own brings."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        _RedirectWithinHttp(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _body(response: Any, name: str, max_bytes: int, ends: float, deadline_seconds: float) -> bytes:
    """Read to the end, never more than `max_bytes`, whatever the announced length says."""
    announced = response.length  # None where the server gives none
    if announced is not None and announced > max_bytes:
        raise AudioError(
            f"{name}: {announced} bytes are above the limit of {max_bytes}; download a shorter cut"
        )
    body = bytearray()
    # One piece per call: `read` would go on waiting for a server that sends a byte now and then.
    while piece := response.read1(_PIECE_BYTES):
        body += piece
        if len(body) > max_bytes:
            raise AudioError(f"{name}: more than the limit of {max_bytes} bytes; download a shorter cut")
        if time.monotonic() > ends:
            raise AudioError(
                f"{name}: {len(body)} bytes in {deadline_seconds:g} s, and not all of it; download it first"
            )
    if announced is not None and len(body) < announced:
        raise AudioError(f"{name}: expected {announced} bytes, found {len(body)}; fetch it again")
    return bytes(body)
