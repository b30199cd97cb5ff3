"""The library's any-to-any pipeline on a saved folder answers as `almosaic.inference.generate` does."""

import pytest
import soundfile
from helpers_tiny import tiny_model, waveform
from transformers import AutoProcessor, pipeline

from almosaic.alm import AlmosaicProcessor
from almosaic.errors import AlmosaicError, AudioError
from almosaic.inference import generate

WORDS = 5


def asked(clip, text="what do you hear"):
    part = {"type": "audio", "path": clip} if isinstance(clip, str) else {"type": "audio", "audio": clip}
    return [{"role": "user", "content": [part, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    model, processor = tiny_model(folder)
    pieces = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
    # Bytes and markers of a random model would not be read back as they were written.
    model.generation_config.suppress_tokens = [n for n, piece in enumerate(pieces) if piece.startswith("<")]
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    soundfile.write(folder / "clip.wav", waveform(1.2), 16_000, subtype="FLOAT")
    try:
        made = pipeline("any-to-any", model=str(folder / "model"))
    except ImportError as error:
        wanted = " ".join(str(error).split())
        pytest.skip(f"this transformers asks for a package that almosaic does without: {wanted[:60]}")
    made.clip = str(folder / "clip.wav")
    return made


def ours(pipe, *talks):
    rows = [{"messages": talk} for talk in talks]
    return [row["prediction"] for row in generate(pipe.model, pipe.processor, rows, max_new_tokens=WORDS)]


def theirs(results):
    return [(row[0] if isinstance(row, list) else row)["generated_text"].strip() for row in results]


def test_the_pipeline_answers_as_we_do(pipe):
    long, talks = (
        asked(pipe.clip),
        [asked(waveform(0.6)), asked(waveform(0.5, 1), "is there rain in the recording?")],
    )
    found = pipe(long, max_new_tokens=WORDS, return_full_text=False)
    assert theirs(found) == ours(pipe, long) and theirs(found)[0]
    expected = ours(pipe, *talks)
    for size in (1, 2):
        found = pipe(talks, max_new_tokens=WORDS, return_full_text=False, batch_size=size)
        assert theirs(found) == expected and expected[0] != expected[1]
    whole = pipe(talks[0], max_new_tokens=WORDS)[0]["generated_text"]
    assert whole[:-1] == talks[0] and whole[-1]["content"].strip() == expected[0]


def test_a_batch_that_the_library_pads_wrongly_is_an_error(pipe):
    with pytest.raises(AlmosaicError, match="pass the audio_windows that the feature extractor returned"):
        pipe([asked(waveform(0.5)), asked(waveform(3.0))], max_new_tokens=WORDS, batch_size=2)


def test_prompts_and_clips_by_name(pipe):
    talk = asked(pipe.clip)
    prompt = pipe.processor.apply_chat_template(talk, add_generation_prompt=True)
    found = pipe(text=prompt, audio=pipe.clip, max_new_tokens=WORDS, return_full_text=False)
    assert theirs(found) == ours(pipe, talk)
    found = pipe(
        text=[prompt] * 2, audio=[pipe.clip, waveform(1.2)], max_new_tokens=WORDS, return_full_text=False
    )
    assert theirs(found) == ours(pipe, talk) * 2
    assert pipe("hear", max_new_tokens=WORDS)[0]["generated_text"].startswith("hear")
    with pytest.raises(AudioError, match="remote audio is not fetched"):
        pipe(text=prompt, audio="https://example.org/a.wav")


def test_a_last_answer_is_continued(pipe):
    answer = {"role": "assistant", "content": [{"type": "text", "text": "a dog"}]}
    *before, last = pipe([*asked(pipe.clip), answer], max_new_tokens=WORDS)[0]["generated_text"]
    assert before == asked(pipe.clip) and last["role"] == "assistant"
    written = last["content"][0]["text"]
    assert written.startswith("a dog") and len(written) > len("a dog")


def test_settings_reach_the_processor_and_unknown_ones_raise(pipe):
    for limit in ({"max_audio_seconds": 1.0}, {"processor_kwargs": {"max_audio_seconds": 1.0}}):
        with pytest.raises(AudioError, match=r"1.2 s, longer than the limit of 1 s"):
            pipe(asked(pipe.clip), **limit)
    with pytest.raises(TypeError, match="unexpected keyword argument 'volume'"):
        pipe(asked(pipe.clip), volume=3)


def test_several_answers_and_beams(pipe):
    found = pipe(
        asked(pipe.clip),
        max_new_tokens=WORDS,
        return_full_text=False,
        generate_kwargs={"num_beams": 2, "num_return_sequences": 2},
    )
    rows = generate(
        pipe.model,
        pipe.processor,
        [{"messages": asked(pipe.clip)}],
        max_new_tokens=WORDS,
        num_beams=2,
        num_return_sequences=2,
    )
    assert theirs(found)[0] == next(rows)["prediction"]


def test_auto_processor_reads_the_folder(pipe):
    loaded = AutoProcessor.from_pretrained(pipe.model.name_or_path)
    assert isinstance(loaded, AlmosaicProcessor)
    ids = pipe.processor(asked(pipe.clip))["input_ids"]
    assert loaded(asked(pipe.clip))["input_ids"].tolist() == ids.tolist()
    for text in (
        loaded.batch_decode(ids),
        loaded.post_process_image_text_to_text(ids, skip_special_tokens=False),
    ):
        assert text == [loaded.decode(ids[0])] and "what do you hear" in text[0]
