"""What an audio-language stage learns from: scenes, captioned manifests, chat files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from almosaic.data import draws
from almosaic.data.chat_files import ChatFileDataset, root_of_clips
from almosaic.data.chat_forms import Format
from almosaic.data.datasets import CaptionDataset, ChatData
from almosaic.data.formats import ChatRows
from almosaic.data.manifest import read_manifest
from almosaic.data.mixture import WeightedChat
from almosaic.data.scene_chat import SceneChatDataset, SceneChatSettings, training_pool
from almosaic.data.shards import ShardClips
from almosaic.data.sources import shard_paths
from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import Bank
from almosaic.scenes.scene import SceneSettings
from almosaic.settings import Settings

Weight = Annotated[float, Field(gt=0)]


class CaptionSettings(Settings):
    """Captioned clips of a manifest; `splits` and `folds` choose rows, empty = all.

    Args:
        crop_seconds: of long clips a random cut of this length, None = whole clips.
        weight: passes over the rows in an epoch.
    """

    name: Literal["captions"] = "captions"
    manifest: Path
    splits: tuple[str, ...] = ()
    folds: tuple[str, ...] = ()
    crop_seconds: float | None = Field(default=None, gt=0)
    weight: Weight = 1.0


class ChatFileSettings(Settings):
    """Conversations of files; see `data.formats` for what they may look like.

    Args:
        path: a `.jsonl`, `.json`, `.csv` or `.tsv` file, or several.
        format: of the records; `auto` = recognised from the keys of each.
        audio_root: folder that relative audio paths start from, None = the folder of each file; with
            `archives`, what stands before the names of members.
        archives: tar archives, by paths or patterns, in which the clips' names are looked up.
        prompt: asked of clips whose records bring no question.
        weight: passes over the rows in an epoch.
    """

    name: Literal["chat"] = "chat"
    path: Path | Annotated[tuple[Path, ...], Field(min_length=1)]
    format: Format = "auto"
    audio_root: Path | None = None
    archives: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    prompt: str | None = None
    weight: Weight = 1.0


AnyChatSettings = SceneChatSettings | CaptionSettings | ChatFileSettings
ChatSettings = Annotated[AnyChatSettings, Field(discriminator="name")]


def open_chat_data(
    settings: AnyChatSettings, bank: Bank | None, scenes: SceneSettings | None, seed: int, stage: str
) -> ChatData:
    """The conversations that these settings name; what is asked depends on (seed, stage, epoch, row).

    Raises:
        AlmosaicError: a file that is wrong, scenes without a bank, or a weight that leaves no row.
    """
    key = draws.key(seed, stage)
    data = _opened(settings, bank, scenes, seed, key)
    return data if settings.weight == 1 else WeightedChat(data, settings.weight, key)


def _opened(
    settings: AnyChatSettings, bank: Bank | None, scenes: SceneSettings | None, seed: int, key: int
) -> ChatData:
    if isinstance(settings, ChatFileSettings):
        return open_chat_files(settings)
    if isinstance(settings, CaptionSettings):
        rows = [row for row in read_manifest(settings.manifest) if _chosen(row.split, settings.splits)]
        rows = [row for row in rows if _chosen(row.fold, settings.folds)]
        return CaptionDataset(rows, key, settings.crop_seconds)
    if bank is None or scenes is None:
        raise AlmosaicError("data of the kind `scenes` needs a bank of clips; add `bank` to the recipe")
    pool = training_pool(bank, scenes, settings.scenes, seed)
    return SceneChatDataset(pool, bank, settings, key, scenes.templates)


def open_chat_files(settings: ChatFileSettings) -> ChatFileDataset:
    """The conversations of files, each row checked once.

    Raises:
        AlmosaicError: a file, a row or an archive that cannot be used.
    """
    archives = None if settings.archives is None else ShardClips(shard_paths(settings.archives))
    root = root_of_clips(settings.audio_root, archives)
    return ChatFileDataset(ChatRows(settings.path, root, settings.format, settings.prompt), archives)


def _chosen(value: str | None, allowed: Sequence[str]) -> bool:
    return not allowed or value in allowed
