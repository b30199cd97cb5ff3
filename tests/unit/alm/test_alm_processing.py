"""From conversations to inputs: placeholders, time cues, labels, padding, and the mistakes of users."""

import base64

import pytest
import soundfile
import torch
from helpers_tiny import QUERIES, WINDOW_FRAMES, answered, question, tiny_tokenizer, waveform

from almosaic.alm import AlmosaicProcessor, audio_token_cost
from almosaic.alm.encoding import time_cue
from almosaic.alm.processing import AUDIO_TOKEN, add_audio_token
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import AudioMosaicFeatureExtractor


def count(processor, ids):
    return ids.count(processor.audio_token_id)


def test_placeholders_and_cost_follow_the_windows(tiny):
    model, processor = tiny
    plain = len(processor.encode(question(clips=0), []).input_ids)
    for frames, windows in [(1, 1), (WINDOW_FRAMES, 1), (WINDOW_FRAMES + 1, 2), (5 * WINDOW_FRAMES, 5)]:
        encoded = processor.encode(question(), [frames])
        assert encoded.windows == [windows] and count(processor, encoded.input_ids) == QUERIES * windows
        assert len(encoded.input_ids) - plain == audio_token_cost(frames, model.config, processor.tokenizer)


def test_a_cue_tells_the_time_of_every_window_but_the_first(tiny):
    _, processor = tiny
    text = processor.tokenizer.decode(processor.encode(question(), [3 * WINDOW_FRAMES]).input_ids)
    assert text.count("[") == 2
    assert [time_cue(n, 1024) for n in (1, 2, 6, 29)] == ["[0:10]", "[0:20]", "[1:01]", "[4:56]"]


def test_labels_are_the_answer_and_its_end(tiny):
    _, processor = tiny
    talk = [*answered("a dog"), {"role": "user", "content": "sure?"}, {"role": "assistant", "content": "yes"}]
    encoded = processor.encode(talk, [100])
    trained = [token for token in encoded.labels if token != -100]
    assert processor.tokenizer.decode(trained).replace(" ", "") == "adog<|im_end|>yes<|im_end|>"
    assert all(label in (-100, token) for label, token in zip(encoded.labels, encoded.input_ids, strict=True))


def test_a_prompt_has_the_ids_that_were_trained(tiny):
    _, processor = tiny
    trained = processor.encode(answered(), [100])
    prompt = processor.encode(question(), [100], add_generation_prompt=True)
    answer = trained.labels.index(next(label for label in trained.labels if label != -100))
    assert trained.input_ids[:answer] == prompt.input_ids


def test_clips_keep_their_order_across_turns(tiny):
    _, processor = tiny
    later = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "and this?"}, {"type": "audio", "path": "x.wav"}],
        }
    ]
    encoded = processor.encode([*answered(clips=2), *later], [10, 2 * WINDOW_FRAMES, 10])
    assert encoded.windows == [1, 2, 1] and count(processor, encoded.input_ids) == 4 * QUERIES
    as_text = [{"role": "user", "content": f"{AUDIO_TOKEN}what do you hear"}]
    assert processor.encode(as_text, [10]) == processor.encode(question(), [10])


def test_padding_sides_and_fillers(tiny):
    _, processor = tiny
    rows = [processor.encode(answered("yes"), [10]), processor.encode(answered("a dog barks twice"), [10])]
    short, long = (len(row.input_ids) for row in rows)
    for side, real in (("left", slice(long - short, None)), ("right", slice(0, short))):
        batch = processor.pad(rows, side)
        assert batch["input_ids"][0, real].tolist() == rows[0].input_ids
        assert batch["attention_mask"].sum(1).tolist() == [short, long]
        assert batch["attention_mask"][0, real].all()
        padded = batch["attention_mask"][0] == 0
        assert (batch["input_ids"][0, padded] == processor.tokenizer.pad_token_id).all()
        assert (batch["labels"][0, padded] == -100).all()


def test_a_call_returns_everything_the_model_takes(tiny):
    _, processor = tiny
    talks, audio = (
        [question(), question(clips=0), question(clips=2)],
        [[waveform(0.4)], [], [waveform(1), waveform(0.5)]],
    )
    prompts = processor(talks, audio)
    assert set(prompts) == set(processor.model_input_names)
    assert prompts["audio_clips"].tolist() == [1, 0, 2] and prompts["audio_windows"].tolist() == [1, 2, 1]
    assert prompts["input_features"].shape == (4, WINDOW_FRAMES, 128)
    training = processor([answered()], [[waveform(0.4)]], add_generation_prompt=False)
    assert training["labels"].shape == training["input_ids"].shape
    assert set(processor(question(clips=0))) == {"input_ids", "attention_mask"}
    single, listed = processor(question(), [waveform(0.4)]), processor([question()], [[waveform(0.4)]])
    assert all(torch.equal(single[name], listed[name]) for name in listed)


