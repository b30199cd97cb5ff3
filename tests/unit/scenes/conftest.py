import pytest

from almosaic.scenes.bank import Bank, SyntheticBank, open_bank


@pytest.fixture(scope="session")
def bank() -> Bank:
    return open_bank(SyntheticBank(clips_per_kind=12), "test")


@pytest.fixture(scope="session")
def train_bank() -> Bank:
    return open_bank(SyntheticBank(clips_per_kind=12), "train")
