"""Results on disk: results.json for programs, report.html for people, a table for the terminal.

`results` is a dictionary of

- `about`: `title`, `recipe`, `seed`, `git_revision`, `versions {package: version}`, `date`, and further facts
  about the run as text or numbers; the caller gives them all,
- `question_answering`: {model: what `question_answering.score` returned}, the model it is about first,
- `captioning`: {model: what `captioning.score` returned},
- `probe`: the rows of `probe.set_rows`, of one set or several,
- `probe_means`: the rows of `repetitions.SetMeans`,
- `budgets`: {probed encoder: what `budgets.budgets` found},
- `classification`: the rows of fine-tuning stages,
- `skipped`: {what was not measured: why}.

Every part but `about` may be missing. `write_results` adds `schema_version`.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from almosaic.audio import SAMPLING_RATE
from almosaic.errors import AlmosaicError
from almosaic.evaluation import page
from almosaic.evaluation.cells import percent, points
from almosaic.evaluation.classification import classification_table
from almosaic.evaluation.controls import AUDIO, CONDITIONS
from almosaic.evaluation.curves import curves_svg, picture
from almosaic.evaluation.plots import event_strip, interval_line, share_bars, spectrogram_uri, wav_uri
from almosaic.evaluation.probe_tables import (
    detail_table,
    difference_table,
    encoder_table,
    layer_curves,
    layer_table,
    score_table,
    sets_of,
)
from almosaic.evaluation.score_plot import scores_svg
from almosaic.evaluation.tables import (
    NAMES,
    Results,
    caption_tables,
    headline,
    model_table,
    question_table,
    skipped,
    table,
)
from almosaic.files import write_whole

__all__ = ["SCHEMA_VERSION", "table", "write_report", "write_results"]

SCHEMA_VERSION = 2
AUDIO_BUDGET_SECONDS = 90.0  # 16-bit players of more would make the page too heavy: 43 kB a second

Example = Mapping[str, Any]


def write_results(folder: str | Path, results: Results) -> Path:
    """Write `results.json` in one step and return its path; AlmosaicError where it cannot be written."""
    try:
        text = json.dumps({"schema_version": SCHEMA_VERSION, **results}, indent=1, allow_nan=False)
    except ValueError as error:
        raise AlmosaicError(
            f"results hold a value that JSON cannot: {error}; report it as skipped"
        ) from error
    return write_whole(Path(folder) / "results.json", text + "\n")


def write_report(folder: str | Path, results: Results, examples: Sequence[Example] = ()) -> Path:
    """Write `report.html`, a page that needs no other file, and return its path.

    Where blocks were probed one by one, their curve is also written as `layers.svg`, and the means over
    several sets as `scores.svg`.

    Args:
        folder: Where to; made when missing.
        results: As above.
        examples: What `question_answering.examples` returned.
    """
    about = results.get("about") or {}
    title = str(about.get("title") or about.get("recipe") or "Evaluation")
    sections = [
        f"<h1>{escape(title)}</h1><p class='soft'>{escape(str(about.get('date', '')))}</p>",
        _hero(results),
        _questions(results),
        _probes(results),
        _classifiers(results),
        _captions(results),
        _examples(examples),
        _skipped(results),
        _footer(about),
    ]
    if curves := layer_curves(results.get("probe") or []):
        write_whole(Path(folder) / "layers.svg", picture(curves_svg(curves)))
    if means := results.get("probe_means"):
        write_whole(Path(folder) / "scores.svg", picture(scores_svg(means)))
    return write_whole(Path(folder) / "report.html", page.page(title, sections))


def _hero(results: Results) -> str:
    sentence = headline(results)
    if sentence is None:
        return ""
    score = next(iter(results["question_answering"].values()))
    gap = score["gap"]
    pairs = {name: score["templates"][name][AUDIO]["pair_accuracy"] for name in score["headline"]}
    facts = {
        "right with audio": percent(gap["accuracy"]),
        f"best deaf control: {NAMES[gap['best_control']]}": percent(gap["best_control_accuracy"]),
        "both twins right": percent(sum(pairs.values()) / len(pairs)),
        "label oracle": percent(score["label_oracle"]),
        "questions": str(score["questions"]),
    }
    listed = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in facts.items())
    return (
        f'<p>{escape(sentence)}</p><div class="hero">'
        f'<div class="big">{points(gap["gap"])} <small>points</small></div>'
        f'<div>{interval_line(gap)}</div><div class="facts">{listed}</div></div>'
    )


def _questions(results: Results) -> str:
    asked = results.get("question_answering") or {}
    if not asked:
        return ""
    name, score = next(iter(asked.items()))
    conditions = [c for c in CONDITIONS if c in score["mean"]]
    groups = []
    for template, row in score["templates"].items():
        shares = {NAMES[c]: row[c]["accuracy"] for c in conditions}
        gap = row["gap"]
        note = f"gap {points(gap['gap'])} ({points(gap['low'])} to {points(gap['high'])})"
        groups.append((template, note, shares))
    chance = {template: row["chance"] for template, row in score["templates"].items() if row["chance"]}
    body = page.key([NAMES[c] for c in conditions], "guessing") + share_bars(groups, chance)
    shown = question_table(name, score)
    body += page.html_table(shown.header, shown.rows)
    parts = [
        [kind, part, percent(row["accuracy"]), percent(row["pair_accuracy"]), str(row["pairs"])]
        for kind, field in (("wordings", "wording"), ("label pairs", "label_pair"))
        for part, row in score[field].items()
    ]
    body += page.html_table(["with audio", "in training", "accuracy", "both twins", "pairs"], parts)
    if len(asked) > 1:
        models = model_table(asked)
        body += page.html_table(models.header, models.rows, first_bold=True)
    lead = (
        "Each question is asked of two scenes with the same wording and different answers, so text alone "
        "cannot win. Thin bars: the same model deaf, hearing silence, another clip, or nothing."
    )
    return page.section("Questions", lead, body)


def _probes(results: Results) -> str:
    probes = results.get("probe") or []
    if not probes:
        return ""
    lead = "A classifier, or the nearest neighbours, on frozen features of clips it was not fitted on."
    curves = layer_curves(probes)
    blockwise = f"<p>Linear probe block by block</p>{curves_svg(curves)}" if curves else ""
    if len(sets_of(probes)) > 1:
        shown = score_table(results)
        body = f"<p>{escape(shown.title)}</p>" + page.html_table(shown.header, shown.rows)
        if means := results.get("probe_means"):
            body += f"<p>Mean over sets, with its interval</p>{scores_svg(means)}"
        if apart := difference_table(results):
            body += f"<p>{escape(apart.title)}</p>" + page.html_table(apart.header, apart.rows)
        if single := encoder_table(results):
            each = page.html_table(single.header, single.rows)
            body += f"<details><summary>{escape(single.title)}</summary>{each}</details>"
        body += blockwise
        if curves:
            blocks = layer_table(curves)
            body += page.html_table(blocks.header, blocks.rows)
        return page.section("What the encoder knows", lead, body)
    shown = detail_table(probes)
    groups = [
        (row[0], f"{row[1]}{', layer ' + row[2] if row[2] else ''}", {probe["metric"]: probe["score"]})
        for row, probe in zip(shown.rows, probes, strict=True)
    ]
    guess = 1 / probes[0]["classes"] if probes[0]["metric"] == "accuracy" else None
    body = share_bars(groups, {row[0]: guess for row in shown.rows} if guess else {}) + blockwise
    return page.section("What the encoder knows", lead, body + page.html_table(shown.header, shown.rows))


def _classifiers(results: Results) -> str:
    rows = results.get("classification") or []
    if not rows:
        return ""
    shown = classification_table(rows)
    lead = (
        "Scored once, after training. An epoch that was chosen on the test clips is the best of many looks "
        "at them: such a figure is too good."
    )
    return page.section("Classifiers", lead, page.html_table(shown.header, shown.rows))


def _captions(results: Results) -> str:
    body = ""
    for shown in caption_tables(results):
        body += f"<p>{escape(shown.title)}</p>" + page.html_table(shown.header, shown.rows, first_bold=True)
    lead = (
        "Facts are the sounds that a caption names, their order, number and overlap, read from its words. "
        "Order, count and overlap are shares of the captions that name the sounds in question."
    )
    return page.section("Captions", lead, body) if body else ""


def _examples(examples: Sequence[Example]) -> str:
    cards = []
    seconds_left = AUDIO_BUDGET_SECONDS
    for example in examples:
        seconds = len(example["waveform"]) / SAMPLING_RATE
        seconds_left -= seconds
        player = "<p class='soft'>too long for a player in this page</p>"
        if seconds_left >= 0:
            player = f'<audio controls preload="metadata" src="{wav_uri(example["waveform"])}"></audio>'
        answers = "".join(
            f"<dt>{escape(NAMES[condition])}</dt><dd>{escape(answer['text']) or '–'}</dd>"
            + ('<dd class="ok">✓ right</dd>' if answer["correct"] else '<dd class="no">✗ wrong</dd>')
            for condition, answer in example["predictions"].items()
        )
        cards.append(
            '<article class="example"><img alt="log-mel spectrogram" '
            f'src="{spectrogram_uri(example["waveform"])}">'
            f"{event_strip(example['events'], seconds)}"
            f'<div class="text"><span class="tag">{escape(example["template"])}</span>'
            f"<h3>{escape(example['question'])}</h3>{player}"
            f"<dl><dt>answer</dt><dd>{escape(example['answer'])}</dd><dd></dd>{answers}</dl></div></article>"
        )
    lead = "Pairs of twins, not picked by result. Under each spectrogram: what was put into the scene."
    return page.section("Examples", lead, f'<div class="examples">{"".join(cards)}</div>') if cards else ""


def _skipped(results: Results) -> str:
    rows = [[what, reason] for what, reason in skipped(results).items()]
    return page.section("Not measured", "", page.html_table(["what", "why"], rows)) if rows else ""


def _footer(about: Mapping[str, Any]) -> str:
    rows = []
    for name, value in about.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {entry}" for key, entry in value.items())
        if name != "title" and value not in (None, ""):
            rows.append(f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>")
    return f"<footer><dl>{''.join(rows)}</dl></footer>"
