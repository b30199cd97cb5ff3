"""Chat templates without tags that write what those of the families write, in words of our own."""

_CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
_CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_NO_THOUGHT = "<think>\n\n</think>\n\n"
_TAKE_SYSTEM = (
    "{% if messages[0].role == 'system' %}"
    "{% set s = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}"
)
_GEMMA_TURN = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
)
_GEMMA_PROMPT = "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"


def _brackets(opening: str, closing: str, gap: str, where: str) -> str:
    """Mistral's instructions; the system message stands in the `first` or `last` turn."""
    return (
        _TAKE_SYSTEM + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        f"{opening}{{% if s is defined and loop.{where} %}}{{{{ s + '\n\n' }}}}{{% endif %}}"
        f"{{{{ m.content }}}}{closing}"
        f"{{% else %}}{{{{ '{gap}' + m.content + eos_token }}}}{{% endif %}}{{% endfor %}}"
    )


UNTAGGED = {
    "chatml": "{% for m in messages %}" + _CHATML_TURN + "{% endfor %}" + _CHATML_PROMPT,
    # Puts empty thoughts in by itself, and leaves them out of earlier turns.
    "qwen3": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}" + _NO_THOUGHT + "{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}" + _NO_THOUGHT + "{% endif %}{% endif %}",
    "smollm2": "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    + _CHATML_TURN
    + "{% endfor %}"
    + _CHATML_PROMPT,
    "llama3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "llama2": _TAKE_SYSTEM + "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
    "{% if s is defined and loop.first %}{{ '<<SYS>>\n' + s + '\n<</SYS>>\n\n' }}{% endif %}"
    "{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "gemma": "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}{% for m in messages %}"
    + _GEMMA_TURN
    + "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    + _GEMMA_PROMPT,
    "gemma3": "{{ bos_token }}"
    + _TAKE_SYSTEM
    + "{% for m in messages %}"
    + _GEMMA_TURN
    + "{{ s + '\n\n' if s is defined and loop.first else '' }}"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}" + _GEMMA_PROMPT,
    "mistral": _brackets(" [INST] ", " [/INST]", " ", "first"),
    "mistral_v3": _brackets("[INST] ", "[/INST]", " ", "last"),
    "mistral_nemo": _brackets("[INST]", "[/INST]", "", "last"),
    "phi3": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    "phi4": "{% for m in messages %}<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
    "phi4_mini": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
    "zephyr": "{% for m in messages %}\n<|{{ m.role }}|>\n{{ m.content + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}
