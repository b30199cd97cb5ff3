"""Every recipe that we ship parses, resolves to itself, and says only what differs from its parent."""

from pathlib import Path

import pytest

from almosaic.recipe import load_recipe, read_yaml, resolve, to_yaml

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
DERIVED_LINES = 25


@pytest.fixture(autouse=True)
def _variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATA", "MODEL", "ENCODER"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_recipe_resolves_to_itself(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.description, "one line for `almosaic recipe list`"
    (tmp_path / "resolved.yaml").write_text(to_yaml(resolve(recipe)))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_derived_recipes_are_short(path: Path) -> None:
    if "extends" in read_yaml(path):
        assert len(path.read_text().splitlines()) <= DERIVED_LINES, "a derived recipe says only what differs"


def test_every_kind_of_stage_has_a_smoke_recipe() -> None:
    tasks = {
        stage.task for path in FILES if path.parent.name == "smoke" for stage in load_recipe(path).stages
    }
    assert tasks == {"language_model", "pretrain", "finetune", "alm", "eval"}
