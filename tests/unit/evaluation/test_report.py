import base64
import io
import json
import re
import xml.dom.minidom
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from almosaic.errors import AlmosaicError
from almosaic.evaluation.controls import CONDITIONS
from almosaic.evaluation.plots import event_strip, spectrogram_uri, wav_uri
from almosaic.evaluation.question_answering import score
from almosaic.evaluation.report import table, write_report, write_results

HOSTILE = "<script>alert('x')</script> & \"more\""
NAMES = (["instruct"], ["untrained"])
VOID = {"meta", "img", "br", "hr", "input", "link"}


def question_score(listens=True):
    """The score of a model that listens, or of one that always answers the same."""
    return score(
        [
            {
                "id": f"{template}-{pair}-{side}",
                "pair_id": f"{template}-{pair}",
                "side": side,
                "template": template,
                "condition": condition,
                "correct": side == 0 or (listens and condition == "audio"),
                "prediction": "yes",
                "chance": 0.5,
                "wording": "seen",
                "label_pair": "seen" if pair else "heldout",
            }
            for condition in CONDITIONS
            for template in ("presence", "first")
            for pair in range(8)
            for side in (0, 1)
        ]
    )


def probe_row(features, protocol, score, **more):
    row = {"set": "tones", "features": features, "protocol": protocol, "layer": None, "pooling": "mean"}
    row |= {"seed": 0, "metric": "accuracy", "score": score, "low": 0.1, "high": 0.9}
    return row | {"interval": "bootstrap over clips", "n_train": 30, "n_test": 10, "classes": 4} | more


def everything():
    names = ("precision", "recall", "f1", "order", "count", "overlap", "rouge_l", "bleu1", "bleu4")
    caption = {"clips": 3, "systems": {"audio": dict.fromkeys(names, 0.5) | {"cider_d": None}}}
    return {
        "about": {
            "title": HOSTILE,
            "recipe": "quickstart",
            "versions": {"torch": "2.13"},
            "date": "2026-11-22",
        },
        "question_answering": {"instruct": question_score(), "untrained": question_score(listens=False)},
        "probe": [probe_row("pretrained", "linear", 0.86), probe_row("pretrained", "knn", 0.7, k=10)],
        "captioning": {"instruct": {**caption, "skipped": {"cider_d": "one clip"}}},
        "skipped": {"FENSE": "needs a download"},
    }


def example(seconds=1.0, **more):
    wave = (0.2 * np.sin(np.arange(round(16_000 * seconds)) / 5)).astype(np.float32)
    return {
        "id": "a",
        "pair_id": "p",
        "template": "presence",
        "question": HOSTILE,
        "answer": "yes",
        "waveform": wave,
        "events": [{"name": HOSTILE, "start": 0.2, "end": 0.6}],
        "predictions": {
            "audio": {"text": HOSTILE, "correct": True},
            "silence": {"text": "", "correct": False},
        },
        **more,
    }


