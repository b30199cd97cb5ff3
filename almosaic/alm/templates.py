"""Chat templates with `{% generation %}` tags, one per family; labels cover the assistant's words only.

A family is recognised by what its template writes: a shipped template stands in for a tokenizer's own,
untagged one only when both write the same text for three short conversations.
"""

import re
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from almosaic.errors import AlmosaicError

Message = dict[str, str]


def _chatml(default_system: str = "", before_answer: str = "") -> str:
    """ChatML; `default_system` opens a conversation that brings none, `before_answer` precedes answers."""
    opening = ""
    if default_system:
        opening = (
            "{%- if messages[0]['role'] != 'system' -%}"
            f"{{{{ '<|im_start|>system\\n{default_system}<|im_end|>\\n' }}}}"
            "{%- endif -%}"
        )
    return (
        opening + "{%- for message in messages -%}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{%- if message['role'] == 'assistant' -%}"
        f"{{{{ '{before_answer}' }}}}"
        "{%- generation -%}{{ message['content'] + '<|im_end|>' }}{%- endgeneration -%}"
        "{%- else -%}{{ message['content'] + '<|im_end|>' }}{%- endif -%}"
        "{{ '\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        f"{{{{ '<|im_start|>assistant\\n{before_answer}' }}}}"
        "{%- endif -%}"
    )


CHATML = _chatml()

LLAMA3 = (
    "{{ bos_token }}"
    "{%- for message in messages -%}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ message['content'] | trim + '<|eot_id|>' }}{%- endgeneration -%}"
    "{%- else -%}{{ message['content'] | trim + '<|eot_id|>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"
)

# For a base model without a template and without ChatML's markers; the end-of-sequence token ends answers.
PLAIN = (
    "{%- for message in messages -%}"
    "{{ message['role'] | capitalize + ':' }}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{ ' ' + message['content'] + eos_token }}{%- endgeneration -%}"
    "{%- else -%}{{ ' ' + message['content'] }}{%- endif -%}"
    "{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)

SHIPPED = {
    "chatml": CHATML,
    # Thinking stays off in training and in use: an empty thought before every answer, as Qwen3 itself does.
    "qwen3": _chatml(before_answer="<think>\\n\\n</think>\\n\\n"),
    "qwen2": _chatml("You are a helpful assistant."),
    "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "llama3": LLAMA3,
}

_TAG = re.compile(r"{%-?\s*generation\s*-?%}")
_PROBES: tuple[tuple[list[Message], bool], ...] = (
    ([{"role": "user", "content": "hear"}], True),
    ([{"role": "user", "content": "hear"}, {"role": "assistant", "content": "rain"}], False),
    ([{"role": "system", "content": "terse"}, {"role": "user", "content": "hear"}], True),
)


def choose_template(tokenizer: Any) -> str:
    """The tagged chat template for a tokenizer.

    Its own template when tagged; else the shipped one that writes the same text; for a tokenizer without any,
    ChatML if it knows ChatML's markers, otherwise plain "User: ... Assistant: ..." lines.

    Raises:
        AlmosaicError: the tokenizer's own template has no tags and no shipped template writes the same text.
    """
    own = tokenizer.chat_template
    if own is None:
        vocabulary = tokenizer.get_vocab()
        return CHATML if {"<|im_start|>", "<|im_end|>"} <= vocabulary.keys() else PLAIN
    if not isinstance(own, str):
        raise AlmosaicError(
            f"the tokenizer has several chat templates ({', '.join(own)}); pass one of them as chat_template="
        )
    if _TAG.search(own):
        return own
    expected = [_probe(own, tokenizer, *probe) for probe in _PROBES]
    for template in SHIPPED.values():
        if [_probe(template, tokenizer, *probe) for probe in _PROBES] == expected:
            return template
    raise AlmosaicError(
        "the tokenizer's chat template has no {% generation %} tags and writes unlike any shipped one "
        f"({', '.join(SHIPPED)}); pass chat_template= with the tags around the assistant's words"
    )


def _probe(template: str, tokenizer: Any, messages: list[Message], prompt: bool) -> str | None:
    try:
        return "".join(text for text, _ in render(template, tokenizer, messages, prompt)).rstrip()
    except AlmosaicError:
        return None


def render(
    template: str, tokenizer: Any, messages: list[Message], add_generation_prompt: bool = False
) -> list[tuple[str, bool]]:
    """A conversation as pieces of text, each with whether the assistant wrote it (its end token included).

    Raises:
        AlmosaicError: the template refuses the conversation (for example a system message).
    """
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    try:
        texts, spans = render_jinja_template(
            [messages],
            chat_template=template,
            return_assistant_tokens_mask=bool(_TAG.search(template)),
            add_generation_prompt=add_generation_prompt,
            enable_thinking=False,
            **special,
        )
    except TemplateError as error:
        raise AlmosaicError(f"the chat template refuses this conversation: {error}") from error
    pieces, position = [], 0
    for start, end in spans[0] if spans else []:
        pieces += [(texts[0][position:start], False), (texts[0][start:end], True)]
        position = end
    pieces.append((texts[0][position:], False))
    return [piece for piece in pieces if piece[0]]


def end_token_id(template: str, tokenizer: Any) -> int:
    """Id of the token with which the template ends an answer, at which generation must stop."""
    pieces = render(template, tokenizer, _PROBES[1][0])
    answers = [text for text, assistant in pieces if assistant]
    if not answers:
        raise AlmosaicError(
            "the chat template marks no assistant words; put {% generation %} tags around them"
        )
    ids: list[int] = tokenizer(answers[-1], add_special_tokens=False)["input_ids"]
    return ids[-1]
