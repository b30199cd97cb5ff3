"""Recipe files: layers, overrides, variables and what a mistake looks like."""

from pathlib import Path

import pytest

from almosaic.errors import AlmosaicError
from almosaic.recipe import find_recipe, list_recipes, load_recipe, origin, read_layers, resolve, to_yaml

BASE = """
task: curriculum
name: base
description: a parent
output: ${RUNS}/base
sounds: {name: synthetic, clips_per_kind: 2}
stages:
  - id: encoder
    task: pretrain
    encoder: {preset: tiny}
    optim: {steps: 10, batch_size: 4, learning_rate: 1e-3}
    data: [{name: scenes, scenes: 8}]
    objective: {name: contrastive, temperature: 0.1}
"""


@pytest.fixture(autouse=True)
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RUNS", str(tmp_path / "runs"))
    return tmp_path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def child(base: Path, text: str) -> Path:
    path = base.with_name("child.yaml")
    path.write_text("extends: base.yaml\n" + text)
    return path


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(AlmosaicError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_child_and_override_lie_over_the_parent(base: Path) -> None:
    path = child(base, "name: child\nstages: {encoder: {optim: {steps: 0}}}\n")
    recipe = load_recipe(path, ["stages.encoder.optim.batch_size=2", "seed=7"])
    optim = resolve(recipe)["stages"][0]["optim"]
    assert (recipe.name, recipe.seed, recipe.description) == ("child", 7, "a parent")
    assert (optim["steps"], optim["batch_size"], optim["learning_rate"]) == (0, 2, 1e-3)


def test_lists_replace(base: Path) -> None:
    path = child(
        base,
        "stages:\n  - {id: only, task: pretrain, optim: {steps: 1}, data: [{name: scenes, scenes: 4}]}\n",
    )
    assert [stage.id for stage in load_recipe(path).stages] == ["only"]


def test_an_empty_mapping_empties(base: Path) -> None:
    path = child(base, "stages: {encoder: {objective: {}}}\n")
    assert read_layers(path)[1].tree["stages"]["encoder"]["objective"] == {}
    named = "stages.encoder.objective.name=contrastive"
    assert load_recipe(path, [named, "stages.encoder.optim={steps: 1}"]).stages[0].optim.batch_size == 4
    emptied = load_recipe(path, [named, "stages.encoder.optim={}", "stages.encoder.optim.steps=1"])
    assert emptied.stages[0].optim.batch_size == 64


def test_another_name_replaces_the_whole_choice(base: Path) -> None:
    path = child(base, "stages: {encoder: {objective: {name: contrastive}}}\n")
    assert load_recipe(path).stages[0].objective.temperature == 0.1
    layers = read_layers(child(base, "stages: {encoder: {objective: {name: other}}}\n"))
    assert origin(layers, ("stages", "encoder", "objective", "name")) == str(path)
    assert "temperature" not in message(path, "stages.encoder.objective={name: other}").split("expected")[0]


def test_the_resolved_recipe_is_a_recipe_again(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(base)
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(resolve(recipe)))
    assert load_recipe(again) == recipe


def test_a_single_task_is_a_curriculum_of_one_stage(tmp_path: Path) -> None:
    path = tmp_path / "single.yaml"
    path.write_text(
        "task: pretrain\nname: single\nsounds: {name: synthetic}\n"
        "data: [{name: scenes, scenes: 4}]\noptim: {steps: 1}\n"
    )
    recipe = load_recipe(path, ["optim.steps=3"])
    assert [(stage.id, stage.task, stage.optim.steps) for stage in recipe.stages] == [
        ("pretrain", "pretrain", 3)
    ]
    path.write_text(path.read_text() + "optimm: {}\n")
    assert "unknown key optimm; did you mean optim?" in message(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "stages: {encoder: {optim: {stepz: 3}}}",
            ["child.yaml", "unknown key stages.encoder.optim.stepz", "did you mean steps?", "batch_size"],
        ),
        ("sead: 3", ["child.yaml", "unknown key sead", "did you mean seed?"]),
        ("stages: {encoder: {optim: {steps: many}}}", ["child.yaml", "stages.encoder.optim.steps is 'many'"]),
        (
            "stages: {encoder: {task: pretrian}}",
            ["stages.encoder.task is 'pretrian'", "did you mean pretrain?"],
        ),
        ("stages:\n  - {id: a}", ["stages.a.task is missing; expected one of language_model, pretrain"]),
        ("stages: {encodr: {optim: {steps: 3}}}", ["child.yaml", "no 'encodr'", "did you mean 'encoder'?"]),
        (
            "stages: {encoder: {encoder: {preset: huge}}}",
            ["stages.encoder.encoder.preset is 'huge'", "'tiny'"],
        ),
        ("output: ${NOWHERE_TO_BE_SEEN}/x", ["child.yaml", "output", "NOWHERE_TO_BE_SEEN is not set"]),
        ("seed: 1\nseed: 2", ["child.yaml", "'seed' is given twice"]),
        ("a: [1", ["child.yaml", "not valid YAML"]),
    ],
)
def test_a_mistake_is_one_line_with_its_place(base: Path, text: str, expected: list[str]) -> None:
    told = message(child(base, text))
    assert all(part in told for part in expected), told


