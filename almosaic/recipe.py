"""Recipes: YAML with one parent, `key=value` overrides and `${VARIABLES}`, read into a typed `Curriculum`.

Layers lie over each other: the parents named by `extends:`, then the file itself, then the command line.
Mappings merge, everything else replaces. A mapping laid over a list of stages addresses them by id. A mapping
that chooses another `name` below the top level replaces the old choice whole; an empty one empties it.
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from almosaic.errors import AlmosaicError

if TYPE_CHECKING:
    from almosaic.curriculum import Curriculum

Tree = dict[str, Any]
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Layer:
    """One source of recipe keys: a file, or the command line."""

    label: str
    tree: Tree


class _Loader(yaml.SafeLoader):
    """YAML with numbers like 1e-3 and `<<: *anchor` for what is not said; a repeated key is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            merges = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merges else self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be one word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def bundled(folder: str) -> Path:
    """The checkout's own `folder` ("recipes", "demo"), or the copy that the installed package carries."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if (checkout / "pyproject.toml").is_file() and (checkout / folder).is_dir():
        return checkout / folder
    return package / f"_{folder}"


def recipe_roots() -> list[Path]:
    """Folders searched for recipe names: ./recipes first, then the ones that come with the package."""
    roots = [Path("recipes").resolve(), bundled("recipes")]
    return [root for i, root in enumerate(roots) if root.is_dir() and root not in roots[:i]]


def list_recipes() -> dict[str, str]:
    """Name -> one-line description of every recipe in the search folders; the first folder wins."""
    found: dict[str, str] = {}
    for root in recipe_roots():
        for path in sorted(root.rglob("*.yaml")):
            name = path.relative_to(root).with_suffix("").as_posix()
            if name not in found:
                tree = _merge_all(read_layers(path))
                found[name] = " ".join(str(tree.get("description", "")).split())
    return dict(sorted(found.items()))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given as a path or as a name such as `quickstart` or `alm/esc50_small`.

    Raises:
        AlmosaicError: no such file and no such name; the message lists close names.
    """
    path = Path(name)
    if path.is_file():
        return path
    for root in recipe_roots():
        for candidate in (root / path, root / f"{path}.yaml"):
            if candidate.is_file():
                return candidate
    known = sorted(
        {p.relative_to(r).with_suffix("").as_posix() for r in recipe_roots() for p in r.rglob("*.yaml")}
    )
    close = get_close_matches(str(name).removesuffix(".yaml"), known, n=3) or known
    raise AlmosaicError(
        f"no recipe {str(name)!r}: give a YAML file or one of {', '.join(close) or 'none found here'}"
        " (`almosaic recipe list` shows all)"
    )


def load_recipe(name: str | Path, overrides: Iterable[str] = ()) -> "Curriculum":
    """Read, merge, expand and validate a recipe; a single-task recipe becomes a curriculum of one stage.

    Raises:
        AlmosaicError: one line with the file, the key, what was found there and what is valid.
    """
    from almosaic.curriculum import as_curriculum

    layers = read_layers(find_recipe(name), overrides)
    tree = _expand(_merge_all(layers), (), lambda place: origin(layers, place))
    return as_curriculum(tree, lambda place: origin(layers, place))


def resolve(recipe: "Curriculum") -> Tree:
    """The whole recipe as plain data with every default filled in; `to_yaml` of it is a recipe again."""
    resolved: Tree = recipe.model_dump(mode="json", by_alias=True)
    return resolved


def to_yaml(tree: Mapping[str, Any]) -> str:
    """Plain data as YAML, keys in their own order."""
    text: str = yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, width=110)
    return text


def read_yaml(path: Path) -> Tree:
    """One YAML file that holds a mapping.

    Raises:
        AlmosaicError: unreadable, not YAML, a repeated key, or something else than a mapping.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise AlmosaicError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise AlmosaicError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise AlmosaicError(f"{path}: expected a mapping of keys, found {type(tree).__name__}")
    return tree


def read_layers(path: Path, overrides: Iterable[str] = ()) -> list[Layer]:
    """The file's ancestors first, then the file, then one layer per override."""
    chain: list[Path] = []
    layers: list[Layer] = []
    following: Path | None = path
    while following is not None:
        current = following.resolve()
        if current in chain:
            raise AlmosaicError(
                f"{following}: `extends:` goes round in a circle; a recipe cannot be its own parent"
            )
        chain.append(current)
        tree = read_yaml(following)
        parent = tree.pop("extends", None)
        layers.insert(0, Layer(str(following), tree))
        following = None if parent is None else _parent_path(layers[0].label, parent)
    return layers + [_override_layer(text) for text in overrides]


