"""Active regions of a clip: where something sounds, measured from the level of 20-ms frames."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRAME_SECONDS = 0.02
HOP_SECONDS = 0.01
FLOOR_DBFS = -60.0
RANGE_DB = 40.0
BRIDGE_SECONDS = 0.25
SHORTEST_SECONDS = 0.03


@dataclass(frozen=True)
class Region:
    """One active span; `below_clip_max_db` is how far its loudest frame stays under that of the clip."""

    start_seconds: float
    end_seconds: float
    rms_dbfs: float
    max_frame_dbfs: float
    below_clip_max_db: float


def active_regions(waveform: NDArray[np.float32], sampling_rate: int = 16_000) -> list[Region]:
    """Spans of `waveform` [S] above max(-60 dBFS, loudest frame - 40 dB), in order.

    Gaps under 0.25 s are bridged, then bursts under 0.03 s are dropped. Measured, not annotated: a region may
    hold several sounds, and background noise counts as activity.
    """
    power = _frame_power(waveform, sampling_rate)
    levels = 10 * np.log10(np.maximum(power, 1e-12))
    loudest = float(levels.max())
    active = levels > max(FLOOR_DBFS, loudest - RANGE_DB)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False])).astype(np.int8)))
    starts, ends = edges[::2], edges[1::2]
    seconds = len(waveform) / sampling_rate
    regions: list[Region] = []
    for first, stop in _bridged(starts, ends):
        end = min(seconds, (stop - 1) * HOP_SECONDS + FRAME_SECONDS)
        if (stop - first) * HOP_SECONDS < SHORTEST_SECONDS - 1e-9:
            continue
        peak = float(levels[first:stop].max())
        rms = 10 * float(np.log10(max(float(power[first:stop].mean()), 1e-12)))
        regions.append(Region(first * HOP_SECONDS, end, rms, peak, loudest - peak))
    return regions


def _frame_power(waveform: NDArray[np.float32], sampling_rate: int) -> NDArray[np.float64]:
    """Mean square of every frame; a clip shorter than one frame is one frame."""
    hop, size = round(HOP_SECONDS * sampling_rate), round(FRAME_SECONDS * sampling_rate)
    total = np.concatenate(([0.0], np.cumsum(np.square(waveform, dtype=np.float64))))
    starts = np.arange(0, max(1, len(waveform) - size + 1), hop)
    stops = np.minimum(starts + size, len(waveform))
    power: NDArray[np.float64] = (total[stops] - total[starts]) / np.maximum(1, stops - starts)
    return power


def _bridged(starts: NDArray[np.intp], ends: NDArray[np.intp]) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if spans and (start - spans[-1][1]) * HOP_SECONDS < BRIDGE_SECONDS:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    return spans
