from collections import defaultdict

import numpy as np
import pytest
from helpers_tiny import tiny_model
from pydantic import ValidationError

from almosaic.data.draws import generator
from almosaic.errors import AlmosaicError
from almosaic.evaluation import question_answering
from almosaic.evaluation.controls import AUDIO, CONDITIONS, DEAF_CONTROLS, ORACLE
from almosaic.evaluation.question_answering import (
    QuestionAnsweringSettings,
    conversations,
    examples,
    heard_scenes,
    oracle_records,
    plan,
    record,
    run,
    score,
)
from almosaic.scenes.bank import SyntheticBank, open_bank
from almosaic.scenes.compose import render
from almosaic.scenes.questions import oracle
from almosaic.scenes.scene import TEMPLATES, SceneSettings

SCENES = SceneSettings(duration_seconds=5.0)
SETTINGS = QuestionAnsweringSettings(templates=("presence", "first", "count"), pairs_per_template=12)


@pytest.fixture(scope="module")
def bank():
    return open_bank(SyntheticBank(clips_per_kind=4), "test")


@pytest.fixture(scope="module")
def asked(bank):
    return plan(bank, SCENES, SETTINGS)


def answered(asked, bank, answer):
    """Records of a made-up model: `answer(item, scene that is heard or None)`."""
    records = []
    for condition in CONDITIONS:
        heard = heard_scenes(asked, condition)
        scenes = [None] * len(asked) if condition == "silence" else heard
        records += [
            record(i, condition, answer(i, scene), bank) for i, scene in zip(asked, scenes, strict=True)
        ]
    return records + oracle_records(asked, bank)


def listener(bank):
    def answer(item, scene):
        return (scene is not None and oracle(scene, item.question, bank)) or "yes"

    return answer


def test_plan_asks_whole_pairs_of_every_template(asked, bank):
    assert len(asked) == 3 * 12 * 2
    assert [item.question.template for item in asked[::24]] == list(SETTINGS.templates)
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert first.pair_id == second.pair_id and (first.side, second.side) == (0, 1)
        assert first.question.question == second.question.question
        assert first.question.answer != second.question.answer
    assert [item.id for item in plan(bank, SCENES, SETTINGS)] == [item.id for item in asked]
    other = plan(bank, SCENES, SETTINGS.model_copy(update={"seed": 1}))
    assert [item.scene for item in other] != [item.scene for item in asked]


def test_a_perfect_listener_is_right_on_every_pair(asked, bank):
    result = score(answered(asked, bank, listener(bank)))
    for template in SETTINGS.templates:
        assert result["templates"][template][AUDIO] == {"accuracy": 1.0, "pair_accuracy": 1.0}
    assert result["mean"][AUDIO]["pair_accuracy"] == 1.0
    assert result["gap"]["low"] > 0.2 and result["gap"]["accuracy"] == 1.0
    assert result["label_oracle"] == 1.0
    assert (result["questions"], result["pairs"]) == (72, 36)
    assert result["templates"]["presence"]["chance"] == 0.5


def test_a_constant_answer_has_no_gap_and_half_of_the_two_way_questions(asked, bank):
    result = score(answered(asked, bank, lambda item, scene: item.question.options[0]))
    assert result["templates"]["presence"][AUDIO] == {"accuracy": 0.5, "pair_accuracy": 0.0}
    assert result["templates"]["first"][AUDIO] == {"accuracy": 0.5, "pair_accuracy": 0.0}
    assert (result["gap"]["gap"], result["gap"]["low"], result["gap"]["high"]) == (0, 0, 0)


def test_a_guesser_that_reads_only_the_text_has_a_gap_around_zero(bank):
    many = plan(
        bank, SCENES, QuestionAnsweringSettings(templates=("presence", "first"), pairs_per_template=60)
    )
    turn = iter(range(10**6))

    def guess(item, scene):
        return item.question.options[generator("guess", next(turn)).integers(2)]

    result = score(answered(many, bank, guess))
    assert abs(result["gap"]["gap"]) < 0.12
    assert result["gap"]["low"] <= 0.0


def test_silence_and_question_only_look_the_same_to_a_listener_of_nothing(asked, bank):
    result = score(answered(asked, bank, listener(bank)))
    mean = result["mean"]
    assert mean["silence"] == mean["question_only"]
    assert mean["shuffled"]["accuracy"] < 0.75


