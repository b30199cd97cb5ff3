"""Conversations about composed scenes, heard or read: a fresh question or caption per scene and epoch."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from pydantic import Field
from torch.utils.data import Dataset

from almosaic.data import draws
from almosaic.data.clips import SceneClips
from almosaic.data.datasets import Conversation
from almosaic.data.formats import Message, question
from almosaic.data.prompts import CAPTION_PROMPTS, TIMELINE_PROMPTS
from almosaic.errors import AlmosaicError
from almosaic.scenes.bank import Bank
from almosaic.scenes.captions import captions, timeline
from almosaic.scenes.compose import ScenePool, scene_pool
from almosaic.scenes.questions import ask
from almosaic.scenes.scene import TEMPLATES, Scene, SceneSettings, Template
from almosaic.settings import Settings


@lru_cache(maxsize=4)
def training_pool(bank: Bank, scenes: SceneSettings, count: int, seed: int) -> ScenePool:
    """Scenes of the split "train"; stages of one run that ask for the same share the composed records."""
    return scene_pool(bank, scenes, "train", count, seed)


class SceneQuestionSettings(Settings):
    """What is asked of a pool of composed scenes, heard or read.

    Args:
        scenes: scenes in the pool; one pass over them is an epoch.
        templates: names of question templates, or weights by name; None = those the scenes are composed for.
        captions: share of the rows that ask for a caption.
        timelines: share of the rows that ask for the timeline.
        slots: words of a timeline.
        turns: questions asked of a scene in one conversation, which reads the clip or its text once for all.
    """

    scenes: int = Field(default=6000, ge=1)
    templates: tuple[Template, ...] | dict[Template, float] | None = None
    captions: float = Field(default=0.15, ge=0, le=1)
    timelines: float = Field(default=0.0, ge=0, le=1)
    slots: int = Field(default=32, ge=2)
    turns: int = Field(default=1, ge=1)


class SceneChatSettings(SceneQuestionSettings):
    """Conversations about composed scenes; `weight` is how many passes over the pool an epoch makes."""

    name: Literal["scenes"] = "scenes"
    weight: float = Field(default=1.0, gt=0)


class SceneTextSettings(SceneQuestionSettings):
    """The text side of the same conversations: a text takes the clip's place.

    `timeline_contexts` is the share of questions whose context is a timeline; the others have a caption.
    """

    name: Literal["scene_texts"] = "scene_texts"
    timeline_contexts: float = Field(default=0.5, ge=0, le=1)


class SceneChatDataset(Dataset[Conversation]):
    """One conversation per (scene, epoch): `id`, `messages` and `clips`.

    What is asked depends on (seed, epoch, scene) alone.
    """

    def __init__(
        self,
        pool: Sequence[Scene],
        bank: Bank,
        settings: SceneQuestionSettings,
        seed: int,
        templates: Sequence[Template] = TEMPLATES,
    ) -> None:
        self.pool, self.bank, self.settings, self.seed = pool, bank, settings, seed
        self.source = SceneClips(pool, bank)
        self.epoch = 0
        weights = templates if settings.templates is None else settings.templates
        self.weights: dict[Template, float] = (
            dict(weights) if isinstance(weights, Mapping) else dict.fromkeys(weights, 1.0)
        )
        if not self.weights and settings.captions + settings.timelines < 1:
            raise AlmosaicError(
                "no templates are given and captions + timelines are below 1; give one of them"
            )

    def __len__(self) -> int:
        return len(self.pool)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose questions are asked."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> Conversation:
        rng = draws.generator(self.seed, "ask", self.epoch, index)
        scene = self.pool[index]
        turns = [self._first_turn(scene, rng)]
        for _ in range(1, self.settings.turns if self.weights else 1):
            asked = self._question(scene, rng)
            if asked is not None and asked not in turns:
                turns.append(asked)
        messages: list[Message] = []
        for prompt, answer in turns:
            messages += [
                question(prompt, clips=0 if messages else 1),
                {"role": "assistant", "content": answer},
            ]
        return {"id": f"{scene.scene_id}/{self.epoch}", "messages": messages, "clips": [index]}

    def outline(self, index: int) -> Conversation:
        """The first conversation of the epoch, about this scene, which needs not be composed for it."""
        return {**self[0], "clips": [index]}

    def _first_turn(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
        """What the user asks about a scene and what the assistant answers: caption, timeline or question."""
        chance = rng.random()
        if chance < self.settings.captions:
            return self._caption(scene, rng)
        if chance < self.settings.captions + self.settings.timelines:
            return _pick(TIMELINE_PROMPTS, rng), timeline(scene, self.bank, self.settings.slots)
        return self._question(scene, rng) or self._caption(scene, rng)

    def _caption(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
        return _pick(CAPTION_PROMPTS, rng), _pick(captions(scene, self.bank), rng)

    def _question(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str] | None:
        """Question and answer of the first template, in a drawn order, that fits the scene."""
        asked = (ask(scene, self.bank, template, rng) for template in self._order(rng))
        return next(((one.question, one.answer) for one in asked if one is not None), None)

    def _order(self, rng: np.random.Generator) -> list[Template]:
        """The templates in the order in which they are tried: drawn by weight, without replacement."""
        names = list(self.weights)
        keys = rng.exponential(size=len(names)) / np.array([self.weights[name] for name in names])
        return [names[i] for i in np.argsort(keys)]


class SceneTextDataset(SceneChatDataset):
    """The same conversations with `context`, the text that stands where the clip would be heard."""

    settings: SceneTextSettings

    def __getitem__(self, index: int) -> Any:
        row = super().__getitem__(index)
        rng = draws.generator(self.seed, "context", self.epoch, index)
        scene = self.pool[index]
        asked = row["messages"][0]["content"][-1]["text"]
        # A caption is asked of a timeline and a timeline of a caption: copying would teach nothing.
        if asked in CAPTION_PROMPTS:
            as_timeline = True
        elif asked in TIMELINE_PROMPTS:
            as_timeline = False
        else:
            as_timeline = bool(rng.random() < self.settings.timeline_contexts)
        if as_timeline:
            context = timeline(scene, self.bank, self.settings.slots)
        else:
            context = _pick(captions(scene, self.bank), rng)
        return {**row, "context": context}


def _pick(texts: Sequence[str], rng: np.random.Generator) -> str:
    return texts[int(rng.integers(len(texts)))]
