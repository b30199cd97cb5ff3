"""The audio-language stages: projector alignment, LoRA or full instruction tuning, frozen parts from a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor, TuneSettings, apply_tuning
from almosaic.alm.projectors import MLPProjectorSettings, ProjectorSettings
from almosaic.alm.tuning import PARTS
from almosaic.audio import MAX_SECONDS
from almosaic.data import draws
from almosaic.data.clips import BadClips
from almosaic.data.collate import ChatCollator
from almosaic.data.datasets import CaptionDataset, ChatData, ChatDataset, ChatFileDataset
from almosaic.data.formats import read_chat
from almosaic.data.manifest import read_manifest
from almosaic.data.scene_chat import SceneChatDataset, SceneChatSettings, training_pool
from almosaic.encoder import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.feature_cache import FeatureCache
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.loading import load_model
from almosaic.scenes.bank import Bank
from almosaic.scenes.compose import SceneSettings
from almosaic.settings import Settings
from almosaic.training.callbacks import quiet_library
from almosaic.training.checkpoints import whole_folder
from almosaic.training.optim import OptimSettings, training_arguments
from almosaic.training.trainer import AlmosaicTrainer


class CaptionSettings(Settings):
    """Captioned clips of a manifest; `splits` and `folds` choose rows, empty = all."""

    name: Literal["captions"] = "captions"
    manifest: Path
    splits: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    crop_seconds: float | None = Field(default=None, gt=0)


class ChatFileSettings(Settings):
    """Conversations of a JSON or JSONL file; see `data.formats.read_chat`."""

    name: Literal["chat"] = "chat"
    path: Path
    audio_root: Path | None = None


ChatSettings = Annotated[
    SceneChatSettings | CaptionSettings | ChatFileSettings, Field(discriminator="name")
]


class AlmStageSettings(Settings):
    """A stage that trains parts of the audio-language model.

    Args:
        projector: of a model joined from parts; None = 32 audio tokens through an MLP, or the earlier stage's.
        layer: 0-based encoder block that the projector reads, None = the output; of a model joined from parts.
        tune: what is trained.
        data: conversations, taken in proportion to their number.
        cache_features: encode every clip once and train on the stored tokens; needs a frozen audio tower.
        max_audio_seconds: a longer clip is an error, never cut.
        bad_clip_share: the run stops when more than this share of the clips cannot be used.
        optim: length, batch, learning rates per part (`audio_tower`, `projector`, `language_model`).
    """

    projector: ProjectorSettings | None = None
    layer: int | None = None
    tune: TuneSettings = TuneSettings()
    data: tuple[ChatSettings, ...] = Field(default=(SceneChatSettings(),), min_length=1)
    cache_features: bool = False
    max_audio_seconds: float = Field(default=MAX_SECONDS, gt=0)
    bad_clip_share: float = Field(default=0.01, ge=0, lt=1)
    optim: OptimSettings = OptimSettings(steps=600, learning_rate=1e-3, weight_decay=0.0)

    def model_post_init(self, _context: Any) -> None:
        """Refuse a cache for an encoder that changes."""
        if self.cache_features and self.tune.audio_tower != "frozen":
            raise AlmosaicError(
                "cache_features: true needs tune.audio_tower: frozen, since stored features of a changing encoder "
                "go stale; set one of them otherwise"
            )


@quiet_library()
def train_alm(
    settings: AlmStageSettings,
    *,
    folder: Path,
    seed: int,
    stage: str = "alm",
    audio_tower: Path | None = None,
    language_model: str | Path | None = None,
    start: Path | None = None,
    bank: Bank | None = None,
    scenes: SceneSettings | None = None,
    cache_folder: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train an audio-language model, joined from parts or taken from an earlier stage.

    Args:
        settings: of the stage.
        folder: of the stage; checkpoints and `model` are written there.
        seed: of the run.
        stage: the stage's id, part of every draw.
        audio_tower: encoder folder with its front end, together with `language_model`.
        language_model: folder or hub name of a causal language model with a tokenizer.
        start: model folder of an earlier audio-language stage, instead of the two parts.
        bank: clips that scenes are composed from; needed for data of the kind `scenes`.
        scenes: how they are composed.
        cache_folder: where frozen features are kept; None = `folder/features`.
        resume: go on from the last whole checkpoint.

    Returns:
        `folder/model`, without frozen language model weights.

    Raises:
        AlmosaicError: parts that do not fit or are missing, bad data, non-finite training, a full disk.
    """
    folder = Path(folder)
    set_seed(draws.key(seed, stage, "weights") % 2**31)
    model, processor = _open(settings, audio_tower, language_model, start)
    apply_tuning(model, settings.tune)
    parts = [_chat_data(data, bank, scenes, seed, stage) for data in settings.data]
    data = ChatDataset(parts)
    bad = BadClips(len(data.source), settings.bad_clip_share)
    data.attempts = bad.attempts

    def write() -> None:
        with whole_folder(folder / "model") as temporary:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)

    if settings.optim.steps == 0:
        write()
        return folder / "model"
    if settings.cache_features:
        arguments = training_arguments(settings.optim, folder, seed)
        with arguments.main_process_first(local=False):
            model.audio_tower.to(arguments.device)
            data.cache = FeatureCache.build(
                model.audio_tower,
                processor.feature_extractor,
                data.source,
                len(data.source),
                cache_folder or folder / "features",
                layer=settings.layer if start is None else model.config.layer,
            )
        bad.note(list(data.cache.bad.items()))
    trainer = AlmosaicTrainer(
        model,
        settings.optim,
        data,
        ChatCollator(processor),
        folder=folder,
        seed=seed,
        stage=stage,
        parts=PARTS,
        prepare=AudioInputs(processor.feature_extractor, bad),
    )
    trainer.run(resume)
    trainer.on_main(write)
    return folder / "model"