def test_conditions_give_each_question_what_they_say(asked, bank):
    some = asked[:4] + asked[24:28]
    spoken = {condition: list(conversations(some, bank, condition)) for condition in CONDITIONS}
    own = [render(item.scene, bank) for item in some]
    for number, item in enumerate(some):
        for condition in CONDITIONS:
            conversation = spoken[condition][number]
            assert conversation["id"] == item.id
            parts = conversation["messages"][0]["content"]
            assert parts[-1] == {"type": "text", "text": item.question.question}
            assert [part["type"] for part in parts[:-1]] == ["audio"] * len(conversation["audios"])
        (heard, rate) = spoken[AUDIO][number]["audios"][0]
        assert rate == 16_000 and np.array_equal(heard, own[number])
        silence = spoken["silence"][number]["audios"][0][0]
        assert silence.shape == heard.shape and not silence.any()
        assert spoken["question_only"][number]["audios"] == []
        assert not np.array_equal(spoken["shuffled"][number]["audios"][0][0], heard)


def test_shuffling_stays_inside_a_template_and_uses_every_clip_once(asked):
    heard = heard_scenes(asked, "shuffled", seed=5)
    own, got = defaultdict(set), defaultdict(set)
    for item, scene in zip(asked, heard, strict=True):
        assert scene is not item.scene
        own[item.question.template].add(item.scene.scene_id)
        got[item.question.template].add(scene.scene_id)
    assert own == got
    assert heard != heard_scenes(asked, "shuffled", seed=6)


def test_named_templates_make_the_headline(asked, bank):
    records = answered(asked, bank, lambda item, scene: "yes")
    result = score(records, ["first", "count"])
    assert result["headline"] == ["first", "count"]
    assert result["gap"]["pairs"] == 24 and result["gap_all"]["pairs"] == 36
    assert result["gap"]["accuracy"] == 0.0 and result["gap_all"]["accuracy"] == pytest.approx(1 / 6)


def test_wordings_and_label_pairs_are_reported_apart(bank):
    settings = QuestionAnsweringSettings(templates=("first",), pairs_per_template=40, wordings="both")
    items = plan(bank, SCENES, settings)

    def knows_trained_wordings(item, scene):
        return item.question.answer if item.question.wording == "seen" else "nothing"

    result = score(answered(items, bank, knows_trained_wordings))
    assert result["wording"]["seen"] == {"pairs": 20, "accuracy": 1.0, "pair_accuracy": 1.0}
    assert result["wording"]["heldout"] == {"pairs": 20, "accuracy": 0.0, "pair_accuracy": 0.0}
    assert sum(part["pairs"] for part in result["label_pair"].values()) == 40
    assert set(result["label_pair"]) == {"seen", "heldout"}


def test_the_oracle_falls_when_the_scorer_takes_the_twins_answer(asked, bank, monkeypatch):
    monkeypatch.setattr(question_answering, "is_correct", lambda *_: True)
    assert not any(one["correct"] for one in oracle_records(asked, bank))


def test_run_asks_a_real_model_under_every_condition(tmp_path, bank):
    model, processor = tiny_model(tmp_path)
    settings = QuestionAnsweringSettings(templates=("presence",), pairs_per_template=2, max_new_tokens=2)
    calls = []
    records = run(
        model, processor, bank, plan(bank, SCENES, settings), settings, lambda *done: calls.append(done)
    )
    assert [one["condition"] for one in records] == [c for c in (*CONDITIONS, ORACLE) for _ in range(4)]
    assert calls == [(done, 16) for done in range(1, 17)]
    assert score(records)["questions"] == 4
    assert {"id", "pair_id", "side", "template", "question", "answer", "prediction"} <= set(records[0])
    assert isinstance(records[0]["prediction"], str)


def test_a_question_without_an_answer_stops_the_evaluation(tmp_path, bank, monkeypatch):
    settings = QuestionAnsweringSettings(templates=("presence",), pairs_per_template=1)
    monkeypatch.setattr(
        question_answering, "generate", lambda *_, **__: iter([{"id": "x", "error": "too long"}] * 2)
    )
    with pytest.raises(AlmosaicError, match="has no answer: too long"):
        run(None, None, bank, plan(bank, SCENES, settings), settings)


def test_examples_are_whole_pairs_of_every_template(asked, bank):
    shown = examples(answered(asked, bank, listener(bank)), asked, bank, count=6)
    assert [one["template"] for one in shown] == ["presence", "presence", "first", "first", "count", "count"]
    assert all(set(one["predictions"]) == {AUDIO, *DEAF_CONTROLS} for one in shown)
    assert shown[0]["predictions"][AUDIO] == {"text": shown[0]["answer"], "correct": True}
    assert shown[0]["waveform"].shape == (80_000,)
    assert {"name", "start", "end"} == set(shown[0]["events"][0])
    assert shown[0]["pair_id"] == shown[1]["pair_id"]


def test_unknown_templates_are_refused():
    with pytest.raises(ValidationError):
        QuestionAnsweringSettings(templates=("colour",))
    with pytest.raises(ValidationError, match="expected headline templates among presence"):
        QuestionAnsweringSettings(templates=("presence",), headline=("first",))
    assert QuestionAnsweringSettings().templates == TEMPLATES
