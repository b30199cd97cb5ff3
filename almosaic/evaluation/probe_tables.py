"""Probe results as tables: all figures of one set, or encoders against sets, and scores block by block."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from almosaic.evaluation.budgets import shown_minutes, shown_tokens
from almosaic.evaluation.cells import Table, percent, points, with_margin

Rows = Sequence[Mapping[str, Any]]
PER_LAYER = "per_layer"
NAMES = {"weighted_sum": "weighted sum", "majority": ""}


def probe_tables(results: Mapping[str, Any]) -> list[Table]:
    """One set in detail, or encoders and protocols against sets; blocks in a table of their own."""
    rows = results["probe"]
    found = [score_table(results) if len(sets_of(rows)) > 1 else detail_table(rows)]
    if apart := difference_table(results):
        found.append(apart)
    curves = layer_curves(rows)
    if curves and len(sets_of(rows)) > 1:
        found.append(layer_table(curves))
    return found


def sets_of(rows: Rows) -> dict[str, str]:
    """Set -> its metric, in the order of the rows."""
    return {row["set"]: row["metric"] for row in rows}


def detail_table(rows: Rows) -> Table:
    """One line per set of frozen features, protocol and layer."""
    lines = []
    for row in rows:
        layer = {None: "last"}.get(row["layer"], str(row["layer"]))
        layer = layer if row["pooling"] in ("mean", "mean_valid", "cls") else ""
        counts = f"{row['n_train']} / {row['n_test']}"
        interval = f"{percent(row['low'])} to {percent(row['high'])}"
        lines.append([row["features"], shown_protocol(row), layer, percent(row["score"]), interval, counts])
    (metric,) = set(sets_of(rows).values())
    header = ["features", "classifier", "layer", metric, "95 %", "clips train / test"]
    return Table("Labels read from frozen features", header, lines)


def score_table(results: Mapping[str, Any]) -> Table:
    """One line per encoder and protocol, one column per set, the mean over sets and what it took last."""
    rows, budgets = results["probe"], results.get("budgets") or {}
    means = {_line(row): row for row in results.get("probe_means") or [] if row["protocol"] != PER_LAYER}
    sets, lines = sets_of(rows), _lines(rows)
    columns = [name if metric == "accuracy" else f"{name} ({metric})" for name, metric in sets.items()]
    body = []
    for line, own in lines.items():
        cells = [_with_margin(own.get(name)) for name in sets]
        whole = len(own) == len(sets)
        mean = f"{100 * np.mean([row['score'] for row in own.values()]):.1f}" if whole else "–"
        mean = _with_margin(means[line]) if line in means else mean
        took = [shown_tokens(budgets.get(line[0])), shown_minutes(budgets.get(line[0]))] if budgets else []
        body.append([*line, *cells, mean, *took])
    over = ", ".join(dict.fromkeys(row["interval"] for row in rows))
    of_means = ", ".join(dict.fromkeys(row["interval"] for row in means.values()))
    if means and of_means != over:
        over += f"; of the mean: {of_means}"
    title = f"Labels read from frozen features, in %, ± half the 95 % interval ({over})"
    if budgets:
        title += "; tokens and minutes are those of the pretraining"
    return Table(
        title, ["features", "probe", *columns, "mean", *(["tokens", "min"] if budgets else [])], body
    )


def encoder_table(results: Mapping[str, Any]) -> Table | None:
    """Each of the encoders that share a line of `score_table`, by itself; None where none do."""
    sets = sets_of(results["probe"])
    body = []
    for line, own in _lines(results["probe"]).items():
        runs = {name: {run["encoder"]: run["score"] for run in own[name].get("runs", [])} for name in own}
        for encoder in next(iter(runs.values())):
            scores = [runs.get(name, {}).get(encoder) for name in sets]
            known = [score for score in scores if score is not None]
            mean = f"{100 * np.mean(known):.1f}" if len(known) == len(sets) else "–"
            shown = ["–" if score is None else f"{100 * score:.1f}" for score in scores]
            body.append([*line, encoder, *shown, mean])
    if not body:
        return None
    return Table("Each encoder by itself, in %", ["features", "probe", "encoder", *sets, "mean"], body)


def difference_table(results: Mapping[str, Any]) -> Table | None:
    """Means against those of the first thing; None where nothing was repeated, or there is one thing."""
    rows = [row for row in results.get("probe_means") or [] if row["protocol"] != PER_LAYER]
    apart = {_line(row): row["difference"] for row in rows if "difference" in row}
    if not apart or not any("runs" in row for row in rows):
        return None
    probes = list(dict.fromkeys(probe for _, probe in apart))
    body = []
    for features in dict.fromkeys(features for features, _ in apart):
        own = [apart.get((features, probe)) for probe in probes]
        body.append([features, *("–" if one is None else _points_with_interval(one) for one in own)])
    first = ", ".join(dict.fromkeys(one["to"] for one in apart.values()))
    title = f"Mean over sets against {first}, in points, with the 95 % interval (of the same clips)"
    return Table(title, ["features", *probes], body)


def _points_with_interval(one: Mapping[str, Any]) -> str:
    return f"{points(one['score'])} ({points(one['low'])} to {points(one['high'])})"


def _lines(rows: Rows) -> dict[tuple[str, str], dict[str, Mapping[str, Any]]]:
    """(features, protocol) -> set -> its row, without single blocks."""
    lines: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["protocol"] != PER_LAYER:
            lines.setdefault(_line(row), {})[row["set"]] = row
    return lines


def _line(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["features"], shown_protocol(row)


def _with_margin(row: Mapping[str, Any] | None) -> str:
    return "–" if row is None else with_margin(row["score"], row["low"], row["high"])


def layer_curves(rows: Rows) -> dict[str, dict[str, list[float]]]:
    """Encoder -> set (and `mean` over all) -> score of every block; empty without `per_layer`."""
    curves: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row["protocol"] == PER_LAYER:
            curves.setdefault(row["features"], {}).setdefault(row["set"], []).append(row["score"])
    for own in curves.values():
        if len(own) > 1:
            own["mean"] = np.mean(list(own.values()), axis=0).tolist()
    return curves


def layer_table(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> Table:
    """Mean over sets of the linear probe on every block."""
    blocks = max(len(own["mean"]) for own in curves.values())
    body = []
    for name, own in curves.items():
        cells = [f"{100 * score:.1f}" for score in own["mean"]]
        body.append([name, *cells, *["–"] * (blocks - len(cells))])
    header = ["features", *(f"block {number}" for number in range(blocks))]
    return Table("Linear probe block by block, mean over sets, in %", header, body)


def shown_protocol(row: Mapping[str, Any]) -> str:
    """The protocol in words, with k and with the layer where one was chosen."""
    name: str = NAMES.get(row["protocol"], row["protocol"])
    if row["protocol"] == "knn":
        name = f"kNN, k = {row['k']}"
    if row["protocol"] == PER_LAYER:
        return "linear"
    chosen = isinstance(row["layer"], int)
    return f"{name}, layer {row['layer']}" if chosen else name
