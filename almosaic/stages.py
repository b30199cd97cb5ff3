"""What each kind of stage does: settings, clips and earlier models go to the trainers and the evaluation."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE
from almosaic.curriculum import (
    AlmStage,
    EvalStage,
    LanguageModelStage,
    ManifestData,
    NamedLanguageModel,
    PretrainStage,
    ScenesData,
    Stage,
)
from almosaic.data import draws
from almosaic.data.clips import ClipSource, JoinedClips, ManifestClips, SceneClips
from almosaic.data.manifest import read_manifest
from almosaic.data.scene_chat import SceneChatSettings, training_pool
from almosaic.evaluation import captioning, probe, question_answering
from almosaic.files import write_whole
from almosaic.loading import load_model
from almosaic.run_folder import RunFolder
from almosaic.scenes.bank import Bank, open_bank
from almosaic.training.alm import train_alm
from almosaic.training.alm_parts import Parts
from almosaic.training.callbacks import quiet_library
from almosaic.training.checkpoints import write_json
from almosaic.training.language_model import train_language_model
from almosaic.training.pretrain import pretrain

Records = list[dict[str, Any]]
FEATURES = (
    "features"  # below the run folder: tokens of frozen encoders, shared by its stages, removed at its end
)


class Sounds:
    """The recipe's sounds by split, each opened once for all stages."""

    def __init__(self, run: RunFolder) -> None:
        self.settings = run.recipe.sounds
        self._banks: dict[str, Bank] = {}

    def __call__(self, split: str) -> Bank:
        """The bank of one split."""
        if split not in self._banks:
            self._banks[split] = open_bank(self.settings, split)
        return self._banks[split]


class SoundClips:
    """The clips of a bank; longer ones give a random crop that depends on (seed, epoch, clip) alone."""

    def __init__(self, bank: Bank, crop_seconds: float, seed: int) -> None:
        self.bank, self.crop_seconds, self.seed = bank, crop_seconds, seed

    def __len__(self) -> int:
        return len(self.bank.clips)

    def waveform(self, index: int, epoch: int) -> NDArray[np.float32]:
        """The clip or its crop, [S] at 16 kHz."""
        waveform = self.bank.waveform(self.bank.clips[index])
        spare = len(waveform) - round(self.crop_seconds * SAMPLING_RATE)
        if spare <= 0:
            return waveform
        start = int(draws.uniforms((self.seed, "crop", epoch), [index], 1)[0, 0] * spare)
        return waveform[start : len(waveform) - spare + start]

    def fingerprint(self) -> str:
        """A hash of the bank and of the crop."""
        return f"{self.bank.fingerprint()} {self.crop_seconds} {self.seed}"


def run_stage(run: RunFolder, stage: Stage, sounds: Sounds, resume: bool) -> None:
    """Run one stage; its model or its scores are in its folder afterwards.

    Raises:
        AlmosaicError: see the trainers and the evaluation.
    """
    recipe, folder = run.recipe, run.stage_folder(stage.id)
    if isinstance(stage, EvalStage):
        with quiet_library():
            Evaluation(run, stage, sounds).run()
    elif isinstance(stage, PretrainStage):
        source = pretraining_clips(run, stage, sounds)
        pretrain(stage, source=source, folder=folder, seed=recipe.seed, stage=stage.id, resume=resume)
    elif isinstance(stage, LanguageModelStage):
        train_language_model(
            stage,
            bank=sounds("train"),
            scenes=recipe.scenes,
            folder=folder,
            seed=recipe.seed,
            stage=stage.id,
            resume=resume,
        )
    else:
        composed = any(isinstance(data, SceneChatSettings) for data in stage.data)
        train_alm(
            stage,
            parts=_parts(run, stage),
            folder=folder,
            seed=recipe.seed,
            stage=stage.id,
            bank=sounds("train") if composed else None,
            scenes=recipe.scenes,
            cache_folder=run.path / FEATURES,
            resume=resume,
        )


def _parts(run: RunFolder, stage: AlmStage) -> Parts:
    """The folders that the model of an alm stage comes from."""
    if isinstance(stage.start, str):
        return Parts(start=run.model(stage.start))
    llm = stage.start.language_model
    language_model = llm.name if isinstance(llm, NamedLanguageModel) else run.model(llm)
    return Parts(audio_tower=run.model(stage.start.audio_tower), language_model=language_model)


