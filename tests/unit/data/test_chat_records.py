"""Every form of chat records gives the same conversation, by its keys alone; nothing is dropped."""

import json

import pytest

from almosaic.data.chat_forms import FORMS
from almosaic.data.formats import question, read_chat
from almosaic.data.prompts import CAPTION_PROMPTS, TASK_PROMPTS
from almosaic.errors import AlmosaicError

QUESTION, ANSWER = "What is this?", {"role": "assistant", "content": "A dog."}
ASK = {"role": "user", "content": "<audio>What is this?"}
HUMAN, GPT = {"from": "human", "value": "<audio>\nWhat is this?"}, {"from": "gpt", "value": "A dog."}
RECORDS = {
    "messages": {
        "messages": [
            {**ASK, "loss": None},
            {**ANSWER, "loss": True},
        ],
        "audios": ["dog.wav"],
    },
    "sharegpt": {"conversations": [HUMAN, GPT], "audios": ["dog.wav"], "tools": ""},
    "vila": {
        "conversations": [{**HUMAN, "value": "<sound>\nWhat is this?"}, GPT],
        "sound": "dog.wav",
        "duration": 5.0,
    },
    "pairs": {
        "conversation": [{"human": "<audio>What is this?", "assistant": "A dog."}],
        "audios": ["dog.wav"],
    },
    "query": {"query": "<audio>What is this?", "response": "A dog.", "audios": ["dog.wav"], "history": []},
    "alpaca": {"instruction": "<audio>What is this?", "input": "", "output": "A dog.", "audios": "dog.wav"},
    "openaqa": {
        "instruction": QUESTION,
        "input": "",
        "audio_id": "./dog.wav",
        "dataset": "as_20k",
        "task": "cla_label",
        "output": "A dog.",
    },
    "salmonn": {"path": "dog.wav", "text": "A dog.", "task": "QA", "Q": QUESTION},
    "slam": {"key": "7", "source": "dog.wav", "target": "A dog.", "prompt": QUESTION},
    "audio_flamingo_2": {"name": "dog.wav", "prompt": QUESTION, "output": "A dog.", "duration": 5.0},
    "mdl": {"audio": "dog.wav", "system_prompt": "", "user_prompt": QUESTION, "prediction": "A dog."},
    "captions": {"audio": "dog.wav", "caption": "A dog.", "prompt": QUESTION},
}


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def read_one(tmp_path, record, **options):
    (row,) = read_chat(write(tmp_path / "a.jsonl", record), "/data", **options)
    return row


def test_there_is_a_record_of_every_form():
    assert set(RECORDS) == set(FORMS)


@pytest.mark.parametrize("form", RECORDS)
def test_every_form_is_recognised_and_gives_the_same_row(tmp_path, form):
    expected = {"messages": [question(QUESTION), ANSWER], "audios": ["/data/dog.wav"]}
    for named in ("auto", form):
        row = read_one(tmp_path, RECORDS[form], form=named)
        assert row.pop("id") == ("7" if form == "slam" else "0")
        assert row == expected
    assert read_one(tmp_path, RECORDS[form] | {"id": 12})["id"] == "12"
    assert read_one(tmp_path, RECORDS[form] | {"id": None})["id"] in ("0", "7")


@pytest.mark.parametrize("form", RECORDS)
def test_a_key_that_would_be_dropped_is_named(tmp_path, form):
    with pytest.raises(AlmosaicError, match=r"a\.jsonl:1: unknown key 'mood' in a record of the format"):
        read_one(tmp_path, RECORDS[form] | {"mood": "calm"})
    with pytest.raises(AlmosaicError, match=r"the key 'images': only audio is heard here"):
        read_one(tmp_path, RECORDS[form] | {"images": ["a.png"]}, form=form)
    assert read_one(tmp_path, RECORDS[form] | {"images": [], "mood": None})["audios"] == ["/data/dog.wav"]


@pytest.mark.parametrize("form", RECORDS)
def test_a_form_that_does_not_fit_is_named_with_its_keys(tmp_path, form):
    path = write(tmp_path / "a.jsonl", {"text": "A dog.", "wav": "dog.wav"})
    with pytest.raises(AlmosaicError) as caught:
        read_chat(path, form=form)
    assert str(caught.value).startswith(f"{path}:1: a record of the format {form} needs the keys ")
    assert str(caught.value).endswith("found text, wav")
    assert all(key in str(caught.value) for group in FORMS[form].needs for key in group)


