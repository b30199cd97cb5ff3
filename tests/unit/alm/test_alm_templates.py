"""Chat templates: which one a tokenizer gets, what is trained, and where generation stops."""

import pytest
from helpers_tiny import tiny_tokenizer

from almosaic.alm.templates import CHATML, LLAMA3, PLAIN, SHIPPED, choose_template, end_token_id, render
from almosaic.errors import AlmosaicError

TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "what is it"},
    {"role": "assistant", "content": "rain"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]
# Untagged templates as families write them: string-only content, and thinking that Qwen3 puts in by itself.
UNTAGGED_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNTAGGED_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
UNTAGGED_SMOLLM = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNTAGGED_LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(autouse=True)
def _no_template(tokenizer):
    tokenizer.chat_template = None


@pytest.mark.parametrize("name", [*SHIPPED, "plain"])
def test_the_assistant_and_its_end_are_trained_and_nothing_else(tokenizer, name):
    pieces = render(SHIPPED.get(name, PLAIN), tokenizer, TALK)
    trained = [text.strip() for text, assistant in pieces if assistant]
    end = {"llama3": "<|eot_id|>", "plain": "</s>"}.get(name, "<|im_end|>")
    assert trained == [f"rain{end}", f"yes{end}"]
    others = "".join(text for text, assistant in pieces if not assistant)
    assert "be brief" in others and "sure?" in others and "rain" not in others


@pytest.mark.parametrize("name", [*SHIPPED, "plain"])
def test_a_prompt_is_the_beginning_of_what_was_trained(tokenizer, name):
    template = SHIPPED.get(name, PLAIN)
    prompt = render(template, tokenizer, TALK[:4], add_generation_prompt=True)
    whole = "".join(text for text, _ in render(template, tokenizer, TALK))
    assert whole.startswith("".join(text for text, _ in prompt))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (UNTAGGED_CHATML, "chatml"),
        (UNTAGGED_THINKING, "qwen3"),
        (UNTAGGED_SMOLLM, "smollm2"),
        (UNTAGGED_LLAMA3, "llama3"),
    ],
)
def test_an_untagged_template_gets_the_shipped_one_that_writes_the_same(tokenizer, own, expected):
    tokenizer.chat_template = own
    assert choose_template(tokenizer) == SHIPPED[expected]


def test_a_tagged_template_is_used_as_it_is(tokenizer):
    tokenizer.chat_template = "{% generation %}x{% endgeneration %}"
    assert choose_template(tokenizer) == tokenizer.chat_template


def test_without_a_template_chatml_needs_its_markers(tokenizer, monkeypatch):
    assert choose_template(tokenizer) == CHATML
    monkeypatch.setattr(tokenizer, "get_vocab", lambda: {"a": 0})
    assert choose_template(tokenizer) == PLAIN


def test_an_unknown_family_is_an_error_never_a_guess(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
    with pytest.raises(AlmosaicError, match=r"no \{% generation %\} tags and writes unlike any shipped"):
        choose_template(tokenizer)
    tokenizer.chat_template = {"default": CHATML, "tools": CHATML}
    with pytest.raises(AlmosaicError, match="several chat templates"):
        choose_template(tokenizer)


def test_what_a_template_refuses_is_one_clear_error(tokenizer):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    with pytest.raises(AlmosaicError, match="refuses this conversation: no system role"):
        render(refusing, tokenizer, TALK)


def test_generation_stops_at_the_end_of_an_answer(tokenizer):
    assert end_token_id(CHATML, tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_token_id(PLAIN, tokenizer) == tokenizer.eos_token_id
    with pytest.raises(AlmosaicError, match="marks no assistant words"):
        end_token_id(UNTAGGED_CHATML, tokenizer)


def test_llama3_opens_with_its_beginning_of_sequence(tokenizer):
    assert render(LLAMA3, tokenizer, TALK)[0][0].startswith("<s><|start_header_id|>system")
