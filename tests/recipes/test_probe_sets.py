"""The probe recipe on five tiny sets: one table, a cache that later runs use, mistakes as one line."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers_tiny import WINDOW_FRAMES, tiny_encoder

from almosaic import run as runs
from almosaic.errors import AlmosaicError
from almosaic.evaluation.labelled_sets import ProbeClips
from almosaic.features import AudioMosaicFeatureExtractor

SETS = ("esc50", "kitchen20", "instruments", "fsdd", "ravdess")
QUICK = ["probe.readout.epochs=2", "probe.readout.seeds=[0, 1]", "probe.neighbours=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five sets of low and high tones, and two encoders."""
    folder = tmp_path_factory.mktemp("probe-sets")
    for number, name in enumerate(SETS):
        (folder / "data" / name).mkdir(parents=True)
        rows = []
        for clip in range(16):
            hertz = np.random.default_rng(100 * number + clip).uniform(200, 300) * (10 if clip % 2 else 1)
            wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(6400) / 16_000)
            soundfile.write(folder / "data" / name / f"{clip}.wav", wave, 16_000)
            row = {"id": str(clip), "audio": f"{clip}.wav", "labels": ["high" if clip % 2 else "low"]}
            rows.append(json.dumps(row | {"split": "train" if clip < 12 else "dev"}))
        (folder / "data" / name / "manifest.jsonl").write_text("\n".join(rows))
    for seed in (1, 2):
        tiny_encoder(seed).save_pretrained(folder / f"encoder{seed}")
        AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES).save_pretrained(folder / f"encoder{seed}")
    return folder


@pytest.fixture
def evaluate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`evaluate(override, ...)` runs the recipe and returns what it printed and its folder."""
    monkeypatch.setenv("DATA", str(folder / "data"))
    monkeypatch.setenv("MODEL", str(folder / "encoder1"))
    monkeypatch.chdir(tmp_path)

    def once(*overrides: str) -> tuple[str, Path]:
        lines: list[str] = []
        output = tmp_path / f"run{len(list(tmp_path.glob('run[0-9]*')))}"
        place = runs.evaluate("eval/sounds5", [*QUICK, f"output={output}", *overrides], report=lines.append)
        return "\n".join(lines), place

    return once


def test_five_sets_come_in_one_table_and_later_runs_reuse_what_was_read(evaluate, folder, monkeypatch):
    printed, place = evaluate()
    header = next(line for line in printed.splitlines() if line.strip().startswith("features"))
    assert header.split() == ["features", "probe", *SETS, "mean"]
    for shown in ("encoder", "untrained", "hand features", "majority class", "weighted sum", "attentive"):
        assert shown in printed, shown
    rows = json.loads((place / "results.json").read_text())["probe"]
    assert {row["set"] for row in rows} == set(SETS)
    assert all({"protocol", "layer", "pooling", "seed", "interval"} <= set(row) for row in rows)
    assert (place / "layers.svg").is_file() and "<svg" in (place / "report.html").read_text()

    read: list[int] = []
    waveform = ProbeClips.waveform

    def counted(self, index, epoch=0):
        read.append(index)
        return waveform(self, index, epoch)

    monkeypatch.setattr(ProbeClips, "waveform", counted)
    _, again = evaluate("probe.layer=1", "probe.protocols=[linear]")
    assert read == [], "everything was cached"
    chosen = [row for row in json.loads((again / "results.json").read_text())["probe"] if row["layer"] == 1]
    last = [row for row in rows if row["protocol"] == "per_layer" and row["layer"] == 1]
    assert [row["score"] for row in chosen] == [row["score"] for row in last]
    both = f"encoders={{true: {folder / 'encoder1'}, random: {folder / 'encoder2'}}}"
    printed, _ = evaluate("encoders={}", both, "probe.protocols=[knn]")
    assert len(read) == 5 * 16, "only the second encoder is new"
    assert "true " in printed and "random " in printed


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("probe.layer=7", "layer 7 does not exist; the encoder has blocks 0 to 1"),
        ("probe.sets.fsdd.test=[dov]", r"fsdd: .*manifest\.jsonl has no split 'dov', only dev, train"),
        ("probe.sets.fsdd.by=fold", r"fsdd: .*manifest\.jsonl has no fold 'train', only rows without one"),
        ("probe.readout.heads=5", "heads is 5, which does not divide the width 32 of encoder"),
        ("encoders.encoder=./nowhere", "no model at ./nowhere"),
        ("encoders.encoder=./other", r"holds a model of type bert; expected audiomosaic"),
    ],
)
def test_mistakes_are_one_line(evaluate, tmp_path, override, message):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(AlmosaicError, match=message) as caught:
        evaluate(override)
    assert "\n" not in str(caught.value)
