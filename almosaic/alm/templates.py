"""Which chat template a tokenizer gets, and conversations as text in which the assistant's words are marked.

A family is recognised by what its template writes: a shipped template stands in for a tokenizer's own,
untagged one only when both write the same text for a few short conversations.
"""

import re
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from almosaic.alm.alpaca import ALPACA_SHORT
from almosaic.alm.shipped_templates import CHATML, PLAIN, SHIPPED
from almosaic.errors import AlmosaicError

Message = dict[str, str]

NAMED = {**SHIPPED, "plain": PLAIN, "alpaca_short": ALPACA_SHORT}
_TAG = re.compile(r"{%-?\s*generation\s*-?%}")
_EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
_SYSTEM = {"role": "system", "content": "terse"}
_USER = {"role": "user", "content": "hear"}
_ANSWER = {"role": "assistant", "content": "rain"}
_ANSWERED = [_USER, _ANSWER]


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
    expected = _samples(own, tokenizer)
    for template in SHIPPED.values():
        if _samples(template, tokenizer) == expected:
            return template
    raise AlmosaicError(
        "the tokenizer's chat template has no {% generation %} tags and writes unlike any shipped one "
        f"({', '.join(SHIPPED)}); pass chat_template= with the tags around the assistant's words (in a "
        "recipe the name of a .jinja file)"
    )


def check_template_name(name: str) -> None:
    """Refuse what is neither the name of a shipped template nor that of a `.jinja` file, as AlmosaicError."""
    if name not in NAMED and not name.endswith(".jinja"):
        raise AlmosaicError(
            f"chat_template {name} is none that we ship; name a .jinja file, or one of {', '.join(NAMED)}"
        )


def named_template(name: str) -> str:
    """A shipped template, or the tagged one in a `.jinja` file.

    Raises:
        AlmosaicError: there is no template of that name, the file cannot be read, or it has no tags.
    """
    check_template_name(name)
    if name in NAMED:
        return NAMED[name]
    try:
        template = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise AlmosaicError(f"chat_template {name} cannot be read ({error}); name another file") from error
    if not _TAG.search(template):
        raise AlmosaicError(
            f"chat_template {name} has no {{% generation %}} tags; put them around the assistant's words"
        )
    return template


def _samples(template: str, tokenizer: Any) -> list[str | None]:
    """What a template writes for short conversations; None where it refuses one."""

    def written(messages: list[Message], prompt: bool) -> str | None:
        try:
            return "".join(text for text, _ in render(template, tokenizer, messages, prompt))
        except AlmosaicError:
            return None

    ended = written(_ANSWERED, False)
    # Families that think leave empty thoughts out of earlier turns; here they stay, see `render_training`.
    later = [written([*opening, *_ANSWERED, _USER], True) for opening in ([], [_SYSTEM])]
    return [
        written([_USER], True),
        written([_SYSTEM, _USER], True),
        ended and ended.rstrip(),
        *(text and text.replace(_EMPTY_THOUGHT, "") for text in later),
    ]


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


def render_training(template: str, tokenizer: Any, messages: list[Message]) -> list[tuple[str, bool]]:
    """A whole conversation like `render`, in which every answer begins where the prompt for it would end.

    Raises:
        AlmosaicError: an answer would be learnt behind another text than it is asked for with, or the tags
            leave it out, or they mark more than the answer.
    """
    pieces = render(template, tokenizer, messages)
    starts, position = set(), 0
    for text, assistant in pieces:
        starts |= {position} if assistant else set()
        position += len(text)
    whole = "".join(text for text, _ in pieces)
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    for number, index in enumerate(answers, 1):
        pieces_before = render(template, tokenizer, messages[:index], True) if index else []
        prompt = "".join(text for text, _ in pieces_before)
        if index and (len(prompt) not in starts or not whole.startswith(prompt)):
            raise AlmosaicError(
                f"answer {number} of {len(answers)} would be learnt behind another text than the prompt that "
                "asks for it, since the chat template rewrites turns or tags other words; give conversations "
                "of one answer, or pass chat_template= that writes every turn alike"
            )
    return pieces


def end_token_id(template: str, tokenizer: Any) -> int:
    """Id of the token with which the template ends an answer, at which generation must stop.

    Raises:
        AlmosaicError: the tags mark no answer, or not its end, or it ends in more than one token.
    """
    marked = [text for text, assistant in render(template, tokenizer, _ANSWERED) if assistant]
    if not marked:
        raise AlmosaicError(
            "the chat template marks no assistant words; put {% generation %} tags around them"
        )
    words, _, end = marked[-1].rpartition(_ANSWER["content"])
    if not end.strip():
        raise AlmosaicError(
            "the {% generation %} tags of the chat template leave out what ends an answer, so that no model "
            "would learn to stop; put its end token inside them"
        )
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    before, whole = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (words + _ANSWER["content"], marked[-1])
    )
    tail: list[int] = whole[len(before) :]
    if ends := [token for token in tail if token in special]:
        return ends[0]
    if whole[: len(before)] != before or len(tail) != 1:
        raise AlmosaicError(
            f"the chat template ends an answer with {end!r}, which is {len(tail)} tokens of this tokenizer "
            "and none of its own markers; generation stops at one token: use the template of its family"
        )
    return tail[0]
