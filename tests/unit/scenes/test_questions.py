import json
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from almosaic.data.draws import generator
from almosaic.errors import AlmosaicError
from almosaic.scenes.clips import is_heldout
from almosaic.scenes.compose import scene_pool
from almosaic.scenes.questions import TEMPLATES, ask, chance, is_correct, oracle, twin_pairs
from almosaic.scenes.scene import SceneSettings
from almosaic.scenes.wordings import HELDOUT_WORDINGS, WORDINGS

SHORT = SceneSettings(duration_seconds=5.0)
PAIRS = 36


@pytest.fixture(scope="module")
def pairs(bank):
    return {
        template: twin_pairs(bank, SHORT, template, PAIRS, split="test", seed=0, wordings="both")
        for template in TEMPLATES
    }


@pytest.fixture(scope="module")
def asked(train_bank):
    """Training questions by template: 330 scenes, each asked six times."""
    pool = scene_pool(train_bank, SHORT, "train", 330, seed=0)
    rng = generator("ask")
    return {
        template: [
            (scene, question)
            for scene in pool
            for _ in range(6)
            if (question := ask(scene, train_bank, template, rng)) is not None
        ]
        for template in TEMPLATES
    }


def test_every_template_can_be_asked(pairs, asked):
    assert set(TEMPLATES) == set(WORDINGS) == set(HELDOUT_WORDINGS)
    assert all(len(pairs[template]) == PAIRS for template in TEMPLATES)
    assert all(len(asked[template]) >= 150 for template in TEMPLATES)


def test_twins_share_the_question_and_differ_in_the_answer(pairs, bank):
    for template in TEMPLATES:
        for pair in pairs[template]:
            first, second = pair.questions
            assert first.answer != second.answer
            assert first == replace(second, answer=first.answer)
            for question in pair.questions:
                assert is_correct(question.answer, question.answer, bank)
                if question.options:
                    assert sum(is_correct(option, question.answer, bank) for option in question.options) == 1


def test_the_label_oracle_is_always_right(pairs, bank):
    for template in TEMPLATES:
        for pair in pairs[template]:
            for scene, question in zip(pair.scenes, pair.questions, strict=True):
                assert oracle(scene, question, bank) == question.answer, (template, pair.pair_id)


def test_whatever_reads_only_the_text_is_at_chance(pairs, bank):
    """Even a lookup table of the commonest answer per question, fitted on the test itself, gains nothing."""
    for template in TEMPLATES:
        questions = [question for pair in pairs[template] for question in pair.questions]
        by_text: dict[str, Counter] = {}
        for question in questions:
            by_text.setdefault(question.question, Counter())[question.answer] += 1
        if template in ("presence", "first", "before", "louder", "longer", "overlap", "half"):
            # Each text has both answers equally often, so the table gets exactly half.
            assert all(len(set(counts.values())) == 1 and len(counts) == 2 for counts in by_text.values())
        commonest = Counter(question.answer for question in questions).most_common(1)[0][1]
        assert commonest / len(questions) <= max(chance(template, bank, SHORT), 0.1)


def test_answers_are_balanced_exactly_where_they_are_few(pairs):
    for template, options in (
        ("presence", "yes no"),
        ("before", "yes no"),
        ("overlap", "yes no"),
        ("half", "first second"),
        ("count", "1 2 3 4"),
        ("distinct", "1 2 3 4"),
    ):
        found = Counter(question.answer for pair in pairs[template] for question in pair.questions)
        assert found == dict.fromkeys(options.split(), 2 * PAIRS // len(options.split())), template


def test_every_label_is_right_and_wrong_equally_often(bank):
    many = twin_pairs(bank, SHORT, "first", 48, split="test", seed=1)
    right = Counter(question.answer for pair in many for question in pair.questions)
    assert set(right) == set(bank.labels) and max(right.values()) - min(right.values()) <= 4
    positions = Counter(
        question.options.index(question.answer) for pair in many for question in pair.questions
    )
    assert positions[0] == positions[1]


def test_twins_share_all_but_what_is_asked(pairs):
    for template in TEMPLATES:
        for pair in pairs[template]:
            a, b = pair.scenes
            assert (a.seed, a.noise_dbfs, a.gain_db, a.duration_seconds) == (
                b.seed, b.noise_dbfs, b.gain_db, b.duration_seconds,
            )  # fmt: skip
            onsets = [{event.onset for event in scene.events} for scene in pair.scenes]
            if template in ("presence", "choice", "first", "before", "next", "louder", "longer", "distinct"):
                assert onsets[0] == onsets[1]
            if template in ("first", "before", "next", "louder", "longer", "overlap", "half"):
                assert {e.clip_id for e in a.events} == {e.clip_id for e in b.events}
            if template == "count":
                assert onsets[0] < onsets[1] or onsets[1] < onsets[0]
                assert {e.label for e in a.events} == {e.label for e in b.events}
            if template == "distinct":
                assert len(a.events) == len(b.events)  # counting sounds is not enough
            if template in ("presence", "choice"):
                kept = set(a.events) & set(b.events)
                assert len(kept) == len(a.events) - 1 == len(b.events) - 1


def test_absent_labels_are_of_another_group_and_not_confusable(pairs, bank, asked, train_bank):
    found = [
        (scene, q)
        for pair in pairs["presence"] + pairs["choice"]
        for scene, q in zip(pair.scenes, pair.questions, strict=True)
    ]
    cases = [(bank, *case) for case in found]
    cases += [(train_bank, *case) for case in asked["presence"] + asked["choice"]]
    missing = 0
    for where, scene, question in cases:
        for label in set(question.asked) - set(scene.labels):
            missing += 1
            assert not where.classes[label].background_prone
            for other in scene.labels:
                assert where.classes[label].group != where.classes[other].group
                assert not where.confusable(label, other)
    assert missing > 300


def test_any_option_of_a_choice_could_be_the_answer(pairs, asked, bank, train_bank):
    """Were a wrong option of the group of another one, the text would tell that it is wrong."""
    cases = [(bank, pair.questions[0]) for pair in pairs["choice"]]
    cases += [(train_bank, question) for _, question in asked["choice"]]
    for where, question in cases:
        assert len({where.classes[label].group for label in question.asked}) == 4
        assert not any(where.confusable(a, b) for a in question.asked for b in question.asked)
    places = Counter(q.options.index(q.answer) for _, q in asked["choice"])
    assert max(places.values()) <= 0.3 * sum(places.values())


def test_a_choice_holds_one_held_out_pair_where_it_is_marked(pairs):
    marked = 0
    for pair in pairs["choice"]:
        question = pair.questions[0]
        new = sum(is_heldout(a, b) for a, b in combinations(question.asked, 2))
        assert new == (question.label_pair == "heldout")
        marked += new
    assert 5 <= marked <= 9  # one in five


def test_wordings_of_training_and_evaluation_are_apart(pairs, asked, bank):
    for template in TEMPLATES:
        assert not set(WORDINGS[template]) & set(HELDOUT_WORDINGS[template])
        assert len(set(WORDINGS[template])) == 4 and len(set(HELDOUT_WORDINGS[template])) == 2
        kinds = Counter(question.wording for pair in pairs[template] for question in pair.questions)
        assert kinds == {"seen": PAIRS, "heldout": PAIRS}
        assert {question.wording for _, question in asked[template]} == {"seen"}


def test_held_out_wordings_use_words_of_the_others():
    for names in (TEMPLATES, ("presence", "first", "choice", "count")):
        known = {word for name in names for wording in WORDINGS[name] for word in _words(wording)}
        new = {word for name in names for wording in HELDOUT_WORDINGS[name] for word in _words(wording)}
        assert new <= known


def _words(wording):
    return re.findall(r"[a-z]+", re.sub(r"\{.\}", "", wording.lower()))


def test_training_questions_never_name_held_out_pairs_and_evaluation_marks_them(pairs, asked):
    for template in TEMPLATES:
        for scene, question in asked[template]:
            labels = sorted({*scene.labels, *question.asked})
            if template != "choice":  # wrong options may meet other wrong options only in allowed pairs, too
                assert not any(is_heldout(a, b) for a in labels for b in question.asked if a < b)
            assert not any(is_heldout(a, b) for a in question.asked for b in question.asked if a < b)
            assert not any(is_heldout(a, b) for a in question.asked for b in scene.labels if a != b)
    for template in ("first", "before", "louder", "longer", "overlap"):
        for pair in pairs[template]:
            x, y = pair.questions[0].asked
            assert (pair.questions[0].label_pair == "heldout") == is_heldout(x, y)
    marked = Counter(pair.questions[0].label_pair for pair in pairs["first"])
    assert 2 <= marked["heldout"] <= 15


def test_training_answers_are_balanced(asked):
    for template, options in (
        ("presence", 2),
        ("before", 2),
        ("overlap", 2),
        ("half", 2),
        ("count", 4),
        ("distinct", 4),
    ):
        found = Counter(question.answer for _, question in asked[template])
        share = max(found.values()) / sum(found.values())
        assert len(found) == options and share <= 1 / options + 0.06, (template, found)


def test_training_answers_agree_with_the_record(asked, train_bank):
    for template in TEMPLATES:
        for scene, question in asked[template][::5]:
            assert oracle(scene, question, train_bank) == question.answer
            assert question.template == template and "{" not in question.question


def test_the_label_tells_little_about_presence_in_training(train_bank):
    pool = scene_pool(
        train_bank, SceneSettings(duration_seconds=5.0, templates=("presence", "count")), "train", 480, 0
    )
    rng = generator("prior")
    by_label: dict[str, Counter] = {}
    for scene in pool:
        for _ in range(6):
            question = ask(scene, train_bank, "presence", rng)
            if question is not None:
                by_label.setdefault(question.asked[0], Counter())[question.answer] += 1
    best = sum(max(counts.values()) for counts in by_label.values())
    assert best / sum(sum(counts.values()) for counts in by_label.values()) <= 0.562


def test_pairs_depend_on_their_key_and_longer_lists_begin_with_shorter_ones(pairs, bank):
    for template in ("count", "choice"):
        fewer = twin_pairs(bank, SHORT, template, 5, split="test", seed=0, wordings="both")
        assert fewer == pairs[template][:5]
        assert twin_pairs(bank, SHORT, template, 5, split="test", seed=1, wordings="both") != fewer


def test_questions_can_be_written_as_json(pairs):
    values = json.loads(json.dumps(pairs["choice"][0].questions[0].to_dict()))
    assert set(values) == {"template", "question", "answer", "options", "asked", "wording", "label_pair"}


def test_an_unknown_template_is_named(bank):
    with pytest.raises(AlmosaicError, match="'loudness'"):
        twin_pairs(bank, SHORT, "loudness", 1, split="test", seed=0)  # type: ignore[arg-type]


def test_training_pairs_keep_held_out_labels_apart(train_bank):
    for pair in twin_pairs(train_bank, SHORT, "first", 40, split="train", seed=0):
        assert pair.questions[0].label_pair == "seen"
        assert not is_heldout(*pair.questions[0].asked)


def test_asking_is_fast_and_depends_on_the_generator_alone(asked, train_bank):
    scene = asked["choice"][0][0]
    first = [ask(scene, train_bank, "choice", np.random.default_rng(5)) for _ in range(2)]
    assert first[0] == first[1]
