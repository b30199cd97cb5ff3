"""Pictures and players of the report, each a piece of HTML that needs no other file."""

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE
from almosaic.evaluation.cells import percent, points
from almosaic.features import log_mel_fbank

SPECTROGRAM_COLUMNS = 420
LETTER_PERCENT = 1.7  # width of a letter of an event's name, in percent of a spectrogram on a phone
SPECTROGRAM_RANGE = 11.0  # in natural logarithms of power below the loudest cell, 48 dB


def spectrogram_uri(waveform: NDArray[np.float32]) -> str:
    """The log-mel of a clip [S] at 16 kHz as a PNG data URI, low bands at the bottom."""
    from matplotlib import colormaps
    from PIL import Image

    log_mel = log_mel_fbank(torch.from_numpy(np.ascontiguousarray(waveform, np.float32))[None])[0][0].numpy()
    edges = np.linspace(0, len(log_mel), min(SPECTROGRAM_COLUMNS, len(log_mel)) + 1).astype(int)
    columns = np.stack([log_mel[start:stop].max(axis=0) for start, stop in pairwise(edges)])
    scaled = np.clip(1 + (columns - columns.max()) / SPECTROGRAM_RANGE, 0, 1)
    levels = 64
    image = Image.fromarray(np.rint(scaled * (levels - 1)).astype(np.uint8).T[::-1].copy())
    palette = (np.asarray(colormaps["magma"](np.linspace(0, 1, levels)))[:, :3] * 255).astype(np.uint8)
    image.putpalette(palette.tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return _data_uri("image/png", file.getvalue())


def wav_uri(waveform: NDArray[np.float32]) -> str:
    """A clip [S] at 16 kHz as a 16-bit WAV data URI; samples beyond full scale are limited."""
    samples = (np.clip(waveform, -1, 1) * 32767).round().astype("<i2").tobytes()
    layout = struct.pack("<HHIIHH", 1, 1, SAMPLING_RATE, 2 * SAMPLING_RATE, 2, 16)
    header = struct.pack("<4sI4s4sI16s", b"RIFF", 36 + len(samples), b"WAVE", b"fmt ", 16, layout)
    return _data_uri("audio/wav", header + struct.pack("<4sI", b"data", len(samples)) + samples)


def share_bars(groups: Sequence[tuple[str, str, Mapping[str, float]]], chance: Mapping[str, float]) -> str:
    """Horizontal bars of shares between 0 and 1, one group per row.

    Args:
        groups: (name of the row, note at its end, {series: share}); the first series is the thick bar.
        chance: Row name -> share that guessing gets, drawn as a mark.
    """
    rows = []
    for name, note, shares in groups:
        bars = "".join(
            f'<i class="s{number}" style="--v:{100 * share:.1f}%" title="{escape(series)} {percent(share)}">'
            "</i>"
            for number, (series, share) in enumerate(shares.items())
        )
        mark = f'<u style="--v:{100 * chance[name]:.1f}%" title="guessing"></u>' if name in chance else ""
        first = percent(next(iter(shares.values()))) if shares else ""
        rows.append(
            f'<div class="row"><b>{escape(name)}</b><div class="bars">{bars}{mark}</div>'
            f'<span class="num">{first}</span><small>{escape(note)}</small></div>'
        )
    return f'<div class="chart">{"".join(rows)}</div>'


def interval_line(gap: Mapping[str, Any]) -> str:
    """A gap with its interval on an axis from -100 to 100 points, zero marked."""
    low, middle, high = (50 + 50 * float(gap[name]) for name in ("low", "gap", "high"))
    text = f"gap {points(gap['gap'])} points, 95 % interval {points(gap['low'])} to {points(gap['high'])}"
    return (
        f'<div class="interval" role="img" aria-label="{text}"><u></u>'
        f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i><b style="left:{middle:.1f}%"></b>'
        '<span class="start">−100</span><span class="middle">0</span><span class="end">+100</span></div>'
    )


def event_strip(events: Sequence[Mapping[str, Any]], seconds: float) -> str:
    """What sounds when, under a spectrogram of the same width; colliding names take further lines."""
    ends: list[float] = []
    spans = []
    for event in sorted(events, key=lambda event: float(event["start"])):
        left, right = (100 * float(event[edge]) / seconds for edge in ("start", "end"))
        # A name may reach beyond its bar: to the right, or at the right edge to the left.
        written = LETTER_PERCENT * (len(str(event["name"])) + 1)
        turned = left + written > 100
        first, last = (min(left, right - written), right) if turned else (left, max(right, left + written))
        line = next((number for number, taken in enumerate(ends) if taken <= first), len(ends))
        ends[line : line + 1] = [last]
        place = f"left:{left:.2f}%;width:{right - left:.2f}%;top:{1.4 * line:.1f}em"
        when = f"{float(event['start']):.1f} to {float(event['end']):.1f} s"
        name = escape(str(event["name"]))
        spans.append(f'<span{" class=end" if turned else ""} style="{place}" title="{when}">{name}</span>')
    return f'<div class="events" style="height:{1.4 * max(1, len(ends)):.1f}em">{"".join(spans)}</div>'


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
