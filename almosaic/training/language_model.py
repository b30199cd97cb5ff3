"""The text side: a small Llama, or an open model, answers questions about scenes that it reads about."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Discriminator, Field, Tag
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from almosaic.alm.processing import AlmosaicProcessor
from almosaic.data import draws
from almosaic.data.collate import TextCollator
from almosaic.data.scene_chat import SceneTextDataset, SceneTextSettings, training_pool
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.scenes.bank import Bank
from almosaic.scenes.scene import SceneSettings
from almosaic.settings import Settings
from almosaic.training.alm_parts import open_language_model
from almosaic.training.callbacks import quiet_library
from almosaic.training.checkpoints import write_model
from almosaic.training.optim import OptimSettings
from almosaic.training.tokenizer import train_tokenizer
from almosaic.training.trainer import AlmosaicTrainer

PARTS = {"language_model": ""}
TOKENIZER_ROWS = 3000


class TinyLanguageModel(Settings):
    """A Llama trained from scratch with a tokenizer of its own; `vocabulary` bounds the number of pieces."""

    name: Literal["tiny"] = "tiny"
    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=4, ge=1)
    intermediate_size: int = Field(default=512, ge=8)
    vocabulary: int = Field(default=768, ge=300)
    max_tokens: int = Field(default=4096, ge=64)


class OpenLanguageModel(Settings):
    """A causal language model from the hub or a folder, with its own tokenizer."""

    name: str


def _kind(value: Any) -> str:
    name = value.get("name", "tiny") if isinstance(value, dict) else getattr(value, "name", "tiny")
    return "tiny" if name == "tiny" else "open"


LanguageModelSource = Annotated[
    Annotated[TinyLanguageModel, Tag("tiny")] | Annotated[OpenLanguageModel, Tag("open")],
    Discriminator(_kind),
]


class LanguageModelSettings(Settings):
    """A stage that trains a language model on the text side of a task.

    Args:
        language_model: `{name: tiny, ...}`, or `{name: NAME}` of a folder or a model of the hub.
        data: conversations in which a text stands where the clip will be heard.
        full_text: train on every token of a conversation, not on the assistant's alone.
        optim: length, batch, learning rate.
    """

    language_model: LanguageModelSource = TinyLanguageModel()
    data: SceneTextSettings = SceneTextSettings()
    full_text: bool = False
    optim: OptimSettings = OptimSettings(
        steps=1800,
        learning_rate=2e-3,
        warmup=0.03,
        schedule="constant_then_linear",
        decay_share=0.3,
        weight_decay=0.01,
    )


@quiet_library()
def train_language_model(
    settings: LanguageModelSettings,
    *,
    bank: Bank,
    scenes: SceneSettings,
    folder: Path,
    seed: int,
    stage: str = "language_model",
    resume: bool = False,
) -> Path:
    """Train on texts about scenes of the split "train"; no audio is rendered beyond the scenes' own check.

    Returns:
        `folder/model`, a Hugging Face folder with its tokenizer, as a model of the hub would be.

    Raises:
        AlmosaicError: the model cannot be had, non-finite training, or a full disk.
    """
    folder = Path(folder)
    pool = training_pool(bank, scenes, settings.data.scenes, seed)
    data = SceneTextDataset(pool, bank, settings.data, draws.key(seed, stage), scenes.templates)
    set_seed(draws.key(seed, stage, "weights") % 2**31)
    model, tokenizer = _open(settings.language_model, data, folder)
    extractor = AudioMosaicFeatureExtractor()
    processor = AlmosaicProcessor(extractor, tokenizer, queries=1)
    if settings.optim.steps == 0:
        return write_model(folder, model, tokenizer)
    trainer = AlmosaicTrainer(
        model,
        settings.optim,
        data,
        TextCollator(processor, extractor.window_frames, settings.full_text),
        folder=folder,
        seed=seed,
        stage=stage,
        parts=PARTS,
        prepare=_model_inputs,
    )
    trainer.run(resume)
    return trainer.on_main(lambda: write_model(folder, model, tokenizer))


def _model_inputs(batch: dict[str, Any], epoch: int, progress: float) -> dict[str, Any]:
    return {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}


def _open(
    source: TinyLanguageModel | OpenLanguageModel, data: SceneTextDataset, folder: Path
) -> tuple[Any, Any]:
    """Model and tokenizer: fresh ones, or those of a name."""
    if isinstance(source, OpenLanguageModel):
        return open_language_model(source.name, torch.float32)
    tokenizer = train_tokenizer(_texts(data), source.vocabulary, folder / "tokenizer")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=source.hidden_size,
        intermediate_size=source.intermediate_size,
        num_hidden_layers=source.layers,
        num_attention_heads=source.heads,
        num_key_value_heads=source.heads,
        max_position_embeddings=source.max_tokens,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config), tokenizer


def _texts(data: SceneTextDataset) -> Iterator[str]:
    """What the tokenizer is trained on: the texts of the first epoch, and every sound's names."""
    for index in range(min(len(data), TOKENIZER_ROWS)):
        row = data[index]
        yield row["context"]
        for message in row["messages"]:
            yield (
                message["content"] if isinstance(message["content"], str) else message["content"][-1]["text"]
            )
    for sound in data.bank.classes.values():
        yield from (sound.noun_phrase, sound.clause, sound.answer)