def pretraining_clips(run: RunFolder, stage: PretrainStage, sounds: Sounds) -> ClipSource:
    """The clips that a pretraining stage names, one source after the other."""
    recipe, seed = run.recipe, draws.key(run.recipe.seed, stage.id)
    sources: list[ClipSource] = []
    for data in stage.data:
        if isinstance(data, ScenesData):
            pool = training_pool(sounds("train"), recipe.scenes, data.scenes, recipe.seed)
            sources.append(SceneClips(pool, sounds("train")))
        elif isinstance(data, ManifestData):
            rows = read_manifest(data.manifest)
            rows = [row for row in rows if not data.splits or row.split in data.splits]
            rows = [row for row in rows if not data.folds or row.fold in data.folds]
            sources.append(ManifestClips(rows, stage.crop_seconds, seed))
        else:
            sources.append(SoundClips(sounds("train"), stage.crop_seconds, seed))
    return sources[0] if len(sources) == 1 else JoinedClips(sources)


class Evaluation:
    """One eval stage; the answers of each model are kept, so that a resumed stage asks only the rest."""

    def __init__(self, run: RunFolder, stage: EvalStage, sounds: Sounds) -> None:
        self.recipe, self.stage, self.sounds = run.recipe, stage, sounds
        self.folder = run.stage_folder(stage.id)
        self.encoders = {name: run.model(reference) for name, reference in stage.encoders.items()}
        named = {display_name(stage.start): stage.start} if stage.start else {}
        self.models = {name: run.model(reference) for name, reference in {**named, **stage.compare}.items()}

    def run(self) -> None:
        """Measure everything that the stage asks for and write scores.json."""
        scores: dict[str, Any] = {"question_answering": {}, "captioning": {}, "probe": []}
        if self.stage.probe is not None:
            scores["probe"] = self._probe(self.stage.probe)
        for number, (name, folder) in enumerate(self.models.items()):
            if (asked := self.stage.question_answering) is not None:
                records = self._kept(f"questions-{name}", folder, self._ask)
                scores["question_answering"][name] = question_answering.score(records, asked.headline)
            if self.stage.captioning is not None and number == 0:
                records = self._kept(f"captions-{name}", folder, self._caption)
                scores["captioning"][name] = captioning.score(records)
        write_json(self.folder / "scores.json", scores)

    def examples(self) -> Sequence[dict[str, Any]]:
        """Questions for the report, as the first model answered them."""
        settings = self.stage.question_answering
        kept = [self._records(f"questions-{name}") for name in self.models]
        if settings is None or not kept or not kept[0].is_file():
            return []
        return question_answering.examples(_read_records(kept[0]), self._asked, self.sounds(settings.split))

    @cached_property
    def _asked(self) -> Sequence[question_answering.Asked]:
        """What every model of the stage is asked."""
        settings = self.stage.question_answering
        assert settings is not None
        return question_answering.plan(self.sounds(settings.split), self.recipe.scenes, settings)

    def _probe(self, settings: probe.ProbeSettings) -> Records:
        banks = {split: self.sounds(split) for split in (*settings.train, *settings.test)}
        encoders: dict[str, Any] = {name: load_model(folder) for name, folder in self.encoders.items()}
        with progress(f"{self.stage.id}: probes", "clip") as advance:
            return probe.encoder_rows(encoders, probe.ProbeClips.from_banks(banks), settings, advance)

    def _records(self, name: str) -> Path:
        return self.folder / f"{name.replace('/', '-')}.jsonl"

    def _kept(self, name: str, model_folder: Path, answer: Callable[[Any, Any, Any], Records]) -> Records:
        """Records of an earlier attempt at this stage, or new ones."""
        path = self._records(name)
        if path.is_file():
            return _read_records(path)
        with progress(f"{self.stage.id}: {name}", "answer") as advance:
            records = answer(*load_model(model_folder), advance)
        write_whole(path, "".join(json.dumps(record) + "\n" for record in records))
        return records

    def _ask(self, model: Any, processor: Any, advance: Any) -> Records:
        settings = self.stage.question_answering
        assert settings is not None
        bank = self.sounds(settings.split)
        return question_answering.run(model, processor, bank, self._asked, settings, advance)

    def _caption(self, model: Any, processor: Any, advance: Any) -> Records:
        settings = self.stage.captioning
        assert settings is not None
        bank, train_bank = self.sounds(settings.split), self.sounds("train")
        return captioning.run(
            model, processor, bank, self.recipe.scenes, settings, advance, train_bank=train_bank
        )


def display_name(reference: str) -> str:
    """How a report calls a model: its stage id, or the folder that `model` lies in."""
    path = Path(reference)
    return path.parent.name if path.name == "model" else path.name


def _read_records(path: Path) -> Records:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def progress(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr; yields the function to call with (done, in all)."""
    from tqdm import tqdm

    with tqdm(desc=title, unit=unit) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance
