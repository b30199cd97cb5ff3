"""What each kind of stage does: settings, clips and earlier models go to the trainers and the evaluation."""

import numpy as np
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE
from almosaic.curriculum import (
    AlmStage,
    EvalStage,
    FinetuneStage,
    LanguageModelStage,
    NamedLanguageModel,
    PretrainStage,
    ScenesData,
    SoundsData,
    Stage,
)
from almosaic.data import draws
from almosaic.data.clips import ClipSource, JoinedClips, SceneClips
from almosaic.data.scene_chat import SceneChatSettings, training_pool
from almosaic.data.sources import open_clips
from almosaic.data.texts import Description, TextKind
from almosaic.eval_stage import Evaluation
from almosaic.evaluation.online import OnlineKnn, bank_clips, manifest_clips
from almosaic.loading import model_folder
from almosaic.run_folder import FEATURES, RunFolder
from almosaic.scenes.bank import Bank, open_bank
from almosaic.training.alm import train_alm
from almosaic.training.alm_parts import Parts
from almosaic.training.callbacks import quiet_library
from almosaic.training.finetune import finetune
from almosaic.training.language_model import train_language_model
from almosaic.training.pretrain import pretrain


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
        self._seconds: dict[int, float] = {}

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

    def seconds(self, index: int) -> float:
        """How long `waveform` is; the clip is decoded once for it."""
        if index not in self._seconds:
            self._seconds[index] = len(self.bank.waveform(self.bank.clips[index])) / SAMPLING_RATE
        return min(self._seconds[index], self.crop_seconds)

    def described(self, index: int) -> Description:
        """What the sound is, as a noun and as a clause, and its class."""
        kind = self.bank.classes[self.bank.clips[index].label]
        return Description((kind.noun_phrase, kind.clause), (kind.label,))

    def undescribed(self, kind: TextKind) -> list[str]:
        """None: every sound has both."""
        return []

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
        judge = labelled_judge(run, stage, sounds)
        seed = stage_seed(run, stage)
        pretrain(stage, source=source, folder=folder, seed=seed, stage=stage.id, resume=resume, judge=judge)
    elif isinstance(stage, FinetuneStage):
        start = None if stage.start is None else model_folder(run.model(stage.start))
        finetune(stage, start=start, folder=folder, seed=recipe.seed, stage=stage.id, resume=resume)
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


def stage_seed(run: RunFolder, stage: PretrainStage) -> int:
    """The stage's own seed, else that of the recipe."""
    return run.recipe.seed if stage.seed is None else stage.seed


def pretraining_clips(run: RunFolder, stage: PretrainStage, sounds: Sounds) -> ClipSource:
    """The clips that a pretraining stage names, one source after the other."""
    recipe, own = run.recipe, stage_seed(run, stage)
    seed = draws.key(own, stage.id)
    sources: list[ClipSource] = []
    for data in stage.data:
        if isinstance(data, ScenesData):
            pool = training_pool(sounds("train"), recipe.scenes, data.scenes, own)
            sources.append(SceneClips(pool, sounds("train")))
        elif isinstance(data, SoundsData):
            sources.append(SoundClips(sounds("train"), stage.crop_seconds, seed))
        else:
            sources.append(open_clips(data, stage.crop_seconds, seed))
    return sources[0] if len(sources) == 1 else JoinedClips(sources)


def labelled_judge(run: RunFolder, stage: PretrainStage, sounds: Sounds) -> OnlineKnn | None:
    """What the monitor of a pretraining stage asks of its encoder, None without a monitor."""
    settings = stage.monitor
    if settings is None or stage.optim.steps == 0:
        return None
    parts = sorted({*settings.train, *settings.test})
    if settings.manifest is None:
        clips = bank_clips({part: sounds(part) for part in parts})
    else:
        clips = manifest_clips(settings.manifest, settings.column, parts)
    return OnlineKnn(
        clips,
        train=settings.train,
        test=settings.test,
        limit=settings.clips,
        k=settings.neighbours,
        seed=stage_seed(run, stage),
    )