@pytest.mark.parametrize("form", [form for form in RECORDS if FORMS[form].answer and form != "captions"])
def test_a_row_without_its_answer_names_the_key(tmp_path, form):
    key = FORMS[form].answer
    record = {name: value for name, value in RECORDS[form].items() if name != key}
    assert read_one(tmp_path, record, answers=False)["messages"] == [question(QUESTION)]
    with pytest.raises(
        AlmosaicError, match=f"expected the key {key} to learn from, found none; the keys are"
    ):
        read_one(tmp_path, record)


def test_records_of_no_form_and_of_two(tmp_path):
    with pytest.raises(AlmosaicError, match=r"a known format \(messages, .*\), found the keys text, wav$"):
        read_one(tmp_path, {"text": "A dog.", "wav": "dog.wav"})
    manifest = {"id": "a", "audio": "dog.wav", "captions": ["A dog."]}
    with pytest.raises(AlmosaicError, match=r"a manifest is \{name: captions, manifest: FILE\}"):
        read_one(tmp_path, manifest)
    both = {"conversations": [{**HUMAN, "value": "<audio><sound>?"}, GPT], "sound": "dog.wav"}
    with pytest.raises(AlmosaicError, match="may be of the format sharegpt or vila; set `format`"):
        read_one(tmp_path, both)
    with pytest.raises(AlmosaicError, match="unknown key 'messages' in a record of the format query"):
        read_one(tmp_path, {**RECORDS["query"], "messages": [ANSWER]})


def test_numbered_sounds_may_come_in_any_order_and_again(tmp_path):
    record = {
        "conversations": [
            {"from": "human", "value": "<sound-2>\n<sound-1> Which is louder?"},
            {"from": "gpt", "value": "The first."},
            {"from": "human", "value": "And <sound-2>?"},
            {"from": "gpt", "value": "No."},
        ],
        "sound": ["a.wav", "b.wav"],
    }
    row = read_one(tmp_path, record)
    assert row["audios"] == ["/data/b.wav", "/data/a.wav", "/data/b.wav"]
    assert [part.get("text") for part in row["messages"][0]["content"]] == [None, None, " Which is louder?"]
    record["sound"].append("c.wav")
    with pytest.raises(AlmosaicError, match=r"2 <sound> tags .* but 3 `sound`"):
        read_one(tmp_path, record)
    record["sound"] = ["a.wav"]
    with pytest.raises(AlmosaicError, match=r"<sound-2> names no clip, found 1 `sound`"):
        read_one(tmp_path, record)
    record["conversations"][0]["value"] = "<sound> <sound-1>"
    del record["conversations"][2:]
    with pytest.raises(AlmosaicError, match="tags with numbers or without, found both"):
        read_one(tmp_path, record)


