"""Several banks of recordings as one, so that speech, music and everyday sounds meet in one scene."""

from dataclasses import replace
from typing import Literal

from pydantic import Field

from almosaic.errors import AlmosaicError
from almosaic.scenes.clips import Bank, BankClip, SoundClass
from almosaic.scenes.recorded import RecordedBank, load_clip, open_recorded
from almosaic.settings import Settings


class JoinedBank(Settings):
    """Banks of recordings by name; the name stands before the ids of their clips."""

    name: Literal["joined"] = "joined"
    banks: dict[str, RecordedBank] = Field(min_length=1)


def open_joined(settings: JoinedBank, split: str) -> Bank:
    """Open the same split of every bank.

    Raises:
        AlmosaicError: see `open_recorded`; or two banks describe one label differently.
    """
    classes: dict[str, SoundClass] = {}
    owner: dict[str, str] = {}
    clips: list[BankClip] = []
    for name, one in settings.banks.items():
        bank = open_recorded(one, split)
        for label, kind in bank.classes.items():
            if classes.setdefault(label, kind) != kind:
                raise AlmosaicError(
                    f"banks {owner[label]} and {name} describe the label {label!r} differently; "
                    "make the two rows of their classes equal, or rename one label"
                )
            owner.setdefault(label, name)
        clips += [replace(clip, id=f"{name}/{clip.id}") for clip in bank.clips]
    return Bank(classes, clips, load_clip)
