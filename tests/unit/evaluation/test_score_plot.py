"""The picture of mean scores: what stands where, and names that are no markup."""

import re
import xml.dom.minidom

from almosaic.evaluation.report import write_report
from almosaic.evaluation.score_plot import scores_svg


def mean(features, protocol, score, **more):
    row = {"features": features, "protocol": protocol, "layer": None, "score": score}
    return row | {"low": score - 0.05, "high": score + 0.05, "interval": "i"} | more


def several():
    rings = {"runs": [{"encoder": "x_7", "score": 0.58}, {"encoder": "x_8", "score": 0.62}]}
    return [
        mean("x", "linear", 0.6, **rings),
        mean("<y>", "linear", 0.7),
        mean("<y>", "knn", 0.45, k=10),
        mean("x", "knn", 0.5, k=10),
        mean("<y>", "per_layer", 0.1, layer=0),
        mean("hand features", "linear SVM", 0.2),
        mean("majority class", "majority", 0.02),
    ]


def test_one_chart_for_each_probe_that_several_have():
    drawn = xml.dom.minidom.parseString(scores_svg(several()))
    texts = drawn.getElementsByTagName("text")
    titles = [text.firstChild.data for text in texts if text.getAttribute("class") == "t"]
    assert titles == ["linear, %", "kNN, k = 10, %"]
    said = [title.firstChild.data for title in drawn.getElementsByTagName("title")]
    assert said[:2] == ["hand features: 20.0", "x: 60.0 (55.0 to 65.0)"] and len(said) == 6
    dashed = [one for one in drawn.getElementsByTagName("path") if one.getAttribute("class") == "c"]
    assert len(dashed) == 2 and "dashed: hand features" in scores_svg(several())
    assert "majority" not in scores_svg(several())
    circles = drawn.getElementsByTagName("circle")
    rings = [float(one.getAttribute("cx")) for one in circles if one.getAttribute("class") == "r"]
    dots = [float(one.getAttribute("cx")) for one in circles if not one.getAttribute("class")]
    assert len(rings) == 2 and rings[0] < dots[0] < rings[1] < dots[1], "better is further to the right"
    intervals = [one for one in drawn.getElementsByTagName("path") if one.getAttribute("class") == "i"]
    start, end = map(float, re.findall(r"[MH]([\d.]+)", intervals[0].getAttribute("d")))
    assert start < rings[0] and end > rings[1]


def test_a_thing_has_one_place_and_one_colour_in_every_chart():
    groups = xml.dom.minidom.parseString(scores_svg(several())).getElementsByTagName("circle")
    dots = [one for one in groups if not one.getAttribute("class")]
    looks = [(dot.getAttribute("cy"), dot.getAttribute("fill")) for dot in dots]
    assert looks[0] == looks[3] and looks[1] == looks[2] and looks[0] != looks[1]


def test_scores_stay_inside_the_chart():
    rows = [mean("x", "linear", 0.999, low=0.99, high=1.0), mean("y", "linear", 0.01, low=0.0, high=0.02)]
    drawn = xml.dom.minidom.parseString(scores_svg(rows))
    places = [float(one.getAttribute("cx")) for one in drawn.getElementsByTagName("circle")]
    assert all(0 <= place <= 250 for place in places)


def test_the_report_draws_it_where_sets_have_a_mean(tmp_path):
    row = {"set": "a", "features": "x", "protocol": "linear", "layer": None, "pooling": "mean"}
    row |= {"metric": "accuracy", "score": 0.5, "low": 0.4, "high": 0.6, "classes": 2, "interval": "i"}
    rows = [row | {"n_train": 3, "n_test": 3}, row | {"n_train": 3, "n_test": 3, "set": "b"}]
    write_report(tmp_path, {"probe": rows, "probe_means": several()})
    assert "Mean over sets, with its interval" in (tmp_path / "report.html").read_text()
    assert "linear" in xml.dom.minidom.parse(str(tmp_path / "scores.svg")).toxml()
    write_report(tmp_path / "plain", {"probe": rows})
    assert not (tmp_path / "plain" / "scores.svg").exists()
