"""One table of encoders against sets, and curves block by block as a table and a picture."""

import re
import xml.dom.minidom

import pytest

from almosaic.evaluation.curves import COLOURS, curves_svg, picture
from almosaic.evaluation.probe_tables import encoder_table, layer_curves, probe_tables
from almosaic.evaluation.report import write_report
from almosaic.evaluation.tables import table


def row(name, features, protocol, score, **more):
    found = {"set": name, "features": features, "protocol": protocol, "layer": None, "pooling": "mean"}
    found |= {"metric": "accuracy", "score": score, "low": score - 0.02, "high": score + 0.04, "classes": 4}
    return found | {"interval": "bootstrap over clips", "n_train": 30, "n_test": 10} | more


def several():
    """Two encoders on two sets, and the majority class; one probe of the second set is missing."""
    rows = [row("birds", "majority class", "majority", 0.25, pooling=None)]
    for name, base in (("birds", 0.5), ("bells", 0.7)):
        metric = {"metric": "mAP"} if name == "bells" else {}
        for encoder, more in (("true", 0.2), ("random", 0.0)):
            rows.append(row(name, encoder, "linear", base + more, **metric))
            rows.append(row(name, encoder, "knn", base, k=10, **metric))
            for layer in range(3):
                score = base + more * layer / 2
                rows.append(row(name, encoder, "per_layer", score, layer=layer, **metric))
            seeds = {"layer": "all", "interval": "t over 3 seeds"}
            rows.append(row(name, encoder, "weighted_sum", base + 0.1, **metric, **seeds))
    return rows


def test_encoders_and_protocols_are_rows_and_sets_are_columns():
    scores, blocks = probe_tables({"probe": several()})
    assert scores.header == ["features", "probe", "birds", "bells (mAP)", "mean"]
    assert scores.rows[0] == ["majority class", "", "25.0 ±3.0", "–", "–"]
    assert scores.rows[1] == ["true", "linear", "70.0 ±3.0", "90.0 ±3.0", "80.0"]
    assert [line[:2] for line in scores.rows[2:]] == [
        ["true", "kNN, k = 10"],
        ["true", "weighted sum"],
        ["random", "linear"],
        ["random", "kNN, k = 10"],
        ["random", "weighted sum"],
    ]
    assert "(bootstrap over clips, t over 3 seeds)" in scores.title
    assert blocks.header == ["features", "block 0", "block 1", "block 2"]
    assert blocks.rows == [["true", "60.0", "70.0", "80.0"], ["random", "60.0", "60.0", "60.0"]]


def test_a_chosen_layer_is_named():
    rows = [row(name, "e", "linear", 0.5, layer=7) for name in ("birds", "bells")]
    assert probe_tables({"probe": rows})[0].rows[0][:2] == ["e", "linear, layer 7"]


def test_one_set_is_shown_in_detail():
    rows = [entry for entry in several() if entry["set"] == "bells"]
    (detail,) = probe_tables({"probe": rows})
    assert detail.header[3] == "mAP"
    assert detail.rows[0] == ["true", "linear", "last", "90.0 %", "88.0 % to 94.0 %", "30 / 10"]
    assert detail.rows[2][:4] == ["true", "linear", "0", "70.0 %"] and detail.rows[5][2] == "all"


def test_the_terminal_shows_five_sets_in_one_width():
    rows = [row(f"collection{n}", "an encoder", "weighted_sum", 0.5) for n in range(5)]
    text = table({"probe": rows})
    assert text.count("50.0 ±3.0") == 5 and max(map(len, text.splitlines())) <= 118


def test_curves_are_drawn_for_every_set_and_their_mean(tmp_path):
    curves = layer_curves(several())
    assert curves["true"]["mean"] == pytest.approx([0.6, 0.7, 0.8])
    drawn = xml.dom.minidom.parseString(picture(curves_svg(curves)))
    titles = [
        node.firstChild.data for node in drawn.getElementsByTagName("text") if node.hasAttribute("class")
    ]
    assert titles == ["mean, %", "birds, %", "bells, %"]
    lines = [node for node in drawn.getElementsByTagName("path") if node.getElementsByTagName("title")]
    assert len(lines) == 6
    heights = [float(pair.split()[1]) for pair in re.split("[ML]", lines[0].getAttribute("d"))[1:]]
    assert heights == sorted(heights, reverse=True) and heights[0] > heights[2], "better is higher"
    assert lines[0].getAttribute("stroke") == lines[2].getAttribute("stroke") == COLOURS[0]
    write_report(tmp_path, {"probe": several()})
    assert "<svg" in (tmp_path / "report.html").read_text() and (tmp_path / "layers.svg").is_file()
    write_report(tmp_path / "other", {"probe": several()[:3]})
    assert not (tmp_path / "other" / "layers.svg").exists()


