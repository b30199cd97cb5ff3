"""One line out of a validation error: file, place, what was found there, what is valid, a close match."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError

from almosaic.errors import AlmosaicError

Origin = Callable[[Sequence[str]], str]


def as_one_line(
    error: ValidationError, schema: type[BaseModel], tree: Any, where: Origin, hidden: int = 0
) -> AlmosaicError:
    """The first complaint of pydantic in the words of a recipe's author.

    Args:
        error: what pydantic raised for `tree`.
        schema: the class that was being built.
        tree: the merged recipe.
        where: place -> the file or override that the value came from.
        hidden: parts at the start of a stage's place that the author did not write (a recipe of one task).
    """
    found = error.errors()
    complaints = sorted((entry for entry in found if not _follows(entry, found)), key=_unknown_first)
    spot = _walk(complaints[0]["loc"], schema, tree)
    place = spot.place[hidden:] if spot.place[:1] == ["stages"] else spot.place
    more = f" (and {len(complaints) - 1} more)" if len(complaints) > 1 else ""
    return AlmosaicError(f"{where(place)}: {_sentence(complaints[0], place, spot)}{more}")


def _follows(complaint: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a list counts as too short only because of a complaint about one of its items."""
    place = complaint["loc"]
    deeper = (other["loc"] for other in others if len(other["loc"]) > len(place))
    return complaint["type"] == "too_short" and any(other[: len(place)] == place for other in deeper)


def _unknown_first(complaint: Mapping[str, Any]) -> bool:
    return bool(complaint["type"] != "extra_forbidden")


def _sentence(complaint: Mapping[str, Any], place: Sequence[str], spot: "_Spot") -> str:
    key, kind, value = ".".join(place), complaint["type"], spot.value
    if kind == "extra_forbidden":
        valid = valid_keys(spot.holder)
        return f"unknown key {key}{_close(place[-1], valid)}; valid here: {', '.join(valid)}"
    if kind == "missing":
        return f"{key} is missing"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        name = str(complaint["ctx"]["discriminator"]).strip("'")
        found = value.get(name) if isinstance(value, dict) else value
        where, choices = f"{key}.{name}".strip("."), _choices(spot.annotation, name)
        said = f"is {found!r}{_close(str(found), choices)}" if found is not None else "is missing"
        return f"{where} {said}; expected one of {', '.join(choices)}"
    message = complaint["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key} is {_short(value)}: {message[0].lower()}{message[1:]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _close(word: str, valid: Sequence[str]) -> str:
    close = get_close_matches(word, valid, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def valid_keys(model: type[BaseModel]) -> list[str]:
    """The keys a recipe may use for this settings class."""
    return [field.alias or name for name, field in model.model_fields.items()]


def _choices(annotation: Any, discriminator: str) -> list[str]:
    """What a discriminator may be, over all members of a union."""
    fields = [model.model_fields[discriminator] for model in _models(annotation)]
    return [str(choice) for field in fields for choice in get_args(field.annotation)]


class _Spot(NamedTuple):
    """Where a complaint points: the place in words, value and type there, and the class around it."""

    place: list[str]
    value: Any
    annotation: Any
    holder: type[BaseModel]


def _walk(location: Sequence[int | str], schema: type[BaseModel], tree: Any) -> _Spot:
    """Follow pydantic's location through the data; parts that only name a union's member are left out."""
    place: list[str] = []
    value, annotation, holder = tree, schema, schema
    tagged = False
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if not tagged and _is_tag(annotation, value, part):
            tagged = True  # such as `folder` for {name: folder, folder: x}: a key only where it comes again
            continue
        tagged = False
        if isinstance(value, dict) and (part in value or (last and _is_field(annotation, value, part))):
            holder = _choose(annotation, value) or holder
            annotation = _field_annotation(holder, str(part), annotation)
            value = value.get(part)
            place.append(str(part))
        elif isinstance(value, list | tuple) and isinstance(part, int) and part < len(value):
            value = value[part]
            place.append(str(value["id"]) if isinstance(value, dict) and "id" in value else str(part))
    return _Spot(place, value, annotation, holder)


def _is_tag(annotation: Any, value: Any, part: int | str) -> bool:
    """Whether a part of a location only says which member of a union was chosen."""
    chosen = (value.get("name"), value.get("task")) if isinstance(value, dict) else ()
    return part in chosen and len(_models(annotation)) > 1


def _is_field(annotation: Any, value: Mapping[str, Any], part: int | str) -> bool:
    model = _choose(annotation, value)
    return model is not None and part in valid_keys(model)


def _field_annotation(model: type[BaseModel], key: str, fallback: Any) -> Any:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return field.annotation
    return fallback


def _choose(annotation: Any, value: Mapping[str, Any]) -> type[BaseModel] | None:
    """The settings class in `annotation` whose `task` or `name` is the one that `value` gives."""
    for model in _models(annotation):
        chosen = [
            value.get(name, field.default) in get_args(field.annotation)
            for name, field in model.model_fields.items()
            if name in ("task", "name") and get_origin(field.annotation) is Literal
        ]
        if all(chosen):
            return model
    return None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
