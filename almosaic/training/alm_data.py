"""What an audio-language stage learns from: scenes, captioned manifests, chat files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from almosaic.data import draws
from almosaic.data.chat_files import ChatFileDataset
from almosaic.data.datasets import CaptionDataset, ChatData
from almosaic.data.formats import read_chat
from almosaic.data.manifest import read_manifest
from almosaic.data.scene_chat import SceneChatDataset, SceneChatSettings, training_pool
from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import Bank
from almosaic.scenes.scene import SceneSettings
from almosaic.settings import Settings


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


ChatSettings = Annotated[SceneChatSettings | CaptionSettings | ChatFileSettings, Field(discriminator="name")]


def open_chat_data(
    settings: SceneChatSettings | CaptionSettings | ChatFileSettings,
    bank: Bank | None,
    scenes: SceneSettings | None,
    seed: int,
    stage: str,
) -> ChatData:
    """The conversations that these settings name; what is asked depends on (seed, stage, epoch, row).

    Raises:
        AlmosaicError: a file that is wrong, or scenes without a bank.
    """
    key = draws.key(seed, stage)
    if isinstance(settings, ChatFileSettings):
        return ChatFileDataset(read_chat(settings.path, settings.audio_root))
    if isinstance(settings, CaptionSettings):
        rows = [row for row in read_manifest(settings.manifest) if _chosen(row.split, settings.splits)]
        rows = [row for row in rows if _chosen(row.fold, settings.folds)]
        return CaptionDataset(rows, key, settings.crop_seconds)
    if bank is None or scenes is None:
        raise AlmosaicError("data of the kind `scenes` needs a bank of clips; add `bank` to the recipe")
    pool = training_pool(bank, scenes, settings.scenes, seed)
    return SceneChatDataset(pool, bank, settings, key, scenes.templates)


def _chosen(value: str | None, allowed: Sequence[str]) -> bool:
    return not allowed or value in allowed
