"""The table of classifiers says what was scored, and how the epoch was chosen."""

from almosaic.evaluation.classification import classification_table
from almosaic.evaluation.tables import table

ROW = {
    "model": "tuned",
    "test": "fold 4",
    "trained": "all weights",
    "layer": None,
    "select_on": "validation",
    "epoch": 12,
    "n_train": 900,
    "clips": 400,
    "accuracy": 0.625,
}


def test_a_row_per_model_and_only_figures_that_were_taken():
    probe = {**ROW, "model": "probed", "trained": "probe: layer", "layer": 7, "select_on": "test", "map": 0.4}
    shown = classification_table([ROW, probe, {**ROW, "select_on": "last", "epoch": None}])
    assert shown.header[3:5] == ["accuracy", "mAP"] and "EER" not in shown.header
    assert shown.rows[0] == ["tuned", "fold 4", "all weights", "62.5 %", "–", "validation", "12", "900 / 400"]
    assert shown.rows[1][2:7] == ["probe: layer 7", "62.5 %", "40.0 %", "test (published protocol)", "12"]
    assert shown.rows[2][5:7] == ["no choice", "last"]


def test_it_stands_among_the_tables_of_a_run():
    assert "Classifiers" in table({"classification": [ROW]})
    assert "Classifiers" not in table({"classification": []})
