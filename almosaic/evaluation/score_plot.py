"""A picture of scores with their intervals: one chart per probe, one line per encoder."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from almosaic.evaluation.curves import COLOURS
from almosaic.evaluation.probe_tables import PER_LAYER, shown_protocol

Rows = Sequence[Mapping[str, Any]]
"""Rows of `repetitions.SetMeans`."""

WIDTH, LINE = 250, 17  # of one chart; of one encoder
TOP, BOTTOM, RIGHT = 24, 22, 28
LETTER, LONGEST_NAME = 6.3, 230  # how wide a letter is, and what names may take, both in pixels
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#616a75}text.t{font-weight:600;fill:#22262b}"
    ".g{stroke:#d9d5cc}.c{stroke:#616a75;stroke-dasharray:3 3}"
    ".i{stroke-width:4;stroke-linecap:round;opacity:.4}.r{fill:none;stroke-width:1.2}"
    "@media (prefers-color-scheme:dark){text{fill:#9aa3ad}text.t{fill:#e8e6e1}.g{stroke:#3a4148}}"
)


def scores_svg(rows: Rows) -> str:
    """Mean scores as an `svg` element: a dot and its 95 % interval, with a ring for each repetition.

    What has a probe of its own, as hand features, is a dashed line across the charts; single blocks and the
    majority class are left out.
    """
    charts: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["protocol"] not in (PER_LAYER, "majority"):
            charts.setdefault(shown_protocol(row), {})[row["features"]] = row
    shared = {probe: own for probe, own in charts.items() if len(own) > 1}
    lone = [row for probe, own in charts.items() if shared and probe not in shared for row in own.values()]
    charts = shared or charts
    names = list(dict.fromkeys(name for own in charts.values() for name in own))
    said = [*names, *(f"dashed: {row['features']}" for row in lone)]
    left = min(LONGEST_NAME, round(LETTER * max(map(len, said), default=0)) + 12)
    ends = [row for own in charts.values() for row in own.values()] + lone
    shown = [row[end] for row in ends for end in ("low", "high")]
    low = max(0, 10 * math.floor(10 * min(shown, default=0)))
    high = min(100, max(low + 10, 10 * math.ceil(10 * max(shown, default=1))))
    width, height = left + WIDTH * len(charts), TOP + LINE * len(said) + BOTTOM
    lines = "".join(
        f'<text x="{left - 8}" y="{TOP + LINE * place + 12.5:.1f}" text-anchor="end">{escape(name)}</text>'
        for place, name in enumerate(said)
    )
    parts = [_chart(probe, own, names, lone, (low, high)) for probe, own in charts.items()]
    drawn = "".join(
        f'<g transform="translate({left + WIDTH * number} 0)">{part}</g>' for number, part in enumerate(parts)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        'style="max-width:100%" role="img" aria-label="mean scores of the probes with their intervals">'
        f"<style>{STYLE}</style>{lines}{drawn}</svg>"
    )


def _chart(
    title: str, own: Mapping[str, Mapping[str, Any]], names: Sequence[str], lone: Rows, span: tuple[int, int]
) -> str:
    """One probe: scores in percent to the right, encoders one below the other."""
    low, high = span
    bottom = TOP + LINE * len(names)

    def x(score: float) -> float:
        return (WIDTH - RIGHT) * (100 * score - low) / (high - low)

    parts = [f'<text class="t" x="0" y="14">{escape(title)}, %</text>']
    step = 10 if high - low <= 50 else 20
    for tick in range(low, high + 1, step):
        place = x(tick / 100)
        parts.append(f'<path class="g" d="M{place:.1f} {TOP}V{bottom}"/>')
        parts.append(f'<text x="{place:.1f}" y="{bottom + 15}" text-anchor="middle">{tick}</text>')
    for row in lone:
        place = x(row["score"])
        text = f"{row['features']}: {100 * row['score']:.1f}"
        parts.append(f'<path class="c" d="M{place:.1f} {TOP}V{bottom}"><title>{escape(text)}</title></path>')
    for name, row in own.items():
        line = names.index(name)
        y, colour = TOP + LINE * (line + 0.5), COLOURS[line % len(COLOURS)]
        rings = "".join(
            f'<circle class="r" cx="{x(run["score"]):.1f}" cy="{y:.1f}" r="2.6" stroke="{colour}"/>'
            for run in row.get("runs", [])
        )
        text = f"{name}: {100 * row['score']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
        parts.append(
            f"<g><title>{escape(text)}</title>"
            f'<path class="i" stroke="{colour}" d="M{x(row["low"]):.1f} {y:.1f}H{x(row["high"]):.1f}"/>'
            f'{rings}<circle cx="{x(row["score"]):.1f}" cy="{y:.1f}" r="3.6" fill="{colour}"/></g>'
        )
    return "".join(parts)
