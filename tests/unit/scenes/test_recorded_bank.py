import csv
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import RecordedBank, open_bank
from almosaic.scenes.compose import render, scene_pool
from almosaic.scenes.mixing import count_sounds, problems
from almosaic.scenes.questions import TEMPLATES, oracle, twin_pairs
from almosaic.scenes.recorded import BACKGROUND_PRONE, COUNTABLE, NOT_COUNTABLE, read_classes
from almosaic.scenes.scene import SceneSettings

HEADER = "label,group,kind,noun_phrase,clause,answer,aliases,confusable_with"
CLASSES = f"""{HEADER}
dog,animals,event,a dog barking,a dog barks,dog barking,dog;barking,
footsteps,human,event,footsteps,a person walks,footsteps,steps,
whistle,human,event,a whistle,a whistle sounds,whistle,,
rain,nature,texture,rain falling,rain falls,rain falling,rain;raining,
"""
REGIONS = """file,split,label,region,start_s,end_s,rms_dbfs,max_frame_dbfs,below_clip_max_db
audio/dog.wav,train,dog,0,0.10,0.60,-20,-10,0.0
audio/dog.wav,train,dog,1,1.00,1.40,-20,-10,5.0
audio/dog.wav,train,dog,2,1.60,1.90,-50,-40,30.0
audio/whistle.wav,train,whistle,0,0.20,0.70,-20,-10,0.0
audio/whistle2.wav,train,whistle,0,0.20,0.70,-20,-10,0.0
audio/whistle2.wav,train,whistle,1,1.20,1.70,-20,-10,0.0
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "audio").mkdir()
    names = {"dog": 1, "footsteps": 2, "whistle": 1, "whistle2": 2, "rain": 3}
    rows = []
    for name, fold in names.items():
        soundfile.write(tmp_path / "audio" / f"{name}.wav", rng.normal(0, 0.1, 2 * 16_000), 16_000)
        rows.append({"id": name, "audio": f"audio/{name}.wav", "fold": fold, "split": "train"})
        rows[-1]["labels"] = [name.rstrip("2")]
    rows[-1].update(active_start_s=0.5, active_end_s=1.75)
    write(tmp_path / "manifest.jsonl", "\n".join(json.dumps(row) for row in rows))
    write(tmp_path / "classes.csv", CLASSES)
    write(tmp_path / "regions.csv", REGIONS)
    return tmp_path


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def settings(folder, **changes):
    paths = {name: folder / name for name in ("manifest.jsonl", "classes.csv", "regions.csv")}
    common = {
        "manifest": paths["manifest.jsonl"],
        "classes": paths["classes.csv"],
        "regions": paths["regions.csv"],
    }
    return RecordedBank(**{**common, **changes})


def test_regions_events_and_active_spans(folder):
    bank = open_bank(settings(folder), "train")
    assert bank.labels == ("dog", "footsteps", "rain", "whistle")
    dog, steps, rain = bank.by_id["dog"], bank.by_id["footsteps"], bank.by_id["rain"]
    assert dog.regions == ((0.1, 0.6), (1.0, 1.4))  # the faint third one is not the dog
    assert dog.events == dog.regions
    assert steps.regions == ((0.0, 2.0),) and steps.events == ()  # no regions known: the whole clip
    assert rain.regions == ((0.5, 1.75),)  # from the manifest's active columns
    # Of labels that nobody listed, only a clip with a single region is one event.
    assert bank.by_id["whistle"].events == ((0.2, 0.7),) and bank.by_id["whistle2"].events == ()
    assert len(bank.waveform(dog)) == 32_000


def test_classes_carry_phrases_and_the_rules_of_the_lists(folder):
    classes = read_classes(folder / "classes.csv")
    assert classes["dog"].aliases == ("dog", "barking") and classes["whistle"].aliases == ()
    assert [label for label, kind in classes.items() if kind.countable] == ["dog", "whistle"]
    assert [label for label, kind in classes.items() if kind.background_prone] == ["footsteps", "rain"]


def test_columns_replace_the_lists(folder):
    lines = CLASSES.strip().splitlines()
    flags = ["countable,background_prone", "false,true", "true,false", ",", "yes,0"]
    write(folder / "classes.csv", "\n".join(f"{a},{b}" for a, b in zip(lines, flags, strict=True)))
    classes = read_classes(folder / "classes.csv")
    assert [label for label, kind in classes.items() if kind.countable] == ["footsteps", "whistle", "rain"]
    assert [label for label, kind in classes.items() if kind.background_prone] == ["dog"]


def test_splits_by_fold_and_by_name(folder):
    chosen = settings(folder, splits={"dev": {"fold": [2, "3"]}, "both": {"fold": [1], "split": ["train"]}})
    assert {clip.id for clip in open_bank(chosen, "dev").clips} == {"footsteps", "whistle2", "rain"}
    assert {clip.id for clip in open_bank(chosen, "both").clips} == {"dog", "whistle"}
    assert len(open_bank(chosen, "train")) == 5
    with pytest.raises(AlmosaicError, match="no row of split 'test'"):
        open_bank(chosen, "test")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("classes.csv", "texture", "noise", r"classes.csv:5: column 'kind'.*'noise'"),
        ("classes.csv", "noun_phrase", "phrase", "expected a column 'noun_phrase'"),
        ("classes.csv", "rain,nature", "snow,nature", r"clip 'rain'.*\['rain'\]"),
        ("regions.csv", "0.10,0.60", "soon,0.60", r"regions.csv:2: .*numbers.*'soon'"),
        ("regions.csv", "start_s", "begin", "expected a column 'start_s'"),
        ("manifest.jsonl", '["dog"]', '["dog", "rain"]', r"clip 'dog': .*exactly one label"),
    ],
)
def test_mistakes_are_named(folder, name, old, new, message):
    write(folder / name, (folder / name).read_text().replace(old, new))
    with pytest.raises(AlmosaicError, match=message):
        open_bank(settings(folder), "train")


def test_a_missing_table_is_named(folder):
    with pytest.raises(AlmosaicError, match=r"none.csv: cannot be read"):
        open_bank(settings(folder, classes=folder / "none.csv"), "train")


def test_the_lists_do_not_contradict_each_other():
    assert not set(COUNTABLE) & set(NOT_COUNTABLE)
    assert len(BACKGROUND_PRONE) == 8


@pytest.fixture(scope="module")
def esc50(tmp_path_factory):
    """Folds 1-3 and 4 of the real recordings, where they are at hand."""
    root = Path(os.environ.get("DATA", Path(__file__).parents[3].parent / "shared" / "data")) / "esc50"
    if not (root / "metadata.csv").exists():
        pytest.skip(f"no ESC-50 with metadata.csv under {root}; set DATA")
    with (root / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    manifest = tmp_path_factory.mktemp("esc50") / "manifest.jsonl"
    lines = [
        {
            "id": Path(row["file"]).stem,
            "audio": str(root / row["file"]),
            "fold": row["fold"],
            "labels": [row["label"]],
            "active_start_s": float(row["active_start_s"]),
            "active_end_s": float(row["active_end_s"]),
            "duration_seconds": 5.0,
        }
        for row in rows
    ]
    write(manifest, "\n".join(json.dumps(line) for line in lines))
    return RecordedBank(
        manifest=manifest,
        classes=root / "classes.csv",
        regions=root / "regions.csv",
        splits={"train": {"fold": [1, 2, 3]}, "dev": {"fold": [4]}},
    )


def test_esc50_has_the_clips_that_the_recipe_counts_on(esc50):
    bank = open_bank(esc50, "train")
    assert (len(bank), len(bank.labels)) == (1200, 50)
    assert sum(len(found) >= 8 for found in bank.excerpts("event").values()) >= 11
    assert len(bank.excerpts("long", 4.0)) == 22
    dev = open_bank(esc50, "dev")
    assert (len(dev), len(dev.labels)) == (400, 50)
    assert not {clip.audio for clip in bank.clips} & {clip.audio for clip in dev.clips}


def test_200_esc50_scenes_pass_their_check(esc50):
    bank = open_bank(esc50, "dev")
    scenes = scene_pool(bank, SceneSettings(), "dev", 200, seed=0)
    assert Counter(scene.template for scene in scenes).keys() == set(TEMPLATES)
    for scene in scenes:
        audio = render(scene, bank)
        assert list(problems(scene, audio)) == [] and np.abs(audio).max() <= 0.9
        if scene.template == "count":
            assert count_sounds(audio, scene.noise_dbfs + scene.gain_db) == len(scene.events)


def test_esc50_twins_obey_the_oracle(esc50):
    bank = open_bank(esc50, "dev")
    for template in TEMPLATES:
        for pair in twin_pairs(bank, SceneSettings(), template, 3, split="dev", seed=0, wordings="heldout"):
            for scene, question in zip(pair.scenes, pair.questions, strict=True):
                assert oracle(scene, question, bank) == question.answer
