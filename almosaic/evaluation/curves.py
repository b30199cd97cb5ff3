"""A picture of scores block by block: one small chart per set, one line per encoder."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""Encoder -> set -> score of every block."""

COLOURS = ("#0f766e", "#c2570c", "#4466b0", "#b4423a", "#8a6fb3", "#7c7f2a", "#2f8fbf", "#b05a8a")
DASHES = ("", "6 3", "2 3")  # a second and third turn through the colours
WIDTH, HEIGHT = 250, 150  # of one chart
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 22, 26
COLUMNS = 3
LINE = 15  # of the key
STYLE = (
    "text{font:11px system-ui,sans-serif;fill:#616a75}text.t{font-weight:600;fill:#22262b}"
    "path{fill:none;stroke-width:1.8}.g{stroke:#d9d5cc;stroke-width:1}"
    "@media (prefers-color-scheme:dark){text{fill:#9aa3ad}text.t{fill:#e8e6e1}.g{stroke:#3a4148}}"
)


def curves_svg(curves: Curves) -> str:
    """The charts of all sets side by side with one key, as an `svg` element; the mean over sets first."""
    sets = list(dict.fromkeys(name for own in curves.values() for name in own))
    sets.sort(key=lambda name: name != "mean")
    columns = min(COLUMNS, len(sets))
    charts_height = math.ceil(len(sets) / columns) * HEIGHT
    width, height = columns * WIDTH, charts_height + LINE * len(curves) + 8
    charts = []
    for number, name in enumerate(sets):
        lines = {encoder: own[name] for encoder, own in curves.items() if name in own}
        place = f"{number % columns * WIDTH} {number // columns * HEIGHT}"
        charts.append(f'<g transform="translate({place})">{_chart(name, lines, list(curves))}</g>')
    keys = [
        f'<path d="M{LEFT} {charts_height + LINE * place + 8}h22" {_stroke(place)}/>'
        f'<text x="{LEFT + 30}" y="{charts_height + LINE * place + 12}">{escape(name)}</text>'
        for place, name in enumerate(curves)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'style="max-width:100%" role="img" aria-label="scores of a linear probe on every block">'
        f"<style>{STYLE}</style>{''.join(charts)}{''.join(keys)}</svg>"
    )


def picture(svg: str) -> str:
    """An `svg` element as a file of its own."""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{svg}\n'


def _chart(title: str, lines: Mapping[str, Sequence[float]], order: Sequence[str]) -> str:
    """One set: scores in percent over blocks; the axis spans the scores in steps of ten."""
    scores = [100 * score for line in lines.values() for score in line]
    low, high = 10 * math.floor(min(scores) / 10), 10 * math.ceil((max(scores) + 1e-6) / 10)
    step = 10 if high - low <= 40 else 20
    blocks = max(len(line) for line in lines.values())
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def x(block: int) -> float:
        return LEFT + (right - LEFT) * (block / (blocks - 1) if blocks > 1 else 0.5)

    def y(score: float) -> float:
        return bottom - (bottom - TOP) * (score - low) / (high - low)

    parts = [f'<text class="t" x="{LEFT}" y="14">{escape(title)}, %</text>']
    for tick in range(low, high + 1, step):
        parts.append(f'<path class="g" d="M{LEFT} {y(tick):.1f}H{right}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>')
    for block in range(0, blocks, 1 if blocks <= 12 else 2):
        parts.append(f'<text x="{x(block):.1f}" y="{bottom + 15}" text-anchor="middle">{block}</text>')
    for name, line in lines.items():
        route = "L".join(f"{x(block):.1f} {y(100 * score):.1f}" for block, score in enumerate(line))
        shown = ", ".join(f"{100 * score:.1f}" for score in line)
        parts.append(
            f'<path d="M{route}" {_stroke(order.index(name))}><title>{escape(name)}: {shown}</title></path>'
        )
    return "".join(parts)


def _stroke(place: int) -> str:
    dash = DASHES[place // len(COLOURS) % len(DASHES)]
    return f'stroke="{COLOURS[place % len(COLOURS)]}"' + (f' stroke-dasharray="{dash}"' if dash else "")
