"""From a plan to the record of a scene, and from the record to audio: cast, lay out, level, check, render."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

from almosaic.data.draws import generator, key
from almosaic.errors import AlmosaicError
from almosaic.scenes.clips import Bank
from almosaic.scenes.mixing import active_dbfs, cut, mix, problems
from almosaic.scenes.planner import Plan, Planner
from almosaic.scenes.plans import next_plan
from almosaic.scenes.scene import RECIPE_VERSION, Event, Scene, SceneSettings, relations

__all__ = [
    "Event",
    "Scene",
    "ScenePool",
    "SceneSettings",
    "compose",
    "compose_plan",
    "relations",
    "render",
    "scene_pool",
]

PEAK_DBFS = -1.0
GRID_SECONDS = 0.01  # onsets stand on it
BLOCK = 120  # scenes of a template that share one set of decks
SHORTEST_SHARE = 0.5  # a texture fills from this share of its room to all of it
OFFSETS = (0.1, 0.4)  # an overlapping sound begins in this part of the other


@dataclass(frozen=True, slots=True)
class _Cut:
    """The part of a clip that was chosen for a member of the cast."""

    clip_id: str
    start: float
    seconds: float

    @property
    def end(self) -> float:
        return round(self.start + self.seconds, 3)


def render(scene: Scene, bank: Bank) -> NDArray[np.float32]:
    """The audio of a scene, [S] at 16 kHz; the same record gives the same samples.

    Raises:
        AlmosaicError: the bank is not the one that the scene was composed from.
    """
    if scene.bank_fingerprint != bank.fingerprint():
        raise AlmosaicError(
            f"scene {scene.scene_id}: expected the bank {scene.bank_fingerprint[:12]}, found "
            f"{bank.fingerprint()[:12]}; open the bank with the settings it was composed with"
        )
    return mix(scene, bank)


def compose(bank: Bank, settings: SceneSettings, *key_parts: int | str, training: bool = True) -> Scene:
    """One scene for a random template of the settings; it depends on the key parts alone."""
    rng = generator("compose", RECIPE_VERSION, *key_parts)
    template = settings.templates[int(rng.integers(len(settings.templates)))]
    plan = next_plan(Planner(bank, settings, training, rng), template)
    return compose_plan(bank, settings, plan, *key_parts, twins=(int(rng.integers(2)),))[0]


def compose_plan(
    bank: Bank, settings: SceneSettings, plan: Plan, *key_parts: int | str, twins: Sequence[int] = (0, 1)
) -> list[Scene]:
    """The twin scenes of a plan: clips, places, levels and noise are shared but for what the question asks.

    Raises:
        AlmosaicError: no draw passed the check of its audio; names label and clip.
    """
    problem = ""
    for attempt in range(settings.attempts):
        scenes = _cast(bank, settings, plan, twins, key_parts, attempt)
        audio = [mix(scene, bank) for scene in scenes]
        gain_db = _headroom(audio)
        scenes = [replace(scene, gain_db=gain_db) for scene in scenes]
        scale = np.float32(10 ** (gain_db / 20))
        found = (problems(scene, scale * samples) for scene, samples in zip(scenes, audio, strict=True))
        problem = next(chain.from_iterable(found), "")
        if not problem:
            return scenes
    raise AlmosaicError(
        f"no scene for the template {plan.template!r} in {settings.attempts} draws: "
        f"{problem}; mend or remove the clip"
    )


class ScenePool(Sequence[Scene]):
    """Scenes by index, composed when asked for; scene i depends on settings, split, seed and i alone."""

    def __init__(self, bank: Bank, settings: SceneSettings, split: str, count: int, seed: int):
        self.bank, self.settings, self.split, self.seed = bank, settings, split, seed
        self._length = count
        self._scenes: dict[int, Scene] = {}
        self._blocks: dict[int, list[tuple[Plan, int]]] = {}

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...
    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        """Scene by index, or a list of scenes by slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"scene {index} of {self._length}")
        index = int(index) % self._length
        if index not in self._scenes:
            block, place = divmod(index, BLOCK * len(self.settings.templates))
            plan, twin = self._block(block)[place]
            key_parts = (self.split, self.seed, index)
            self._scenes[index] = compose_plan(self.bank, self.settings, plan, *key_parts, twins=(twin,))[0]
        return self._scenes[index]

    def _block(self, block: int) -> list[tuple[Plan, int]]:
        """Templates take turns; so do the twins of a template, after each round of its answers."""
        if block not in self._blocks:
            rng = generator("pool", RECIPE_VERSION, self.seed, self.split, block)
            planner = Planner(self.bank, self.settings, self.split == "train", rng)
            rounds = {"count": self.settings.count_limit, "distinct": self.settings.sounds_limit}
            dealt: Counter[str] = Counter()
            self._blocks[block] = []
            for template in BLOCK * self.settings.templates:
                twin = dealt[template] // rounds.get(template, 1) % 2
                self._blocks[block].append((next_plan(planner, template), twin))
                dealt[template] += 1
        return self._blocks[block]


def scene_pool(bank: Bank, settings: SceneSettings, split: str, count: int, seed: int) -> ScenePool:
    """A lazy sequence of `count` scenes that gives every template of the settings something to ask.

    Scenes of the split "train" never hold two labels whose pair is kept out of training.
    """
    return ScenePool(bank, settings, split, count, seed)