def test_an_override_is_named_as_the_culprit(base: Path) -> None:
    assert "override 'stages.encoder.optim.stepz=1': unknown key" in message(
        base, "stages.encoder.optim.stepz=1"
    )
    assert "expected key=value" in message(base, "seed")
    assert "no keys of its own" in message(base, "name.x=1")


def test_a_circle_of_parents_is_an_error(base: Path) -> None:
    base.write_text("extends: child.yaml\n" + BASE)
    assert "goes round in a circle" in message(child(base, "name: child\n"))


def test_a_missing_parent_is_named(base: Path) -> None:
    base.write_text("extends: nowhere.yaml\n")
    assert "`extends: nowhere.yaml` names no file" in message(base)


def test_names_are_found_and_missed_kindly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_recipe("smoke/curriculum").name == "curriculum.yaml"
    with pytest.raises(AlmosaicError, match="smoke/curriculum"):
        find_recipe("smoke/curriculm")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text("description: of my own\n")
    assert list_recipes()["mine"] == "of my own"
    assert find_recipe("mine").is_file()


REFERENCES = """
task: curriculum
name: references
sounds: {name: synthetic}
stages:
  - {id: encoder, task: pretrain, data: [{name: scenes, scenes: 4}], optim: {steps: 1}}
  - {id: eval, task: eval, encoders: {pretrained: FROM}, probe: {}}
"""


@pytest.mark.parametrize(("name", "expected"), [("encodr", "did you mean encoder?"), ("eval", "comes later")])
def test_stages_refer_to_earlier_stages(tmp_path: Path, name: str, expected: str) -> None:
    path = tmp_path / "references.yaml"
    path.write_text(REFERENCES.replace("FROM", name))
    assert expected in message(path)


def test_stage_ids_are_unique(tmp_path: Path) -> None:
    path = tmp_path / "references.yaml"
    path.write_text(REFERENCES.replace("FROM", "encoder").replace("id: eval", "id: encoder"))
    assert "two stages have the id encoder" in message(path)


def test_a_merge_key_takes_over_what_a_mapping_does_not_say(tmp_path: Path) -> None:
    """Also of a mapping that has itself taken over; what is said replaces the whole value."""
    path = tmp_path / "merged.yaml"
    path.write_text(
        "task: curriculum\nname: merged\nstages:\n"
        "  - &first {id: a, task: pretrain, optim: {steps: 3, batch_size: 8}, data: [{name: sounds}]}\n"
        "  - &second {<<: *first, id: b, optim: &short {steps: 1}}\n"
        "  - {<<: *second, id: c, seed: 5, optim: {<<: *short, batch_size: 4}}\n"
    )
    a, b, c = load_recipe(path).stages
    assert [stage.id for stage in (a, b, c)] == ["a", "b", "c"] and a.data == b.data == c.data
    assert (a.optim.steps, a.optim.batch_size) == (3, 8)
    assert (b.optim.steps, b.optim.batch_size, b.seed) == (1, 64, None)
    assert (c.optim.steps, c.optim.batch_size, c.seed) == (1, 4, 5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: {b: 1, b: 2}", "key 'b' is given twice"),
        ("a: &x {b: 1}\nc: {<<: *x, <<: *x}", "key '<<' is given twice"),
        ("a: {<<: 3}", "expected a mapping or list of mappings for merging"),
        ("? [a, b]\n: 1", "a key must be one word"),
    ],
)
def test_yaml_that_says_too_much_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    assert expected in message(path)
