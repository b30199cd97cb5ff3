"""The figures of an evaluation as rows of text: for the terminal, and for the tables of report.html."""

import io
from collections.abc import Mapping
from typing import Any

from almosaic.evaluation.cells import Table, number, percent, points
from almosaic.evaluation.classification import classification_table
from almosaic.evaluation.controls import AUDIO, CONDITIONS, ORACLE
from almosaic.evaluation.probe_tables import probe_tables

Results = Mapping[str, Any]
NAMES = {
    AUDIO: "audio",
    "silence": "silence",
    "shuffled": "shuffled",
    "question_only": "question only",
    ORACLE: "label oracle",
}
TIGHT = 9  # columns; more stand closer together on a terminal
CAPTION_COLUMNS = {
    "f1": "facts F1",
    "precision": "precision",
    "recall": "recall",
    "order": "order",
    "count": "count",
    "overlap": "overlap",
    "cider_d": "CIDEr-D",
    "bleu1": "BLEU-1",
    "bleu4": "BLEU-4",
    "rouge_l": "ROUGE-L",
}


def tables(results: Results) -> list[Table]:
    """All tables of an evaluation, in the order of the report; parts that were not run have none."""
    found: list[Table] = []
    asked: Mapping[str, Any] = results.get("question_answering") or {}
    for place, (name, score) in enumerate(asked.items()):
        if place == 0:
            found.append(question_table(name, score))
    if len(asked) > 1:
        found.append(model_table(asked))
    if results.get("probe"):
        found += probe_tables(results)
    if results.get("classification"):
        found.append(classification_table(results["classification"]))
    return found + caption_tables(results)


def question_table(name: str, score: Mapping[str, Any]) -> Table:
    """Accuracy per template beside the controls, pair accuracy and gap; the mean last."""
    header = [
        "question",
        *(NAMES[condition] for condition in CONDITIONS),
        "both twins",
        "gap",
        "95 %",
        "guessing",
    ]
    rows = []
    for template, row in [*score["templates"].items(), ("mean", {**score["mean"], "gap": score["gap_all"]})]:
        gap = row["gap"]
        accuracies = [percent(row[c]["accuracy"]) if c in row else "–" for c in CONDITIONS]
        interval = f"{points(gap['low'])} to {points(gap['high'])}"
        chance = percent(row.get("chance"))
        rows.append(
            [
                template,
                *accuracies,
                percent(row[AUDIO]["pair_accuracy"]),
                points(gap["gap"]),
                interval,
                chance,
            ]
        )
    return Table(f"Questions answered right: {name}", header, rows)


def model_table(asked: Mapping[str, Any]) -> Table:
    """One line per model: accuracy, both twins right, best control and gap over its headline templates."""
    header = ["model", "audio", "both twins", "best control", "gap", "95 %", "questions"]
    rows = []
    for name, score in asked.items():
        gap = score["gap"]
        interval = f"{points(gap['low'])} to {points(gap['high'])}"
        control = f"{NAMES[gap['best_control']]} {percent(gap['best_control_accuracy'])}"
        twins = [score["templates"][template][AUDIO]["pair_accuracy"] for template in score["headline"]]
        shares = [percent(gap["accuracy"]), percent(sum(twins) / len(twins)), control]
        rows.append([name, *shares, points(gap["gap"]), interval, str(2 * gap["pairs"])])
    return Table("The same questions, several models", header, rows)


def caption_tables(results: Results) -> list[Table]:
    """The first model's captions beside their baselines, then one line for each model."""
    scores: Mapping[str, Any] = results.get("captioning") or {}
    found = [caption_table(name, score) for name, score in list(scores.items())[:1]]
    if len(scores) > 1:
        columns = ["f1", "precision", "recall", "cider_d"]
        header = ["model", *(CAPTION_COLUMNS[column] for column in columns), "facts F1 of silence"]
        rows = []
        for name, score in scores.items():
            heard, silent = (score["systems"][condition] for condition in (AUDIO, "silence"))
            figures = [(number if column == "cider_d" else percent)(heard[column]) for column in columns]
            rows.append([name, *figures, percent(silent["f1"])])
        found.append(Table("Captions of the same scenes, several models", header, rows))
    return found


def caption_table(name: str, score: Mapping[str, Any]) -> Table:
    """Facts first, n-gram metrics after them; the baselines below the model."""
    rows = []
    for condition, system in score["systems"].items():
        shown = "a reference" if condition == ORACLE else condition.removesuffix(" caption")
        figures = [
            (number(system[column]) if column == "cider_d" else percent(system[column]))
            for column in CAPTION_COLUMNS
        ]
        rows.append([shown, *figures])
    return Table(f"Captions of {score['clips']} scenes: {name}", ["caption", *CAPTION_COLUMNS.values()], rows)


def headline(results: Results) -> str | None:
    """One sentence on whether the first model listens; None where no questions were asked."""
    asked: Mapping[str, Any] = results.get("question_answering") or {}
    if not asked:
        return None
    score = next(iter(asked.values()))
    gap = score["gap"]
    over = "all templates" if gap["pairs"] == score["pairs"] else ", ".join(score["headline"])
    verdict = "It listens" if gap["low"] > 0 else "No evidence yet that it listens"
    return (
        f"{verdict}: {percent(gap['accuracy'])} right with audio, {percent(gap['best_control_accuracy'])} by "
        f"the best deaf control ({NAMES[gap['best_control']]}), a listening gap of {points(gap['gap'])} "
        f"points (95 % interval {points(gap['low'])} to {points(gap['high'])}) over {over}."
    )


def table(results: Results, width: int = 118, color: bool = False) -> str:
    """All tables and the headline for a terminal of that width; `color` adds ANSI codes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=io.StringIO(), width=width, force_terminal=color, highlight=False)
    for part in tables(results):
        tight = len(part.header) > TIGHT  # a table of many sets would not fit otherwise
        drawn = RichTable(
            title=Text(part.title),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=tight,
        )
        for place, name in enumerate(part.header):
            drawn.add_column(Text(name), justify="right" if place else "left", no_wrap=place > 0)
        for row in part.rows:
            drawn.add_row(*map(Text, row))
        console.print(drawn)
    for what, reason in skipped(results).items():
        console.print(Text(f"skipped: {what} ({reason})"))
    if sentence := headline(results):
        console.print(Text(sentence, style="bold"))
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue().rstrip() + "\n"


def skipped(results: Results) -> dict[str, str]:
    """What was not measured, and why."""
    found = dict(results.get("skipped") or {})
    for name, score in (results.get("captioning") or {}).items():
        found |= {f"{metric} of {name}": reason for metric, reason in score["skipped"].items()}
    return found
