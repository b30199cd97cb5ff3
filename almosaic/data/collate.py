"""From rows to batches; bad clips are reported under `bad_clips`, for the trainer to count."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from almosaic.data.datasets import bad_rows

Batch = dict[str, Any]


def pad_waveforms(waveforms: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """Waveforms as [B, S] with zeros at the ends, and the lengths [B]."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.zeros(len(waveforms), int(lengths.max()))
    for row, waveform in zip(padded, waveforms, strict=True):
        row[: len(waveform)] = torch.from_numpy(waveform)
    return padded, lengths


class WaveformCollator:
    """Rows of `PretrainDataset` -> `waveforms` [B, S], `lengths` [B], `clip_index` [B], `bad_clips`."""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Stack; rows whose clip could not be replaced are left out and only reported."""
        good = [row for row in rows if row["waveform"] is not None]
        batch: Batch = {
            "bad_clips": bad_rows(rows),
            "clip_index": torch.tensor([row["clip_index"] for row in good]),
        }
        if good:
            batch["waveforms"], batch["lengths"] = pad_waveforms([row["waveform"] for row in good])
        return batch


class ChatCollator:
    """Rows of `ChatDataset` to the inputs of an audio-language model.

    Gives `input_ids`, `attention_mask`, `labels` [B, L], `audio_clips` [B], `audio_windows` [A],
    `clip_index` [B], `bad_clips`, and `waveforms` [A, S] with `lengths` [A], or `audio_features` [sum W, Tp,
    Fp, D].

    Args:
        processor: an `AlmosaicProcessor`.
        train_on_prompt: label every token of text that follows a token of text, not the answers alone. What
            follows a clip has no text before it to be told from.
    """

    def __init__(self, processor: Any, train_on_prompt: bool = False) -> None:
        self.processor = processor
        self.train_on_prompt = train_on_prompt

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Pad to the right; a batch without clips has no audio tensors, one without rows has no labels."""
        good = [row for row in rows if row["encoded"] is not None]
        batch: Batch = {
            "bad_clips": bad_rows(rows),
            "clip_index": torch.tensor([row["clip_index"] for row in good], dtype=torch.long),
        }
        if not good:
            return batch | self._nothing()
        encoded = [row["encoded"] for row in good]
        batch |= self.processor.pad(encoded, "right")
        if self.train_on_prompt:
            batch["labels"] = self._all_text(batch)
        windows = [window for row in encoded for window in row.windows]
        if not windows:
            return batch
        batch["audio_windows"] = torch.tensor(windows)
        batch["audio_clips"] = torch.tensor([len(row.windows) for row in encoded])
        if "features" in good[0]:
            features = np.concatenate([clip for row in good for clip in row["features"]])
            batch["audio_features"] = torch.from_numpy(features).float()
        else:
            clips = [clip for row in good for clip in row["waveforms"]]
            batch["waveforms"], batch["lengths"] = pad_waveforms(clips)
        return batch

    def _all_text(self, batch: Batch) -> Tensor:
        ids: Tensor = batch["input_ids"]
        text = (ids != self.processor.audio_token_id) & batch["attention_mask"].bool()
        follows_text = text & text.roll(1, dims=1)
        follows_text[:, 0] = False  # nothing comes before it
        return ids.masked_fill(~follows_text, -100)

    def _nothing(self) -> Batch:
        """A row of two words that trains nothing: it keeps a process without rows in step with the others."""
        filler = self.processor.tokenizer.pad_token_id
        words = torch.full((1, 2), filler)
        return {
            "input_ids": words,
            "attention_mask": torch.ones_like(words),
            "labels": torch.full_like(words, -100),
        }


class TextCollator:
    """Conversations in which a text stands for the clip -> `input_ids`, `attention_mask`, `labels` [B, L].

    The conversation is encoded exactly as for the audio-language model, then the clip's placeholders give way
    to the tokens of `context`: what is learned here about answering carries over to embedded audio.

    Args:
        processor: an `AlmosaicProcessor` with one placeholder per window.
        frames: a clip length that is one window.
        full_text: train on every token, not on the assistant's alone.
    """

    def __init__(self, processor: Any, frames: int, full_text: bool = False) -> None:
        self.processor = processor
        self.frames = frames
        self.full_text = full_text

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Encode, put the context in, pad to the right."""
        encoded = [self._encode(row) for row in rows]
        return {**self.processor.pad(encoded, "right"), "bad_clips": []}

    def _encode(self, row: dict[str, Any]) -> Any:
        plain = self.processor.encode(row["messages"], [self.frames])
        context = self.processor.tokenizer(row["context"], add_special_tokens=False)["input_ids"]
        place = plain.input_ids.index(self.processor.audio_token_id)
        ids = [*plain.input_ids[:place], *context, *plain.input_ids[place + 1 :]]
        labels = [*plain.labels[:place], *([-100] * len(context)), *plain.labels[place + 1 :]]
        return type(plain)(ids, ids if self.full_text else labels, [])
