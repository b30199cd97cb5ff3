import pytest
from helpers_tiny import tiny_model

from almosaic.errors import AlmosaicError
from almosaic.evaluation.captioning import (
    CONSTANT,
    CONSTANT_CAPTION,
    MAJORITY,
    CaptioningSettings,
    conversations,
    majority_caption,
    record,
    run,
    score,
)
from almosaic.evaluation.controls import AUDIO, ORACLE
from almosaic.scenes.bank import SyntheticBank, open_bank
from almosaic.scenes.captions import captions
from almosaic.scenes.compose import scene_pool
from almosaic.scenes.scene import SceneSettings

SCENES = SceneSettings(duration_seconds=5.0, templates=("presence", "first", "overlap"))

SINGLE = SceneSettings(duration_seconds=5.0, templates=("count",))


@pytest.fixture(scope="module")
def bank():
    return open_bank(SyntheticBank(clips_per_kind=4), "test")


@pytest.fixture(scope="module")
def scenes(bank):
    return list(scene_pool(bank, SCENES, "test", 30, 0))


def said(scenes, bank, condition, caption):
    return [record(scene, bank, condition, caption(scene), "Describe the audio.") for scene in scenes]


def test_a_reference_has_every_fact_and_the_constant_none(scenes, bank):
    result = score(
        said(scenes, bank, AUDIO, lambda scene: captions(scene, bank)[1])
        + said(scenes, bank, CONSTANT, lambda scene: CONSTANT_CAPTION)
    )
    right, constant = result["systems"][AUDIO], result["systems"][CONSTANT]
    assert right["f1"] == right["order"] == right["count"] == right["overlap"] == 1.0
    assert right["bleu4"] == pytest.approx(1.0) and right["rouge_l"] == pytest.approx(1.0)
    assert constant["f1"] == 0.0 and constant["order"] is None
    assert 0 < right["cider_d"] > 5 * constant["cider_d"]
    assert result["clips"] == 30
    assert result["skipped"] == {MAJORITY: "no training clips were given"}


def test_one_clip_has_no_cider_and_says_why(scenes, bank):
    result = score(said(scenes[:1], bank, AUDIO, lambda scene: "a dog"))
    assert result["systems"][AUDIO]["cider_d"] is None
    assert "at least 2 clips" in result["skipped"]["cider_d"]


def test_half_of_the_sounds_is_half_of_the_recall(scenes, bank):
    two = [scene for scene in scenes if len(scene.labels) == 2]
    result = score(said(two, bank, AUDIO, lambda scene: bank.classes[scene.labels[0]].noun_phrase))
    assert result["systems"][AUDIO]["precision"] == 1.0
    assert result["systems"][AUDIO]["recall"] == 0.5
    assert result["systems"][AUDIO]["f1"] == pytest.approx(2 / 3)


def test_conditions_must_be_of_the_same_clips(scenes, bank):
    right = said(scenes, bank, AUDIO, lambda scene: "x")
    with pytest.raises(AlmosaicError, match="other clips"):
        score(right + said(scenes[1:], bank, "silence", lambda scene: "x"))
    with pytest.raises(AlmosaicError, match="expected captions of condition 'audio', found none"):
        score([])


def test_the_majority_caption_is_the_most_frequent_one_in_training(bank):
    counts = {}
    for scene in scene_pool(bank, SINGLE, "train", 40, 3):
        for text in captions(scene, bank):
            counts[text] = counts.get(text, 0) + 1
    text = majority_caption(bank, SINGLE, 40, 3)
    assert counts[text] == max(counts.values()) > 2


def test_silence_is_as_long_as_the_scene(scenes, bank):
    (heard,) = conversations(scenes[:1], bank, "Describe the audio.")
    (silent,) = conversations(scenes[:1], bank, "Describe the audio.", silent=True)
    assert heard["audios"][0][0].shape == silent["audios"][0][0].shape == (80_000,)
    assert heard["audios"][0][0].any() and not silent["audios"][0][0].any()
    assert heard["messages"] == silent["messages"]


def test_run_lays_the_baselines_beside_a_real_model(tmp_path, bank):
    model, processor = tiny_model(tmp_path)
    settings = CaptioningSettings(scenes=3, majority_scenes=10, max_new_tokens=2)
    calls = []
    records = run(
        model,
        processor,
        bank,
        SCENES,
        settings,
        lambda done, total: calls.append((done, total)),
        train_bank=bank,
    )
    systems = score(records)["systems"]
    assert list(systems) == [AUDIO, "silence", CONSTANT, MAJORITY, ORACLE]
    assert systems[ORACLE]["f1"] == 1.0
    assert calls == [(done, 6) for done in range(1, 7)]
    assert CaptioningSettings().prompt == "Describe the audio."
