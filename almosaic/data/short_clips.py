"""Short clips are joined with others, so that a window holds sound and no padding."""

from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate, chain, repeat
from typing import Generic

import numpy as np
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE
from almosaic.data import draws
from almosaic.data.clips import Source, TextClips, TimedClips
from almosaic.data.texts import Description, TextKind
from almosaic.errors import AudioError

NEIGHBOURS = 64  # how many clips are drawn to fill up one short clip


class JoinedShortClips(Generic[Source]):
    """Clips of `min_seconds` or more: behind a shorter one come others, drawn by (seed, epoch, clip) alone.

    A window of a tenth of a second of sound and five of padding teaches an encoder what padding looks like.
    Where the source has blocks, the others come from the clip's own: they are at hand.

    Args:
        source: the clips.
        min_seconds: clips from this length on stay as they are.
        max_seconds: where the last of the joined clips is cut.
        seed: of the choice.
    """

    def __init__(self, source: Source, min_seconds: float, max_seconds: float, seed: int) -> None:
        self.source = source
        self.min_samples = round(min_seconds * SAMPLING_RATE)
        self.max_samples = round(max_seconds * SAMPLING_RATE)
        self.seed = seed
        self.blocks: list[int] = getattr(source, "blocks", None) or [len(source)]
        self.block_ends = list(accumulate(self.blocks))

    def __len__(self) -> int:
        return len(self.source)

    def waveform(self, index: int, epoch: int) -> NDArray[np.float32]:
        """The clip, and as many others as its length asks for; AudioError when the clip itself is bad."""
        parts: list[NDArray[np.float32]] = []

        def read(clip: int) -> int:
            parts.append(self.source.waveform(clip, epoch))
            return len(parts[-1])

        self._join(index, epoch, read)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)[: self.max_samples]

    def joined(self: "JoinedShortClips[TimedClips]", index: int, epoch: int) -> list[int]:
        """The clips that `waveform` puts one behind the other, by their known lengths.

        A neighbour that only turns out to be bad when it is decoded is among them.
        """
        return self._join(index, epoch, lambda clip: round(self.source.seconds(clip) * SAMPLING_RATE))

    def described(self: "JoinedShortClips[TextClips]", index: int) -> Description:
        """The texts of the clip by itself."""
        return self.source.described(index)

    def undescribed(self: "JoinedShortClips[TextClips]", kind: TextKind) -> list[str]:
        """Names of the clips without a text of this kind."""
        return self.source.undescribed(kind)

    def _join(self, index: int, epoch: int, samples_of: Callable[[int], int]) -> list[int]:
        """Clips in order until their samples are enough; AudioError where the first has none."""
        length, chosen = samples_of(index), [index]
        if length >= self.min_samples:
            return chosen
        block = bisect_right(self.block_ends, index)
        clips = self.blocks[block]
        first = self.block_ends[block] - clips
        steps = draws.generator(self.seed, "join", epoch, index).integers(1, max(2, clips), NEIGHBOURS)
        others = first + (index - first + steps) % clips
        for other in chain(others.tolist(), repeat(index)):  # the clip itself again where others do not do
            if length >= self.min_samples:
                break
            with suppress(AudioError):  # the sampler meets a bad neighbour in its own turn, and reports it
                length += samples_of(other)
                chosen.append(other)
        return chosen

    def fingerprint(self) -> str:
        """The source's hash, and what is joined."""
        return f"{self.source.fingerprint()} {self.min_samples} {self.max_samples} {self.seed}"
