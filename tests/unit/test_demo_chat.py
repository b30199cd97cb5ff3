"""The chat behind the page, without a page: what is heard again, drawn again, charged, refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from helpers_tiny import QUERIES, tiny_model, waveform

pytest.importorskip("gradio", reason="the demo extra is not installed")

from almosaic.inference import generate
from demo import app

SLIDERS = {"length": 5, "temperature": 0.0, "top_p": 1.0, "top_k": 0, "penalty": 1.0, "seed": None}


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> app.Chat:
    monkeypatch.setattr(app, "get_upload_folder", lambda: str(tmp_path))
    return app.Chat(*tiny_model(tmp_path / "model"))


@pytest.fixture
def encoded(chat: app.Chat) -> list[int]:
    """Windows that went through the encoder, call by call."""
    counts: list[int] = []
    chat.model.audio_tower.register_forward_hook(lambda part, inputs, output: counts.append(len(inputs[0])))
    return counts


def upload(folder: Path, name: str, seconds: float, seed: int = 0) -> str:
    soundfile.write(folder / name, waveform(seconds, seed), 16_000, subtype="FLOAT")
    return str(folder / name)


class Talk:
    """A browser's part: it keeps the history and what the side panel gave to which turn."""

    def __init__(self, chat: app.Chat) -> None:
        self.chat, self.history, self.heard = chat, [], {}

    def say(self, text: str, *files: str, clip: str | None = None, **sliders: Any) -> tuple[Any, Any, str]:
        message = {"text": text, "files": list(files)}
        shown: list[Any] = []
        chosen = {**SLIDERS, **sliders, "heard": self.heard}
        for reply, pictures, status, heard in self.chat.answer(message, self.history, clip, **chosen):
            shown.append((reply, pictures, status))
            self.heard = heard
        content = [{"path": file} for file in files] + ([text] if text else [])
        self.history.append({"role": "user", "content": content})
        reply = shown[-1][0]
        failed = not isinstance(reply, str)
        self.history.append(
            {"role": "assistant", "content": reply.content, "metadata": {"title": app.ERROR_TITLE}}
            if failed
            else {"role": "assistant", "content": reply}
        )
        return reply, shown[0][1], shown[-1][2]


def test_a_second_question_does_not_run_the_encoder(
    chat: app.Chat, encoded: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    draw = app.spectrogram
    monkeypatch.setattr(
        app, "spectrogram", lambda samples, ears: drawn.append(len(samples)) or draw(samples, ears)
    )
    talk = Talk(chat)
    dog, bell = upload(tmp_path, "dog.wav", 1.5), upload(tmp_path, "bell.wav", 0.5, 1)
    first, pictures, _ = talk.say("what do you hear", dog)
    assert encoded == [3] and len(pictures) == 1
    _, pictures, _ = talk.say("is there rain")  # a turn of text alone
    assert encoded == [3] and len(pictures) == 1
    _, pictures, _ = talk.say("and here", bell)
    assert encoded == [3, 1] and [caption.split(":")[0] for _, caption in pictures] == ["dog.wav", "bell.wav"]
    other = Talk(chat)  # another visitor, the same clips, several in one message
    _, pictures, _ = other.say("which comes first", bell, dog)
    assert encoded == [3, 1] and len(pictures) == 2 and drawn == [24_000, 8_000]
    other.say("rain", clip=upload(tmp_path, "panel.wav", 0.3, 2))
    assert encoded == [3, 1, 1]
    (expected,) = generate(
        chat.model,
        chat.processor,
        [
            app.to_conversation(
                [{"role": "user", "content": [("audio", dog), ("text", "what do you hear")]}], {}
            )
        ],
        max_new_tokens=5,
    )
    assert first.strip() == expected["prediction"]


def test_a_clip_costs_its_time_cues_too(chat: app.Chat, tmp_path: Path) -> None:
    cue = len(chat.processor.tokenizer("[0:00]", add_special_tokens=False)["input_ids"])
    _, pictures, status = Talk(chat).say("what", upload(tmp_path, "dog.wav", 1.5))
    cost = 3 * QUERIES + 2 * cue
    assert f"{cost} audio tokens" in pictures[0][1] and status.startswith(f"{cost} audio tokens;")
    assert Talk(chat).say("hello")[2].startswith("0 audio tokens;")


def test_every_slider_takes_effect(chat: app.Chat, tmp_path: Path) -> None:
    clip = upload(tmp_path, "dog.wav", 0.5)

    def said(**sliders: Any) -> str:
        return str(Talk(chat).say("what do you hear", clip, **sliders)[0])

    greedy = said()
    assert said() == greedy != said(length=2)
    warm = {"temperature": 1.5, "seed": 1}
    assert said(**warm) == said(**warm) != greedy
    assert said(**{**warm, "seed": 2}) != said(**warm)
    assert said(**warm, top_k=1) == greedy
    assert said(**warm, top_p=0.05) != said(**warm)
    assert said(penalty=2.0, length=30) != said(length=30)
    assert len({said(temperature=1.5) for _ in range(4)}) > 1


def test_what_does_not_work_is_a_bubble_with_the_limit_and_the_chat_goes_on(
    chat: app.Chat, tmp_path: Path
) -> None:
    chat.processor.max_audio_seconds = 1.0
    talk = Talk(chat)
    reply, _, status = talk.say("what", upload(tmp_path, "long.wav", 1.5))
    assert "longer than the limit of 1 s" in reply.content and reply.metadata["title"] == app.ERROR_TITLE
    assert app.ERROR_TITLE in status
    reply, _, status = talk.say("rain " * 300)
    assert "more than the context of 256 holds" in reply.content
    reply, pictures, status = talk.say("what", upload(tmp_path, "short.wav", 0.5, 1))
    assert isinstance(reply, str) and status.startswith(f"{QUERIES} audio tokens") and len(pictures) == 1


def test_pictures_are_bounded(chat: app.Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "PICTURES_KEPT", 2)
    monkeypatch.setattr(app, "spectrogram", lambda *_: np.zeros((1, 1, 3), np.uint8))
    for path in ("a", "b", "a", "c"):
        chat.picture(path, np.zeros(400, np.float32))
    assert list(chat.pictures) == ["a", "c"]