class Balanced(HTMLParser):
    """Collects tags and fails when they do not nest."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.sources = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(path):
    page = Balanced()
    page.feed(path.read_text())
    assert page.open == []
    return page


def test_the_page_is_whole_escaped_and_needs_nothing_else(tmp_path):
    path = write_report(tmp_path / "new", everything(), [example(), example()])
    page, text = parsed(path), path.read_text()
    assert path.name == "report.html"
    assert "script" not in page.seen and "link" not in page.seen
    assert len(page.sources) == 4 and all(source.startswith("data:") for source in page.sources)
    assert not re.search(r"https?://|url\(|@import", text)
    assert "alert(" in text and "<script" not in text
    for shown in (
        "It listens",
        "+50.0",
        "pretrained",
        "2026-11-22",
        "torch 2.13",
        "FENSE",
        "needs a download",
    ):
        assert shown in text, shown
    assert text.count("✓ right") == 2 and text.count("✗ wrong") == 2


@pytest.mark.parametrize("part", ["question_answering", "probe", "captioning", "skipped", "about"])
def test_any_part_may_be_missing(tmp_path, part):
    results = {name: value for name, value in everything().items() if name != part}
    parsed(write_report(tmp_path, results))
    table(results)
    parsed(write_report(tmp_path, {"about": {}}))


def test_long_examples_lose_their_player_not_their_picture(tmp_path):
    path = write_report(tmp_path, everything(), [example(seconds=40.0)] * 3)
    text = path.read_text()
    assert text.count("data:audio/wav") == 2 and text.count("data:image/png") == 3
    assert "too long for a player" in text
    assert path.stat().st_size < 5_000_000


def test_results_are_written_in_one_step_with_their_schema(tmp_path):
    path = write_results(tmp_path / "new", everything())
    read = json.loads(path.read_text())
    assert read["schema_version"] == 2
    assert read["question_answering"]["instruct"]["gap"]["gap"] == 0.5
    with pytest.raises(AlmosaicError, match="value that JSON cannot"):
        write_results(tmp_path / "new", {"probe": [{"score": float("nan")}]})
    assert json.loads(path.read_text()) == read
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]
    (tmp_path / "file").touch()
    with pytest.raises(AlmosaicError, match="cannot be written"):
        write_results(tmp_path / "file", everything())


def test_the_terminal_table_names_every_figure():
    text = table(everything())
    for shown in ("presence", "mean", "100.0 %", "+50.0", "untrained", "kNN, k = 10", "86.0 %", "facts F1"):
        assert shown in text, shown
    assert "skipped: FENSE (needs a download)" in text and "cider_d of instruct (one clip)" in text
    assert "It listens: 100.0 % right with audio, 50.0 % by the best deaf control" in " ".join(text.split())
    assert "\x1b" not in text and "\x1b" in table(everything(), color=True)
    assert max(map(len, text.splitlines())) <= 118


def test_a_gap_that_may_be_zero_is_not_called_listening():
    text = table({"question_answering": {"deaf": question_score(listens=False)}})
    assert "No evidence yet that it listens" in " ".join(text.split())
    assert table({}).strip() == ""


def test_labels_with_brackets_are_printed_as_they_are():
    assert "[bold]odd[/bold]" in table({"probe": [probe_row("[bold]odd[/bold]", "linear", 0.5)]})


def decoded(uri, kind):
    head, body = uri.split(",", 1)
    assert head == f"data:{kind};base64"
    return base64.b64decode(body)


def test_players_hold_the_clip_as_16_bit_wav():
    wave = np.array([0, 0.5, -0.5, 1.5, -1.5] * 100, np.float32)
    samples, rate = soundfile.read(io.BytesIO(decoded(wav_uri(wave), "audio/wav")), dtype="float32")
    assert rate == 16_000 and samples.shape == wave.shape
    assert samples == pytest.approx(np.clip(wave, -1, 1), abs=2 / 32768)


def test_spectrograms_show_time_to_the_right_and_low_bands_below():
    from PIL import Image

    time = np.arange(32_000) / 16_000
    wave = 0.3 * np.sin(2 * np.pi * np.where(time < 1, 200, 6000) * time)
    image = Image.open(io.BytesIO(decoded(spectrogram_uri(wave.astype(np.float32)), "image/png")))
    bright = np.asarray(image.convert("L"), dtype=float)
    assert bright.shape[0] == 128 and bright.shape[1] <= 420
    half = bright.shape[1] // 2
    low, high = bright[:, : half - 5].mean(axis=1), bright[:, half + 5 :].mean(axis=1)
    assert low.argmax() > 100 and low.max() > 3 * low[:64].max()
    assert high.argmax() < 30 and high.max() > 3 * high[64:].max()


def test_events_stand_where_they_sound_and_do_not_collide():
    events = [
        {"name": "second", "start": 4.0, "end": 6.0},
        {"name": "first", "start": 1.0, "end": 5.0},
        {"name": "a very long name", "start": 9.5, "end": 9.9},
    ]
    strip = xml.dom.minidom.parseString(event_strip(events, 10.0).replace("class=end", 'class="end"'))
    spans = strip.getElementsByTagName("span")
    assert [span.firstChild.data for span in spans] == ["first", "second", "a very long name"]
    styles = [span.getAttribute("style") for span in spans]
    assert "left:10.00%;width:40.00%;top:0.0em" in styles[0]
    assert "left:40.00%;width:20.00%;top:1.4em" in styles[1]
    assert spans[2].getAttribute("class") == "end"


def test_several_models_are_compared_line_by_line():
    """Both twins right beside the accuracy, and the facts of captions beside those written in silence."""
    results = everything()
    captioned = results["captioning"]["instruct"]
    systems = captioned["systems"] | {"silence": dict.fromkeys(captioned["systems"]["audio"], 0.125)}
    deaf = {"audio": systems["silence"], "silence": systems["silence"]}
    results["captioning"] = {
        "instruct": captioned | {"systems": systems},
        "untrained": captioned | {"systems": deaf},
    }
    shown = table(results, width=150)
    asked = shown.split("The same questions, several models")[1].splitlines()[:8]
    captions = shown.split("Captions of the same scenes, several models")[1].splitlines()
    assert any("facts F1 of silence" in line for line in captions[:3])

    def column(lines, place):
        return {line.split()[0]: line.split()[place] for line in lines if line.split()[:1] in NAMES}

    assert column(captions, 1) == {"instruct": "50.0", "untrained": "12.5"}
    assert column(captions, -2) == {"instruct": "12.5", "untrained": "12.5"}, "by silence"
    assert column(asked, 3) == {"instruct": "100.0", "untrained": "0.0"}
    assert shown.count("Captions of 3 scenes") == 1, "the baselines stand beside the first model alone"
