"""How words are chosen: greedily, by beams, or by draws that depend on seed, conversation and place alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from almosaic.data import draws
from almosaic.errors import AlmosaicError
from almosaic.settings import Settings


class SamplingSettings(Settings):
    """How words are chosen: greedy unless one of temperature, top_p, top_k is given.

    What a language model's own generation settings say about these is switched off: an answer is made with
    what stands here and nothing else.
    """

    temperature: float | None = Field(None, gt=0)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    num_beams: int = Field(1, ge=1)
    num_return_sequences: int = Field(1, ge=1)
    repetition_penalty: float = Field(1.0, gt=0)
    seed: int | None = None

    @classmethod
    def of(cls, sampling: Mapping[str, Any]) -> "SamplingSettings":
        """The settings of keyword arguments; AlmosaicError where one does not fit, or two not together."""
        try:
            settings = cls(**sampling)
        except ValidationError as error:
            wrong, known = error.errors()[0], ", ".join(cls.model_fields)
            name, reason = wrong["loc"][0], wrong["msg"].lower()
            raise AlmosaicError(f"sampling setting {name}: {reason}; known settings: {known}") from error
        settings._check()
        return settings

    def _check(self) -> None:
        if self.samples and self.num_beams > 1:
            raise AlmosaicError(
                f"num_beams {self.num_beams} looks for the likeliest answer, but temperature, top_p or top_k "
                "ask for draws; leave out one of the two"
            )
        if not self.samples and self.num_return_sequences > self.num_beams:
            raise AlmosaicError(
                f"{self.num_return_sequences} different answers need a temperature or as many beams, found "
                f"num_beams {self.num_beams}; set one of them, or num_return_sequences to {self.num_beams}"
            )

    @property
    def samples(self) -> bool:
        """Whether words are drawn; else the likeliest is taken."""
        return any(value is not None for value in (self.temperature, self.top_p, self.top_k))

    def with_seed(self) -> "SamplingSettings":
        """The same with a seed, taken from torch's generator where none was given."""
        if self.seed is not None or not self.samples:
            return self
        return self.model_copy(update={"seed": int(torch.randint(2**62, ()))})

    def arguments(self, mask: Tensor, ids: Sequence[object], max_new_tokens: int) -> dict[str, Any]:
        """Arguments of the library's `generate` for prompts with attention mask [B, L].

        `ids` [B] name the conversations: the draws of a row follow from the seed and its id, so that an
        answer does not depend on what else is in the batch, or on what was asked before.
        """
        processors = LogitsProcessorList()
        if self.repetition_penalty != 1.0:
            processors.append(_RepetitionPenalty(self.repetition_penalty, mask))
        if self.samples:
            processors.append(_Draw(self, mask, ids, max_new_tokens))
        # Neutral values, because None would leave a language model's own in place.
        return {
            "do_sample": self.samples,
            "temperature": 1.0 if self.samples else None,
            "top_p": 1.0 if self.samples else None,
            "top_k": 0 if self.samples else None,
            "repetition_penalty": 1.0,
            "num_beams": self.num_beams,
            "num_return_sequences": self.num_return_sequences,
            "logits_processor": processors,
        }


class _RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """The library's penalty on words of the prompt and the answer, without the padding before a prompt.

    The padding often is the end token, which shorter prompts of a batch would then write later than alone.
    """

    def __init__(self, penalty: float, mask: Tensor) -> None:
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty)
        self.first = mask.argmax(dim=1)  # [B], first real token of each row

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first = self.first.repeat_interleave(len(input_ids) // len(self.first))[:, None]
        padding = torch.arange(input_ids.shape[1], device=input_ids.device) < first
        real = torch.where(padding, input_ids.gather(1, first), input_ids)
        penalised: Tensor = self.penalty(real, scores)
        return penalised


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Draws the next word of each row and leaves no other: one uniform number per row and place decides."""

    def __init__(
        self, settings: SamplingSettings, mask: Tensor, ids: Sequence[object], max_new_tokens: int
    ) -> None:
        warpers: list[LogitsProcessor] = []
        if settings.temperature is not None:
            warpers.append(TemperatureLogitsWarper(settings.temperature))
        if settings.top_k is not None:
            warpers.append(TopKLogitsWarper(settings.top_k))
        if settings.top_p is not None:
            warpers.append(TopPLogitsWarper(settings.top_p))
        self.warpers = LogitsProcessorList(warpers)
        self.prompt = mask.shape[1]
        repeats = range(settings.num_return_sequences)
        keys = [draws.key(str(name), repeat) for name in ids for repeat in repeats]
        numbers = draws.uniforms((settings.seed or 0, "words"), keys, max_new_tokens)
        self.numbers = torch.from_numpy(numbers).double().to(mask.device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        shares = self.warpers(input_ids, scores).double().softmax(dim=-1).cumsum(dim=-1)
        place = self.numbers[:, input_ids.shape[1] - self.prompt, None] * shares[:, -1:]
        word = torch.searchsorted(shares, place, right=True)
        return torch.full_like(scores, float("-inf")).scatter(1, word, 0.0)
