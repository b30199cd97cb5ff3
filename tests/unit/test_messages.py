"""Content parts in every spelling, and the mistakes in them, each named by its place."""

import io
from pathlib import Path

import numpy as np
import pytest

from almosaic.errors import AlmosaicError
from almosaic.messages import AUDIO_TOKEN, ClipPart, clip_sources, flatten_messages, read_parts

WAVE = np.zeros(800, np.float32)
FILE = io.BytesIO(b"RIFF")


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"type": "audio"}, None),
        ({"type": "audio", "audio": None, "text": None}, None),
        ({"type": "audio", "audio": "a.wav"}, "a.wav"),
        ({"type": "audio", "path": Path("a.wav")}, Path("a.wav")),
        ({"type": "audio", "url": "https://x/a.wav"}, "https://x/a.wav"),
        ({"type": "audio", "audio_url": {"url": "a.wav"}}, "a.wav"),
        ({"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,QQ"}}, "data:audio/wav;base64,QQ"),
        ({"type": "audio_url", "audio_url": "a.wav"}, "a.wav"),
        (
            {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "mp3"}},
            "data:audio/mp3;base64,QQ==",
        ),
        ({"type": "input_audio", "input_audio": {"data": "QQ=="}}, "data:audio/wav;base64,QQ=="),
        ({"type": "input_audio", "input_audio": {"data": "data:;base64,QQ=="}}, "data:;base64,QQ=="),
        ({"type": "audio", "audio": b"RIFF"}, b"RIFF"),
        ({"type": "audio", "audio": FILE}, FILE),
        ({"type": "audio", "audio": {"path": "a.wav", "bytes": b"RIFF"}}, b"RIFF"),
        ({"type": "audio", "audio": {"path": "a.wav", "bytes": None}}, "a.wav"),
    ],
)
def test_every_spelling_brings_its_clip(part, expected):
    (found,) = read_parts([part], "message 1")
    assert found == ClipPart(expected)


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        (WAVE, 16_000),
        ((WAVE, 8000), 8000),
        ({"array": WAVE, "sampling_rate": 44_100, "path": "a.wav"}, 44_100),
        ({"array": [0.0] * 800, "sampling_rate": 44_100}, 44_100),
    ],
)
def test_waveforms_carry_their_rate(value, rate):
    ((samples, found),) = clip_sources(user({"type": "audio", "audio": value}))
    assert found == rate and np.array_equal(samples, WAVE)


def test_a_conversation_becomes_strings_with_its_clips_in_order():
    talk = [
        {"role": "system", "content": "listen"},
        *user(
            {"type": "audio", "path": "a.wav"}, {"type": "text", "text": "and"}, {"type": "audio", "url": "b"}
        ),
        {"role": "assistant", "content": [{"type": "text", "text": "yes", "audio": None}], "name": None},
        *user({"type": "text", "text": "this?"}, {"type": "audio", "audio": "c"}),
    ]
    assert flatten_messages(talk) == [
        {"role": "system", "content": "listen"},
        {"role": "user", "content": f"{AUDIO_TOKEN}and{AUDIO_TOKEN}"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": f"this?{AUDIO_TOKEN}"},
    ]
    assert clip_sources(talk) == ["a.wav", "b", "c"]
    assert clip_sources([{"role": "user", "content": "no clip"}]) == []


ANSWER = {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([], "row 7: the conversation is empty, expected at least one message"),
        (None, "row 7: expected a list of messages, found nothing"),
        ("hello", "row 7: expected a list of messages, found str 'hello'"),
        (["hello"], "row 7, message 1: expected a dictionary of role and content, found str 'hello'"),
        (
            [ANSWER, {"role": "robot", "content": "x"}],
            "row 7, message 2: expected a role of system, user, assistant, found str 'robot'",
        ),
        ([{"content": "x"}], "row 7, message 1: expected a role of .*, found nothing"),
        ([ANSWER, {"role": "user"}], "row 7, message 2: expected content, found the keys role"),
        (
            [{"role": "user", "content": None}],
            "row 7, message 1: expected content, found the keys role, content",
        ),
        (
            [{"role": "user", "content": "x", "tool_calls": [1]}],
            "message 1: .* unknown key 'tool_calls'; known keys: role, content",
        ),
        ([{"role": "user", "content": 3}], "expected content, a string or a list of parts, found int 3"),
        (user(), "expected content, a string or a list of parts, found list"),
        (
            user({"type": "audio"}, "x"),
            "row 7, message 1, part 2: expected a dictionary with a type, found str",
        ),
        (
            user({"type": "video"}),
            "row 7, message 1, part 1: expected a part of type text or audio, found str 'vi",
        ),
        (user({"text": "x"}), "part 1: expected a part of type text or audio, found nothing"),
        (user({"type": "text"}), "part 1: expected a string under the key text, found nothing"),
        (user({"type": "text", "text": 3}), "part 1: expected a string under the key text, found int 3"),
        (
            user({"type": "text", "text": "x", "audio": "a"}),
            "part 1: a text part has the unknown key 'audio'",
        ),
        (
            user({"type": "audio", "wav": "a"}),
            "part 1: an audio part has the unknown key 'wav'; known keys: type",
        ),
        (
            user({"type": "audio", "audio": "a", "url": "b"}),
            "expected one clip, found two, under the keys audio and",
        ),
        (user({"type": "audio", "path": 3}), "part 1: expected path to be a path, .*, found int 3"),
        (user({"type": "audio", "path": ""}), "part 1: expected path to be a path, .*, found str ''"),
        (user({"type": "audio", "audio": [0.0, 1.0]}), r"expected audio to be .*, found list \[0.0, 1.0\]"),
        (user({"type": "audio", "audio": ("a.wav", 8000)}), "expected audio to be .*, found tuple"),
        (
            user({"type": "audio", "audio": {"array": WAVE}}),
            "expected a number as sampling_rate, found nothing",
        ),
        (
            user({"type": "audio", "audio": {}}),
            "part 1: audio: expected one of array, bytes, data, url, path, found",
        ),
        (
            user({"type": "audio", "audio": {"url": "a", "path": "b"}}),
            "audio with url has the unknown key 'path'",
        ),
        (
            user({"type": "audio_url", "audio_url": {"url": 3}}),
            "audio_url: expected url to be a string, found int 3",
        ),
        (
            user({"type": "input_audio", "input_audio": "QQ=="}),
            'expected input_audio as {"data": base64, "form',
        ),
        (
            user({"type": "input_audio", "input_audio": {"data": b"x"}}),
            "expected data to be a string, found bytes",
        ),
        (
            [{"role": "assistant", "content": [{"type": "audio"}]}],
            "row 7, message 1: audio in an assistant turn",
        ),
        ([{"role": "assistant", "content": AUDIO_TOKEN}], "row 7, message 1: audio in an assistant turn"),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(talk, message):
    with pytest.raises(AlmosaicError, match=message) as caught:
        flatten_messages(talk, "row 7")
    assert "\n" not in str(caught.value)


def test_a_part_without_its_clip_is_named():
    with pytest.raises(AlmosaicError, match=r"^message 2, part 1: an audio part brings no clip"):
        clip_sources([{"role": "system", "content": "listen"}, *user({"type": "audio"})])


def test_what_was_found_stays_one_short_line():
    for value in ("x\n" * 1000, np.zeros((3, 3)), {"a": np.zeros((3, 3))}):
        with pytest.raises(AlmosaicError) as caught:
            read_parts([{"type": "audio", "path": [value]}], "message 1")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 250
