import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from by_hand import clip, record, sound_class

from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import Bank, SyntheticBank, open_bank
from almosaic.scenes.compose import compose, render, scene_pool
from almosaic.scenes.mixing import active_dbfs, count_sounds, problems
from almosaic.scenes.planner import has_heldout_pair
from almosaic.scenes.scene import TEMPLATES, Scene, SceneSettings

GOLDEN = Path(__file__).parents[2] / "golden" / "scenes_records.json"
SHORT = SceneSettings(duration_seconds=5.0)


@pytest.fixture(scope="module")
def pool(train_bank):
    return scene_pool(train_bank, SHORT, "train", 220, seed=3)


@pytest.mark.parametrize("seconds", [5.0, 7.03, 10.0])
def test_events_stay_inside_keep_their_gaps_and_stand_on_the_grid(bank, seconds):
    settings = SceneSettings(duration_seconds=seconds)
    for scene in scene_pool(bank, settings, "test", 66, seed=0):
        events = scene.events
        assert events[0].onset >= 0.3 and max(event.end for event in events) <= seconds - 0.3 + 1e-9
        for event in events:
            assert round(event.onset * 100) == pytest.approx(event.onset * 100, abs=1e-9)
            assert event.duration == pytest.approx(event.source_end - event.source_start)
            assert 0 < event.duration <= 4.0
        if scene.template != "overlap":
            for before, after in pairwise(events):
                assert after.onset - before.end >= 0.4 - 1e-9


def test_room_is_that_of_the_recipe():
    settings = SceneSettings()
    assert settings.room(3) == pytest.approx(2.86) and settings.room(4) == pytest.approx(2.05)
    assert (settings.count_limit, settings.sounds_limit, settings.long_seconds) == (5, 4, 4.0)
    assert settings.short_seconds == 1.5
    assert (SHORT.count_limit, SHORT.sounds_limit, SHORT.long_seconds) == (4, 4, 2.0)


def test_levels_peaks_and_overlaps(bank, pool, train_bank):
    for scene in pool[:88]:
        audio = render(scene, train_bank)
        assert audio.dtype == np.float32 and audio.shape == (80_000,)
        assert np.abs(audio).max() <= 10 ** (-1 / 20) + 1e-4
        clean = render(replace(scene, noise_dbfs=-200.0), train_bank)
        for event in scene.events:
            if scene.template not in ("overlap", "louder"):
                assert -26.01 <= event.level_dbfs <= -19.99
                span = clean[round(event.onset * 16_000) : round(event.end * 16_000)]
                assert active_dbfs(span) - scene.gain_db == pytest.approx(event.level_dbfs, abs=2.0)
        if scene.template == "louder":
            levels = sorted(event.level_dbfs for event in scene.events)
            assert levels[1] - levels[0] == pytest.approx(12.0, abs=0.011)
    apart, together = Counter(), 0
    for scene in scene_pool(bank, SceneSettings(templates=("overlap",)), "test", 40, seed=0):
        first, second = scene.events
        overlap = first.end - second.onset
        if scene.relations["overlaps"]:
            together += 1
            assert overlap >= 0.5 * min(first.duration, second.duration)
            assert 0.09 * first.duration <= second.onset - first.onset <= 0.41 * first.duration
        else:
            apart[overlap <= -0.4 + 1e-9] += 1
    assert together == 20 and apart == {True: 20}


def test_render_is_a_pure_function_of_the_record(pool, train_bank):
    scene = pool[5]
    again = Scene.from_dict(json.loads(json.dumps(scene.to_dict())))
    assert again == scene and again.events == scene.events
    np.testing.assert_array_equal(render(again, train_bank), render(scene, train_bank))


def test_a_fresh_bank_of_the_same_settings_gives_the_same_audio(pool, train_bank):
    fresh = open_bank(SyntheticBank(clips_per_kind=12), "train")
    np.testing.assert_array_equal(render(pool[7], fresh), render(pool[7], train_bank))


def test_another_bank_is_refused(pool, bank):
    with pytest.raises(AlmosaicError, match="expected the bank"):
        render(pool[0], bank)


def test_a_scene_of_a_pool_depends_on_its_index_alone(pool, train_bank):
    other = scene_pool(train_bank, SHORT, "train", 1000, seed=3)
    assert [other[i] for i in (200, 7, 63)] == [pool[i] for i in (200, 7, 63)]
    assert pool[3:6] == [pool[3], pool[4], pool[5]] and pool[-1] == pool[219]
    assert scene_pool(train_bank, SHORT, "train", 5, seed=4)[0] != pool[0]
    with pytest.raises(IndexError):
        pool[220]


def test_a_pool_gives_every_template_its_turn_and_both_twins(pool):
    assert Counter(scene.template for scene in pool) == dict.fromkeys(TEMPLATES, 20)
    assert {scene.scene_id[-1] for scene in pool} == {"a", "b"}
    counts = Counter(len(scene.events) for scene in pool if scene.template == "count")
    assert counts == {1: 5, 2: 5, 3: 5, 4: 5}
    kinds = Counter(len(scene.labels) for scene in pool if scene.template == "distinct")
    assert kinds == {1: 5, 2: 5, 3: 5, 4: 5}