def test_saved_and_loaded_it_is_the_same(tiny, tmp_path):
    _, processor = tiny
    processor.max_audio_seconds = 60.0
    processor.save_pretrained(tmp_path)
    processor.max_audio_seconds = 300.0
    loaded = AlmosaicProcessor.from_pretrained(tmp_path)
    assert (loaded.queries, loaded.max_audio_seconds) == (QUERIES, 60.0)
    assert loaded.chat_template == processor.chat_template
    assert loaded.encode(answered(), [200]) == processor.encode(answered(), [200])


def test_the_audio_token_leaves_other_special_tokens_special(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    before = len(tokenizer)
    assert add_audio_token(tokenizer) == before == add_audio_token(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", AUDIO_TOKEN, "<|im_end|>"])
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == ""
    assert {"<|im_start|>", "<|im_end|>", AUDIO_TOKEN} <= set(tokenizer.all_special_tokens)


def test_the_librarys_way_of_asking_loads_the_clips_of_the_parts(tiny, tmp_path):
    _, processor = tiny
    clip = waveform(1.2)
    soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
    data = base64.b64encode((tmp_path / "clip.wav").read_bytes()).decode()
    expected = processor(question(), [clip])
    for part in (
        {"type": "audio", "path": str(tmp_path / "clip.wav")},
        {"type": "audio", "audio": clip},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ):
        talk = [{"role": "user", "content": [part, {"type": "text", "text": "what do you hear"}]}]
        found = processor.apply_chat_template(talk, tokenize=True, add_generation_prompt=True)
        assert all(torch.allclose(found[name], expected[name]) for name in expected)
    text = processor.apply_chat_template(talk, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<|audio|>what do you hear<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(AlmosaicError, match="brings no clip"):
        processor.apply_chat_template(question(), tokenize=True)
    with pytest.raises(AlmosaicError, match="lose the clips"):
        processor.apply_chat_template(talk, tokenize=True, return_dict=False)


@pytest.mark.parametrize(
    ("messages", "frames", "message"),
    [
        ([], [], "conversation is empty"),
        (question(clips=2), [10], "2 audio placeholders but 1 clips"),
        (question(clips=0), [10], "0 audio placeholders but 1 clips"),
        ([{"role": "assistant", "content": [{"type": "audio"}]}], [10], "audio in an assistant turn"),
        ([{"role": "robot", "content": "x"}], [], "found str 'robot'"),
        ([{"role": "user"}], [], "message 1: expected content"),
        ([{"role": "user", "content": [{"type": "video"}]}], [], "found str 'video'"),
        ([{"role": "user", "content": [{"type": "audio", "wav": "x"}]}], [10], "unknown key 'wav'"),
        (
            [{"role": "user", "content": [{"type": "text"}]}],
            [],
            "message 1, part 1: expected a string under the key text",
        ),
        ([{"role": "user", "content": ["x"]}], [], "expected a dictionary with a type"),
        ([{"role": "user", "content": 3}], [], "a string or a list of parts"),
    ],
)
def test_mistakes_in_a_conversation_are_named(tiny, messages, frames, message):
    with pytest.raises(AlmosaicError, match=message) as caught:
        tiny[1].encode(messages, frames)
    assert "\n" not in str(caught.value)


def test_clips_that_are_too_long_or_too_short_are_never_cut(tiny):
    with pytest.raises(AudioError, match=r"300.1 s is longer than the limit of 300 s"):
        tiny[1].encode(question(), [30_010])
    with pytest.raises(AudioError, match="shorter than one 25 ms frame"):
        tiny[1].encode(question(), [0])


def test_mistakes_in_a_call_are_named(tiny):
    with pytest.raises(AlmosaicError, match="2 conversations came with 1 lists"):
        tiny[1]([question(), question()], [[waveform(0.4)]])
    with pytest.raises(AlmosaicError, match="no conversation"):
        tiny[1]([])


def test_a_tokenizer_without_pad_token_is_refused(tmp_path):
    with pytest.raises(AlmosaicError, match="no pad token"):
        AlmosaicProcessor(AudioMosaicFeatureExtractor(), tiny_tokenizer(tmp_path, pad_token=False))
