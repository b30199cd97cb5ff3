"""What clips cost and where they stand: borders of windows, several tokenizers, any sequence of turns."""

import re

import numpy as np
import pytest
import torch
from helpers_tiny import QUERIES, SENTENCES, WINDOW_FRAMES, question, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from almosaic.alm import AlmosaicConfig, AlmosaicProcessor, audio_token_cost
from almosaic.alm.encoding import AUDIO_TOKEN, time_cue
from almosaic.errors import AudioError
from almosaic.features import AudioMosaicFeatureExtractor

T = 1024
SAMPLES = {
    "one frame": 400,
    "T frames": 400 + 1023 * 160,
    "T + 1 frames": 400 + 1024 * 160,
    "300 s": 4_800_000,
}
WINDOWS = {"one frame": 1, "T frames": 1, "T + 1 frames": 2, "300 s": 30}


def trained(model, trainer, pre_tokenizer, decoder=None):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def bytes_tokenizer(_):
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    level = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a space of its own before every text
    return trained(models.BPE(unk_token="<unk>"), trainer, level, decoders.ByteLevel())


def words_tokenizer(_):
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>", "</s>"], show_progress=False)
    return trained(models.WordLevel(unk_token="<unk>"), trainer, pre_tokenizers.Whitespace())


TOKENIZERS = {"sentencepiece": tiny_tokenizer, "bytes": bytes_tokenizer, "words": words_tokenizer}


@pytest.fixture(scope="module", params=TOKENIZERS)
def made(request, tmp_path_factory):
    """A processor with the true window of 1024 frames, and the configuration that goes with it."""
    tokenizer = TOKENIZERS[request.param](tmp_path_factory.mktemp("tok"))
    processor = AlmosaicProcessor(AudioMosaicFeatureExtractor(), tokenizer, queries=QUERIES)
    config = AlmosaicConfig(
        projector={"name": "mlp", "queries": QUERIES}, audio_token_id=processor.audio_token_id
    )
    return processor, config


def test_the_cost_is_what_encoding_writes(made):
    processor, config = made
    asked = [{"role": "user", "content": [{"type": "text", "text": "hear"}, {"type": "audio"}]}]
    shortest = processor.encode(asked, [1])
    for frames in (1, 2, T - 1, T, T + 1, 2 * T, 5 * T + 7, 29_998, 30_000):
        found = processor.encode(asked, [frames])
        cost = audio_token_cost(frames, config, processor.tokenizer)
        windows = -(-frames // T)
        cues = sum(
            len(processor.tokenizer(time_cue(n, T), add_special_tokens=False)["input_ids"])
            for n in range(1, windows)
        )
        assert found.windows == [windows]
        assert found.input_ids.count(processor.audio_token_id) == QUERIES * windows
        assert cost == QUERIES * windows + cues
        assert len(found.input_ids) - len(shortest.input_ids) == cost - QUERIES


@pytest.mark.parametrize("name", SAMPLES)
def test_the_borders_with_the_true_front_end(tmp_path, name):
    processor = AlmosaicProcessor(AudioMosaicFeatureExtractor(), tiny_tokenizer(tmp_path), queries=QUERIES)
    inputs = processor(question(), np.zeros(SAMPLES[name], np.float32))
    assert inputs["audio_windows"].tolist() == [WINDOWS[name]] == [len(inputs["input_features"])]
    assert int((inputs["input_ids"] == processor.audio_token_id).sum()) == QUERIES * WINDOWS[name]
    text = processor.tokenizer.decode(inputs["input_ids"][0])
    cues = re.findall(r"\[(\d+):(\d\d)\]", text)
    assert [60 * int(minutes) + int(seconds) for minutes, seconds in cues] == [
        int(10.24 * window) for window in range(1, WINDOWS[name])
    ]
    assert int(inputs["input_features_mask"].sum()) == 1 + (SAMPLES[name] - 400) // 160
    with pytest.raises(AudioError):
        processor(question(), np.zeros(399 if name == "one frame" else 4_800_001, np.float32))


WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from(list("[]:0123 \n<|>")), max_size=12
).filter(lambda text: AUDIO_TOKEN not in text)
PARTS = st.lists(
    st.just({"type": "audio"}) | WORDS.map(lambda text: {"type": "text", "text": text}),
    min_size=1,
    max_size=5,
)


@st.composite
def conversations(draw):
    """Turns in the usual order: maybe a system turn, then questions with their answers; and clip lengths."""
    talk = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        talk.append({"role": "user", "content": draw(PARTS | WORDS)})
        talk.append({"role": "assistant", "content": draw(WORDS)})
    clips = sum(
        part["type"] == "audio"
        for turn in talk
        if isinstance(turn["content"], list)
        for part in turn["content"]
    )
    frames = draw(st.lists(st.integers(1, 5 * WINDOW_FRAMES), min_size=clips, max_size=clips))
    return talk, frames


def split(frames, talk):
    """The clip lengths of all turns but the last."""
    last = talk[-2]["content"]
    own = sum(part["type"] == "audio" for part in last) if isinstance(last, list) else 0
    return frames[: len(frames) - own]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(conversations())
def test_any_sequence_of_turns_and_clips_is_consistent(tiny, drawn):
    model, processor = tiny
    talk, frames = drawn
    encoded = processor.encode(talk, frames)
    assert encoded.windows == [-(-count // WINDOW_FRAMES) for count in frames]
    assert encoded.input_ids.count(processor.audio_token_id) == QUERIES * sum(encoded.windows)
    # Clips add exactly what they cost: with one window each, the same text around them stays.
    short = processor.encode(talk, [1] * len(frames))
    cost = sum(audio_token_cost(count, model.config, processor.tokenizer) - QUERIES for count in frames)
    assert len(encoded.input_ids) - len(short.input_ids) == cost
    # The prompt for the last answer, and for the earlier ones, is what the answer was learnt behind.
    prompt = processor.encode(talk[:-1], frames, add_generation_prompt=True).input_ids
    assert encoded.input_ids[: len(prompt)] == prompt
    if len(talk) > 3:
        earlier = processor.encode(talk[:-3], split(frames, talk), add_generation_prompt=True).input_ids
        assert encoded.input_ids[: len(earlier)] == earlier
    # Labels are the tokens themselves, and nothing that stands for audio.
    labelled = [
        (label, token)
        for label, token in zip(encoded.labels, encoded.input_ids, strict=True)
        if label != -100
    ]
    assert all(label == token for label, token in labelled)
    assert processor.audio_token_id not in [label for label, _ in labelled]
    ends = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [label for label, _ in labelled].count(ends) >= sum(turn["role"] == "assistant" for turn in talk)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(conversations(), min_size=1, max_size=4))
def test_a_batch_holds_every_conversation_as_alone(tiny, drawn):
    _, processor = tiny
    rows = [processor.encode(talk, frames) for talk, frames in drawn]
    for side in ("left", "right"):
        batch = processor.pad(rows, side)
        for row, ids, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
            assert torch.masked_select(ids, mask.bool()).tolist() == row.input_ids