def _cast(
    bank: Bank,
    settings: SceneSettings,
    plan: Plan,
    twins: Sequence[int],
    key_parts: Sequence[int | str],
    attempt: int,
) -> list[Scene]:
    """Choose excerpts, levels and onsets; every draw is made before the twins part."""
    rng = generator("cast", RECIPE_VERSION, *key_parts, attempt)
    cuts = _choose_cuts(bank, settings, plan, rng)
    jitter = rng.uniform(-settings.level_jitter_db, settings.level_jitter_db, len(cuts))
    if plan.template == "louder":
        jitter[:] = jitter[0]  # the gap stays what the settings say
    offset = round(float(rng.uniform(*OFFSETS)) * cuts[0].seconds, 2)
    onsets = _lay_out(settings, plan, cuts, offset, rng)
    noise_dbfs = round(float(rng.uniform(*settings.noise_dbfs)), 2)
    active = [active_dbfs(cut(bank, c.clip_id, c.start, c.end)) for c in cuts]
    scenes = []
    for twin in twins:
        events = []
        for place in plan.twins[twin]:
            chosen = cuts[place.member]
            seconds = settings.short_seconds if place.short else chosen.seconds
            level = settings.level_dbfs + jitter[place.member] - settings.loudness_gap_db * place.quiet
            events.append(
                Event(
                    label=plan.cast[place.member].label,
                    clip_id=chosen.clip_id,
                    source_start=chosen.start,
                    source_end=round(chosen.start + seconds, 3),
                    onset=round(onsets[place.slot] + offset * place.inside, 2),
                    duration=seconds,
                    gain_db=round(float(level - active[place.member]), 2),
                    level_dbfs=round(float(level), 2),
                )
            )
        events.sort(key=lambda event: event.onset)
        scenes.append(
            Scene(
                scene_id="/".join([*map(str, key_parts), "ab"[twin]]),
                template=plan.template,
                seed=key("noise", *key_parts, attempt),
                recipe_version=RECIPE_VERSION,
                bank_fingerprint=bank.fingerprint(),
                duration_seconds=settings.duration_seconds,
                noise_dbfs=noise_dbfs,
                gain_db=0.0,
                events=tuple(events),
                relations=relations(events),
            )
        )
    return scenes


def _choose_cuts(bank: Bank, settings: SceneSettings, plan: Plan, rng: np.random.Generator) -> list[_Cut]:
    """One part of a clip for each member of the cast, no longer than its place has room."""
    room = settings.room(plan.slots)
    cuts: list[_Cut] = []
    for sound in plan.cast:
        if plan.same_excerpt and cuts:
            cuts.append(cuts[0])
            continue
        least = settings.long_seconds if sound.use == "long" else 0.0
        excerpts = bank.excerpts(sound.use, least)[sound.label]
        excerpt = excerpts[int(rng.integers(len(excerpts)))]
        seconds = min(excerpt.end - excerpt.start, least or room)
        start = excerpt.start
        if excerpt.sliding:
            seconds *= 1.0 if least else float(rng.uniform(SHORTEST_SHARE, 1.0))
            start += float(rng.uniform(0.0, excerpt.end - excerpt.start - seconds))
        cuts.append(_Cut(excerpt.clip.id, round(start, 3), int(seconds * 1000) / 1000))
    return cuts


def _lay_out(
    settings: SceneSettings, plan: Plan, cuts: list[_Cut], offset: float, rng: np.random.Generator
) -> dict[int, float]:
    """Onset of every slot in seconds, wide enough for what stands there in either twin."""
    widths: dict[int, int] = {}
    for place in (*plan.twins[0], *plan.twins[1]):
        seconds = cuts[place.member].seconds + offset * place.inside
        widths[place.slot] = max(widths.get(place.slot, 0), _ticks_up(seconds))
    slots = sorted(widths)
    end = _ticks_down(settings.duration_seconds)
    margin, gap = _ticks_up(settings.margin_seconds), _ticks_up(settings.gap_seconds)
    if plan.template != "half":
        return _spread(slots, widths, margin, end - margin, gap, rng)
    middle = end // 2  # nothing may cross it
    early, late = [s for s in slots if s < plan.slots // 2], [s for s in slots if s >= plan.slots // 2]
    return {
        **_spread(early, widths, margin, middle - gap // 2, gap, rng),
        **_spread(late, widths, middle + gap // 2, end - margin, gap, rng),
    }


def _spread(
    slots: list[int], widths: dict[int, int], start: int, end: int, gap: int, rng: np.random.Generator
) -> dict[int, float]:
    """Put slots between two ticks and share the free time out at random; ticks are 10 ms."""
    free = end - start - sum(widths[slot] for slot in slots) - gap * (len(slots) - 1)
    shares = np.sort(rng.integers(0, max(free, 0) + 1, size=len(slots)))
    onsets, used = {}, start
    for slot, share in zip(slots, shares, strict=True):
        onsets[slot] = round((used + int(share)) * GRID_SECONDS, 2)
        used += widths[slot] + gap
    return onsets


def _ticks_up(seconds: float) -> int:
    return math.ceil(round(seconds / GRID_SECONDS, 6))


def _ticks_down(seconds: float) -> int:
    return math.floor(round(seconds / GRID_SECONDS, 6))


def _headroom(audio: Sequence[NDArray[np.float32]]) -> float:
    """The gain in dB, at most 0, that keeps the highest peak of the twins at -1 dBFS."""
    peak = max(float(np.abs(samples).max()) for samples in audio)
    return min(0.0, math.floor(100 * (PEAK_DBFS - 20 * math.log10(peak + 1e-9))) / 100)
