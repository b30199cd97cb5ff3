"""The prompt of LTU as a tagged chat template: "alpaca_short", with the audio before everything else.

An instruction is the user's words. Where a system message opens the conversation, it is the instruction and
the user's words are its input. Published models were trained on one question; later turns repeat the blocks.
"""

from typing import Any

from almosaic.messages import AUDIO_TOKEN

# The space behind the first token is what a sentencepiece model puts before every text by itself.
ALPACA_SHORT = (
    "{%- set clips = messages | map(attribute='content') | join('') -%}"
    f"{{{{- '{AUDIO_TOKEN}' * (clips.split('{AUDIO_TOKEN}') | length - 1) -}}}}"
    "{{- bos_token + ' ' -}}"
    "{%- for message in messages -%}"
    f"{{%- set words = message['content'] | replace('{AUDIO_TOKEN}', '') -%}}"
    "{%- if message['role'] == 'assistant' -%}"
    "{%- generation -%}{{- words + eos_token -}}{%- endgeneration -%}"
    "{%- if not loop.last -%}{{- '\\n\\n' -}}{%- endif -%}"
    "{%- elif message['role'] == 'user' and not loop.first and loop.previtem['role'] == 'system' -%}"
    "{%- if words -%}{{- '### Input:\\n' + words + '\\n\\n' -}}{%- endif -%}{{- '### Response:\\n' -}}"
    "{%- else -%}"
    "{{- '### Instruction:\\n' + words + '\\n\\n' -}}"
    "{%- if message['role'] == 'user' -%}{{- '### Response:\\n' -}}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
)

# How the published evaluations decode, one clip at a time, with seed 7.
PUBLISHED_SAMPLING = {
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.95,
    "top_k": 500,
    "repetition_penalty": 1.1,
    "max_new_tokens": 400,
}


def prepare_tokenizer(tokenizer: Any) -> None:
    """Let a Llama tokenizer without a pad token pad with token 0, its unknown token, as LTU does."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
