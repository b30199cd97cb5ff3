"""The chat page from outside: through gradio's client, and through a browser where one is installed."""

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.conftest import SmokeRun

pytest.importorskip("gradio", reason="the demo extra is not installed")

from gradio_client import Client, handle_file

from almosaic.errors import AlmosaicError
from almosaic.loading import load_model
from demo import app

LENGTH = 6
GREEDY = (LENGTH, 0.0, 1.0, 0, 1.0, None)  # length, temperature, top p, top k, repetition penalty, seed


@pytest.fixture(scope="module")
def address(smoke: "SmokeRun") -> Iterator[str]:
    page = app.build_page(*load_model(smoke.folder), "smoke")
    _, local, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield local
    page.close()


@pytest.fixture
def client(address: str) -> Client:
    """A conversation of its own for every test."""
    return Client(address, verbose=False)


@pytest.fixture
def clip(tmp_path: Path) -> str:
    import soundfile

    path = tmp_path / "dog.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    return str(path)


def ask(client: Client, text: str, files: list[str], clip: str | None = None) -> list[Any]:
    """Everything that the page shows for one message: reply, pictures, status."""
    message = {"text": text, "files": [handle_file(file) for file in files]}
    beside = handle_file(clip) if clip else None
    job = client.submit(message, beside, *GREEDY, api_name="/answer")
    return list(job.result())


def captions(pictures: list[Any]) -> list[str]:
    """The captions in a gallery; over the API the page sends it as it is, pictures and captions in pairs."""
    return [caption for _, caption in pictures]


def test_an_uploaded_clip_is_answered_with_picture_and_cost(client: Client, clip: str) -> None:
    reply, pictures, status = ask(client, "What can be heard?", [clip])
    assert isinstance(reply, str) and reply
    assert status.startswith("8 audio tokens; ")
    assert "dog.wav: 2.0 s, 8 audio tokens" in captions(pictures)


def test_a_clip_beside_the_chat_is_heard(client: Client, clip: str) -> None:
    _, pictures, status = ask(client, "What can be heard?", [], clip)
    assert len(captions(pictures)) == 1 and "8 audio tokens" in status


def test_two_clips_cost_twice(client: Client, clip: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.wav")
    shutil.copy(clip, other)
    _, pictures, status = ask(client, "Which is louder?", [clip, other])
    assert len(captions(pictures)) == 2 and "16 audio tokens" in status


def test_bad_audio_is_a_bubble_and_the_chat_goes_on(client: Client, clip: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no audio in here")
    reply, _, status = ask(client, "What is this?", [str(broken)])
    assert app.ERROR_TITLE in status and "broken.wav" in status and "Traceback" not in str(reply)
    _, _, status = ask(client, "And this?", [clip])
    assert "audio tokens; " in status and app.ERROR_TITLE not in status


def test_an_answer_grows_and_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "stream", lambda *args, memory, **sampling: iter(["a ", "dog ", f"{sampling}"]))
    processor = type("", (), {"tokenizer": lambda self, text, **_: {"input_ids": text.split()}})()
    shown = list(app.Chat(None, processor).timed({}, 8, {"temperature": 0.5}))
    assert [text for text, _ in shown] == ["a ", "a dog ", "a dog {'temperature': 0.5}"]
    assert all("8 audio tokens; first word after" in status for _, status in shown)
    assert "tokens per second" in shown[-1][1]


def test_a_clip_without_a_question_is_asked_for_one(client: Client, clip: str) -> None:
    assert "without a question" in ask(client, "", [clip])[2]


def upload_named(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(app, "get_upload_folder", lambda: str(tmp_path))
    (tmp_path / name).touch()
    return str(tmp_path / name)


def test_history_is_read_in_both_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload_named(tmp_path, "a.wav", monkeypatch)
    browser = [{"type": "file", "file": {"path": path}}, {"type": "text", "text": "What?"}]
    api = [{"path": path}, "What?"]
    for content in (browser, api):
        history = [{"role": "user", "content": content}, {"role": "assistant", "content": "a dog"}]
        conversation = app.to_conversation([*history, {"role": "user", "content": [("text", "Where?")]}], {})
        assert conversation["audios"] == [path]
        assert conversation["messages"] == [
            {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": "a dog"},
            {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
        ]


def test_a_failed_turn_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = upload_named(tmp_path, "a.wav", monkeypatch)
    history = [
        {"role": "user", "content": [{"path": path}, "What?"]},
        {"role": "assistant", "content": "too short", "metadata": {"title": app.ERROR_TITLE}},
        {"role": "user", "content": [("text", "Hello?")]},
    ]
    conversation = app.to_conversation(history, {})
    assert conversation["audios"] == []
    assert [message["role"] for message in conversation["messages"]] == ["user"]


def test_the_clip_beside_the_chat_belongs_to_its_turn() -> None:
    history = [
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "a dog"},
        {"role": "user", "content": [("text", "And now?")]},
    ]
    conversation = app.to_conversation(history, {"1": "second.wav"})
    assert conversation["audios"] == ["second.wav"]
    assert conversation["messages"][2]["content"][0] == {"type": "audio"}


def test_files_of_the_machine_cannot_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload_named(tmp_path, "a.wav", monkeypatch)
    with pytest.raises(AlmosaicError, match="was not uploaded"):
        app.as_typed([{"path": "/etc/hostname"}])
    assert app.as_typed("/etc/hostname") == [("text", "/etc/hostname")]


def test_in_a_browser(address: str, clip: str, tmp_path: Path) -> None:
    """The page opens, a file goes up, a question is answered, and a spectrogram appears."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("needs playwright and chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_timeout(4_000)  # gradio shows the box before it listens, and gives no sign when it does
        page.locator("input[type=file]").last.set_input_files(clip)
        page.locator(".thumbnail-item").first.wait_for()  # the upload has arrived
        page.locator("textarea").first.fill("What can be heard?")
        page.locator("textarea").first.press("Enter")
        page.get_by_text("audio tokens; ").wait_for(timeout=60_000)  # an untrained model may say nothing
        browser.close()
