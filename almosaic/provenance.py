"""What an exported model was made of: its line of stages, their data, the recipe, the scores.

Written beside the weights as `provenance.json`, so that it survives another export and a model built on it.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, ValidationError

from almosaic.data.licences import DataSource, data_sources
from almosaic.errors import AlmosaicError
from almosaic.loading import model_folder
from almosaic.settings import Settings

FILE = "provenance.json"


class StageRecord(Settings):
    """One stage that the weights went through.

    Attributes:
        id: of the stage in its recipe.
        task: alm, pretrain, finetune, language_model.
        settings: everything that decided what it computed.
        rows: clips or conversations of an epoch, where the stage noted them.
        seconds: of training, in all attempts together.
        data: what it was trained on.
    """

    id: str
    task: str
    settings: dict[str, Any] = Field(default_factory=dict)
    rows: int | None = None
    seconds: float | None = None
    data: tuple[DataSource, ...] = ()


class Provenance(Settings):
    """What a model was made of.

    Attributes:
        stages: in order of training; the last one wrote the weights.
        unknown: parts that came from elsewhere, of which nothing is recorded.
        recipe: of the run, as YAML.
        results: of the run's evaluation.
        hashes: sha256 of the data files that the run read, by path.
        packages: versions that the run was trained with.
        trained: when the run began.
    """

    stages: tuple[StageRecord, ...] = ()
    unknown: tuple[str, ...] = ()
    recipe: str = ""
    results: dict[str, Any] = Field(default_factory=dict)
    hashes: dict[str, str] = Field(default_factory=dict)
    packages: dict[str, str | None] = Field(default_factory=dict)
    trained: str = ""

    def data(self) -> dict[str, tuple[DataSource, list[str]]]:
        """Each source once, by name, kind and place, with the ids of the stages that used it."""
        found: dict[str, tuple[DataSource, list[str]]] = {}
        for stage in self.stages:
            for source in stage.data:
                key = f"{source.name} {source.kind} {source.place}"
                used = found.setdefault(key, (source, []))[1]
                used += [] if stage.id in used else [stage.id]
        return found

    def language_model(self) -> str | None:
        """The name of the language model that training began with; None where a stage trained its own."""
        for stage in self.stages:
            start, own = stage.settings.get("from"), stage.settings.get("language_model")
            named = start.get("language_model") if isinstance(start, dict) else None
            for model in (named, own):
                if isinstance(model, dict) and model.get("name") not in (None, "tiny"):
                    return str(model["name"])
        return None


class Line(NamedTuple):
    """Stages in order, parts of which nothing is recorded, and sha256 of data files of other runs."""

    stages: list[StageRecord]
    unknown: list[str]
    hashes: dict[str, str]


def provenance_of(folder: Path) -> Provenance:
    """What is known of a model folder: from the file beside it, or from the run that it is a stage of.

    Raises:
        AlmosaicError: a damaged record.
    """
    if (folder / FILE).is_file():
        try:
            return Provenance.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
        except ValidationError as error:
            raise AlmosaicError(
                f"{folder / FILE} is damaged ({error.errors()[0]['msg']}); restore it, or remove it to "
                "export without it"
            ) from None
    stage = folder.resolve().parent
    if not (stage / "stage.json").is_file():
        return Provenance()
    run = stage.parent.parent
    stages, unknown, hashes = _line(stage)
    environment = _json(run / "environment.json").get("sessions") or [{}]
    return Provenance(
        stages=tuple(stages),
        unknown=tuple(unknown),
        recipe=_text(run / "recipe.yaml"),
        results=_json(run / "results.json"),
        hashes=hashes | environment[-1].get("files", {}),
        packages=environment[-1].get("packages", {}),
        trained=environment[0].get("started", "")[:10],
    )


def _line(stage: Path) -> Line:
    """A stage and those it is built on, the earliest first."""
    note = _json(stage / "stage.json")
    settings = note.get("settings", {})
    stages: list[StageRecord] = []
    unknown: list[str] = []
    hashes: dict[str, str] = {}
    for reference in note.get("inputs", {}):
        earlier, missing, files = _earlier(stage, reference, settings.get("from"))
        stages += [one for one in earlier if one not in stages]
        unknown += missing
        hashes |= files
    rows = _json(stage / "rows.json").get("rows")
    record = StageRecord(
        id=stage.name,
        task=note["kind"],
        settings=settings,
        rows=rows,
        seconds=note.get("seconds"),
        data=tuple(data_sources(settings)),
    )
    return Line([*stages, record], unknown, hashes)


def _earlier(stage: Path, reference: str, start: Any) -> Line:
    """The line of a part: a stage of the same run, or a model folder or run elsewhere."""
    if (stage.parent / reference / "stage.json").is_file():
        return _line(stage.parent / reference)
    encoder = isinstance(start, dict) and start.get("audio_tower") == reference
    try:
        folder = model_folder(reference, "pretrain" if encoder else None)
    except AlmosaicError:  # gone since: said in the record
        return Line([], [reference], {})
    found = provenance_of(folder)
    unknown = [*found.unknown, *([] if found.stages else [reference])]
    return Line(list(found.stages), unknown, found.hashes)


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_text(path) or "{}")
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
