"""The ways to call the processor: batches, clips here and there, continued answers, one bad row of many."""

import base64
import io
import json
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from helpers_tiny import QUERIES, answered, question, tiny_tokenizer, waveform

from almosaic import audio as audio_module
from almosaic.alm import AlmosaicProcessor
from almosaic.alm.encoding import AUDIO_TOKEN
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import AudioMosaicFeatureExtractor


def asked(*parts, text="what do you hear"):
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def part(source):
    return {"type": "audio", "audio": source}


def same(first, second):
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def own(tmp_path):
    """A processor that a test may change."""
    return AlmosaicProcessor(
        AudioMosaicFeatureExtractor(window_frames=64), tiny_tokenizer(tmp_path), None, QUERIES
    )


def test_clips_come_flat_or_row_by_row_or_in_the_parts(tiny):
    _, processor = tiny
    one, two, three = waveform(0.4), waveform(1.0, 1), waveform(0.5, 2)
    talks = [question(), question(clips=0), question(clips=2)]
    expected = processor(talks, [[one], [], [two, three]])
    assert same(processor(talks, [one, two, three]), expected)
    assert same(processor(talks, ([one], [], (torch.from_numpy(two), (three, 16_000)))), expected)
    named = [asked(part(one)), question(clips=0), asked(part(two), part((three, 16_000)))]
    assert same(processor(named), expected)
    assert same(processor.apply_chat_template(named, tokenize=True, add_generation_prompt=True), expected)


def test_one_clip_needs_no_list(tiny, tmp_path):
    _, processor = tiny
    clip = waveform(0.4)
    soundfile.write(tmp_path / "clip.wav", clip, 16_000, subtype="FLOAT")
    expected = processor(question(), [clip])
    for source in (clip, (clip, 16_000), tmp_path / "clip.wav", (tmp_path / "clip.wav").read_bytes()):
        assert same(processor(question(), source), expected)
    assert same(
        processor(question(), clip[::2], sampling_rate=8000), processor(question(), (clip[::2], 8000))
    )
    assert not same(processor(question(), clip[::2], sampling_rate=8000), processor(question(), clip[::2]))


def test_a_prompt_is_what_the_chat_template_wrote(tiny):
    _, processor = tiny
    talks, clips = (
        [question(clips=2), question("is there rain")],
        [waveform(0.4), waveform(1.0), waveform(0.5)],
    )
    texts = processor.apply_chat_template(talks, add_generation_prompt=True)
    assert (
        texts[0] == f"<|im_start|>user\n{AUDIO_TOKEN * 2}what do you hear<|im_end|>\n<|im_start|>assistant\n"
    )
    assert texts[1] == processor.apply_chat_template(talks[1], add_generation_prompt=True)
    found = processor(text=texts, audio=clips, return_tensors="pt", padding=True, images=None, videos=None)
    assert same(found, processor(talks, clips)) and "labels" not in found
    assert same(processor(text=texts[1], audio=clips[0]), processor(talks[1], clips[0]))
    assert set(processor(text="hello")) == {"input_ids", "attention_mask"}


def test_a_last_answer_is_continued_from_its_last_word(tiny):
    _, processor = tiny
    talk, clip = answered("a dog"), waveform(0.4)
    text = processor.apply_chat_template(talk, continue_final_message=True)
    assert text.endswith("assistant\na dog")
    found = processor(talk, clip, continue_final_message=True)
    training = processor(talk, clip, add_generation_prompt=False)
    length = found["input_ids"].shape[1]
    assert "labels" not in found and torch.equal(found["input_ids"], training["input_ids"][:, :length])
    assert training["labels"][0, length:].tolist()[0] == processor.tokenizer.convert_tokens_to_ids(
        "<|im_end|>"
    )
    mixed = processor([talk, answered("a dog barks twice")], [clip, clip], continue_final_message=True)
    assert mixed["attention_mask"][0, 0] == 0 and mixed["attention_mask"][:, -1].all()
    with pytest.raises(AlmosaicError, match="expected an assistant turn at the end to continue, found user"):
        processor(question(), clip, continue_final_message=True)
    with pytest.raises(
        AlmosaicError, match="one of add_generation_prompt and continue_final_message, found both"
    ):
        processor(talk, clip, add_generation_prompt=True, continue_final_message=True)
    shout = processor.chat_template.replace("message['content']", "message['content'] | upper")
    with pytest.raises(AlmosaicError, match="rewrites the last answer"):
        processor(talk, clip, continue_final_message=True, chat_template=shout)


