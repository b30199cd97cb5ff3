"""Classes, clips and scene records written by hand."""

import numpy as np

from almosaic.scenes.bank import BankClip, SoundClass
from almosaic.scenes.scene import Event, Scene, relations


def sound_class(label: str, group: str = "one", **fields: object) -> SoundClass:
    phrases = {"noun_phrase": f"a {label}", "clause": f"a {label} sounds", "answer": label, "kind": "event"}
    return SoundClass(label=label, group=group, **{**phrases, **fields})  # type: ignore[arg-type]


def clip(name: str, label: str, **fields: object) -> BankClip:
    common = {"split": "test", "fold": "1", "audio": name, "regions": ((0.0, 1.0),)}
    return BankClip(id=name, label=label, **{**common, **fields})  # type: ignore[arg-type]


def silence(clip: BankClip) -> np.ndarray:
    return np.zeros(16_000, dtype=np.float32)


def record(*sounds: tuple[str, float, float], template: str = "presence", levels: tuple = ()) -> Scene:
    """A ten-second scene of (label, onset, end), written by hand."""
    events = [
        Event(label, f"{label}-1", 0.0, end - onset, onset, end - onset, 0.0, level)
        for (label, onset, end), level in zip(sounds, levels or [-23.0] * len(sounds), strict=True)
    ]
    events.sort(key=lambda event: event.onset)
    return Scene("hand", template, 1, 1, "none", 10.0, -60.0, 0.0, tuple(events), relations(events))  # type: ignore[arg-type]
