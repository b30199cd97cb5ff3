"""docs/adding-an-objective.md: its blocks run in order, and the files that it names are there."""

import re
from pathlib import Path
from typing import Any

import pytest

from almosaic import objectives

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "adding-an-objective.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.S)
INVENTED = {"whole_view", "test_whole_view"}  # what the page adds


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The page adds to the package's union from outside; other tests do not see it."""
    monkeypatch.setattr(objectives, "ObjectiveSettings", objectives.ObjectiveSettings)
    monkeypatch.setattr(objectives, "OBJECTIVES", dict(objectives.OBJECTIVES))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("restored")
def test_the_blocks_run_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for number, code in enumerate(PYTHON):
        exec(compile(code, f"adding-an-objective.md, block {number}", "exec"), names)
    printed = capsys.readouterr().out
    start, end, rank, later = map(
        float, re.findall(r"([\d.]+) -> ([\d.]+), .* ([\d.]+) -> ([\d.]+)", printed)[0]
    )
    assert end < 0.8 * start and later < 0.7 * rank and len(PYTHON) == 6
    # 48 patches, 19 of them kept: the student reads 20 tokens, the teacher 49.
    assert names["WholeViewObjective"].encoder_tokens([19], 48) == 69
    assert names["loaded"].config.objective["decay"] == 0.999


def test_the_files_that_it_names_exist() -> None:
    """All but those that the page adds, whose folders do."""
    named = re.findall(r"`((?:almosaic|tests|recipes|benchmarks)/[\w./]*)`", TEXT)
    assert len(named) > 10
    missing = [name for name in named if not (ROOT / name).exists()]
    assert {Path(name).stem for name in missing} == INVENTED
    assert all((ROOT / name).parent.is_dir() for name in missing)


def test_the_rules_name_what_the_interface_has() -> None:
    """A flag or method that is renamed is renamed here, too."""
    table = TEXT.split("## What every objective keeps")[1].split("```python")[0]
    for name in ("compares_clips", "after_step", "encoder_tokens"):
        assert f"`{name}" in table and hasattr(objectives.Objective, name)
    assert "`self.measures`" in table and objectives.Objective.measures is True
