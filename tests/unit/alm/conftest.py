"""Tiny audio-language models for these tests; those that change a model build their own."""

import pytest
from helpers_tiny import tiny_model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A model with the mlp projector, and its processor; do not change them."""
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_qformer(tmp_path_factory):
    """The same with the qformer projector."""
    return tiny_model(tmp_path_factory.mktemp("tiny-qformer"), "qformer")
