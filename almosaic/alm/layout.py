"""Which windows belong to which row of a batch: rows hold clips, clips hold windows, all in order."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from almosaic.errors import AlmosaicError

_PER_CLIP = "audio_windows"
_PER_ROW = "audio_clips"


@dataclass(frozen=True)
class AudioLayout:
    """Windows of each clip [A] and clips of each row [B], as plain numbers."""

    windows: list[int]
    clips: list[int]

    @classmethod
    def of(
        cls, tensor: Tensor, audio_windows: Tensor | None, audio_clips: Tensor | None, rows: int
    ) -> "AudioLayout":
        """The layout of windows `tensor` [sum W, ...]; missing counts mean one window a clip, one clip a row.

        Raises:
            AlmosaicError: the counts do not add up to the windows that are there.
        """
        windows = [1] * len(tensor) if audio_windows is None else [int(n) for n in audio_windows.tolist()]
        clips = [1] * rows if audio_clips is None else [int(n) for n in audio_clips.tolist()]
        if sum(windows) != len(tensor):
            raise AlmosaicError(
                f"audio_windows counts {sum(windows)} windows but {len(tensor)} came; "
                "pass the audio_windows that the feature extractor returned"
            )
        if len(clips) != rows or sum(clips) != len(windows):
            raise AlmosaicError(
                f"audio_clips counts {sum(clips)} clips in {len(clips)} rows but {len(windows)} clips came "
                f"for {rows} rows; pass the number of clips of each row"
            )
        return cls(windows, clips)

    def row_windows(self) -> list[int]:
        """Windows of each row, [B]."""
        ends = [0, *accumulate(self.clips)]
        return [sum(self.windows[start:end]) for start, end in pairwise(ends)]

    def check(self, placeholders: Tensor, queries: int) -> None:
        """Compare placeholders [B, L] with `queries` per window, row by row; AlmosaicError gives both."""
        found = placeholders.sum(dim=1).tolist()
        for row, (windows, count) in enumerate(zip(self.row_windows(), found, strict=True)):
            if count != queries * windows:
                raise AlmosaicError(
                    f"row {row} has {count} audio placeholders but {queries * windows} audio tokens "
                    f"({queries} x {windows} windows); encode text and clips with the same processor"
                )

    def expand(self, audio: dict[str, Tensor], times: int) -> dict[str, Tensor]:
        """Repeat every row `times` times, its windows and clips staying together."""
        device = next(iter(audio.values())).device
        of_windows = _repeated_blocks(self.row_windows(), times, device)
        of_clips = _repeated_blocks(self.clips, times, device)
        expanded = {}
        for name, tensor in audio.items():
            if name == _PER_ROW:
                expanded[name] = tensor.repeat_interleave(times)
            else:
                expanded[name] = tensor[of_clips if name == _PER_CLIP else of_windows]
        return expanded


def _repeated_blocks(sizes: list[int], times: int, device: torch.device) -> Tensor:
    """Indices that repeat consecutive blocks of these sizes: sizes 1, 2 twice = 0, 0, 1, 2, 1, 2."""
    indices: list[int] = []
    start = 0
    for size in sizes:
        indices += list(range(start, start + size)) * times
        start += size
    return torch.tensor(indices, dtype=torch.long, device=device)
