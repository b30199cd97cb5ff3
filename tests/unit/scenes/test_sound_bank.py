import pickle
from itertools import combinations

import numpy as np
import pytest
from by_hand import clip, silence, sound_class

from almosaic.errors import AlmosaicError
from almosaic.scenes import clips as clips_module
from almosaic.scenes.bank import Bank, SyntheticBank, open_bank
from almosaic.scenes.clips import is_heldout

CLASSES = {
    "dog": sound_class("dog", "animals", aliases=("barking",), countable=True),
    "rain": sound_class("rain", "nature", kind="texture", background_prone=True),
    "wave": sound_class("wave", "nature", confusable_with=("rain",)),
}


def test_labels_are_sorted_and_only_those_that_have_clips():
    bank = Bank(CLASSES, [clip("b", "wave"), clip("a", "dog")], silence)
    assert bank.labels == ("dog", "wave")
    assert [c.id for c in bank.clips] == ["a", "b"]


def test_a_label_without_a_class_is_named():
    with pytest.raises(AlmosaicError, match="clip 'x': label 'bat' has no class"):
        Bank(CLASSES, [clip("x", "bat")], silence)


def test_an_empty_bank_is_an_error():
    with pytest.raises(AlmosaicError, match="at least one clip"):
        Bank(CLASSES, [], silence)


def test_a_phrase_of_two_classes_is_an_error_because_a_wrong_answer_would_be_right():
    classes = {**CLASSES, "fox": sound_class("fox", aliases=("Barking",))}
    with pytest.raises(AlmosaicError, match="'Barking' for 'dog' and 'fox'"):
        Bank(classes, [clip("a", "dog"), clip("b", "fox")], silence)


def test_subset_by_split_and_folds():
    bank = Bank(CLASSES, [clip("a", "dog", fold="1"), clip("b", "dog", fold="2", split="dev")], silence)
    assert [c.id for c in bank.subset(folds=[2]).clips] == ["b"]
    assert [c.id for c in bank.subset(split="test").clips] == ["a"]
    with pytest.raises(AlmosaicError):
        bank.subset(split="none")


def test_absence_can_be_claimed_beside_other_groups_and_never_of_background_sounds():
    bank = Bank(CLASSES, [clip(label, label) for label in CLASSES], silence)
    assert bank.apart["dog"] == {"rain", "wave"}
    assert bank.apart["wave"] == {"dog"}  # rain is of its group
    assert bank.apart["rain"] == frozenset()  # faint rain may be in any clip
    assert bank.confusable("rain", "wave") and bank.confusable("wave", "rain")


def test_waveforms_are_cached_up_to_a_limit(monkeypatch):
    loaded: list[str] = []

    def load(clip):
        loaded.append(clip.id)
        return silence(clip)

    monkeypatch.setattr(clips_module, "CACHE_BYTES", 2 * 64_000)
    bank = Bank(CLASSES, [clip(name, "dog") for name in "abc"], load)
    for name in "aabaca":
        bank.waveform(bank.by_id[name])
    assert loaded == ["a", "b", "c"]  # c pushed b out, a was used more recently
    bank.waveform(bank.by_id["b"])
    assert loaded == ["a", "b", "c", "b"]


def test_a_region_beyond_the_audio_is_an_error_that_names_the_clip():
    bank = Bank(CLASSES, [clip("late", "dog", regions=((0.0, 1.5),))], silence)
    with pytest.raises(AlmosaicError, match=r"'late': regions end at 1.5 s, the audio at 1 s"):
        bank.waveform(bank.clips[0])


def test_excerpts_by_use():
    regions = ((0.0, 0.5), (2.0, 4.5))
    bank = Bank(
        CLASSES,
        [clip("a", "dog", regions=regions, events=regions[:1]), clip("b", "rain", regions=((0.0, 5.0),))],
        silence,
    )
    assert [(e.start, e.end) for e in bank.excerpts("event")["dog"]] == [(0.0, 0.5)]
    assert [(e.start, e.end, e.sliding) for e in bank.excerpts("any")["dog"]] == [(0.0, 4.5, False)]
    assert list(bank.excerpts("long", 4.0)) == ["rain"]
    assert not bank.excerpts("long", 5.5)


def test_the_fingerprint_follows_the_clips():
    first = open_bank(SyntheticBank(clips_per_kind=2), "test")
    assert first.fingerprint() == open_bank(SyntheticBank(clips_per_kind=2), "test").fingerprint()
    assert first.fingerprint() != open_bank(SyntheticBank(clips_per_kind=2, seed=1), "test").fingerprint()
    assert first.fingerprint() != open_bank(SyntheticBank(clips_per_kind=2), "dev").fingerprint()


def test_the_fingerprint_does_not_depend_on_where_the_files_lie():
    banks = [
        Bank(CLASSES, [clip("a", "dog", audio=f"/{place}/a.wav")], silence) for place in ("here", "there")
    ]
    assert banks[0].fingerprint() == banks[1].fingerprint()
    assert banks[0].fingerprint() != Bank(CLASSES, [clip("b", "dog")], silence).fingerprint()


def test_a_pickled_bank_leaves_its_waveforms_behind(bank):
    heard = bank.waveform(bank.clips[0])
    copy = pickle.loads(pickle.dumps(bank))
    assert not copy._cache
    np.testing.assert_array_equal(copy.waveform(copy.clips[0]), heard)


def test_one_pair_of_labels_in_five_is_held_out_whatever_the_order():
    labels = [f"label{i}" for i in range(80)]
    pairs = list(combinations(labels, 2))
    assert np.mean([is_heldout(*pair) for pair in pairs]) == pytest.approx(0.2, abs=0.02)
    assert all(is_heldout(a, b) == is_heldout(b, a) for a, b in pairs[:200])
    assert is_heldout("siren", "cat") and not is_heldout("rain", "dog")