def test_many_lines_and_hostile_names_stay_apart():
    curves = {f"<e{n}>": {"s": [0.1 * n, 0.5]} for n in range(10)}
    drawn = xml.dom.minidom.parseString(curves_svg(curves))
    lines = [node for node in drawn.getElementsByTagName("path") if node.getElementsByTagName("title")]
    looks = {(line.getAttribute("stroke"), line.getAttribute("stroke-dasharray")) for line in lines}
    assert len(looks) == 10


def test_a_single_block_has_a_place():
    assert "NaN" not in curves_svg({"e": {"s": [0.5]}})


def compared():
    """One thing of two encoders on two sets with a mean and a budget, and the majority class without."""
    rows, over = [], "bootstrap over 2 encoders and clips"
    for name, base in (("birds", 0.5), ("bells", 0.7)):
        runs = [{"encoder": "x_7", "score": base - 0.1}, {"encoder": "x_8", "score": base + 0.1}]
        rows.append(row(name, "x", "linear", base, runs=runs, interval=over))
        rows.append(row(name, "majority class", "majority", 0.25, pooling=None))
    mean = {"features": "x", "protocol": "linear", "layer": None, "score": 0.6, "low": 0.5, "high": 0.72}
    budgets = {"x": {"encoder_tokens": 12_345_678, "seconds": 330.0}}
    return {"probe": rows, "probe_means": [mean | {"interval": over}], "budgets": budgets}


def test_means_have_an_interval_and_lines_say_what_pretraining_took():
    (scores,) = probe_tables(compared())
    assert scores.header == ["features", "probe", "birds", "bells", "mean", "tokens", "min"]
    assert scores.rows == [
        ["x", "linear", "50.0 ±3.0", "70.0 ±3.0", "60.0 ±11.0", "12.3M", "5.5"],
        ["majority class", "", "25.0 ±3.0", "25.0 ±3.0", "25.0", "–", "–"],
    ]
    over = "(bootstrap over 2 encoders and clips, bootstrap over clips; of the mean: bootstrap over 2 enc"
    assert over in scores.title
    assert scores.title.endswith("tokens and minutes are those of the pretraining")


def test_the_page_lists_each_encoder_by_itself(tmp_path):
    single = encoder_table(compared())
    assert single.header == ["features", "probe", "encoder", "birds", "bells", "mean"]
    assert single.rows == [
        ["x", "linear", "x_7", "40.0", "60.0", "50.0"],
        ["x", "linear", "x_8", "60.0", "80.0", "70.0"],
    ]
    assert encoder_table({"probe": several()}) is None
    write_report(tmp_path, compared())
    assert "<summary>Each encoder by itself, in %</summary>" in (tmp_path / "report.html").read_text()
    assert "x_7" not in table(compared()), "the terminal has one line for both"


def test_a_comparison_of_five_sets_fits_a_terminal():
    results, over = {"probe": [], "probe_means": [], "budgets": {}}, "bootstrap over 2 encoders and clips"
    for name in ("masked_autoencoder", "position_prediction", "clap (supervised by labels)"):
        for protocol, more in (("linear", {}), ("attentive", {"layer": "all"}), ("knn", {"k": 10})):
            for collection in ("esc50", "kitchen20", "instruments", "fsdd", "ravdess"):
                results["probe"].append(row(collection, name, protocol, 0.523, interval=over, **more))
            mean = row("", name, protocol, 0.523, interval=over, **more)
            results["probe_means"].append(mean)
        results["budgets"][name] = {"encoder_tokens": 117e6, "seconds": 5000.0}
    text = table(results)
    lines = [line for line in text.splitlines() if "117.0M" in line]
    assert len(lines) == 9 and "…" not in text and max(map(len, text.splitlines())) <= 118
    assert all(line.count("52.3 ±3.0") == 6 and "83.3" in line for line in lines)


def test_things_with_repetitions_are_compared_with_the_first():
    results = compared()
    (first,) = results["probe_means"]
    other = first | {
        "features": "y",
        "runs": [],
        "difference": {"to": "x", "score": 0.031, "low": -0.01, "high": 0.07},
    }
    del other["runs"]  # such as the untrained control, which is one
    results["probe_means"] = [first | {"runs": []}, other, {**other, "protocol": "knn", "k": 10}]
    _, apart = probe_tables(results)
    assert apart.header == ["features", "linear", "kNN, k = 10"]
    assert apart.rows == [["y", "+3.1 (−1.0 to +7.0)", "+3.1 (−1.0 to +7.0)"]]
    assert apart.title.startswith("Mean over sets against x, in points")
    assert len(probe_tables(results | {"probe_means": [first, other]})) == 1, "single encoders have one table"