def _parent_path(child: str, parent: Any) -> Path:
    if not isinstance(parent, str):
        raise AlmosaicError(f"{child}: `extends:` takes one path, found {parent!r}")
    path = Path(child).parent / parent
    if not path.is_file():
        raise AlmosaicError(f"{child}: `extends: {parent}` names no file (looked for {path})")
    return path


def _override_layer(text: str) -> Layer:
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise AlmosaicError(
            f"override {text!r}: expected key=value, for example stages.encoder.optim.steps=10"
        )
    try:
        tree: Any = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise AlmosaicError(
            f"override {text!r}: the value is not valid YAML ({' '.join(str(error).split())})"
        ) from None
    for part in reversed(parts):
        tree = {part: tree}
    return Layer(f"override {text!r}", tree)


def _merge_all(layers: Sequence[Layer]) -> Tree:
    tree: Tree = {}
    for layer in layers:
        tree = _merge(tree, layer.tree, (), layer.label)
    return tree


def _merge(old: Any, new: Any, place: tuple[str, ...], label: str) -> Any:
    if isinstance(old, list) and isinstance(new, dict):
        merged = list(old)
        for key, value in new.items():
            index = _index(merged, str(key), place, label)
            merged[index] = _merge(merged[index], value, (*place, str(key)), label)
        return merged
    other_kind = bool(place) and isinstance(new, dict) and "name" in new and isinstance(old, dict)
    if other_kind and old.get("name", new["name"]) != new["name"]:
        return new
    if isinstance(old, dict) and isinstance(new, dict) and new:
        return old | {
            key: _merge(old.get(key), value, (*place, str(key)), label) for key, value in new.items()
        }
    if isinstance(old, str | int | float) and isinstance(new, dict) and label.startswith("override"):
        raise AlmosaicError(
            f"{label}: {'.'.join(place)} is the single value {old!r} and has no keys of its own"
        )
    return new


def _index(items: list[Any], key: str, place: tuple[str, ...], label: str) -> int:
    ids = [
        str(item["id"]) if isinstance(item, dict) and "id" in item else str(i) for i, item in enumerate(items)
    ]
    if key in ids:
        return ids.index(key)
    close = get_close_matches(key, ids, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise AlmosaicError(
        f"{label}: {'.'.join(place)} has no {key!r}{hint}; it has {', '.join(ids) or 'nothing'}"
    )


def _expand(value: Any, place: tuple[str, ...], where: Callable[[Sequence[str]], str]) -> Any:
    """Replace `${NAME}` in every string by the environment variable."""
    if isinstance(value, dict):
        return {key: _expand(item, (*place, str(key)), where) for key, item in value.items()}
    if isinstance(value, list):
        keys = [str(item.get("id", i)) if isinstance(item, dict) else str(i) for i, item in enumerate(value)]
        return [_expand(item, (*place, key), where) for key, item in zip(keys, value, strict=True)]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in os.environ:
            raise AlmosaicError(
                f"{where(place)}: {'.'.join(place)} is {value!r} but the environment variable"
                f" {name} is not set; put {name}=/your/folder before the command"
            )
    return _VARIABLE.sub(lambda match: os.environ[match[1]], value)


def origin(layers: Sequence[Layer], place: Sequence[str]) -> str:
    """Label of the last layer that says something about `place`; the recipe file itself if none does."""
    for length in range(len(place), 0, -1):
        for layer in reversed(layers):
            if _holds(layer.tree, place[:length]):
                return layer.label
    files = [layer.label for layer in layers if not layer.label.startswith("override")]
    return files[-1]


def _holds(value: Any, place: Sequence[str]) -> bool:
    for part in place:
        if isinstance(value, list):
            keyed = {
                str(item.get("id", i)) if isinstance(item, dict) else str(i): item
                for i, item in enumerate(value)
            }
            value = {**{str(i): item for i, item in enumerate(value)}, **keyed}
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True
