"""The audio-language stages: projector alignment, LoRA or full tuning, frozen features from a cache."""

from pathlib import Path
from typing import Any

from pydantic import Field
from transformers import set_seed

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor, TuneSettings, apply_tuning
from almosaic.alm.projectors import ProjectorSettings
from almosaic.alm.quantization import Scheme
from almosaic.alm.templates import check_template_name
from almosaic.alm.tuning import PARTS
from almosaic.audio import MAX_SECONDS
from almosaic.data import draws
from almosaic.data.clips import BadClips
from almosaic.data.collate import ChatCollator
from almosaic.data.datasets import ChatData, ChatDataset
from almosaic.data.scene_chat import SceneChatSettings
from almosaic.errors import AlmosaicError
from almosaic.feature_cache import FeatureCache
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.scenes.bank import Bank
from almosaic.scenes.scene import SceneSettings
from almosaic.settings import Settings
from almosaic.training.alm_data import ChatSettings, open_chat_data
from almosaic.training.alm_parts import Parts, join_parts, open_start
from almosaic.training.callbacks import quiet_library
from almosaic.training.checkpoints import write_model
from almosaic.training.optim import OptimSettings, training_arguments
from almosaic.training.trainer import AlmosaicTrainer

_NO_SHARDS = (
    "trainer.fsdp cannot shard a language model quantised to {}; leave fsdp out, so that each process holds "
    "all of it, or leave quantize out"
)


class AlmStageSettings(Settings):
    """A stage that trains parts of the audio-language model.

    Args:
        projector: of a model joined from parts; None = 32 audio tokens through an MLP, or the earlier
            stage's.
        layer: 0-based encoder block that the projector reads, None = the output; of a model joined from
            parts.
        chat_template: a shipped one by name (`alpaca_short` is the prompt of LTU) or a tagged one in a
            `.jinja` file; of a model joined from parts. None = the one of the language model's family, or the
            earlier stage's.
        quantize: load the frozen language model of a model joined from parts in 4 or 8 bits, through
            bitsandbytes; None = as it is published, or as the earlier stage did.
        tune: what is trained.
        train_on_prompt: learn to write the questions too, as LTU does, not the answers alone.
        data: conversations, taken in proportion to their number.
        cache_features: encode every clip once and train on the stored tokens; needs a frozen audio tower.
        max_audio_seconds: a longer clip is an error, never cut.
        bad_clip_share: the run stops when more than this share of the rows cannot be used: clips that cannot
            be read, placeholders without a clip, more tokens than the language model reads.
        group_by_length: put rows of like length into a batch, which saves padding. Lengths are exact but for
            scenes: of those the clips count, and the words of one conversation for all.
        optim: length, batch, learning rates per part (`audio_tower`, `projector`, `language_model`).
    """

    projector: ProjectorSettings | None = None
    layer: int | None = None
    chat_template: str | None = None
    quantize: Scheme | None = None
    tune: TuneSettings = TuneSettings.model_validate({})
    train_on_prompt: bool = False
    data: tuple[ChatSettings, ...] = Field(default=(SceneChatSettings(),), min_length=1)
    cache_features: bool = False
    max_audio_seconds: float = Field(default=MAX_SECONDS, gt=0)
    bad_clip_share: float = Field(default=0.01, ge=0, lt=1)
    group_by_length: bool = False
    optim: OptimSettings = OptimSettings(steps=600, learning_rate=1e-3, weight_decay=0.0)

    def model_post_init(self, _context: Any) -> None:
        """Refuse templates that are not there, and keys that do not go together."""
        if self.chat_template is not None:
            check_template_name(self.chat_template)
        if self.quantize is not None and self.tune.language_model == "full":
            raise AlmosaicError(
                f"tune.language_model: full cannot train weights quantised to {self.quantize}; use lora, or "
                "leave quantize out"
            )
        if self.quantize is not None and self.optim.trainer.get("fsdp"):
            raise AlmosaicError(_NO_SHARDS.format(self.quantize))
        if self.cache_features and self.tune.audio_tower != "frozen":
            raise AlmosaicError(
                "cache_features: true needs tune.audio_tower: frozen, since a changing encoder makes stored "
                "features stale; set one of them otherwise"
            )


