"""The built-in sound bank: two dozen kinds of sound made from numbers, CC0 by construction."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from almosaic.data.draws import generator
from almosaic.errors import AlmosaicError
from almosaic.scenes import waves
from almosaic.scenes.clips import Bank, BankClip, SoundClass
from almosaic.settings import Settings

GENERATOR_VERSION = 1  # part of every draw: raise it when a sound changes
EVENT_SECONDS = (0.4, 0.9)
TEXTURE_SECONDS = 4.5
LEVEL_DB = 3.0
EDGE_SECONDS = 0.008


@dataclass(frozen=True, slots=True)
class Kind:
    """A class of the generator and the function that draws one sound of it."""

    sound_class: SoundClass
    renderer: waves.Renderer


# label | group | noun phrase | clause | aliases | confusable with; answer = label
_EVENTS = """
beep     | signals    | a beep     | a device beeps         | beeps; beeping           | warble; tremolo
doorbell | signals    | a doorbell | a doorbell rings       | door bell                | bell
riser    | effects    | a riser    | a riser climbs         | rising tone              | siren
faller   | effects    | a faller   | a faller drops         | falling tone             | zap
zap      | effects    | a zap      | a laser zaps           | zaps; laser              | faller
bird     | nature     | a bird     | a bird chirps          | chirp; chirping          | warble
drum     | percussion | a drum     | a drum is hit          | drum hit                 | knock
bell     | music      | a bell     | a bell rings           | bell ringing             | doorbell; chord
pluck    | music      | a pluck    | a string is plucked    | plucked string; string   | chord
chord    | music      | a chord    | a chord is played      | musical chord            | bell; pluck; tremolo
vowel    | music      | a vowel    | a voice sings a vowel  | voice; singing           | buzz
"""
# A knock is several raps, so "how many times" has no clear answer: no counting.
_UNCOUNTED = """
knock    | percussion | a knock    | someone knocks         | knocks; knocking         | drum
"""
_TEXTURES = """
siren    | signals    | a siren    | a siren wails          | wailing                  | warble; riser
warble   | signals    | a warble   | a tone warbles         | warbles; warbling        | siren; bird; beep
tremolo  | effects    | a tremolo  | a tone trembles        | trembling tone           | beep; chord
wind     | nature     | wind       | wind blows             | wind blowing; gust       | engine
bubbles  | nature     | bubbles    | bubbles rise           | bubbling                 | crackle
crackle  | nature     | a crackle  | a fire crackles        | crackles; crackling; fire | tick; bubbles
hiss     | machines   | a hiss     | air hisses             | hisses; hissing          | steam; shaker
steam    | machines   | steam      | steam puffs            | puffs; puffing           | hiss; shaker
buzz     | machines   | a buzz     | a wire buzzes          | buzzes; buzzing          | engine; vowel
engine   | machines   | an engine  | an engine runs         | motor                    | buzz; wind
tick     | percussion | a tick     | a clock ticks          | ticks; ticking; clock    | crackle
shaker   | percussion | a shaker   | a shaker rattles       | rattle; rattling         | hiss; steam
"""


def _kinds(table: str, kind: Literal["event", "texture"], countable: bool) -> dict[str, Kind]:
    found = {}
    for line in table.strip().splitlines():
        label, group, noun_phrase, clause, aliases, confusable = (cell.strip() for cell in line.split("|"))
        sound_class = SoundClass(
            label=label,
            group=group,
            kind=kind,
            noun_phrase=noun_phrase,
            clause=clause,
            answer=label,
            aliases=tuple(alias.strip() for alias in aliases.split(";")),
            confusable_with=tuple(other.strip() for other in confusable.split(";")),
            countable=countable,
        )
        renderer: waves.Renderer = getattr(waves, label)
        found[label] = Kind(sound_class, renderer)
    return found


KINDS: dict[str, Kind] = {
    **_kinds(_EVENTS, "event", countable=True),
    **_kinds(_UNCOUNTED, "event", countable=False),
    **_kinds(_TEXTURES, "texture", countable=False),
}


class SyntheticBank(Settings):
    """The built-in bank: `clips_per_kind` clips of every kind; splits differ by their draws alone."""

    name: Literal["synthetic"] = "synthetic"
    clips_per_kind: int = Field(default=40, ge=1)
    seed: int = Field(default=0, ge=0)


def render_kind(kind: str, rng: np.random.Generator, seconds: float | None = None) -> NDArray[np.float32]:
    """Draw one sound [S] of a kind at 16 kHz, peak near 0.5; textures may have any length.

    Args:
        kind: a label of `KINDS`.
        rng: where every parameter comes from.
        seconds: the length; None draws an event's or takes a texture's usual one.

    Raises:
        AlmosaicError: there is no such kind.
    """
    if kind not in KINDS:
        raise AlmosaicError(f"expected a kind of sound, found {kind!r}; there are {', '.join(KINDS)}")
    if seconds is None:
        seconds = usual_seconds(kind, rng)
    samples = round(seconds * waves.RATE)
    wave = KINDS[kind].renderer(rng, samples)
    edge = np.minimum(np.arange(samples) + 1, int(EDGE_SECONDS * waves.RATE)) / int(EDGE_SECONDS * waves.RATE)
    level = 0.5 * 10 ** (rng.uniform(-LEVEL_DB, LEVEL_DB) / 20)
    wave = wave * np.minimum(edge, edge[::-1])
    audio: NDArray[np.float32] = (wave * (level / np.abs(wave).max())).astype(np.float32)
    return audio


def usual_seconds(kind: str, rng: np.random.Generator) -> float:
    """How long a clip of this kind is: an event 0.4-0.9 s, a texture 4.5 s to be cut from."""
    if KINDS[kind].sound_class.kind == "texture":
        return TEXTURE_SECONDS
    return round(float(rng.uniform(*EVENT_SECONDS)), 3)


def open_synthetic(settings: SyntheticBank, split: str) -> Bank:
    """The bank of one split; nothing is rendered before it is asked for."""
    clips = []
    for label, kind in KINDS.items():
        for index in range(settings.clips_per_kind):
            name = f"{GENERATOR_VERSION}/{settings.seed}/{split}/{label}/{index:04d}"
            span = (0.0, usual_seconds(label, generator("seconds", name)))
            clips.append(
                BankClip(
                    id=name,
                    label=label,
                    split=split,
                    fold=None,
                    audio=f"synthetic:{name}",
                    regions=(span,),
                    events=(span,) if kind.sound_class.countable else (),
                )
            )
    classes = {label: kind.sound_class for label, kind in KINDS.items()}
    return Bank(classes, clips, _render_clip)


def _render_clip(clip: BankClip) -> NDArray[np.float32]:
    return render_kind(clip.label, generator("sound", clip.id), clip.regions[0][1])