def test_training_scenes_never_combine_held_out_labels_and_other_scenes_may(pool, bank):
    assert not any(has_heldout_pair(scene.labels) for scene in pool)
    settings = SceneSettings(duration_seconds=5.0, templates=("first", "overlap"))
    assert any(has_heldout_pair(scene.labels) for scene in scene_pool(bank, settings, "test", 100, seed=0))


def test_compose_depends_on_its_key_alone(train_bank):
    first = compose(train_bank, SHORT, "a", 1)
    assert compose(train_bank, SHORT, "a", 1) == first != compose(train_bank, SHORT, "a", 2)


def test_the_energy_shows_how_many_sounds_there_are():
    audio = np.random.default_rng(0).standard_normal(32_000).astype(np.float32) * 1e-3
    for start in (2_000, 10_000, 20_000):
        audio[start : start + 3_200] += 0.3
    assert count_sounds(audio, -60.0) == 3
    audio[14_000:19_000] += 0.3  # the pauses around it are shorter than 0.25 s
    assert count_sounds(audio, -60.0) == 2
    assert count_sounds(audio[:1_900], -60.0) == 0
    audio[14_000:16_800] -= 0.3  # a pause of 0.23 s
    assert count_sounds(audio, -60.0) == 2


def test_events_fade_in_and_out():
    scene = replace(record(("dog", 1.0, 1.5)), noise_dbfs=-200.0)
    tone = Bank({"dog": sound_class("dog")}, [clip("dog-1", "dog")], lambda clip: np.ones(16_000, np.float32))
    audio = render(replace(scene, bank_fingerprint=tone.fingerprint()), tone)
    inside = audio[16_000:24_000]
    np.testing.assert_allclose(inside[:160], (np.arange(160) + 0.5) / 160, atol=1e-6)
    np.testing.assert_allclose(inside, inside[::-1], atol=1e-6)
    assert (inside[160:-160] == 1).all()
    assert max(np.abs(audio[:16_000]).max(), np.abs(audio[24_000:]).max()) < 1e-8


def test_the_check_finds_what_the_audio_does_not_show(train_bank):
    settings = SceneSettings(duration_seconds=5.0, templates=("count", "louder"))
    pool = scene_pool(train_bank, settings, "train", 8, seed=0)
    for scene in pool:
        audio = render(scene, train_bank)
        assert list(problems(scene, audio)) == []
        silent = np.zeros_like(audio)
        assert any("is not heard" in problem for problem in problems(scene, silent))
    many = next(scene for scene in pool if len(scene.events) > 2)
    fewer = replace(many, events=many.events[1:])
    assert any("times" in problem for problem in problems(fewer, render(many, train_bank)))
    louder = next(scene for scene in pool if scene.template == "louder")
    levels = [event.level_dbfs for event in louder.events]
    moved = [
        replace(event, gain_db=event.gain_db - level + other)
        for event, level, other in zip(louder.events, levels, levels[::-1], strict=True)
    ]
    exchanged = render(replace(louder, events=tuple(moved)), train_bank)
    assert any("dB louder than" in problem for problem in problems(louder, exchanged))


def test_a_clip_that_cannot_be_heard_ends_in_an_error_that_names_it():
    classes = {"dog": sound_class("dog", "a"), "cow": sound_class("cow", "b")}
    clips = [clip("dog-1", "dog"), clip("cow-1", "cow")]
    rng = np.random.default_rng(0)

    def load(clip):
        noise = rng.standard_normal(16_000).astype(np.float32)
        return noise * (0.1 if clip.label == "cow" else 0.0)

    settings = SceneSettings(templates=("first",), attempts=3)
    with pytest.raises(AlmosaicError, match=r"'first' in 3 draws: dog \(clip dog-1\) is not heard"):
        list(scene_pool(Bank(classes, clips, load), settings, "test", 4, seed=0))


def test_a_bank_without_the_sounds_that_a_template_needs_is_an_error():
    classes = {"dog": sound_class("dog", "a"), "cow": sound_class("cow", "a")}
    bank = Bank(
        classes, [clip("dog-1", "dog"), clip("cow-1", "cow")], lambda clip: np.ones(16_000, np.float32)
    )
    for template in ("presence", "count", "longer", "next"):
        with pytest.raises(AlmosaicError, match=f"'{template}'"):
            scene_pool(bank, SceneSettings(templates=(template,)), "test", 1, seed=0)[0]


def test_an_unknown_template_is_refused():
    with pytest.raises(ValueError, match="presence"):
        SceneSettings(templates=("loudness",))  # type: ignore[arg-type]


def test_golden_records(train_bank):
    """The same keys give the same scenes as when the file was written: else raise RECIPE_VERSION."""
    golden = json.loads(GOLDEN.read_text())
    pool = scene_pool(train_bank, SHORT, "train", len(golden), seed=0)
    for scene, expected in zip(pool, golden, strict=True):
        found = scene.to_dict()
        levels = np.sqrt(np.mean(np.square(render(scene, train_bank)).reshape(10, -1), axis=1))
        np.testing.assert_allclose(levels, expected.pop("rms_per_half_second"), atol=2e-4)
        for event, wanted in zip(found.pop("events"), expected.pop("events"), strict=True):
            assert event.pop("gain_db") == pytest.approx(wanted.pop("gain_db"), abs=0.02)
            assert event == wanted
        assert found.pop("gain_db") == pytest.approx(expected.pop("gain_db"), abs=0.02)
        assert found == expected