def test_another_template_for_one_call(tiny):
    _, processor = tiny
    plain = "{% for message in messages %}{{ message['content'] }}!{% endfor %}"
    assert processor.apply_chat_template(question(), plain) == f"{AUDIO_TOKEN}what do you hear!"
    found = processor(question(), waveform(0.4), chat_template=plain)
    assert processor.tokenizer.decode(found["input_ids"][0, QUERIES:]) == "what do you hear!"


def test_a_limit_for_one_call_or_for_the_processor(own, tmp_path):
    clip = waveform(1.5)
    for call in (own.__call__, lambda talk, **limit: own.apply_chat_template(talk, tokenize=True, **limit)):
        assert "input_features" in call(asked(part(clip)))
        with pytest.raises(AudioError, match=r"1.5 s, longer than the limit of 1 s"):
            call(asked(part(clip)), max_audio_seconds=1.0)
    with pytest.raises(AudioError, match=r"1.5 s, longer than the limit of 1 s"):
        own.apply_chat_template(asked(part(clip)), tokenize=True, processor_kwargs={"max_audio_seconds": 1.0})
    with pytest.raises(AudioError, match=r"301.0 s, longer than the limit of 300 s"):
        own(question(), np.zeros(302 * 16_000, np.float32))
    own.max_audio_seconds = 302.0
    own.save_pretrained(tmp_path / "saved")
    loaded = AlmosaicProcessor.from_pretrained(tmp_path / "saved")
    assert loaded.max_audio_seconds == 302.0
    assert loaded.encode(question(), [30_200]).windows == [472]
    lowered = AlmosaicProcessor.from_pretrained(tmp_path / "saved", max_audio_seconds=1.0)
    assert lowered.max_audio_seconds == 1.0
    assert own.encode(question(), [31_000], max_audio_seconds=310.0).windows == [485]


def test_remote_clips_only_where_the_processor_allows_it(own, monkeypatch):
    file = io.BytesIO()
    soundfile.write(file, waveform(0.4), 16_000, format="WAV", subtype="FLOAT")
    monkeypatch.setattr(audio_module, "fetch", lambda url: file.getvalue())
    talk = asked({"type": "audio_url", "audio_url": {"url": "https://example.org/a.wav"}})
    with pytest.raises(AudioError, match="remote audio is not fetched"):
        own(talk)
    with pytest.raises(AudioError, match="remote audio is not fetched"):
        own.feature_extractor.fetch_audio(["https://example.org/a.wav"])
    own.allow_remote = True
    assert same(own(talk), own(question(), waveform(0.4)))


def test_a_folder_cannot_allow_remote_clips(own, tmp_path):
    own.allow_remote = True
    own.save_pretrained(tmp_path)
    saved = tmp_path / "processor_config.json"
    assert "allow_remote" not in saved.read_text()
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"allow_remote": True}))
    assert AlmosaicProcessor.from_pretrained(tmp_path).allow_remote is False


def test_a_prompt_beyond_the_context_is_refused(own):
    fits = len(own.encode(question(), [10], add_generation_prompt=True).input_ids)
    own.tokenizer.model_max_length = fits
    assert own(question(), waveform(0.4))["input_ids"].shape == (1, fits)
    long = [question(), question("what do you hear in the clip")]
    with pytest.raises(
        AlmosaicError, match=rf"^conversation 2 of 2: .* tokens, more than the {fits} of the tok"
    ):
        own(long, [waveform(0.4)] * 2)


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.txt", "hello " * 2000)
    return file.getvalue()


BAD_CLIPS = {
    "missing.wav": (None, "no such file"),
    "zip.wav": (zipped(), "not readable as audio"),
    "text.mp3": (b"These are words and no sound. " * 300, "not readable as audio"),
    "empty.flac": (b"", "empty file"),
    "cut.wav": (b"RIFF\x00\x00", "not readable as audio"),
}


