"""Five reference captions of a scene, and its timeline: both written from the record alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from almosaic.scenes.clips import Bank, SoundClass
from almosaic.scenes.facts import Facts, caption_facts, compare_facts, facts
from almosaic.scenes.scene import LOUDER_DB, Event, Scene

__all__ = ["Facts", "caption_facts", "captions", "compare_facts", "facts", "timeline"]

SILENCE = "_"

_TIMES = (
    "once",
    "twice",
    "three times",
    "four times",
    "five times",
    "six times",
    "seven times",
    "eight times",
)


@dataclass(frozen=True, slots=True)
class _Voice:
    """One sound of a caption: repeats of a label that follow each other, with what may be said of them."""

    kind: SoundClass
    events: tuple[Event, ...]
    loudness: str  # "", "loud" or "quiet"
    counted: bool

    @property
    def noun(self) -> str:
        noun = self.kind.noun_phrase
        if self.loudness:
            article = noun.split()[0] in ("a", "an")
            noun = f"a {self.loudness} {noun.split(maxsplit=1)[1]}" if article else f"{self.loudness} {noun}"
        return f"{noun} {self.times}" if self.counted else noun

    @property
    def clause(self) -> str:
        manner = {"": "", "loud": " loudly", "quiet": " quietly"}[self.loudness]
        return f"{self.kind.clause}{manner}" + (f" {self.times}" if self.counted else "")

    @property
    def times(self) -> str:
        number = len(self.events)
        return _TIMES[number - 1] if number <= len(_TIMES) else f"{number} times"


def captions(scene: Scene, bank: Bank) -> list[str]:
    """Five references: single sounds, sequences, overlaps, counts and loudness, as the record has them.

    Counts are said where a scene repeats one sound, loudness only of two sounds with a planned difference.
    """
    groups = _groups(_voices(scene, bank))
    if len(groups) > 1:
        return _sequence(groups)
    if len(groups[0]) > 1:
        return _overlap(groups[0])
    return _single(groups[0][0])


def timeline(scene: Scene, bank: Bank, slots: int) -> str:
    """One word per slot of equal length: the answer of what sounds there, `_` for silence, `a+b` for both.

    Words of an answer are joined by hyphens. A sound holds the slots that it fills by half, at least one.
    """
    step = scene.duration_seconds / slots
    words: list[list[str]] = [[] for _ in range(slots)]
    for event in scene.events:
        word = bank.classes[event.label].answer.replace(" ", "-")
        filled = [
            slot
            for slot in range(slots)
            if min(event.end, (slot + 1) * step) - max(event.onset, slot * step) >= step / 2
        ]
        for slot in filled or [min(int((event.onset + event.duration / 2) / step), slots - 1)]:
            words[slot].extend([word] if word not in words[slot] else [])
    return " ".join("+".join(slot) or SILENCE for slot in words)


def _voices(scene: Scene, bank: Bank) -> list[_Voice]:
    """Events in order, repeats that follow each other drawn together."""
    runs: list[list[Event]] = []
    for event in scene.events:
        if runs and runs[-1][0].label == event.label:
            runs[-1].append(event)
        else:
            runs.append([event])
    counted = len(scene.labels) == 1 and (scene.template == "count" or len(scene.events) > 1)
    louder = scene.relations["louder"]
    voices = []
    for run in runs:
        loudness = "" if louder is None else "loud" if run[0].label == louder else "quiet"
        kind = bank.classes[run[0].label]
        voices.append(_Voice(kind, tuple(run), loudness, counted or len(run) > 1))
    return voices


def _groups(voices: Sequence[_Voice]) -> list[list[_Voice]]:
    """Voices that overlap in time belong together."""
    groups: list[list[_Voice]] = []
    end = -1.0
    for voice in voices:
        if groups and voice.events[0].onset < end:
            groups[-1].append(voice)
        else:
            groups.append([voice])
        end = max(end, voice.events[-1].end)
    return groups


def _single(voice: _Voice) -> list[str]:
    noun, clause = voice.noun, voice.clause
    return [noun, clause, f"the sound of {noun}", f"you can hear {noun}", f"this is {noun}"]


def _overlap(group: Sequence[_Voice]) -> list[str]:
    nouns, clauses = [voice.noun for voice in group], [voice.clause for voice in group]
    a, b = nouns[0], " and ".join(clauses[1:])
    front, back = group[0].events[0].level_dbfs, group[-1].events[0].level_dbfs
    last = f"{' and '.join(nouns)} at the same time"
    if len(group) == 2 and front - back >= LOUDER_DB:
        last = f"{a} with {nouns[1]} in the background"
    return [
        f"{a} while {b}",
        f"{clauses[0]} as {b}",
        f"{a} together with {' and '.join(nouns[1:])}",
        f"{' and '.join(clauses)} at the same time",
        last,
    ]


def _sequence(groups: Sequence[Sequence[_Voice]]) -> list[str]:
    nouns = [_joined(group, clauses=False) for group in groups]
    clauses = [_joined(group, clauses=True) for group in groups]
    later = "".join(f", and then {noun}" for noun in nouns[2:])
    return [
        " followed by ".join(nouns),
        ", then ".join(clauses),
        f"first {nouns[0]}" + "".join(f", and after that {noun}" for noun in nouns[1:]),
        f"{nouns[1]} comes after {nouns[0]}{later}",
        ", then ".join(nouns),
    ]


def _joined(group: Sequence[_Voice], clauses: bool) -> str:
    head, *rest = (voice.clause if clauses else voice.noun for voice in group)
    return head if not rest else f"{head} {'as' if clauses else 'together with'} {' and '.join(rest)}"
