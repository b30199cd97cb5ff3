"""Captions of composed scenes, scored by n-grams for continuity and decided by facts.

Beside the model stand the same model on silence, one caption for everything, the most frequent caption of the
training scenes, and as an upper check a reference caption. Running and scoring are apart, as for questions.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from almosaic.audio import SAMPLING_RATE
from almosaic.data.formats import question
from almosaic.data.prompts import CAPTION_PROMPTS
from almosaic.errors import AlmosaicError
from almosaic.evaluation.controls import AUDIO, ORACLE, Record
from almosaic.evaluation.metrics import bleu, cider_d, rouge_l
from almosaic.inference import generate
from almosaic.scenes.bank import Bank
from almosaic.scenes.captions import caption_facts, captions, compare_facts, facts
from almosaic.scenes.compose import render, scene_pool
from almosaic.scenes.scene import Scene, SceneSettings
from almosaic.settings import Settings

CONSTANT = "constant caption"
MAJORITY = "majority caption"
CONSTANT_CAPTION = "a sound is heard"
HEARD = (AUDIO, "silence")
FACTS = ("precision", "recall", "f1", "order", "count", "overlap")


class CaptioningSettings(Settings):
    """What is captioned and how.

    `majority_scenes` training scenes give the majority caption; with `compare` the stage's compared models
    write captions too.
    """

    name: Literal["captioning"] = "captioning"
    scenes: int = Field(default=200, ge=1)
    split: str = "test"
    seed: int = 0
    prompt: str = CAPTION_PROMPTS[0]
    majority_scenes: int = Field(default=500, ge=1)
    compare: bool = False
    batch_size: int = Field(default=16, ge=1)
    max_new_tokens: int = Field(default=48, ge=1)


def run(
    model: Any,
    processor: Any,
    bank: Bank,
    scene_settings: SceneSettings,
    settings: CaptioningSettings,
    progress: Callable[[int, int], None] | None = None,
    *,
    train_bank: Bank | None = None,
) -> list[dict[str, Any]]:
    """Caption the scenes of a split with audio and with silence, and lay the baselines beside them.

    Args:
        model: An `AlmosaicForConditionalGeneration`.
        processor: Its processor.
        bank: The clips of `settings.split`.
        scene_settings: How scenes are composed.
        settings: What is captioned.
        progress: Called with (captions written, captions in all).
        train_bank: The training clips, for the majority caption; None leaves that baseline out.

    Returns:
        Records of `id, condition, prompt, references, prediction, facts`.
    """
    scenes = list(scene_pool(bank, scene_settings, settings.split, settings.scenes, settings.seed))
    records: list[dict[str, Any]] = []
    for condition in HEARD:
        answers = generate(
            model,
            processor,
            conversations(scenes, bank, settings.prompt, silent=condition == "silence"),
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
        )
        for scene, answer in zip(scenes, answers, strict=True):
            if "error" in answer:
                raise AlmosaicError(f"scene {scene.scene_id} ({condition}) has no caption: {answer['error']}")
            records.append(record(scene, bank, condition, answer["prediction"], settings.prompt))
            if progress is not None:
                progress(len(records), len(HEARD) * len(scenes))
    fixed = {CONSTANT: CONSTANT_CAPTION}
    if train_bank is not None:
        fixed[MAJORITY] = majority_caption(
            train_bank, scene_settings, settings.majority_scenes, settings.seed
        )
    for condition, text in fixed.items():
        records += [record(scene, bank, condition, text, settings.prompt) for scene in scenes]
    upper = [record(scene, bank, ORACLE, captions(scene, bank)[0], settings.prompt) for scene in scenes]
    return records + upper


def conversations(
    scenes: Sequence[Scene], bank: Bank, prompt: str, *, silent: bool = False
) -> Iterator[dict[str, Any]]:
    """One request for a caption per scene, rendered when taken; `silent` plays zeros of the same length."""
    for scene in scenes:
        waveform = render(scene, bank)
        heard = np.zeros_like(waveform) if silent else waveform
        yield {"id": scene.scene_id, "messages": [question(prompt)], "audios": [(heard, SAMPLING_RATE)]}


def record(scene: Scene, bank: Bank, condition: str, prediction: str, prompt: str) -> dict[str, Any]:
    """The record of one caption, its facts compared with those of the scene."""
    return {
        "id": scene.scene_id,
        "condition": condition,
        "prompt": prompt,
        "references": captions(scene, bank),
        "prediction": prediction,
        "facts": compare_facts(facts(scene), caption_facts(prediction, bank)),
    }


def majority_caption(bank: Bank, scene_settings: SceneSettings, scenes: int, seed: int) -> str:
    """The most frequent reference caption of that many training scenes, the first of equals by alphabet."""
    pool = scene_pool(bank, scene_settings, "train", scenes, seed)
    counts = Counter(text for scene in pool for text in captions(scene, bank))
    return min(counts, key=lambda text: (-counts[text], text))


def score(records: Sequence[Record]) -> dict[str, Any]:
    """N-gram metrics and facts of every condition.

    Returns:
        `clips`, `systems {condition: {bleu1 .. bleu4, rouge_l, cider_d, precision, recall, f1, order, count,
        overlap}}`, `skipped {metric: reason}`. Facts are means over the captions that state them; where none
        does, the value is None.

    Raises:
        AlmosaicError: No records, or conditions with different clips.
    """
    by_condition: dict[str, list[Record]] = defaultdict(list)
    for one in records:
        by_condition[one["condition"]].append(one)
    if AUDIO not in by_condition:
        raise AlmosaicError(
            f"expected captions of condition 'audio', found {', '.join(by_condition) or 'none'}"
        )
    clips = [one["id"] for one in by_condition[AUDIO]]
    skipped: dict[str, str] = {}
    systems: dict[str, dict[str, float | None]] = {}
    for condition, own in by_condition.items():
        if [one["id"] for one in own] != clips:
            raise AlmosaicError(
                f"captions of condition {condition!r} are of other clips than those with audio"
            )
        predictions = [one["prediction"] for one in own]
        references = [one["references"] for one in own]
        system: dict[str, float | None] = {**bleu(predictions, references)}
        system["rouge_l"] = rouge_l(predictions, references)
        try:
            system["cider_d"] = cider_d(predictions, references)
        except AlmosaicError as error:
            system["cider_d"] = None
            skipped["cider_d"] = str(error)
        systems[condition] = system | {name: _mean([one["facts"][name] for one in own]) for name in FACTS}
    if MAJORITY not in by_condition:
        skipped[MAJORITY] = "no training clips were given"
    return {"clips": len(clips), "systems": systems, "skipped": skipped}


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are there."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None
