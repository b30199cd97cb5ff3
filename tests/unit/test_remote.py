"""Audio over http: only when asked for, and never more, longer or elsewhere than allowed."""

import io
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from almosaic import remote
from almosaic.audio import audio_duration, load_audio
from almosaic.errors import AudioError
from almosaic.remote import fetch


def clip():
    file = io.BytesIO()
    soundfile.write(file, np.zeros(8000, np.float32), 16_000, format="WAV")
    return file.getvalue()


class Answers(BaseHTTPRequestHandler):
    """`/clip`, `/to?ADDRESS`, `/length/N`, `/endless`, `/drip`, `/silent`, `/garbage`, else 404."""

    def log_message(self, *_):
        pass

    def start(self, code, **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def do_GET(self):
        self.server.asked.append(self.path)
        kind, _, rest = self.path.lstrip("/").replace("?", "/").partition("/")
        body = clip()
        try:
            if kind == "clip":
                self.start(200, Content_Length=len(body))
                self.wfile.write(body)
            elif kind == "to":
                self.start(302, Location=rest)
            elif kind == "length":
                self.start(200, Content_Length=rest)
                self.wfile.write(body)
            elif kind == "garbage":
                self.wfile.write(b"\0\1\2 not http\r\n")
            elif kind == "silent":
                self.server.stop.wait(20)
            elif kind in ("endless", "drip"):
                self.start(200)
                for _ in range(1_000_000):
                    self.wfile.write(b"x" if kind == "drip" else bytes(65_536))
                    if self.server.stop.wait(0.05 if kind == "drip" else 0):
                        break
            else:
                self.start(404)
        except (BrokenPipeError, ConnectionResetError):
            pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked, server.stop = [], threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.address = f"http://127.0.0.1:{server.server_port}"
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


def test_nothing_is_fetched_unless_asked_for(server):
    server.asked.clear()
    for address in (f"{server.address}/clip", f"{server.address}/clip".replace("http", "HTTP")):
        for read in (load_audio, audio_duration):
            with pytest.raises(AudioError, match=r"remote audio is not fetched; .* allow_remote=True"):
                read(address)
    assert server.asked == []


def test_a_clip_is_fetched_also_after_redirects(server):
    expected = load_audio(clip())
    for path in ("/clip", "/clip?key=1", f"/to?{server.address}/clip", "/to?/clip"):
        np.testing.assert_array_equal(load_audio(server.address + path, allow_remote=True), expected)
    np.testing.assert_array_equal(load_audio(clip(), allow_remote=True), expected)
    assert fetch(f"{server.address}/clip") == clip()


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "data:,x", "gopher://127.0.0.1/"]
)
def test_no_other_scheme_at_once_or_after_a_redirect(server, target):
    with pytest.raises(AudioError, match=r"redirect to http or https, found|is not allowed"):
        fetch(f"{server.address}/to?{target}")
    with pytest.raises(AudioError, match="expected an http or https address"):
        fetch(target)


def test_a_circle_of_redirects_ends(server):
    with pytest.raises(AudioError, match="found the answer 302"):
        fetch(f"{server.address}/to?/to?/clip/../to?/to")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/nowhere", "expected a file, found the answer 404 Not Found"),
        ("/length/500", "500 bytes are above the limit of 100"),
        ("/endless", "more than the limit of 100 bytes"),
        ("/garbage", "cannot be fetched"),
    ],
)
def test_what_a_server_may_not_do(server, path, message):
    with pytest.raises(AudioError, match=message) as caught:
        fetch(server.address + path, max_bytes=100)
    assert "\n" not in str(caught.value)


def test_a_length_that_lies(server):
    size = len(clip())
    with pytest.raises(AudioError, match=f"expected {size + 10} bytes, found {size}"):
        fetch(f"{server.address}/length/{size + 10}")
    with pytest.raises(AudioError, match=r"damaged|not readable"):
        load_audio(f"{server.address}/length/{size // 2}", allow_remote=True)


def test_a_server_that_says_nothing_or_little(server):
    start = time.monotonic()
    with pytest.raises(AudioError, match=r"cannot be fetched .*timed out"):
        fetch(f"{server.address}/silent", timeout_seconds=0.2)
    with pytest.raises(AudioError, match=r"bytes in 0.3 s, and not all of it"):
        fetch(f"{server.address}/drip", deadline_seconds=0.3)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://127.0.0.1:9/a b", "http://127.0.0.1:99999/", "http://ü\n/"]
)
def test_an_address_without_sense(url):
    with pytest.raises(AudioError, match="cannot be fetched") as caught:
        load_audio(url, allow_remote=True)
    assert "\n" not in str(caught.value)


def test_keys_in_an_address_are_not_shown(server):
    with pytest.raises(AudioError) as caught:
        load_audio(f"{server.address}/nowhere?token=secret", allow_remote=True)
    assert "secret" not in str(caught.value)
    with pytest.raises(AudioError) as caught:
        load_audio("https://example.org/a.wav?token=secret")
    assert "secret" not in str(caught.value)


def test_the_librarys_default_limits_hold_five_minutes():
    assert remote.MAX_BYTES >= 300 * 96_000 * 2 * 4
