import pytest
from by_hand import clip, record, silence, sound_class

from almosaic.scenes.bank import Bank
from almosaic.scenes.captions import Facts, caption_facts, captions, compare_facts, facts, timeline
from almosaic.scenes.compose import scene_pool
from almosaic.scenes.scene import SceneSettings

DOG = {"noun_phrase": "a dog barking", "clause": "a dog barks", "answer": "dog barking"}
RAIN = {"noun_phrase": "rain falling", "clause": "rain falls", "answer": "rain falling", "kind": "texture"}
DOORBELL = {"noun_phrase": "a doorbell", "clause": "a doorbell rings", "answer": "doorbell"}
CLASSES = [
    sound_class("dog", "animals", aliases=("dog", "barking"), **DOG),
    sound_class("bell", "music", noun_phrase="a bell ringing", clause="a bell rings"),
    sound_class("rain", "nature", aliases=("rain",), **RAIN),
    sound_class("door_bell", "signals", aliases=("door bell",), **DOORBELL),
]
BANK = Bank({c.label: c for c in CLASSES}, [clip(f"{c.label}-1", c.label) for c in CLASSES], silence)
PERFECT = {"precision": 1.0, "recall": 1.0, "f1": 1.0}


def test_a_single_sound():
    assert captions(record(("dog", 1.0, 2.0)), BANK) == [
        "a dog barking",
        "a dog barks",
        "the sound of a dog barking",
        "you can hear a dog barking",
        "this is a dog barking",
    ]


def test_a_sequence():
    scene = record(("dog", 1.0, 2.0), ("rain", 3.0, 5.0))
    assert captions(scene, BANK) == [
        "a dog barking followed by rain falling",
        "a dog barks, then rain falls",
        "first a dog barking, and after that rain falling",
        "rain falling comes after a dog barking",
        "a dog barking, then rain falling",
    ]


def test_an_overlap_with_a_quiet_second_sound():
    scene = record(("dog", 1.0, 4.0), ("rain", 2.0, 5.0), levels=(-20.0, -32.0))
    assert captions(scene, BANK) == [
        "a loud dog barking while rain falls quietly",
        "a dog barks loudly as rain falls quietly",
        "a loud dog barking together with quiet rain falling",
        "a dog barks loudly and rain falls quietly at the same time",
        "a loud dog barking with quiet rain falling in the background",
    ]


def test_counts():
    three = record(("dog", 1.0, 2.0), ("dog", 3.0, 4.0), ("dog", 5.0, 6.0), template="count")
    assert captions(three, BANK)[:2] == ["a dog barking three times", "a dog barks three times"]
    assert captions(record(("dog", 1.0, 2.0), template="count"), BANK)[1] == "a dog barks once"


def test_every_caption_of_every_scene_says_exactly_the_facts(bank):
    scenes = scene_pool(bank, SceneSettings(duration_seconds=5.0), "test", 220, seed=0)
    for scene in scenes:
        references = captions(scene, bank)
        assert len(references) == len(set(references)) == 5
        for caption in references:
            scores = compare_facts(facts(scene), caption_facts(caption, bank))
            assert all(score in (None, 1.0) for score in scores.values()), (caption, scores)


@pytest.mark.parametrize(
    ("text", "order", "counts", "overlaps"),
    [
        ("A dog barks three times.", ["dog"], {"dog": 3}, []),
        ("the dog barked twice and then rain", ["dog", "rain"], {"dog": 2, "rain": 1}, []),
        ("two dog barks", ["dog"], {"dog": 2}, []),
        ("rain comes after a dog barking", ["dog", "rain"], {"dog": 1, "rain": 1}, []),
        ("rain follows a bell", ["bell", "rain"], {"bell": 1, "rain": 1}, []),
        ("a bell preceded by rain", ["rain", "bell"], {"bell": 1, "rain": 1}, []),
        ("after a bell comes rain", ["bell", "rain"], {"bell": 1, "rain": 1}, []),
        ("a dog, then a bell, then a dog", ["dog", "bell"], {"dog": 2, "bell": 1}, []),
        ("a dog barks while rain falls", ["dog", "rain"], {"dog": 1, "rain": 1}, [("dog", "rain")]),
        ("rain and a dog at the same time", ["rain", "dog"], {"dog": 1, "rain": 1}, [("dog", "rain")]),
        ("a dog, then rain in the background", ["dog", "rain"], {"dog": 1, "rain": 1}, []),
        ("a doorbell", ["door_bell"], {"door_bell": 1}, []),  # not the bell inside the word
        ("a door bell rings", ["door_bell"], {"door_bell": 1}, []),  # the longest phrase wins
        ("a cat meows", [], {}, []),
        ("", [], {}, []),
    ],
)
def test_facts_of_a_caption(text, order, counts, overlaps):
    expected = Facts(frozenset(counts), tuple(order), counts, frozenset(overlaps))
    assert caption_facts(text, BANK) == expected


def test_wrong_captions_lose_what_they_got_wrong():
    sequence = facts(record(("dog", 1.0, 2.0), ("rain", 3.0, 5.0)))

    def score(text):
        return compare_facts(sequence, caption_facts(text, BANK))

    assert score("a dog, then rain") == {**PERFECT, "order": 1.0, "count": 1.0, "overlap": 1.0}
    assert score("rain, then a dog") == {**PERFECT, "order": 0.0, "count": 1.0, "overlap": 1.0}
    assert score("a dog while rain falls") == {**PERFECT, "order": 1.0, "count": 1.0, "overlap": 0.0}
    assert score("a dog twice, then rain")["count"] == 0.0
    half = score("a dog and a bell")
    assert half == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "order": None, "count": 1.0, "overlap": None}
    nothing = score("silence")
    assert nothing["f1"] == 0.0 and nothing["order"] is nothing["count"] is nothing["overlap"] is None


def test_the_order_of_overlapping_sounds_does_not_count():
    overlap = facts(record(("dog", 1.0, 4.0), ("rain", 2.0, 5.0)))
    scores = compare_facts(overlap, caption_facts("rain falls as a dog barks", BANK))
    assert scores == {**PERFECT, "order": None, "count": 1.0, "overlap": 1.0}


def test_the_timeline_has_one_word_per_slot():
    scene = record(("dog", 1.0, 2.0), ("rain", 1.5, 4.0), ("bell", 6.0, 6.1))
    assert timeline(scene, BANK, 10).split() == [
        "_", "dog-barking+rain-falling", "rain-falling", "rain-falling", "_", "_", "bell", "_", "_", "_",
    ]  # fmt: skip


def test_a_sound_holds_the_slots_that_it_fills_by_half():
    assert timeline(record(("bell", 3.3, 4.6)), BANK, 10).split()[3:6] == ["bell", "bell", "_"]
    assert timeline(record(("bell", 3.7, 4.6)), BANK, 10).split()[3:6] == ["_", "bell", "_"]


def test_every_sound_of_a_scene_is_in_its_timeline_and_repeats_are_apart(bank):
    for scene in scene_pool(bank, SceneSettings(duration_seconds=5.0), "test", 110, seed=2):
        slots = timeline(scene, bank, 32).split()
        assert len(slots) == 32
        assert {word for slot in slots if slot != "_" for word in slot.split("+")} == set(scene.labels)
        if scene.template == "count":
            runs = sum(
                slot != "_" and before == "_" for before, slot in zip(["_", *slots], slots, strict=False)
            )
            assert runs == len(scene.events)