class AudioInputs:
    """Makes model inputs of a chat batch on the device: log-mel windows of its waveforms, bad clips counted."""

    def __init__(self, extractor: AudioMosaicFeatureExtractor, bad: BadClips) -> None:
        self.extractor = extractor
        self.bad = bad

    def __call__(self, batch: dict[str, Any], epoch: int) -> dict[str, Any]:
        """`waveforms` [A, S] and `lengths` [A] become `input_features` and their mask; the rest stays."""
        self.bad.note(batch.pop("bad_clips"))
        batch.pop("clip_index")
        if "waveforms" in batch:
            waveforms, lengths = batch.pop("waveforms"), batch.pop("lengths")
            features, mask, _ = self.extractor.featurize(waveforms, lengths)
            batch |= {"input_features": features, "input_features_mask": mask}
        return batch


def _open(
    settings: AlmStageSettings, audio_tower: Path | None, language_model: str | Path | None, start: Path | None
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    if start is not None:
        return _open_earlier(settings, audio_tower, language_model, start)
    if audio_tower is None or language_model is None:
        raise AlmosaicError(
            "an audio-language stage starts from an earlier one, or from both an audio_tower and a language_model; "
            f"found audio_tower {audio_tower} and language_model {language_model}"
        )
    tower, extractor = load_model(audio_tower, kind="pretrain", device="cpu")
    if not isinstance(tower, AudioMosaicModel):
        raise AlmosaicError(f"audio_tower {audio_tower} is not an encoder; name a pretraining stage or encoder folder")
    # Weights that are trained in full need single precision; frozen ones stay as they were published.
    dtype = torch.float32 if settings.tune.language_model == "full" else "auto"
    try:
        tokenizer = AutoTokenizer.from_pretrained(language_model)
        llm = AutoModelForCausalLM.from_pretrained(language_model, dtype=dtype)
    except (OSError, ValueError) as error:
        raise AlmosaicError(
            f"language model {str(language_model)!r} cannot be had ({' '.join(str(error).split())[:200]}); "
            "give a folder, a stage's id, or download it first"
        ) from error
    projector = settings.projector or MLPProjectorSettings()
    model = AlmosaicForConditionalGeneration.from_parts(tower, llm, projector, tokenizer, layer=settings.layer)
    processor = AlmosaicProcessor(
        extractor, tokenizer, queries=projector.queries, max_audio_seconds=settings.max_audio_seconds
    )
    return model, processor


def _open_earlier(
    settings: AlmStageSettings, audio_tower: Path | None, language_model: str | Path | None, start: Path
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    if audio_tower is not None or language_model is not None:
        raise AlmosaicError("give either an earlier stage to start from or an audio_tower and a language_model")
    model, processor = load_model(start, kind="alm", device="cpu")
    if not isinstance(model, AlmosaicForConditionalGeneration):
        raise AlmosaicError(f"{start} is not an audio-language model; name an earlier alm stage")
    kept = model.config.projector
    if settings.projector is not None and settings.projector.model_dump() != kept:
        raise AlmosaicError(f"projector: the stage starts from a model with {kept}; leave `projector` out")
    processor.max_audio_seconds = settings.max_audio_seconds
    return model, processor


def _chat_data(
    settings: SceneChatSettings | CaptionSettings | ChatFileSettings,
    bank: Bank | None,
    scenes: SceneSettings | None,
    seed: int,
    stage: str,
) -> ChatData:
    if isinstance(settings, ChatFileSettings):
        return ChatFileDataset(read_chat(settings.path, settings.audio_root))
    if isinstance(settings, CaptionSettings):
        rows = [row for row in read_manifest(settings.manifest) if _chosen(row.split, settings.splits)]
        rows = [row for row in rows if _chosen(row.fold, settings.folds)]
        return CaptionDataset(rows, draws.key(seed, stage), settings.crop_seconds)
    if bank is None or scenes is None:
        raise AlmosaicError("data of the kind `scenes` needs a bank of clips; add `bank` to the recipe")
    pool = training_pool(bank, scenes, settings.scenes, seed)
    return SceneChatDataset(pool, bank, settings, draws.key(seed, stage), scenes.templates)


def _chosen(value: str | None, allowed: Sequence[str]) -> bool:
    return not allowed or value in allowed
