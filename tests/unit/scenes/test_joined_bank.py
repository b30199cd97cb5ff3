"""Banks of several corpora as one: ids keep their corpus, labels mean one thing, scenes mix them."""

import json

import numpy as np
import pytest
import soundfile

from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import JoinedBank, open_bank
from almosaic.scenes.compose import render, scene_pool
from almosaic.scenes.scene import SceneSettings

HEADER = "label,group,kind,noun_phrase,clause,answer,aliases,confusable_with"


@pytest.fixture
def corpora(tmp_path):
    """Two corpora whose clips have the same ids."""
    words = {
        "house": (
            "door,indoors,event,a door,a door shuts,door,,",
            "bell,indoors,event,a bell,a bell rings,bell,,",
        ),
        "voices": (
            "voice,speech,event,a voice,a voice speaks,voice,,",
            "whisper,speech,event,a whisper,a whisper,whisper,,",
        ),
    }
    rng = np.random.default_rng(0)
    for name, lines in words.items():
        folder = tmp_path / name
        folder.mkdir()
        rows = []
        for number, line in enumerate(lines):
            soundfile.write(folder / f"{number}.wav", rng.normal(0, 0.1, 16_000), 16_000)
            row = {"id": str(number), "audio": f"{number}.wav", "split": "train"}
            rows.append({**row, "labels": [line.split(",")[0]]})
        (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "classes.csv").write_text("\n".join((HEADER, *lines)))
    return tmp_path


def settings(folder):
    paths = {
        name: {
            "name": "recorded",
            "manifest": folder / name / "manifest.jsonl",
            "classes": folder / name / "classes.csv",
        }
        for name in ("house", "voices")
    }
    return JoinedBank.model_validate({"banks": paths})


def test_ids_carry_the_name_of_their_bank_and_audio_is_its_own(corpora):
    bank = open_bank(settings(corpora), "train")
    assert bank.labels == ("bell", "door", "voice", "whisper")
    assert sorted(bank.by_id) == ["house/0", "house/1", "voices/0", "voices/1"]
    for name in ("house", "voices"):
        stored, _ = soundfile.read(corpora / name / "0.wav", dtype="float32")
        np.testing.assert_allclose(bank.waveform(bank.by_id[f"{name}/0"]), stored, atol=1e-7)


def test_scenes_mix_the_banks(corpora):
    bank = open_bank(settings(corpora), "train")
    scenes = scene_pool(bank, SceneSettings(duration_seconds=5.0, templates=("first",)), "train", 30, 0)
    origins = [{event.clip_id.split("/")[0] for event in scene.events} for scene in scenes]
    assert {"house", "voices"} in origins
    assert len(render(scenes[0], bank)) == 5 * 16_000


def test_a_label_may_stand_in_two_banks_only_with_one_description(corpora):
    path = corpora / "voices" / "classes.csv"
    path.write_text(path.read_text() + "\nbell,indoors,event,a bell,a bell rings,bell,,")
    rows = (corpora / "voices" / "manifest.jsonl").read_text()
    (corpora / "voices" / "manifest.jsonl").write_text(rows.replace('["whisper"]', '["bell"]'))
    assert open_bank(settings(corpora), "train").labels == ("bell", "door", "voice")
    path.write_text(path.read_text().replace("a bell rings", "the bell tolls"))
    with pytest.raises(AlmosaicError, match="banks house and voices describe the label 'bell' differently"):
        open_bank(settings(corpora), "train")
