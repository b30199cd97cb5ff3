"""The chat templates that we ship, tagged: each writes what the published models of its family learnt from.

Written from what the families' own templates produce; tools, dates and non-empty thoughts are left out. A
conversation that a family refuses is refused here, too.
"""

_ALTERNATE = (
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{ raise_exception('user and assistant must take turns, the user first') }}"
    "{%- endif -%}"
)
# The system message, if any, in `system`, and the turns after it in `turns`.
_SPLIT_SYSTEM = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else none -%}"
    "{%- set turns = messages[1:] if system is not none else messages -%}"
)


def _answer(words: str) -> str:
    """A template expression that the assistant is said to have written."""
    return f"{{%- generation -%}}{{{{ {words} }}}}{{%- endgeneration -%}}"


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
        f"{{{{ '{before_answer}' }}}}" + _answer("message['content'] + '<|im_end|>'") + "{%- else -%}"
        "{{ message['content'] + '<|im_end|>' }}"
        "{%- endif -%}"
        "{{ '\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}"
        f"{{{{ '<|im_start|>assistant\\n{before_answer}' }}}}"
        "{%- endif -%}"
    )


def _roles(
    opening: str, end: str, between: str, words: str = "message['content']", closes: bool = False
) -> str:
    """Turns of the form `opening`, words, `end`, `between`, in which `opening` names the role.

    `opening` and `end` are template expressions; with `closes` the end-of-sequence token closes a whole
    conversation, which nothing is trained on.
    """
    return (
        "{%- for message in messages -%}"
        "{%- set role = message['role'] -%}"
        f"{{{{ {opening} }}}}"
        "{%- if role == 'assistant' -%}" + _answer(f"{words} + {end}") + "{%- else -%}"
        f"{{{{ {words} + {end} }}}}"
        "{%- endif -%}"
        f"{{{{ '{between}' }}}}"
        "{%- endfor -%}"
        "{%- set role = 'assistant' -%}"
        f"{{%- if add_generation_prompt -%}}{{{{ {opening} }}}}"
        + ("{%- else -%}{{ eos_token }}" if closes else "")
        + "{%- endif -%}"
    )


def _gemma(system_first: bool) -> str:
    """Gemma; its third generation puts a system message before the first words, others have none."""
    refusal = "{%- if system is not none -%}{{ raise_exception('no system message') }}{%- endif -%}"
    prefix = "{%- if loop.first and system is not none -%}{{ system + '\\n\\n' }}{%- endif -%}"
    return (
        "{{ bos_token }}" + _SPLIT_SYSTEM + ("" if system_first else refusal) + "{%- for message in turns -%}"
        f"{_ALTERNATE}"
        "{%- if message['role'] == 'assistant' -%}"
        "{{ '<start_of_turn>model\\n' }}"
        + _answer("message['content'] | trim + '<end_of_turn>'")
        + "{%- else -%}"
        "{{ '<start_of_turn>' + message['role'] + '\\n' }}"
        + (prefix if system_first else "")
        + "{{ message['content'] | trim + '<end_of_turn>' }}"
        "{%- endif -%}"
        "{{ '\\n' }}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"
    )


def _mistral(opening: str, closing: str, gap: str, system: str) -> str:
    """Mistral: instructions in brackets; a system message stands in the `first` or `last` of them."""
    holder = "loop.index0 == 0" if system == "first" else "loop.index0 == (turns | length - 1) // 2 * 2"
    return (
        "{{ bos_token }}" + _SPLIT_SYSTEM + "{%- for message in turns -%}"
        f"{_ALTERNATE}"
        "{%- if message['role'] == 'assistant' -%}"
        + _answer(f"'{gap}' + message['content'] + eos_token")
        + "{%- else -%}"
        f"{{{{ '{opening}' }}}}"
        f"{{%- if system is not none and {holder} -%}}{{{{ system + '\\n\\n' }}}}{{%- endif -%}}"
        f"{{{{ message['content'] + '{closing}' }}}}"
        "{%- endif -%}"
        "{%- endfor -%}"
    )


LLAMA2 = (
    _SPLIT_SYSTEM + "{%- for message in turns -%}"
    f"{_ALTERNATE}"
    "{%- if message['role'] == 'assistant' -%}"
    + _answer("' ' + message['content'] | trim + ' ' + eos_token")
    + "{%- else -%}"
    "{{ bos_token + '[INST] ' }}"
    "{%- set words = message['content'] -%}"
    "{%- if loop.first and system is not none -%}"
    "{%- set words = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + words -%}"
    "{%- endif -%}"
    "{{ words | trim + ' [/INST]' }}"
    "{%- endif -%}"
    "{%- endfor -%}"
)

# For a base model without a template and without ChatML's markers; the end-of-sequence token ends answers.
PLAIN = (
    "{%- for message in messages -%}"
    "{{ message['role'] | capitalize + ':' }}"
    "{%- if message['role'] == 'assistant' -%}"
    + _answer("' ' + message['content'] + eos_token")
    + "{%- else -%}{{ ' ' + message['content'] }}{%- endif -%}"
    "{{ '\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}"
)
CHATML = _chatml()
LLAMA3 = "{{ bos_token }}" + _roles(
    "'<|start_header_id|>' + role + '<|end_header_id|>\\n\\n'",
    "'<|eot_id|>'",
    "",
    "message['content'] | trim",
)

SHIPPED = {
    "chatml": CHATML,
    # Thinking stays off in training and in use: an empty thought before every answer, as Qwen3 itself does.
    "qwen3": _chatml(before_answer="<think>\\n\\n</think>\\n\\n"),
    "qwen2": _chatml("You are a helpful assistant."),
    "qwen2.5": _chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "smollm2": _chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "gemma": _gemma(system_first=False),
    "gemma3": _gemma(system_first=True),
    "mistral": _mistral(" [INST] ", " [/INST]", " ", "first"),
    "mistral_v3": _mistral("[INST] ", "[/INST]", " ", "last"),
    "mistral_nemo": _mistral("[INST]", "[/INST]", "", "last"),
    "phi3": _roles("'<|' + role + '|>\\n'", "'<|end|>'", "\\n", closes=True),
    "phi4": _roles("'<|im_start|>' + role + '<|im_sep|>'", "'<|im_end|>'", ""),
    "phi4_mini": _roles("'<|' + role + '|>'", "'<|end|>'", "", closes=True),
    # TinyLlama's chat model, too.
    "zephyr": _roles("'<|' + role + '|>\\n'", "eos_token", "\\n"),
}