@quiet_library()
def train_alm(
    settings: AlmStageSettings,
    *,
    parts: Parts,
    folder: Path,
    seed: int,
    stage: str = "alm",
    bank: Bank | None = None,
    scenes: SceneSettings | None = None,
    cache_folder: Path | None = None,
    resume: bool = False,
) -> Path:
    """Train an audio-language model, joined from parts or taken from an earlier stage.

    Args:
        settings: of the stage.
        parts: where the model comes from.
        folder: of the stage; checkpoints and `model` are written there.
        seed: of the run.
        stage: the stage's id, part of every draw.
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
    model, processor = _open(settings, parts)
    layers = _layers(model, settings.optim)
    apply_tuning(model, settings.tune)
    if settings.optim.steps == 0:
        return write_model(folder, model, processor)
    rows = [open_chat_data(part, bank, scenes, seed, stage) for part in settings.data]
    data, bad = _dataset(settings, rows, model, processor, cache_folder or folder / "features")
    trainer = AlmosaicTrainer(
        model,
        settings.optim,
        data,
        ChatCollator(processor, settings.train_on_prompt),
        folder=folder,
        seed=seed,
        stage=stage,
        parts=PARTS,
        prepare=AudioInputs(processor.feature_extractor, bad),
        lengths=data.lengths if settings.group_by_length else None,
        every_row=True,
        layers=layers,
    )
    trainer.run(resume)
    return trainer.write_model(processor)


def _dataset(
    settings: AlmStageSettings,
    rows: list[ChatData],
    model: AlmosaicForConditionalGeneration,
    processor: AlmosaicProcessor,
    cache_folder: Path,
) -> tuple[ChatDataset, BadClips]:
    """The conversations with their clips or features, and the count of those that cannot be used."""
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    data = ChatDataset(rows, processor, context)
    data.source.allow_seconds(settings.max_audio_seconds)
    bad = BadClips(len(data), settings.bad_clip_share, unit="row")
    data.attempts = bad.attempts
    if settings.cache_features:
        data.cache = _cache(settings, model, processor, data, cache_folder)
        BadClips(len(data.source), settings.bad_clip_share).note(list(data.cache.bad.items()))
    return data, bad


class AudioInputs:
    """Makes model inputs of a chat batch on the device: log-mel windows of its clips, bad rows counted."""

    def __init__(self, extractor: AudioMosaicFeatureExtractor, bad: BadClips) -> None:
        self.extractor = extractor
        self.bad = bad

    def __call__(self, batch: dict[str, Any], epoch: int, progress: float) -> dict[str, Any]:
        """`waveforms` [A, S] and `lengths` [A] become `input_features` and their mask; the rest stays.

        The metric `padding_share` is the share of the tokens that only fill rows up.
        """
        self.bad.note(batch.pop("bad_clips"))
        batch.pop("clip_index")
        batch["metrics"] = {"padding_share": 1.0 - batch["attention_mask"].float().mean()}
        if "waveforms" in batch:
            waveforms, lengths = batch.pop("waveforms"), batch.pop("lengths")
            features, mask, _ = self.extractor.featurize(waveforms, lengths)
            batch |= {"input_features": features, "input_features_mask": mask}
        return batch


def _open(
    settings: AlmStageSettings, parts: Parts
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    if parts.start is not None:
        if settings.chat_template is not None:
            raise AlmosaicError("chat_template: the earlier stage has chosen one; leave `chat_template` out")
        model, processor = open_start(parts, settings.projector, settings.layer, settings.quantize)
    else:
        trains_words = settings.tune.language_model == "full"
        model, processor = join_parts(
            parts,
            settings.projector,
            settings.layer,
            chat_template=settings.chat_template,
            trains_words=trains_words,
            quantize=settings.quantize,
        )
    processor.max_audio_seconds = settings.max_audio_seconds
    return model, processor


def _layers(model: AlmosaicForConditionalGeneration, optim: OptimSettings) -> list[str]:
    """Classes of the language model's layers, which a sharded model gathers one at a time.

    The audio parts are gathered with the rest, since a batch without clips does not run through them.
    """
    kinds = {type(module).__name__ for module in model.language_model.modules()}
    found = sorted(kinds & set(model.language_model._no_split_modules or ()))
    if optim.trainer.get("fsdp"):
        if model.config.language_model_quantization is not None:
            raise AlmosaicError(_NO_SHARDS.format(model.config.language_model_quantization))
        if not found and "transformer_layer_cls_to_wrap" not in (optim.trainer.get("fsdp_config") or {}):
            raise AlmosaicError(
                f"trainer.fsdp: {type(model.language_model).__name__} does not say what its layers are; name "
                "their class in trainer.fsdp_config.transformer_layer_cls_to_wrap"
            )
    return found


def _cache(
    settings: AlmStageSettings,
    model: AlmosaicForConditionalGeneration,
    processor: AlmosaicProcessor,
    data: ChatDataset,
    folder: Path,
) -> FeatureCache:
    """The frozen tokens of every clip, made by the main process."""
    arguments = training_arguments(settings.optim, folder.parent, 0)
    with arguments.main_process_first(local=False):
        return FeatureCache.build(
            model.audio_tower.to(arguments.device),
            processor.feature_extractor,
            data.source,
            len(data.source),
            folder,
            layer=model.config.layer,
        )
