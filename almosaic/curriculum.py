"""What a recipe may say: stages in order, each of which names by id where its parts come from."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from almosaic.data.sources import FolderData, ManifestData, ShardsData
from almosaic.errors import AlmosaicError
from almosaic.evaluation.captioning import CaptioningSettings
from almosaic.evaluation.probe import ProbeSettings
from almosaic.evaluation.question_answering import QuestionAnsweringSettings
from almosaic.recipe_errors import Origin, as_one_line
from almosaic.scenes.bank import BankSettings, SyntheticBank
from almosaic.scenes.scene import SceneSettings
from almosaic.settings import Settings
from almosaic.training.alm import AlmStageSettings
from almosaic.training.finetune import FinetuneSettings
from almosaic.training.language_model import LanguageModelSettings
from almosaic.training.pretrain import PretrainSettings

Reference = str
"""The id of an earlier stage, or the path of a model folder (anything with a slash)."""


class ScenesData(Settings):
    """Pretraining clips: composed scenes of the training sounds."""

    name: Literal["scenes"] = "scenes"
    scenes: int = Field(default=6000, ge=1)


class SoundsData(Settings):
    """Pretraining clips: the training sounds themselves, one by one."""

    name: Literal["sounds"] = "sounds"


PretrainData = Annotated[
    ScenesData | SoundsData | FolderData | ManifestData | ShardsData, Field(discriminator="name")
]


class Head(Settings):
    """What every stage has: an id of its own, and how long it takes on two CPU cores."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    expected_minutes: float | None = Field(default=None, gt=0)


class LanguageModelStage(Head, LanguageModelSettings):
    """Trains a language model on the text side of the task; only needed where no open one is used."""

    task: Literal["language_model"]

    def references(self) -> Iterator[tuple[str, Reference, tuple[str, ...]]]:
        """(key, reference, kinds of stage that it may name) of every part that comes from elsewhere."""
        yield from ()


class PretrainStage(Head, PretrainSettings):
    """Pretrains an encoder without labels; with `optim.steps: 0` it stays untrained, as a control.

    `seed` takes the place of the recipe's: stages that differ in nothing else are repetitions.
    """

    task: Literal["pretrain"]
    seed: int | None = Field(default=None, ge=0)
    data: tuple[PretrainData, ...] = Field(default=(ScenesData(),), min_length=1)

    def references(self) -> Iterator[tuple[str, Reference, tuple[str, ...]]]:
        """See `LanguageModelStage.references`."""
        yield from ()


class FinetuneStage(Head, FinetuneSettings):
    """Trains a classifier on labelled clips, from an earlier model or from scratch, and scores it."""

    task: Literal["finetune"]
    start: Reference | None = Field(default=None, alias="from")

    def references(self) -> Iterator[tuple[str, Reference, tuple[str, ...]]]:
        """See `LanguageModelStage.references`."""
        if self.start is not None:
            yield "from", self.start, ("pretrain", "finetune")


class NamedLanguageModel(Settings):
    """A causal language model of the hub, or a folder, by name."""

    name: str


class FromParts(Settings):
    """An audio-language model joined from an encoder and a language model, with a fresh projector."""

    audio_tower: Reference
    language_model: Reference | NamedLanguageModel


class AlmStage(Head, AlmStageSettings):
    """Trains parts of an audio-language model, joined here or taken from an earlier stage."""

    task: Literal["alm"]
    start: Reference | FromParts = Field(alias="from")

    def references(self) -> Iterator[tuple[str, Reference, tuple[str, ...]]]:
        """See `LanguageModelStage.references`."""
        if isinstance(self.start, str):
            yield "from", self.start, ("alm",)
            return
        yield "from.audio_tower", self.start.audio_tower, ("pretrain",)
        if isinstance(self.start.language_model, str):
            yield "from.language_model", self.start.language_model, ("language_model",)


