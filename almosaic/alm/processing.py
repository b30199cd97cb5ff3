"""From conversations and clips to model inputs: placeholders, time cues, labels, padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from almosaic.alm.configuration import AlmosaicConfig
from almosaic.alm.templates import choose_template, render, render_training
from almosaic.audio import MAX_SECONDS, SAMPLING_RATE, load_audio
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import HOP_SAMPLES, frames_of
from almosaic.messages import AUDIO_TOKEN as AUDIO_TOKEN
from almosaic.messages import clip_sources as clip_sources
from almosaic.messages import flatten_messages

IGNORED = -100
_FRAMES_PER_SECOND = SAMPLING_RATE // HOP_SAMPLES


@dataclass(frozen=True)
class Encoded:
    """One conversation as token ids, labels (-100 = not trained) and the windows of each of its clips."""

    input_ids: list[int]
    labels: list[int]
    windows: list[int]


def time_cue(window: int, window_frames: int) -> str:
    """`[m:ss]`, the time at which window `window` of a clip begins."""
    seconds = window * window_frames // _FRAMES_PER_SECOND
    return f"[{seconds // 60}:{seconds % 60:02d}]"


def _clip_ids(
    windows: int, window_frames: int, queries: int, audio_token_id: int, tokenizer: Any
) -> list[int]:
    """Token ids that stand for one clip: `queries` placeholders per window, a time cue between windows."""
    ids = [audio_token_id] * queries
    for window in range(1, windows):
        ids += tokenizer(time_cue(window, window_frames), add_special_tokens=False)["input_ids"]
        ids += [audio_token_id] * queries
    return ids


def audio_token_cost(frames: int, config: AlmosaicConfig, tokenizer: Any) -> int:
    """How many tokens a clip of `frames` log-mel frames takes in a prompt, time cues included."""
    window_frames = config.audio_config.window_frames  # type: ignore[union-attr]
    windows = -(-frames // window_frames)
    return len(_clip_ids(windows, window_frames, config.queries, config.audio_token_id, tokenizer))


class AlmosaicProcessor(ProcessorMixin):  # type: ignore[misc]
    """Feature extractor, tokenizer and tagged chat template in one.

    Args:
        feature_extractor: an `AudioMosaicFeatureExtractor`.
        tokenizer: any tokenizer with a pad token; `<|audio|>` is added to it as a special token if missing.
        chat_template: tagged template; None = see `templates.choose_template`.
        queries: audio tokens per window, `Q` of the projector.
        max_audio_seconds: a longer clip is an error, never cut.
    """

    model_input_names = [  # noqa: RUF012 (the library's own convention)
        "input_ids",
        "attention_mask",
        "input_features",
        "input_features_mask",
        "audio_windows",
        "audio_clips",
    ]

    def __init__(
        self,
        feature_extractor: Any,
        tokenizer: Any,
        chat_template: str | None = None,
        queries: int = 32,
        max_audio_seconds: float = MAX_SECONDS,
    ) -> None:
        if feature_extractor.long_clips != "windows" or feature_extractor.max_samples is not None:
            raise AlmosaicError(
                "expected a front end that keeps whole clips (long_clips windows, max_samples None), found "
                f"{feature_extractor.long_clips} and {feature_extractor.max_samples}: an audio-language "
                "model hears every window"
            )
        self.audio_token = AUDIO_TOKEN
        self.audio_token_id = add_audio_token(tokenizer)
        self.queries = queries
        self.max_audio_seconds = max_audio_seconds
        super().__init__(
            feature_extractor, tokenizer, chat_template=chat_template or choose_template(tokenizer)
        )

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        clip_frames: Sequence[int],
        *,
        add_generation_prompt: bool = False,
    ) -> Encoded:
        """One conversation with clips of `clip_frames` log-mel frames each, as ids and labels.

        Labels cover what the assistant wrote, end token included. Text is tokenised piece by piece, cut where
        the speaker changes and at clips, so that a prompt has the same ids in training and in use.

        Raises:
            AlmosaicError: empty conversation, unknown role or part, audio in an assistant turn, placeholders
                and clips that differ in number, a clip beyond `max_audio_seconds`, or a chat template that
                loses placeholders or writes answers elsewhere than behind their prompts.
        """
        turns = flatten_messages(messages)
        windows = [self._windows(frames) for frames in clip_frames]
        placeholders = sum(turn["content"].count(AUDIO_TOKEN) for turn in turns)
        if placeholders != len(windows):
            raise AlmosaicError(
                f"the conversation has {placeholders} audio placeholders but {len(windows)} clips came with "
                "it; give one clip per placeholder, in order"
            )
        if add_generation_prompt:
            rendered = render(self.chat_template, self.tokenizer, turns, True)
        else:
            rendered = render_training(self.chat_template, self.tokenizer, turns)
        kept = sum(text.count(AUDIO_TOKEN) for text, _ in rendered)
        if kept != placeholders:
            raise AlmosaicError(
                f"the chat template kept {kept} of the conversation's {placeholders} audio placeholders; put "
                "clips into turns that it writes whole, or pass another chat_template="
            )
        pieces = [
            (piece, index > 0, trained)
            for text, trained in rendered
            for index, piece in enumerate(text.split(AUDIO_TOKEN))
        ]
        words = self.tokenizer([piece for piece, _, _ in pieces], add_special_tokens=False)["input_ids"]
        ids: list[int] = []
        labels: list[int] = []
        clips = iter(windows)
        for (piece, after_clip, trained), own in zip(pieces, words, strict=True):
            new = self._clip_ids(next(clips)) if after_clip else []
            new += own if piece else []
            ids += new
            labels += new if trained else [IGNORED] * len(new)
        return Encoded(ids, labels, windows)

    def pad(self, rows: Sequence[Encoded], side: Literal["left", "right"]) -> dict[str, Tensor]:
        """Stack conversations: `input_ids`, `attention_mask`, `labels`, each [B, L]; left for generation."""
        length = max(len(row.input_ids) for row in rows)

        def stacked(values: Sequence[Sequence[int]], filler: int) -> Tensor:
            gaps = [[filler] * (length - len(row)) for row in values]
            joined = [
                gap + list(v) if side == "left" else list(v) + gap
                for gap, v in zip(gaps, values, strict=True)
            ]
            return torch.tensor(joined, dtype=torch.long)

        return {
            "input_ids": stacked([row.input_ids for row in rows], self.tokenizer.pad_token_id),
            "attention_mask": stacked([[1] * len(row.input_ids) for row in rows], 0),
            "labels": stacked([row.labels for row in rows], IGNORED),
        }

    def __call__(
        self,
        conversations: Sequence[Any],
        audio: Sequence[Sequence[NDArray[np.float32]]] | None = None,
        add_generation_prompt: bool = True,
        return_tensors: Literal["pt"] = "pt",
    ) -> BatchFeature:
        """Model inputs for conversations and, for each, its clips as 16 kHz waveforms [S].

        With a generation prompt: left padding and no labels. Without: right padding and labels. A batch that
        holds no clip has no audio tensors.

        Raises:
            AlmosaicError: see `encode`; or as many audio lists as conversations were not given.
        """
        if conversations and isinstance(conversations[0], Mapping):
            conversations, audio = [conversations], None if audio is None else [audio]  # type: ignore[list-item]
        if not conversations:
            raise AlmosaicError("no conversation was given; pass at least one list of messages")
        clips = [list(row) for row in audio] if audio is not None else [[] for _ in conversations]
        if len(clips) != len(conversations):
            raise AlmosaicError(
                f"{len(conversations)} conversations came with {len(clips)} lists of clips; "
                "pass one list for each"
            )
        rows = [
            self.encode(
                messages, [_frames(clip) for clip in own], add_generation_prompt=add_generation_prompt
            )
            for messages, own in zip(conversations, clips, strict=True)
        ]
        inputs = self.pad(rows, "left" if add_generation_prompt else "right")
        if add_generation_prompt:
            del inputs["labels"]
        if any(clips):
            inputs |= self.feature_extractor([clip for own in clips for clip in own])
            inputs["audio_clips"] = torch.tensor([len(own) for own in clips])
        return BatchFeature(inputs, tensor_type=return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: Literal["pt"] = "pt",
    ) -> str | BatchFeature:
        """One conversation as text, or with `tokenize` as model inputs, clips loaded from its audio parts.

        Raises:
            AlmosaicError: see `encode`; or `return_dict` is off, which would lose the clips.
        """
        if not tokenize:
            turns = flatten_messages(conversation)
            pieces = render(self.chat_template, self.tokenizer, turns, add_generation_prompt)
            return "".join(text for text, _ in pieces)
        if not return_dict:
            raise AlmosaicError("token ids alone would lose the clips; leave return_dict at True")
        clips = [load_audio(s, max_seconds=self.max_audio_seconds) for s in clip_sources(conversation)]
        return self([conversation], [clips], add_generation_prompt, return_tensors)

    def _windows(self, frames: int) -> int:
        if frames < 1:
            raise AudioError("a clip is shorter than one 25 ms frame; drop it from the conversation")
        if frames > self.max_audio_seconds * _FRAMES_PER_SECOND:
            raise AudioError(
                f"a clip of {frames / _FRAMES_PER_SECOND:.1f} s is longer than the limit of "
                f"{self.max_audio_seconds:g} s; cut it, or raise max_audio_seconds"
            )
        return int(self.feature_extractor.windows(frames))

    def _clip_ids(self, windows: int) -> list[int]:
        window_frames = self.feature_extractor.window_frames
        return _clip_ids(windows, window_frames, self.queries, self.audio_token_id, self.tokenizer)


def add_audio_token(tokenizer: Any) -> int:
    """Id of `<|audio|>` in a tokenizer, added as a special token where it is missing.

    Raises:
        AlmosaicError: the tokenizer has no pad token.
    """
    if tokenizer.pad_token_id is None:
        raise AlmosaicError(
            "the tokenizer has no pad token, which batches need; set tokenizer.pad_token, "
            "for example to tokenizer.eos_token"
        )
    if AUDIO_TOKEN not in tokenizer.get_vocab():
        # Replacing is the default, and would turn the family's other extra tokens into ordinary ones.
        tokenizer.add_special_tokens(
            {"extra_special_tokens": [AUDIO_TOKEN]}, replace_extra_special_tokens=False
        )
    return int(tokenizer.convert_tokens_to_ids(AUDIO_TOKEN))


def _frames(waveform: NDArray[np.float32]) -> int:
    return frames_of(len(waveform))
