"""From conversations and clips to model inputs: placeholders, time cues, labels, padding."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from almosaic.alm.calls import Row, assign_clips, located, places, read_rows, refuse_arguments
from almosaic.alm.encoding import FRAMES_PER_SECOND, IGNORED, clip_ids, until_answer_ends
from almosaic.alm.encoding import Encoded as Encoded
from almosaic.alm.encoding import add_audio_token as add_audio_token
from almosaic.alm.encoding import audio_token_cost as audio_token_cost
from almosaic.alm.templates import choose_template, render, render_training
from almosaic.audio import MAX_SECONDS, SAMPLING_RATE, AudioSource, load_audio
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import frames_of
from almosaic.messages import AUDIO_TOKEN as AUDIO_TOKEN
from almosaic.messages import clip_sources as clip_sources
from almosaic.messages import flatten_messages


class AlmosaicProcessor(ProcessorMixin):  # type: ignore[misc]
    """Feature extractor, tokenizer and tagged chat template in one.

    Args:
        feature_extractor: an `AudioMosaicFeatureExtractor`.
        tokenizer: any tokenizer with a pad token; `<|audio|>` is added to it as a special token if missing.
        chat_template: tagged template; None = see `templates.choose_template`.
        queries: audio tokens per window, `Q` of the projector.
        max_audio_seconds: a longer clip is an error, never cut.

    Attributes:
        allow_remote: fetch clips from http and https addresses, see `remote.fetch`; whoever uses it
            sets this, a folder cannot.
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
        self.allow_remote = False
        # The library's pipelines pad prompts as these two say; behind a prompt, padding would be continued.
        tokenizer.padding_side = feature_extractor.padding_side = "left"
        super().__init__(
            feature_extractor, tokenizer, chat_template=chat_template or choose_template(tokenizer)
        )

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        clip_frames: Sequence[int],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        max_audio_seconds: float | None = None,
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
        pieces = self._render(turns, chat_template, add_generation_prompt, continue_final_message, True)
        asked = sum(turn["content"].count(AUDIO_TOKEN) for turn in turns)
        kept = sum(text.count(AUDIO_TOKEN) for text, _ in pieces)
        if kept != asked:
            raise AlmosaicError(
                f"the chat template kept {kept} of the conversation's {asked} audio placeholders; put "
                "clips into turns that it writes whole, or pass another chat_template="
            )
        return self._join(pieces, clip_frames, "conversation", max_audio_seconds)

    def encode_prompt(
        self, prompt: str, clip_frames: Sequence[int], max_audio_seconds: float | None = None
    ) -> Encoded:
        """A prompt that a chat template wrote, `<|audio|>` for each clip; nothing of it is trained.

        Raises:
            AlmosaicError: placeholders and clips differ in number, or a clip is beyond `max_audio_seconds`.
        """
        return self._join([(prompt, False)], clip_frames, "prompt", max_audio_seconds)

    def _render(
        self, turns: list[dict[str, str]], template: str | None, prompt: bool, continued: bool, training: bool
    ) -> list[tuple[str, bool]]:
        """Pieces of text, each with whether the assistant wrote it; `training` checks where answers begin."""
        template = template or self.chat_template
        if prompt and continued:
            raise AlmosaicError(
                "expected one of add_generation_prompt and continue_final_message, found both; ask for a new "
                "answer or for more of the last one"
            )
        if prompt or not (training or continued):
            return render(template, self.tokenizer, turns, prompt)
        pieces = render_training(template, self.tokenizer, turns)
        return until_answer_ends(pieces, turns[-1]) if continued else pieces

    def _join(
        self,
        rendered: Sequence[tuple[str, bool]],
        clip_frames: Sequence[int],
        subject: str,
        max_audio_seconds: float | None,
    ) -> Encoded:
        windows = [self._windows(frames, max_audio_seconds) for frames in clip_frames]
        pieces = [
            (piece, index > 0, trained)
            for text, trained in rendered
            for index, piece in enumerate(text.split(AUDIO_TOKEN))
        ]
        placeholders = sum(after_clip for _, after_clip, _ in pieces)
        if placeholders != len(windows):
            raise AlmosaicError(
                f"the {subject} has {placeholders} audio placeholders but {len(windows)} clips came with "
                "it; give one clip per placeholder, in order"
            )
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
        text: Any,
        audio: Any = None,
        add_generation_prompt: bool | None = None,
        return_tensors: str | None = "pt",
        *,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        sampling_rate: int = SAMPLING_RATE,
        max_audio_seconds: float | None = None,
        padding: bool | str = True,
        images: None = None,
        videos: None = None,
    ) -> BatchFeature:
        """Model inputs for one or many conversations, or prompts that a chat template wrote, and their clips.

        For prompts, a generation prompt (the default for conversations) and a last answer to be continued:
        left padding and no labels. Else: right padding and labels. Without clips there are no audio tensors.

        Args:
            text: a list of messages, a prompt, or a list of either.
            audio: clips as `load_audio` takes them, or waveforms [S]; one, a list that the placeholders take
                in order, or a list for each row. None = what the audio parts of the messages name.
            add_generation_prompt: None = unless the last answer is continued.
            return_tensors: "pt".
            continue_final_message: the model goes on writing the last message, which is an answer.
            chat_template: in place of the processor's own.
            sampling_rate: of waveforms that come without one, in Hz.
            max_audio_seconds: in place of the processor's own, for this call.
            padding: always to the longest row.
            images: not taken, as are `videos`; the library's pipeline passes None.
            videos: not taken.

        Raises:
            AlmosaicError: see `encode` and `load_audio`, the row named among several; a prompt longer than
                the tokenizer's `model_max_length`; arguments that this model cannot obey.
        """
        refuse_arguments(padding, return_tensors, images, videos)
        rows, alone = read_rows(text)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        encoded: list[Encoded] = []
        waveforms: list[list[NDArray[np.float32]]] = []
        own_clips = assign_clips(audio, rows, alone)
        for row, clips, place in zip(rows, own_clips, places(rows, "conversation"), strict=True):
            with located(place):
                waveforms.append(self.load_clips(clips, sampling_rate, max_audio_seconds))
                frames = [frames_of(len(waveform)) for waveform in waveforms[-1]]
                wanted = add_generation_prompt, continue_final_message, chat_template, max_audio_seconds
                encoded.append(self._encode_row(row, frames, *wanted))
                self._check_length(encoded[-1])
        prompts = add_generation_prompt or continue_final_message or any(isinstance(row, str) for row in rows)
        inputs = self.pad(encoded, "left" if prompts else "right")
        if prompts:
            del inputs["labels"]
        if any(waveforms):
            inputs |= self.feature_extractor([clip for own in waveforms for clip in own])
            inputs["audio_clips"] = torch.tensor([len(own) for own in waveforms])
        return BatchFeature(inputs, tensor_type="pt")

    def _encode_row(
        self,
        row: Row,
        frames: list[int],
        prompt: bool,
        continued: bool,
        template: str | None,
        limit: float | None,
    ) -> Encoded:
        if isinstance(row, str):
            return self.encode_prompt(row, frames, limit)
        return self.encode(
            row,
            frames,
            add_generation_prompt=prompt,
            continue_final_message=continued,
            chat_template=template,
            max_audio_seconds=limit,
        )

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tokenize: bool = False,
        return_dict: bool = True,
        return_tensors: str | None = "pt",
        max_audio_seconds: float | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> str | list[str] | BatchFeature:
        """Conversations as text, or with `tokenize` as model inputs with the clips of their parts.

        `processor_kwargs` are further arguments of the call of the processor, as the library passes them.

        Raises:
            AlmosaicError: see `__call__`; or `return_dict` is off, which would lose the clips.
        """
        if not tokenize:
            rows, alone = read_rows(conversation)
            texts = []
            for row, place in zip(rows, places(rows, "conversation"), strict=True):
                with located(place):
                    turns = flatten_messages(row)
                    wanted = add_generation_prompt, continue_final_message
                    pieces = self._render(turns, chat_template, *wanted, training=False)
                    texts.append("".join(text for text, _ in pieces))
            return texts[0] if alone else texts
        if not return_dict:
            raise AlmosaicError("token ids alone would lose the clips; leave return_dict at True")
        return self(
            conversation,
            add_generation_prompt=add_generation_prompt,
            return_tensors=return_tensors,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            **({"max_audio_seconds": max_audio_seconds} | dict(processor_kwargs or {})),
        )

    def load_clips(
        self,
        sources: Sequence[AudioSource | NDArray[np.float32]],
        sampling_rate: int = SAMPLING_RATE,
        max_audio_seconds: float | None = None,
    ) -> list[NDArray[np.float32]]:
        """Clips as waveforms [S] at 16 kHz, by the processor's limit and fetch policy.

        Args:
            sources: what `load_audio` takes, or waveforms [S].
            sampling_rate: of the waveforms, in Hz.
            max_audio_seconds: in place of the processor's own.

        Raises:
            AudioError: see `load_audio`; the clip is named among several.
        """
        limit = self.max_audio_seconds if max_audio_seconds is None else max_audio_seconds
        waveforms = []
        for source, place in zip(sources, places(sources, "clip"), strict=True):
            with located(place):
                clip = (np.asarray(source), sampling_rate) if hasattr(source, "__array__") else source
                waveforms.append(load_audio(clip, max_seconds=limit, allow_remote=self.allow_remote))
        return waveforms

    def _windows(self, frames: int, max_audio_seconds: float | None) -> int:
        limit = self.max_audio_seconds if max_audio_seconds is None else max_audio_seconds
        if frames < 1:
            raise AudioError("a clip is shorter than one 25 ms frame; drop it from the conversation")
        if frames > limit * FRAMES_PER_SECOND:
            raise AudioError(
                f"a clip of {frames / FRAMES_PER_SECOND:.1f} s is longer than the limit of "
                f"{limit:g} s; cut it, or raise max_audio_seconds"
            )
        return int(self.feature_extractor.windows(frames))

    def _clip_ids(self, windows: int) -> list[int]:
        window_frames = self.feature_extractor.window_frames
        return clip_ids(windows, window_frames, self.queries, self.audio_token_id, self.tokenizer)

    def _check_length(self, encoded: Encoded) -> None:
        limit = self.tokenizer.model_max_length
        if len(encoded.input_ids) > limit:
            raise AlmosaicError(
                f"the conversation has {len(encoded.input_ids)} tokens, more than the {limit} of the "
                "tokenizer's model_max_length; shorten it, or raise that if the language model reads more"
            )