def test_earlier_turns_and_the_system_of_query_and_alpaca(tmp_path):
    rest = {"system": "Be brief.", "history": [["<audio>Hm?", "A cat."]], "audios": ["cat.wav", "dog.wav"]}
    expected = [
        {"role": "system", "content": "Be brief."},
        question("Hm?"),
        {"role": "assistant", "content": "A cat."},
        question(QUESTION),
        ANSWER,
    ]
    for form in ("query", "alpaca"):
        row = read_one(tmp_path, RECORDS[form] | rest)
        assert row["messages"] == expected and row["audios"] == ["/data/cat.wav", "/data/dog.wav"]
    with pytest.raises(AlmosaicError, match="history as a list of two texts each, found str 'Hm"):
        read_one(tmp_path, RECORDS["query"] | {"history": ["Hm?"]})
    joined = read_one(tmp_path, RECORDS["openaqa"] | {"input": "Be exact."})
    assert joined["messages"][0] == question("What is this?\nBe exact.")


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        ("messages", {"messages": [ASK, {**ANSWER, "loss": False}]}, "message 2: loss is False, but"),
        ("messages", {"messages": [{**ASK, "weight": 1}, ANSWER]}, "message 1: weight is 1, but"),
        ("messages", {"messages": [{**ANSWER, "tool_calls": [{}]}]}, "message 1: unknown key 'tool_calls'"),
        ("messages", {"conversations": []}, "expected one conversation, found messages and conversations"),
        ("messages", {"audio": "b.wav"}, "expected one list of clips, found audios and audio"),
        ("sharegpt", {"conversations": [{"from": "tool", "value": "?"}]}, "from to be one of system, human"),
        ("sharegpt", {"conversations": [HUMAN, {**GPT, "value": None}]}, "text under value, found nothing"),
        ("sharegpt", {"conversations": [HUMAN, {**GPT, "value": "<audio>"}]}, "2 <audio> tags"),
        ("sharegpt", {"audios": []}, "1 <audio> tags or audio parts without a path, but 0 `audios`"),
        ("query", {"audios": ["a.wav", "b.wav"]}, "1 <audio> tags .* but 2 `audios`"),
        ("query", {"audios": [{"bytes": "UklG"}]}, "expected `audios` to be a list of paths, found dict"),
        ("query", {"query": "Hello", "audios": ["a.wav"]}, "0 <audio> tags .* but 1 `audios`"),
        ("alpaca", {"instruction": 3}, "expected a text under instruction, found int 3"),
        ("openaqa", {"audio_id": ""}, "expected `audio_id` to be a list of paths, found str ''"),
        ("openaqa", {"instruction": "<audio>?"}, "the text holds <audio>, which stands for no clip here"),
        ("mdl", {"user_prompt": "<|audio|>?"}, r"the text holds <\|audio\|>"),
        ("pairs", {"conversation": [{"human": "<audio>?", "bot": "A dog."}]}, "unknown key 'bot'"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused(tmp_path, form, change, message):
    with pytest.raises(AlmosaicError, match=message) as caught:
        read_one(tmp_path, RECORDS[form] | change)
    assert str(caught.value).startswith(f"{tmp_path / 'a.jsonl'}:1") and "\n" not in str(caught.value)


def test_salmonn_asks_by_task_and_hears_every_clip(tmp_path):
    record = {"path": "a.wav", "text": "hello", "task": "asr", "expand_wav": ["b.wav", "c.wav"]}
    row = read_one(tmp_path, record)
    assert row["messages"][0] == question(TASK_PROMPTS["asr"], clips=3)
    assert row["audios"] == ["/data/a.wav", "/data/b.wav", "/data/c.wav"]
    assert read_one(tmp_path, record, prompt="Write it.")["messages"][0] == question("Write it.", clips=3)
    slot = {"path": "a.wav", "text": "Rome", "task": "slot_filling", "Q": "city"}
    assert read_one(tmp_path, slot)["messages"][0] == question("Which city does the speaker mention?")
    own = slot | {"task": "keywords"}
    assert read_one(tmp_path, own, prompt="The {}?")["messages"][0] == question("The city?")
    for wrong, prompt in ((own, None), (own, "Which?"), (record | {"task": "QA"}, None), (record, "{}?")):
        with pytest.raises(AlmosaicError, match=r"expected a prompt with.* for the task .*set `prompt`"):
            read_one(tmp_path, wrong, prompt=prompt)


def test_prompts_for_rows_that_ask_nothing_and_for_no_others(tmp_path):
    slam = {"key": "7", "source": "dog.wav", "target": "A dog."}
    assert read_one(tmp_path, slam, prompt=QUESTION)["messages"][0] == question(QUESTION)
    with pytest.raises(AlmosaicError, match="the row has no prompt; set `prompt`"):
        read_one(tmp_path, slam)
    caption = {"audio": "dog.wav", "caption": "A dog."}
    assert read_one(tmp_path, caption)["messages"][0] == question(CAPTION_PROMPTS[0])
    assert read_one(tmp_path, caption, prompt=QUESTION)["messages"][0] == question(QUESTION)
    empty = RECORDS["mdl"] | {"user_prompt": "", "system_prompt": "Be brief."}
    system, user, _ = read_one(tmp_path, empty, prompt=QUESTION)["messages"]
    assert system == {"role": "system", "content": "Be brief."} and user == question(QUESTION)
    with pytest.raises(AlmosaicError, match="expected a user_prompt, found none"):
        read_one(tmp_path, empty)
    with pytest.raises(AlmosaicError, match="brings its own question; leave `prompt` out"):
        read_one(tmp_path, RECORDS["openaqa"], prompt=QUESTION)


def test_addresses_absolute_paths_and_inline_clips_stay_as_they_are(tmp_path):
    kept = ["data:audio/wav;base64,AAAA", "https://example.org/a.wav", "/x/a.wav"]
    for audio in kept:
        assert read_one(tmp_path, RECORDS["openaqa"] | {"audio_id": audio})["audios"] == [audio]
    assert read_one(tmp_path, RECORDS["openaqa"] | {"audio_id": "file:///x/a.wav"})["audios"] == ["/x/a.wav"]
    named = RECORDS["messages"] | {"audios": [{"path": "dog.wav", "bytes": None}]}
    assert read_one(tmp_path, named)["audios"] == ["/data/dog.wav"]
    typed = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "flac"}}
    record = {"messages": [{"role": "user", "content": [typed]}, ANSWER]}
    assert read_one(tmp_path, record)["audios"] == ["data:audio/flac;base64,AAAA"]
    typed["input_audio"] = {"array": [0.0], "sampling_rate": 8000}
    with pytest.raises(AlmosaicError, match="a clip by path or data URI, found tuple"):
        read_one(tmp_path, record)
