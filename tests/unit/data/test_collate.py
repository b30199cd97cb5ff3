"""Batches: padding, placeholders beside clips, text contexts in the clips' place."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from almosaic.alm import AlmosaicProcessor
from almosaic.data.collate import ChatCollator, TextCollator, WaveformCollator
from almosaic.data.formats import question
from almosaic.features import AudioMosaicFeatureExtractor, frames_of

sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers_tiny import QUERIES, WINDOW_FRAMES, tiny_tokenizer

ANSWER = {"role": "assistant", "content": "a bell rings"}


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
    return AlmosaicProcessor(extractor, tiny_tokenizer(tmp_path_factory.mktemp("tok")), queries=QUERIES)


def clip(seconds, value=0.1):
    return np.full(int(16_000 * seconds), value, np.float32)


@pytest.fixture(scope="module")
def chat_row(processor):
    def row(index, *clips, text="what do you hear"):
        messages = [question(text, clips=len(clips)), ANSWER]
        encoded = processor.encode(messages, [frames_of(len(waveform)) for waveform in clips])
        return {"clip_index": index, "encoded": encoded, "waveforms": clips, "bad_clips": []}

    return row


def test_waveforms_are_padded_with_zeros_and_failures_are_reported():
    rows = [
        {"clip_index": 4, "waveform": clip(0.1), "bad_clips": []},
        {"clip_index": 6, "waveform": clip(0.2), "bad_clips": [(5, "damaged")]},
        {"clip_index": 9, "waveform": None, "bad_clips": [(9, "gone")]},
    ]
    batch = WaveformCollator()(rows)
    assert batch["clip_index"].tolist() == [4, 6] and batch["lengths"].tolist() == [1600, 3200]
    assert batch["bad_clips"] == [(5, "damaged"), (9, "gone")]
    assert batch["waveforms"].shape == (2, 3200)
    assert (batch["waveforms"][0, 1600:] == 0).all() and (batch["waveforms"][0, :1600] == 0.1).all()
    assert "waveforms" not in WaveformCollator()(rows[2:])


def test_clips_windows_and_placeholders_agree(processor, chat_row):
    rows = [chat_row(0, clip(0.3)), chat_row(1), chat_row(2, clip(0.3), clip(1.0))]
    batch = ChatCollator(processor)(rows)
    assert batch["audio_clips"].tolist() == [1, 0, 2]
    assert batch["audio_windows"].tolist() == [1, 1, 2]
    placeholders = (batch["input_ids"] == processor.audio_token_id).sum(1)
    assert placeholders.tolist() == [QUERIES, 0, 3 * QUERIES]
    assert batch["waveforms"].shape == (3, 16_000) and batch["lengths"].tolist() == [4800, 4800, 16_000]
    assert batch["clip_index"].tolist() == [0, 1, 2]


def test_labels_are_the_answer_alone_and_padding_is_not_trained(processor, chat_row):
    batch = ChatCollator(processor)([chat_row(0, clip(0.3)), chat_row(1, clip(0.3), clip(1.0))])
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        trained = ids[labels != -100]
        assert processor.tokenizer.decode(trained).strip() == "a bell rings<|im_end|>"
        assert (labels[mask == 0] == -100).all()


def test_a_batch_without_clips_has_no_audio(processor, chat_row):
    batch = ChatCollator(processor)([chat_row(0), chat_row(1)])
    assert set(batch) == {"bad_clips", "clip_index", "input_ids", "attention_mask", "labels"}


def test_stored_features_take_the_waveforms_place(processor, chat_row):
    features = np.random.default_rng(0).standard_normal((2, 4, 8, 6)).astype(np.float16)
    row = chat_row(0, clip(1.0))
    del row["waveforms"]
    batch = ChatCollator(processor)([row | {"features": [features]}])
    assert torch.equal(batch["audio_features"], torch.from_numpy(features).float())
    assert "waveforms" not in batch and batch["audio_windows"].tolist() == [2]


def test_a_row_that_could_not_be_replaced_is_only_reported(processor, chat_row):
    gone = {"clip_index": 3, "encoded": None, "bad_clips": [(3, "gone")]}
    batch = ChatCollator(processor)([chat_row(0, clip(0.3)), gone])
    assert len(batch["input_ids"]) == 1 and batch["bad_clips"] == [(3, "gone")]


@pytest.mark.parametrize("rows", [[], [{"clip_index": 3, "encoded": None, "bad_clips": [(3, "gone")]}]])
def test_a_batch_of_no_rows_trains_nothing_but_can_be_run(processor, rows):
    batch = ChatCollator(processor)(rows)
    assert batch["bad_clips"] == ([(3, "gone")] if rows else []) and batch["clip_index"].tolist() == []
    assert batch["input_ids"].shape == (1, 2) and (batch["labels"] == -100).all()
    assert (batch["input_ids"] == processor.tokenizer.pad_token_id).all()


def test_a_text_stands_exactly_where_the_clip_would(processor, chat_row):
    one_query = AlmosaicProcessor(processor.feature_extractor, processor.tokenizer, queries=1)
    row = {"messages": [question("what do you hear"), ANSWER], "context": "_ bell bell _"}
    batch = TextCollator(one_query, WINDOW_FRAMES)([row])
    heard = ChatCollator(processor)([chat_row(0, clip(0.3))])
    ids, audio_ids = batch["input_ids"][0].tolist(), heard["input_ids"][0].tolist()
    context = processor.tokenizer("_ bell bell _", add_special_tokens=False)["input_ids"]
    start = audio_ids.index(processor.audio_token_id)
    assert ids == [*audio_ids[:start], *context, *audio_ids[start + QUERIES :]]
    assert batch["labels"][0, -9:].tolist() == heard["labels"][0, -9:].tolist()
    assert (batch["labels"][0, : start + len(context)] == -100).all()
    everything = TextCollator(one_query, WINDOW_FRAMES, full_text=True)([row])
    assert torch.equal(everything["labels"], everything["input_ids"])
