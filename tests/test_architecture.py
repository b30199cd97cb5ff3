"""The rules of docs/architecture.md that a machine can check: floors, sizes, who prints, cheap imports."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "almosaic"
FILES = sorted(PACKAGE.rglob("*.py"))

# The longest matching prefix decides. Everything stands on `errors`, `settings` and `files`.
GROUND = {"errors", "settings", "files"}
FLOORS = {
    "audio": 0, "audio_source": 0, "remote": 0, "ffmpeg": 0, "truncation": 0, "masking": 0,
    "evaluation.metrics": 0, "data.manifest": 0, "data.draws": 0,
    "log_mel": 1, "features": 1, "encoder": 1, "scenes": 1, "messages": 1,
    "objectives": 2, "alm": 2, "data": 2, "auto": 2,
    "loading": 3, "inference": 3, "feature_cache": 3, "layer_features": 3, "provenance": 3, "pooling": 2,
    "conversations": 3, "sampling": 3, "token_memory": 3,
    "training": 4, "evaluation": 4,
    "recipe": 5, "recipe_errors": 5, "curriculum": 5, "export": 5, "model_card": 5, "model_usage": 5,
    "run": 6, "run_folder": 6, "stages": 6, "eval_stage": 6, "outputs": 6, "answer_files": 6,
    "weight_files": 0, "released": 6, "released_alm": 6, "arguments": 6, "cli": 6, "__main__": 6,
}  # fmt: skip
# The one file with an import side effect is imported where the classes that it registers live.
EXCEPTIONS = {
    ("encoder.__init__", "auto"),
    ("alm.__init__", "auto"),
    ("data.manifest", "audio"),
    ("data.manifest", "files"),
}
EXCEPTIONS |= {("auto", f"alm.{name}") for name in ("configuration", "modeling", "processing")}
EXCEPTIONS |= {("auto", "objectives.pretraining")}

WITHOUT_TORCH = [
    "errors",
    "settings",
    "files",
    "audio",
    "truncation",
    "data.manifest",
    "data.draws",
    "evaluation.metrics",
    "messages",
    "recipe",
    "cli",
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def floor(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in FLOORS:
            return FLOORS[prefix]
    raise AssertionError(f"{module} stands on no floor: add it to FLOORS here and to docs/architecture.md")


def imported_modules(path: Path) -> Iterator[str]:
    """Every almosaic module that a file imports anywhere, as a dotted name below the package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("almosaic."):
                yield existing(name.removeprefix("almosaic."))


def existing(name: str) -> str:
    """`encoder.modeling.AudioMosaicModel` -> `encoder.modeling`; a folder stands for its `__init__`."""
    parts = name.split(".")
    while parts:
        target = PACKAGE.joinpath(*parts)
        if target.with_suffix(".py").is_file():
            return ".".join(parts)
        if target.is_dir():
            return ".".join([*parts, "__init__"])
        parts.pop()
    return "__init__"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    own = module_name(path)
    if own == "__init__":
        return
    for target in imported_modules(path):
        if target in GROUND | {"__init__"} or (own, target) in EXCEPTIONS:
            continue
        same_folder = own.split(".")[:-1] == target.split(".")[:-1]
        allowed = floor(target) < floor(own) or (same_folder and floor(target) <= floor(own))
        assert allowed, f"{own} (floor {floor(own)}) imports {target} (floor {floor(target)})"


def test_floors_name_modules_that_exist() -> None:
    for module in FLOORS:
        target = PACKAGE.joinpath(*module.split("."))
        assert target.with_suffix(".py").is_file() or target.is_dir(), f"{module} is gone: take it off FLOORS"


def test_files_stay_short() -> None:
    folders = ("almosaic", "tests", "demo", "data_prep", "benchmarks")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    too_long = {str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 500}
    assert not too_long, f"split by idea: {too_long}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_stay_short(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            assert length <= 60, f"{module_name(path)}.{node.name} has {length} lines"


def test_names_say_what_a_file_is_for() -> None:
    vague = {"utils", "util", "misc", "helpers", "common", "manager", "engine", "factory", "registry"}
    assert not [str(path) for path in FILES if path.stem in vague]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_one_place_prints_and_one_reads_yaml(path: Path) -> None:
    own, text = module_name(path), path.read_text()
    tree = ast.parse(text)
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert own == "cli" or "print" not in calls, f"{own} prints: report through a callback, let cli print"
    assert own == "cli" or "sys.argv" not in text
    imports = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
    assert own == "recipe" or "yaml" not in imports, f"{own} reads YAML: take settings objects instead"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_foreign_checkpoint_keys_live_in_one_place(path: Path) -> None:
    if module_name(path) in ("encoder.conversion", "encoder.released_keys", "encoder.matpac", "alm.ltu"):
        return
    foreign = ("module.", "_orig_mod.", "patch_embed.proj.", "encoder.patch_embed", "base_model.model.model.")
    foreign += ("student_encoder", "_ema.")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith(foreign), (
                f"{module_name(path)} knows the foreign key {node.value!r}"
            )


def python(code: str, *, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_and_help_do_without_torch() -> None:
    python("import sys, almosaic; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules)")
    shown = python(
        "import sys\nfrom almosaic.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit as done: assert done.code == 0\n"
        "assert not {'torch', 'transformers', 'numpy', 'pydantic', 'yaml'} & set(sys.modules)"
    )
    assert "train" in shown


def test_light_modules_do_without_torch() -> None:
    scenes = [f"scenes.{path.stem}" for path in (PACKAGE / "scenes").glob("*.py")]
    names = [name.removesuffix(".__init__") for name in (*WITHOUT_TORCH, *scenes)]
    python(
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(f'almosaic.{name}')\n"
        "    assert 'torch' not in sys.modules, f'{name} imports torch'"
    )


@pytest.mark.slow
def test_the_wheel_carries_recipes_and_demo(tmp_path: Path) -> None:
    """Built from a copy, installed into an empty folder, and used from outside the checkout."""
    pytest.importorskip(
        "setuptools", minversion="77", reason="building a wheel offline needs setuptools 77 or newer"
    )
    pytest.importorskip("pip", reason="pip is not part of this environment")
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("almosaic", "recipes", "demo"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    assert subprocess.run(install, capture_output=True).returncode == 0
    shutil.rmtree(source)

    def installed(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "almosaic", *arguments],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(target)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(target) in python(
        "import almosaic; print(almosaic.__file__)", cwd=tmp_path, PYTHONPATH=str(target)
    )
    assert "smoke/curriculum" in installed("recipe", "list")
    assert "MODEL" in installed("demo", "--help")
    assert (target / "almosaic" / "_demo" / "app.py").is_file()
    packed = {path.relative_to(target / "almosaic") for path in (target / "almosaic").rglob("*.py")}
    assert {path.relative_to(PACKAGE) for path in FILES} <= packed, (
        "pyproject.toml leaves a folder out of the wheel"
    )