class EvalStage(Head):
    """Judges a model: probes of encoders, questions beside deaf controls, captions by facts.

    `from` is the model that is asked; `compare` names further ones that answer the same questions, and
    `encoders` those that are probed: several under one name are repetitions of one thing with other seeds,
    and share one score. What is left out is not run.
    """

    task: Literal["eval"]
    start: Reference | None = Field(default=None, alias="from")
    encoders: dict[str, Reference | tuple[Reference, ...]] = Field(default={})
    compare: dict[str, Reference] = Field(default={})
    probe: ProbeSettings | None = None
    question_answering: QuestionAnsweringSettings | None = None
    captioning: CaptioningSettings | None = None

    def references(self) -> Iterator[tuple[str, Reference, tuple[str, ...]]]:
        """See `LanguageModelStage.references`."""
        if self.start is not None:
            yield "from", self.start, ("alm",)
        for name, probed in self.encoders.items():
            for reference in (probed,) if isinstance(probed, str) else probed:
                yield f"encoders.{name}", reference, ("pretrain",)
        yield from ((f"compare.{name}", reference, ("alm",)) for name, reference in self.compare.items())

    @field_validator("encoders", "compare", mode="before")
    @classmethod
    def _names(cls, named: Any) -> Any:
        """YAML reads a name such as true or 7 as something else than text."""
        if not isinstance(named, Mapping):
            return named
        return {str(key).lower() if isinstance(key, bool) else str(key): one for key, one in named.items()}

    @model_validator(mode="after")
    def _check(self) -> "EvalStage":
        asks = self.question_answering is not None or self.captioning is not None
        if asks and self.start is None:
            raise AlmosaicError("question_answering and captioning need `from`, the alm stage that is asked")
        if not asks and self.probe is None:
            raise AlmosaicError("give at least one of probe, question_answering and captioning")
        if bool(self.probe) != bool(self.encoders):
            raise AlmosaicError(
                "probe needs `encoders`, for example {pretrained: encoder}, and they need probe"
            )
        for name, probed in self.encoders.items():
            if not probed:
                raise AlmosaicError(f"encoders.{name} is empty; name an earlier pretrain stage or several")
            if not isinstance(probed, str) and len(set(probed)) < len(probed):
                raise AlmosaicError(
                    f"encoders.{name} names an encoder twice ({', '.join(probed)}); repetitions of one thing "
                    "are encoders that were trained with other seeds"
                )
        return self


Stage = Annotated[
    LanguageModelStage | PretrainStage | FinetuneStage | AlmStage | EvalStage, Field(discriminator="task")
]


class Curriculum(Settings):
    """A whole recipe: sounds, how scenes are composed of them, and the stages in order."""

    task: Literal["curriculum"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0)
    output: Path = Path()
    sounds: BankSettings = SyntheticBank()
    scenes: SceneSettings = SceneSettings()
    stages: tuple[Stage, ...] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _default_output(cls, tree: Any) -> Any:
        if isinstance(tree, Mapping) and "output" not in tree and isinstance(tree.get("name"), str):
            return {**tree, "output": f"runs/{tree['name']}"}
        return tree

    @model_validator(mode="after")
    def _check(self) -> "Curriculum":
        kinds: dict[str, str] = {}
        for stage in self.stages:
            if stage.id in kinds:
                raise AlmosaicError(f"two stages have the id {stage.id}; give each its own")
            for key, reference, wanted in stage.references():
                self._check_reference(f"stages.{stage.id}.{key}", reference, wanted, kinds)
            kinds[stage.id] = stage.task
        return self

    def _check_reference(
        self, place: str, reference: Reference, wanted: tuple[str, ...], earlier: Mapping[str, str]
    ) -> None:
        if is_path(reference):
            return
        fitting = [name for name, kind in earlier.items() if kind in wanted]
        choices = ", ".join(fitting) or "there is none"
        expected = f"expected an earlier {' or '.join(wanted)} stage ({choices}) or a path"
        if reference in earlier:
            if earlier[reference] not in wanted:
                raise AlmosaicError(f"{place} is {reference}, a {earlier[reference]} stage; {expected}")
        elif any(stage.id == reference for stage in self.stages):
            raise AlmosaicError(f"{place} is {reference}, which comes later; {expected}")
        else:
            close = get_close_matches(reference, fitting, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise AlmosaicError(
                f"{place} is {reference!r}, which is no stage{hint}; {expected} like ./{reference}"
            )

    def stage(self, name: str) -> Stage:
        """The stage of that id.

        Raises:
            AlmosaicError: there is none.
        """
        for stage in self.stages:
            if stage.id == name:
                return stage
        ids = [stage.id for stage in self.stages]
        close = get_close_matches(name, ids, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise AlmosaicError(f"no stage {name!r}; {hint}the stages are {', '.join(ids)}")


def is_path(reference: Reference) -> bool:
    """Whether a reference is the path of a model folder instead of a stage id."""
    return "/" in reference or "\\" in reference


def as_curriculum(tree: dict[str, Any], where: Origin) -> Curriculum:
    """A merged recipe as a `Curriculum`; a recipe of a single task becomes a curriculum of one stage.

    Args:
        tree: the merged recipe.
        where: place -> the file or override that a value came from, for messages.

    Raises:
        AlmosaicError: one line about the first mistake.
    """
    single = tree.get("task") in TASKS
    outer = [name for name in Curriculum.model_fields if name not in ("task", "stages")]
    if single:
        stage = {"id": tree["task"], **{key: value for key, value in tree.items() if key not in outer}}
        tree = {**{key: tree[key] for key in outer if key in tree}, "task": "curriculum", "stages": [stage]}
    try:
        return Curriculum.model_validate(tree)
    except ValidationError as error:
        raise as_one_line(error, Curriculum, tree, where, hidden=2 if single else 0) from None


TASKS = ("language_model", "pretrain", "finetune", "alm", "eval")
