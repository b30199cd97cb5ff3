"""The one door to the sound banks: their settings and `open_bank`."""

from typing import Annotated

from pydantic import Field

from almosaic.scenes.clips import Bank, BankClip, SoundClass
from almosaic.scenes.joined import JoinedBank, open_joined
from almosaic.scenes.recorded import RecordedBank, open_recorded
from almosaic.scenes.synthetic import SyntheticBank, open_synthetic

__all__ = [
    "Bank",
    "BankClip",
    "BankSettings",
    "JoinedBank",
    "RecordedBank",
    "SoundClass",
    "SyntheticBank",
    "open_bank",
]

BankSettings = Annotated[SyntheticBank | RecordedBank | JoinedBank, Field(discriminator="name")]


def open_bank(settings: SyntheticBank | RecordedBank | JoinedBank, split: str) -> Bank:
    """Open one split ("train", "dev" or "test") of a bank.

    Raises:
        AlmosaicError: a table is missing or wrong, or the split is empty.
    """
    if isinstance(settings, SyntheticBank):
        return open_synthetic(settings, split)
    if isinstance(settings, JoinedBank):
        return open_joined(settings, split)
    return open_recorded(settings, split)
