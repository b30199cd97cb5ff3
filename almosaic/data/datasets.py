"""The rows that training reads: clips for pretraining, conversations with their clips for chat."""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Protocol, TypedDict

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset
from tqdm import tqdm

from almosaic.audio import SAMPLING_RATE
from almosaic.data import draws
from almosaic.data.clips import (
    BadClip,
    ClipSource,
    JoinedClips,
    ManifestClips,
    TimedClips,
    read_or_next,
)
from almosaic.data.formats import Message, question
from almosaic.data.manifest import ManifestRow
from almosaic.data.prompts import CAPTION_PROMPTS
from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import frames_of


class Conversation(TypedDict):
    """Messages of typed parts, and for each audio part the clip's index in the data's source."""

    id: str
    messages: list[Message]
    clips: list[int]


class ChatData(Protocol):
    """Conversations about the clips of one source."""

    @property
    def source(self) -> TimedClips:
        """The clips."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; rows may depend on it."""
        ...


class CachedClips(Protocol):
    """Frozen features of a source's clips; a clip that could not be read has 0 frames."""

    def __getitem__(self, index: int) -> NDArray[np.float16]: ...

    def frames(self, index: int) -> int:
        """Log-mel frames of a clip."""
        ...


class PretrainDataset(Dataset[dict[str, Any]]):
    """The clips of a source: `clip_index`, `waveform` [S] and `bad_clips`.

    Where a clip cannot be used the next one takes its place and the failure is reported in `bad_clips`;
    `waveform` is None when `attempts` clips in a row failed.
    """

    def __init__(self, source: ClipSource, attempts: int = 1) -> None:
        self.source = source
        self.attempts = attempts
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, on which random crops depend."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        def read(clip: int) -> NDArray[np.float32]:
            return self.source.waveform(clip, self.epoch)

        clip, waveform, bad = read_or_next(read, index, len(self), self.attempts)
        return {"clip_index": clip, "waveform": waveform, "bad_clips": bad}


class CaptionDataset(Dataset[Conversation]):
    """Captioned manifest rows as conversations; each epoch draws a prompt and one of the captions."""

    def __init__(self, rows: Sequence[ManifestRow], seed: int, crop_seconds: float | None = None) -> None:
        self.rows = [row for row in rows if row.captions]
        if not self.rows:
            raise AlmosaicError(f"expected manifest rows with captions, found none among {len(rows)}")
        self.source = ManifestClips(self.rows, crop_seconds, seed)
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Conversation:
        rng = draws.generator(self.seed, "caption", self.epoch, index)
        row = self.rows[index]
        prompt = CAPTION_PROMPTS[int(rng.integers(len(CAPTION_PROMPTS)))]
        answer = row.captions[int(rng.integers(len(row.captions)))]
        messages: list[Message] = [question(prompt), {"role": "assistant", "content": answer}]
        return {"id": row.id, "messages": messages, "clips": [index]}


class ChatDataset(Dataset[dict[str, Any]]):
    """Several kinds of conversations as one, encoded, with their clips read.

    Items hold `clip_index` (the row), `encoded` (ids, labels, windows), `bad_clips`, and per clip either
    `waveforms` or, with a cache, `features` [W, Tp, Fp, D]. Where a row cannot be used (a bad clip, a wrong
    conversation, too long a one) the next row takes its place; `encoded` is None when `attempts` rows in a
    row failed. Nothing is ever cut.

    Args:
        parts: the conversations.
        processor: an `AlmosaicProcessor`.
        context: tokens that the language model can read, None = any number.
        attempts: see above.
        cache: frozen features of the clips, in place of their audio.
    """

    def __init__(
        self,
        parts: Sequence[ChatData],
        processor: Any,
        context: int | None = None,
        attempts: int = 1,
        cache: CachedClips | None = None,
    ) -> None:
        self.parts = list(parts)
        self.ends = list(accumulate(len(part) for part in self.parts))
        self.source = JoinedClips([part.source for part in self.parts])
        self.processor = processor
        self.context = context
        self.attempts = attempts
        self.cache = cache
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch in every part."""
        self.epoch = epoch
        for part in self.parts:
            part.set_epoch(epoch)

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        row, item, bad = read_or_next(self._read, index, len(self), self.attempts)
        return {"encoded": None, **(item or {}), "clip_index": row, "bad_clips": bad}

    def _read(self, index: int) -> dict[str, Any]:
        """One row; AudioError, for whatever reason it cannot be used."""
        part, place, offset = self._find(index)
        name = f"row {index}"
        try:
            row = part[place]
            name = f"row {row['id']}"
            clips = [offset + clip for clip in row["clips"]]
            frames, audio = self._stored(clips) if self.cache is not None else self._heard(clips)
            return {"encoded": self._encode(row["messages"], frames), **audio}
        except AlmosaicError as error:
            raise AudioError(f"{name}: {error}") from error

    def _find(self, index: int) -> tuple[ChatData, int, int]:
        """The part that a row lies in, its place there, and the number of that part's first clip."""
        number = bisect_right(self.ends, index)
        part = self.parts[number]
        return part, index - (self.ends[number] - len(part)), self.source.offset(number)

    def _heard(self, clips: list[int]) -> tuple[list[int], dict[str, Any]]:
        """Log-mel frames of clips, and their waveforms."""
        waveforms = [self.source.waveform(clip, self.epoch) for clip in clips]
        return [frames_of(len(waveform)) for waveform in waveforms], {"waveforms": waveforms}

    def _stored(self, clips: list[int]) -> tuple[list[int], dict[str, Any]]:
        """Log-mel frames of clips, and their features."""
        assert self.cache is not None
        frames = [self.cache.frames(clip) for clip in clips]
        if 0 in frames:
            raise AudioError(f"clip {clips[frames.index(0)]} has no features, it could not be read")
        return frames, {"features": [self.cache[clip] for clip in clips]}

    def _encode(self, messages: Sequence[Message], frames: Sequence[int]) -> Any:
        encoded = self.processor.encode(messages, frames)
        tokens = len(encoded.input_ids)
        if self.context is not None and tokens > self.context:
            raise AudioError(
                f"{tokens} tokens, but the language model reads {self.context} at most; "
                "shorten the text or the clips, or train with fewer projector.queries"
            )
        return encoded

    def lengths(self) -> list[int]:
        """Tokens of each row in this epoch, no audio decoded; 0 for a row that cannot be used.

        A part whose conversations are costly to make has `outline(index)`, a cheap one of nearly that length.
        """
        rows = tqdm(range(len(self)), desc="measuring rows", unit="row", delay=5, leave=False)
        return [self._length(index) for index in rows]

    def _length(self, index: int) -> int:
        part, place, offset = self._find(index)
        try:
            row: Conversation = getattr(part, "outline", part.__getitem__)(place)
            frames = [self._clip_frames(offset + clip) for clip in row["clips"]]
            return len(self._encode(row["messages"], frames).input_ids)
        except AlmosaicError:
            return 0

    def _clip_frames(self, clip: int) -> int:
        if self.cache is not None:
            return self.cache.frames(clip)
        return frames_of(round(self.source.seconds(clip) * SAMPLING_RATE))


def bad_rows(items: Sequence[dict[str, Any]]) -> list[BadClip]:
    """The failures reported in a batch of items."""
    return [failure for item in items for failure in item["bad_clips"]]
