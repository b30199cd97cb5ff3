"""What several tests of audio-language stages start from, made once."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stages import make_parts, tiny_bank


@pytest.fixture(scope="session")
def bank():
    return tiny_bank()


@pytest.fixture(scope="session")
def parts(bank, tmp_path_factory):
    """An encoder and a language model, hardly trained; not to be written to."""
    return make_parts(tmp_path_factory.mktemp("parts"), bank)
