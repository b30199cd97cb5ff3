"""The tokenizer of the tiny language model: sentencepiece trained on the task's own sentences."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from almosaic.alm.processing import AUDIO_TOKEN
from almosaic.alm.shipped_templates import CHATML
from almosaic.errors import AlmosaicError

PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "<|im_end|>", "<unk>"
START = "<|im_start|>"
ROLES = ("user", "assistant", "system")


def train_tokenizer(texts: Iterable[str], vocabulary: int, folder: Path) -> PreTrainedTokenizerBase:
    """Train at most `vocabulary` byte-pair pieces and write a folder for `AutoTokenizer.from_pretrained`.

    Bytes are the fall-back, so any text survives encoding and decoding. The chat markers and `<|audio|>` are
    one token each. The folder holds `tokenizer.model`, `tokenizer_config.json` and the chat template.

    Raises:
        AlmosaicError: the vocabulary is too small for bytes, markers and letters.
    """
    import sentencepiece

    model = io.BytesIO()
    sentences = list(texts)  # here, since the library makes an error of its own of a Ctrl-C in an iterator
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocabulary,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=True,
            split_digits=True,
            hard_vocab_limit=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            unk_piece=UNKNOWN,
            bos_piece=BOS,
            eos_piece=EOS,
            pad_piece=PAD,
            user_defined_symbols=[START, AUDIO_TOKEN, "\n", *ROLES],
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise AlmosaicError(
            f"no tokenizer of {vocabulary} pieces can be trained on these texts "
            f"({' '.join(str(error).split())}); change `vocabulary`"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    config = _config({pieces.piece_to_id(role): role for role in ROLES})
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def _config(whole: dict[int, str]) -> dict[str, Any]:
    """The folder's settings; `whole` are ordinary words that must stay one token."""
    plain = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": True, "special": False}
    return {
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": UNKNOWN,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "additional_special_tokens": [START, AUDIO_TOKEN],
        "added_tokens_decoder": {str(id_): {"content": word, **plain} for id_, word in whole.items()},
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": True,
        "legacy": False,
        "clean_up_tokenization_spaces": False,
    }
