"""Chat files: both forms give the same rows, and every mistake is one line with file and line."""

import json

import pytest

from almosaic.data.formats import question, read_chat
from almosaic.errors import AlmosaicError

ANSWER = {"role": "assistant", "content": "A dog."}
TAGGED = {
    "id": "a",
    "messages": [{"role": "user", "content": "<audio>\nWhat is this?"}, ANSWER],
    "audios": ["clips/dog.wav"],
}
TYPED = {
    "id": "a",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "audio", "audio": "clips/dog.wav"},
                {"type": "text", "text": "What is this?"},
            ],
        },
        ANSWER,
    ],
}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_both_forms_and_both_files_give_the_same_row(tmp_path):
    expected = {
        "id": "a",
        "messages": [question("What is this?"), ANSWER],
        "audios": [str(tmp_path / "clips/dog.wav")],
    }
    assert read_chat(write(tmp_path / "a.jsonl", TAGGED, TYPED)) == [expected, expected]
    (tmp_path / "a.json").write_text(json.dumps([TAGGED]))
    assert read_chat(tmp_path / "a.json") == [expected]


def test_clips_keep_the_order_in_which_they_are_spoken_of(tmp_path):
    row = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "First <audio> then <audio>."},
            ANSWER,
            {
                "role": "user",
                "content": [{"type": "text", "text": "And"}, {"type": "audio", "path": "/x/own.wav"}],
            },
            ANSWER,
        ],
        "audios": ["1.wav", "2.wav"],
    }
    (read,) = read_chat(write(tmp_path / "a.jsonl", row), audio_root="/data")
    assert read["audios"] == ["/data/1.wav", "/data/2.wav", "/x/own.wav"]
    kinds = [part["type"] for part in read["messages"][1]["content"]]
    assert kinds == ["text", "audio", "text", "audio", "text"]
    assert read["messages"][0]["content"] == "Be brief."
    assert read["id"] == "0"


def test_rows_without_audio_and_data_uris(tmp_path):
    text_only = {"messages": [{"role": "user", "content": "Hello"}, ANSWER]}
    inline = {**TAGGED, "audios": ["data:audio/wav;base64,AAAA"]}
    plain, uri = read_chat(write(tmp_path / "a.jsonl", text_only, inline))
    assert plain["audios"] == [] and plain["messages"][0]["content"] == "Hello"
    assert uri["audios"] == ["data:audio/wav;base64,AAAA"]


def test_rows_to_be_answered_need_no_answer(tmp_path):
    path = write(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "Hello"}]})
    assert len(read_chat(path, answers=False)) == 1
    with pytest.raises(AlmosaicError, match=r"a\.jsonl:1: expected an assistant's turn"):
        read_chat(path)


USER = {"role": "user", "content": "<audio>?"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**TAGGED, "audios": []}, "1 <audio> tags or audio parts without a path, but 0 `audios`"),
        ({**TAGGED, "audios": ["a", "b"]}, "but 2 `audios`"),
        ({**TAGGED, "audios": 3}, "expected `audios` to be a list of paths, found int 3"),
        ({"messages": []}, "expected a non-empty list `messages`, found list"),
        ({"text": "?"}, "expected a record of a known format .* found the keys text"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "expected a role of .* found str 'robot'"),
        ({"messages": [{"role": "user"}]}, "message 1: expected content, a string or a list"),
        (
            {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
            "type text or audio, found str 'video'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "audio": 3}]}]},
            "part 1: expected audio to be a path.* found int 3",
        ),
        (
            {"messages": [{"role": "assistant", "content": "<audio>"}], "audios": ["a"]},
            "found it in an answer",
        ),
        ([1], "expected an object with messages, found list"),
    ],
)
def test_mistakes_are_one_line_with_the_place(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", TAGGED, row)
    with pytest.raises(AlmosaicError, match=message) as caught:
        read_chat(path)
    assert str(caught.value).startswith(f"{path}:2") and "\n" not in str(caught.value)


def test_files_that_are_no_chat_at_all(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"messages": [\n')
    with pytest.raises(AlmosaicError, match=r"bad\.jsonl:1: not valid JSON"):
        read_chat(tmp_path / "bad.jsonl")
    (tmp_path / "object.json").write_text("{}")
    with pytest.raises(AlmosaicError, match=r"expected a list of conversations, or an object .*, found dict"):
        read_chat(tmp_path / "object.json")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(AlmosaicError, match="at least one conversation, found none"):
        read_chat(tmp_path / "empty.jsonl")
    with pytest.raises(AlmosaicError, match=r"nowhere\.jsonl: cannot be read"):
        read_chat(tmp_path / "nowhere.jsonl")
