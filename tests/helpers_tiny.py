"""Tiny random models that several test files share: built in about a second, no network."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from almosaic.alm import AlmosaicForConditionalGeneration, AlmosaicProcessor
from almosaic.alm.projectors import (
    MLPProjectorSettings,
    PoolProjectorSettings,
    QFormerProjectorSettings,
    SegmentQFormerProjectorSettings,
)
from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.features import AudioMosaicFeatureExtractor

WINDOW_FRAMES = 64
# Fields that the configurations of most language model families share.
LANGUAGE_MODEL_SHAPE = {
    "vocab_size": 340,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 3,
}
QUERIES = 4
SENTENCES = (
    "what do you hear in the clip",
    "which sound comes first, the bell or the dog",
    "a dog barks twice, then a bell rings",
    "is there rain in the recording? answer yes or no",
    "user assistant system you are a helpful listener",
)


def tiny_tokenizer(folder: Path, pad_token: bool = True) -> Any:
    """A sentencepiece tokenizer folder with ChatML's markers, loaded through AutoTokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 4),
            model_writer=model,
            vocab_size=340,
            model_type="bpe",
            byte_fallback=True,
            pad_id=3,
            user_defined_symbols=["<|im_start|>", "<|im_end|>"],
            hard_vocab_limit=False,
            minloglevel=2,
        )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": False,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
    } | ({"pad_token": "<pad>"} if pad_token else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


def tiny_language_model(vocabulary: int, seed: int = 0, **changes: Any) -> LlamaForCausalLM:
    """A random Llama of width 32 with two layers."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(**(fields | changes))).eval()


def tiny_encoder(seed: int = 0, **changes: Any) -> AudioMosaicModel:
    """A random encoder of width 32 with two blocks over windows of 64 frames."""
    torch.manual_seed(seed)
    fields: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "window_frames": WINDOW_FRAMES,
        "initializer_range": 0.2,
    }
    return AudioMosaicModel(AudioMosaicConfig(**(fields | changes))).eval()


def tiny_model(
    folder: Path,
    projector: str = "mlp",
    language_model: Any = None,
    audio_tower: AudioMosaicModel | None = None,
    **changes: Any,
) -> tuple[AlmosaicForConditionalGeneration, AlmosaicProcessor]:
    """A whole audio-language model and its processor; `folder` receives the tokenizer."""
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    settings = {
        "mlp": MLPProjectorSettings(queries=QUERIES),
        "pool": PoolProjectorSettings(queries=QUERIES),
        "qformer": QFormerProjectorSettings(queries=QUERIES, hidden_size=32, layers=2, heads=2),
        "segment_qformer": SegmentQFormerProjectorSettings(
            queries=QUERIES, segment_columns=2, hidden_size=32, layers=2, heads=2
        ),
    }[projector]
    model = AlmosaicForConditionalGeneration.from_parts(
        audio_tower or tiny_encoder(),
        language_model or tiny_language_model(len(tokenizer)),
        settings,
        tokenizer,
        **changes,
    )
    extractor = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
    return model.eval(), AlmosaicProcessor(extractor, tokenizer, queries=QUERIES)


def waveform(seconds: float, seed: int = 0) -> NDArray[np.float32]:
    """A seeded sweep in noise, 16 kHz."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    sweep = np.sin(2 * np.pi * time * rng.uniform(200, 2000) * (1 + time * rng.uniform(0, 1)))
    return np.asarray(0.3 * sweep + 0.02 * rng.standard_normal(len(time)), dtype=np.float32)


def question(text: str = "what do you hear", clips: int = 1) -> list[dict[str, Any]]:
    """One user turn: `clips` audio parts, then text."""
    parts: list[dict[str, Any]] = [{"type": "audio"}] * clips
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def answered(text: str = "a dog", clips: int = 1) -> list[dict[str, Any]]:
    """A question with the assistant's answer."""
    return [*question(clips=clips), {"role": "assistant", "content": text}]
