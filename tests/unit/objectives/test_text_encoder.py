"""The text encoder: bytes in, one vector per text, whatever stands beside it."""

import pytest
import torch
from pydantic import ValidationError

from almosaic.errors import AlmosaicError
from almosaic.objectives.text_encoder import TextEncoder, TextEncoderSettings

TEXTS = ["dog", "a dog barks while it rains", "Hühner, 鶏", "x" * 64, "dog barking", "god"]


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = TextEncoder(TextEncoderSettings(width=32, layers=2, heads=4, max_bytes=64))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return encoder


@pytest.mark.parametrize("trains", [True, False])
def test_a_text_does_not_depend_on_the_texts_beside_it(encoder, trains):
    encoder.train(trains)
    together = encoder(TEXTS)
    with torch.no_grad():  # where torch takes a path of its own through its layers
        alone = torch.cat([encoder([text]) for text in TEXTS])
    assert together.shape == (6, 32) and together.requires_grad
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(together, encoder(TEXTS[::-1]).flip(0), atol=2e-6, rtol=1e-5)
    assert torch.equal(together, encoder(TEXTS))


def test_padding_gets_no_gradient(encoder):
    encoder.zero_grad()
    encoder(["ab", "abcd"]).sum().backward()
    touched = encoder.pos_embed.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert touched == [0, 1, 2, 3]
    assert encoder.byte_embed.weight.grad[0].abs().max() == 0.0  # byte 0 is what fills a short text up
    assert encoder.byte_embed.weight.grad[ord("d")].abs().max() > 0.0


def test_bytes_and_their_order_count(encoder):
    vectors = encoder(["dog", "god", "doG", "dog "])
    assert torch.pdist(vectors).min() > 1e-2


def test_tokens_are_the_bytes_of_utf_8(encoder):
    tokens, valid = encoder.tokens(["é", "abc"])
    assert tokens.tolist() == [[0xC3, 0xA9, 0], [97, 98, 99]]
    assert valid.tolist() == [[True, True, False], [True, True, True]]


def test_equal_texts_are_read_once(encoder, monkeypatch):
    seen = []
    read = encoder.tokens
    monkeypatch.setattr(encoder, "tokens", lambda texts: (seen.append(texts), read(texts))[1])
    vectors = encoder(["b", "a", "b", "b"])
    assert seen == [["b", "a"]] and torch.equal(vectors[0], vectors[3])
    assert not torch.equal(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[1], encoder(["a"])[0], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("text, found", [("", "0 in ''"), ("ä" * 33, "66 in 'äää"), ("y" * 65, "65 in 'yyy")])
def test_a_text_that_is_empty_or_too_long_is_named(encoder, text, found):
    with pytest.raises(AlmosaicError, match=rf"texts of 1 to 64 bytes, found {found}.*raise max_bytes"):
        encoder(["fine", text])


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(ValidationError, match="width 30 and 4 heads"):
        TextEncoderSettings(width=30, heads=4)


def test_half_a_character_is_a_text_too(encoder):
    assert encoder(["\ud83d"]).isfinite().all()  # half of a surrogate pair, as cut JSON may hold it
