import pytest
from by_hand import clip, record, silence, sound_class

from almosaic.scenes.answers import answer, chance, is_correct, normalise
from almosaic.scenes.bank import Bank
from almosaic.scenes.scene import SceneSettings

CLASSES = [
    sound_class("dog", "animals", noun_phrase="a dog barking", clause="a dog barks", answer="dog barking",
                aliases=("dog", "barking")),
    sound_class("bell", "music", aliases=("bell ringing",)),
    sound_class("doorbell", "signals", aliases=("door bell",)),
    sound_class("rain", "nature", noun_phrase="rain falling", answer="rain falling", aliases=("rain",)),
]  # fmt: skip
BANK = Bank({c.label: c for c in CLASSES}, [clip(f"{c.label}-1", c.label) for c in CLASSES], silence)

THREE = record(("dog", 0.5, 1.5), ("bell", 2.0, 3.0), ("rain", 6.0, 8.0))
REPEATS = record(("dog", 0.5, 1.0), ("dog", 2.0, 2.5), ("bell", 4.5, 5.5), ("dog", 7.0, 8.0))
TOGETHER = record(("dog", 1.0, 3.0), ("rain", 2.0, 4.0), levels=(-23.0, -35.0))


@pytest.mark.parametrize(
    ("scene", "template", "asked", "expected"),
    [
        (THREE, "presence", ["dog"], "yes"),
        (THREE, "presence", ["doorbell"], "no"),
        (THREE, "first", ["rain", "bell"], "bell"),
        (THREE, "first", ["dog", "rain"], "dog barking"),
        (THREE, "before", ["rain", "bell"], "no"),
        (THREE, "before", ["dog", "rain"], "yes"),
        (THREE, "next", ["dog"], "bell"),
        (THREE, "next", ["rain"], None),  # nothing follows
        (THREE, "half", ["bell"], "first"),
        (THREE, "half", ["rain"], "second"),
        (THREE, "overlap", ["dog", "rain"], "no"),
        (THREE, "choice", ["bell", "doorbell"], "bell"),
        (THREE, "choice", ["bell", "dog"], None),  # both are there
        (THREE, "distinct", [], "3"),
        (THREE, "louder", ["dog", "bell"], None),  # only two sounds can be compared
        (REPEATS, "count", ["dog"], "3"),
        (REPEATS, "count", ["rain"], None),
        (REPEATS, "distinct", [], "2"),
        (REPEATS, "first", ["dog", "bell"], None),  # which of the dogs?
        (REPEATS, "half", ["bell"], None),  # crosses the middle
        (TOGETHER, "overlap", ["rain", "dog"], "yes"),
        (TOGETHER, "first", ["rain", "dog"], None),
        (TOGETHER, "next", ["dog"], None),
        (TOGETHER, "louder", ["rain", "dog"], "dog barking"),
        (record(("dog", 0.5, 2.0), ("rain", 3.0, 7.0)), "longer", ["dog", "rain"], "rain falling"),
        (record(("dog", 0.5, 2.0), ("rain", 3.0, 5.0)), "longer", ["dog", "rain"], None),
    ],
)
def test_answers_come_from_the_record(scene, template, asked, expected):
    assert answer(scene, template, asked, BANK) == expected


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("yes", "Yes."),
        ("no", " NO!"),
        ("3", "three"),
        ("3", "3 times."),
        ("3", "Three times"),
        ("1", "once"),
        ("2", "twice"),
        ("2", "2"),
        ("first", "the first half"),
        ("second", "Second."),
        ("dog barking", "A dog barking."),
        ("dog barking", "the dog barks"),
        ("dog barking", "dog"),
        ("doorbell", "a door bell"),
        ("bell", "Bell"),
    ],
)
def test_right_answers(wanted, said):
    assert is_correct(wanted, said, BANK)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("yes", "no"),
        ("yes", "yes or no"),
        ("yes", "yes, no"),
        ("yes", ""),
        ("no", "..."),
        ("3", "four"),
        ("3", "3 or 4"),
        ("3", "33"),
        ("1", "1 2"),
        ("first", "first, second"),
        ("first", "second half"),
        ("first", "half"),
        ("bell", "doorbell"),
        ("bell", "bell and doorbell"),
        ("bell", "bell or dog"),
        ("doorbell", "bell"),
        ("dog barking", "dog barking, rain falling"),
        ("dog barking", "not dog barking"),
        ("dog barking", "rain"),
        ("dog barking", "_ _ dog"),
        ("2", "twice three times"),
    ],
)
def test_wrong_answers(wanted, said):
    expected = said == "_ _ dog"  # underscores are no words
    assert is_correct(wanted, said, BANK) is expected


def test_normalise():
    assert normalise("The  DOG's bark, twice!") == "dog s bark twice"
    assert normalise("Ten a an the") == "10"


def test_chance():
    settings = SceneSettings()
    assert chance("presence", BANK, settings) == chance("longer", BANK, settings) == 0.5
    assert chance("count", BANK, settings) == 0.2
    assert chance("distinct", BANK, settings) == chance("choice", BANK, settings) == 0.25
    assert chance("next", BANK, settings) == 0.25
    assert chance("count", BANK, SceneSettings(duration_seconds=5.0)) == 0.25
