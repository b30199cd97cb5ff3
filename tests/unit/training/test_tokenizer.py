"""The tiny tokenizer loses nothing, keeps markers whole and comes back from its folder the same."""

import pytest
from transformers import AutoTokenizer

from almosaic.alm.shipped_templates import CHATML
from almosaic.alm.templates import choose_template
from almosaic.errors import AlmosaicError
from almosaic.training.tokenizer import train_tokenizer

SENTENCES = [
    "Which sound comes first, a dog or a bell?",
    "_ _ dog dog dog _ _ bell bell _",
    "a dog barks twice, then a bell rings",
    "someone knocks while steam hisses 3",
    "yes",
]
UNSEEN = [
    "the user used it, systems too",
    "Österreich, 42 µV!",
    "two  spaces",
    "line one\nline two",
    "日本語 🎧",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(SENTENCES * 20, 400, folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("text", SENTENCES + UNSEEN)
def test_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize(
    "marker", ["<|im_start|>", "<|im_end|>", "<|audio|>", "<pad>", "\n", "user", "assistant"]
)
def test_markers_are_one_token(tokenizer, marker):
    ids = tokenizer(f"<|im_start|>{marker}", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|im_start|>", marker]


def test_words_of_the_task_are_one_token_and_the_same_in_any_place(tokenizer):
    alone = tokenizer("bell", add_special_tokens=False)["input_ids"]
    assert len(alone) == 1
    assert tokenizer("bell<|im_end|>", add_special_tokens=False)["input_ids"][:1] == alone
    assert tokenizer("a dog or a bell", add_special_tokens=False)["input_ids"][-1:] == alone


def test_roles_of_special_tokens(tokenizer):
    assert tokenizer.pad_token == "<pad>" and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode([tokenizer.eos_token_id], skip_special_tokens=True) == ""
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}) == 3


def test_it_takes_the_same_chat_template_as_any_chatml_model(tokenizer):
    assert choose_template(tokenizer) == CHATML


def test_saved_again_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in SENTENCES + UNSEEN:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_the_vocabulary_is_a_bound_and_too_small_a_one_an_error(tmp_path):
    assert len(train_tokenizer(SENTENCES, 5000, tmp_path / "a")) < 500
    with pytest.raises(AlmosaicError, match=r"no tokenizer of 100 pieces .* change `vocabulary`"):
        train_tokenizer(SENTENCES, 100, tmp_path / "b")


def test_a_ctrl_c_among_the_texts_stays_one(tmp_path):
    def texts():
        yield from SENTENCES
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(texts(), 400, tmp_path)