@pytest.mark.parametrize("name", BAD_CLIPS)
def test_the_bad_clip_of_a_batch_is_named(tiny, tmp_path, monkeypatch, name):
    monkeypatch.setenv("PATH", "")  # without ffmpeg
    content, message = BAD_CLIPS[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    bad = asked(part(waveform(0.4)), {"type": "audio", "path": str(tmp_path / name)})
    with pytest.raises(
        AudioError, match=rf"^conversation 2 of 3: clip 2 of 2: .*{name}.*{message}"
    ) as caught:
        tiny[1]([asked(part(waveform(0.4))), bad, question(clips=0)])
    assert "\n" not in str(caught.value)


def test_garbage_in_base64_is_named(tiny):
    for data, message in [
        ("not base64!", "base64 of this data URI is damaged"),
        ("QUJD", "not readable|no sam"),
    ]:
        bad = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        with pytest.raises(
            AudioError, match=rf"^conversation 1 of 2: audio data:audio/wav;base64.*({message})"
        ):
            tiny[1]([asked(bad), question(clips=0)])
    good = io.BytesIO()
    soundfile.write(good, waveform(0.4), 16_000, format="WAV")
    data = base64.b64encode(good.getvalue()).decode()
    assert "input_features" in tiny[1](asked({"type": "input_audio", "input_audio": {"data": data}}))


def test_three_hours_are_refused_before_they_are_decoded(tiny, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "hours.wav", np.zeros(10_800 * 100, np.int16), 100)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(AudioError, match=r"hours.wav: 10800.0 s, longer than the limit of 300 s"):
        tiny[1](asked({"type": "audio", "path": tmp_path / "hours.wav"}))


CLIP = np.zeros(800, np.float32)
GOOD = asked(part(CLIP))


@pytest.mark.parametrize(
    ("talks", "audio", "message"),
    [
        ([GOOD, []], None, "^conversation 2 of 2: the conversation is empty, expected at least one message"),
        ([GOOD, [{"role": "user"}]], None, "^conversation 2 of 2: message 1: expected content"),
        (
            [GOOD, asked({"type": "audio", "wav": "x"})],
            None,
            "^conversation 2 of 2: message 1, part 1: .*'wav'",
        ),
        ([GOOD, question()], None, "^conversation 2 of 2: message 1, part 1: an audio part brings no clip"),
        (GOOD, [CLIP], "^message 1: an audio part brings a clip of its own, though clips came beside"),
        (
            [question(), GOOD],
            [CLIP, CLIP],
            "^conversation 2 of 2: message 1: an audio part brings a clip of its",
        ),
        (question(clips=2), [CLIP], "^the conversation has 2 audio placeholders but 1 clips came"),
        (question(), [], "^the conversation has 1 audio placeholders but 0 clips came"),
        ("hello", CLIP, "^the prompt has 0 audio placeholders but 1 clips came"),
        ([question(), question()], [CLIP], "^2 conversations have 2 audio placeholders but 1 clips came"),
        ([question(), question()], [[CLIP]], "^2 conversations came with 1 lists of clips"),
        (
            [question(), question()],
            [[CLIP, CLIP], []],
            "^conversation 1 of 2: the conversation has 1 audio pl",
        ),
        ([question(), question()], [[CLIP], CLIP], "found 1 lists among 2 items"),
        ([{"role": "assistant", "content": AUDIO_TOKEN}], [CLIP], "^message 1: audio in an assistant turn"),
        ([], None, "^no conversation was given"),
        (None, None, "^expected a conversation, a prompt, or a list of them, found nothing"),
        ([question(), 3], None, "^expected a list of messages or a prompt in each row, found int 3"),
        (question(), [[CLIP, CLIP]], "has 1 audio placeholders but 2 clips came"),
        (question(), np.zeros((2, 2, 800)), r"found float64 of shape \[2, 2, 800\]"),
        (question(), np.zeros(100), "6.2 ms is too short"),
        (question(), np.full(800, np.nan), "NaN"),
        (question(), "nowhere.wav", "no such file"),
        (question(), [0.1], "expected a path, a URI, .*, found float '0.1'"),
    ],
)
def test_what_does_not_fit_together_is_named(tiny, talks, audio, message):
    with pytest.raises(AlmosaicError, match=message) as caught:
        tiny[1](talks, audio)
    assert "\n" not in str(caught.value)


def test_arguments_that_cannot_be_obeyed_are_refused(tiny):
    _, processor = tiny
    for wrong, message in [
        ({"images": [1]}, "does not see"),
        ({"videos": [1]}, "does not see"),
        ({"padding": "max_length"}, "expected padding True"),
        ({"padding": False}, "expected padding True"),
        ({"return_tensors": "np"}, "expected return_tensors 'pt', found 'np'"),
    ]:
        with pytest.raises(AlmosaicError, match=message):
            processor(question(clips=0), **wrong)
    for call in (processor.__call__, processor.apply_chat_template):
        for unknown in ("truncation", "tools", "audios"):
            with pytest.raises(TypeError, match=f"unexpected keyword argument '{unknown}'"):
                call(question(clips=0), **{unknown: True})
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_length'"):
        processor.apply_chat_template(question(clips=0), tokenize=True, processor_kwargs={"max_length": 3})
