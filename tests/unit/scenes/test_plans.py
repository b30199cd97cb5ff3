from collections import Counter

import numpy as np
from by_hand import clip, silence, sound_class

from almosaic.scenes.bank import Bank
from almosaic.scenes.planner import Planner, has_heldout_pair
from almosaic.scenes.plans import next_plan
from almosaic.scenes.scene import TEMPLATES, SceneSettings


def test_numbers_stay_balanced_where_some_labels_cannot_stand_together():
    """A star of confusable labels: whoever draws it cannot fill four places and has to draw again."""
    labels = ["star", "one", "two", "three", "four", "five"]
    classes = {label: sound_class(label, label) for label in labels}
    classes["star"] = sound_class("star", "star", confusable_with=("one", "two", "three"))
    bank = Bank(classes, [clip(label, label) for label in labels], silence)
    settings = SceneSettings(heldout_label_pairs=False)
    planner = Planner(bank, settings, training=False, rng=np.random.default_rng(0))
    plans = [next_plan(planner, "distinct") for _ in range(24)]
    assert Counter(answer for plan in plans for answer in plan.answers) == dict.fromkeys("1234", 12)
    assert any("star" in {sound.label for sound in plan.cast} for plan in plans)


def test_both_twins_use_one_cast_and_only_their_places_differ(bank):
    planner = Planner(bank, SceneSettings(), training=False, rng=np.random.default_rng(0))
    for template in TEMPLATES:
        for _ in range(20):
            plan = next_plan(planner, template)
            assert plan.answers[0] != plan.answers[1]
            assert plan.twins[0] != plan.twins[1]
            for twin in plan.twins:
                assert all(0 <= place.slot < plan.slots for place in twin)
                assert all(0 <= place.member < len(plan.cast) for place in twin)
                inside = [place.slot for place in twin if not place.inside]
                assert len(set(inside)) == len(inside)  # one sound in each place


def test_training_casts_hold_no_held_out_pair(bank):
    planner = Planner(bank, SceneSettings(), training=True, rng=np.random.default_rng(0))
    for template in TEMPLATES:
        for _ in range(20):
            plan = next_plan(planner, template)
            assert not plan.heldout
            for twin in plan.twins:
                assert not has_heldout_pair(plan.cast[place.member].label for place in twin)


def test_evaluation_fillers_never_make_a_held_out_pair(bank):
    """Only the pair that is asked about may be new, so that `heldout` says what is tested."""
    planner = Planner(bank, SceneSettings(), training=False, rng=np.random.default_rng(0))
    for template in ("presence", "first", "choice", "half"):
        for _ in range(40):
            plan = next_plan(planner, template)
            if not plan.heldout:
                for twin in plan.twins:
                    assert not has_heldout_pair(plan.cast[place.member].label for place in twin)
