"""Mixup of waveforms: a second clip is read beside the first and mixed in on the training device."""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from almosaic.data import draws
from almosaic.data.clips import ClipSource, read_or_next
from almosaic.data.collate import Batch, WaveformCollator, pad_waveforms
from almosaic.data.datasets import PretrainDataset
from almosaic.settings import Settings


class Mixup(Settings):
    """With probability `rate` a clip is mixed with a uniformly drawn one, in shares of Beta(10, 10)."""

    rate: float = Field(default=0.8, ge=0, le=1)


class MixupDataset(PretrainDataset):
    """Clips as `PretrainDataset` gives them; drawn ones bring `partner_index` and `partner_waveform` [S].

    Who is mixed with whom depends on (`parts`, epoch, clip) alone.
    """

    def __init__(self, source: ClipSource, attempts: int, mixup: Mixup, parts: tuple[int | str, ...]) -> None:
        super().__init__(source, attempts)
        self.mixup = mixup
        self.parts = parts

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        chosen, which = draws.uniforms((*self.parts, self.epoch, "mixup"), [index], 2)[0].tolist()
        if chosen >= self.mixup.rate:
            return row

        def read(clip: int) -> Any:
            return self.source.waveform(clip, self.epoch)

        partner, waveform, bad = read_or_next(read, int(which * len(self)), len(self), self.attempts)
        row["bad_clips"] += bad
        return row if waveform is None else {**row, "partner_index": partner, "partner_waveform": waveform}


class MixupCollator(WaveformCollator):
    """Adds the partners: `mixed_rows` [M], `partner_index` [M], `partner_waveforms`, `partner_lengths`."""

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        """Stack; without any partner the four keys are missing."""
        batch = super().__call__(rows)
        good = [row for row in rows if row["waveform"] is not None]
        mixed = [place for place, row in enumerate(good) if "partner_waveform" in row]
        if mixed:
            partners = [good[place] for place in mixed]
            padded, lengths = pad_waveforms([row["partner_waveform"] for row in partners])
            batch |= {"partner_waveforms": padded, "partner_lengths": lengths}
            batch["mixed_rows"] = torch.tensor(mixed)
            batch["partner_index"] = torch.tensor([row["partner_index"] for row in partners])
        return batch


def centred(waveforms: Tensor, lengths: Tensor) -> Tensor:
    """Waveforms [B, S] without their mean over `lengths` [B] samples; 0.0 beyond."""
    own = torch.arange(waveforms.shape[1], device=waveforms.device) < lengths[:, None]
    waveforms = torch.where(own, waveforms, 0.0)
    return torch.where(own, waveforms - (waveforms.sum(1) / lengths)[:, None], 0.0)


def mix(first: Tensor, lengths: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Mix waveforms [M, S] in `shares` [M] with [M, S'], padded or cut to each first one's `lengths` [M]."""
    fitted = first.new_zeros(first.shape)
    common = min(first.shape[1], second.shape[1])
    fitted[:, :common] = second[:, :common]
    own = torch.arange(first.shape[1], device=first.device) < lengths[:, None]
    return shares[:, None] * first + (1.0 - shares[:, None]) * torch.where(own, fitted, 0.0)
