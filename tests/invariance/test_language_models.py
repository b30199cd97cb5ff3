"""Any causal language model will do: loudness, training, left padding, full and partial folders by family."""

import pytest
import torch
from helpers_tiny import LANGUAGE_MODEL_SHAPE, QUERIES, answered, question, tiny_model, waveform
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from almosaic.alm import TuneSettings, apply_tuning, load_partial
from almosaic.inference import generate

COMMON = {"vocab_size": 340, "initializer_range": 0.2}
# One layer that sees the last 16 tokens and one that sees all; the prompts below are longer than that.
MIXED = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {
    "llama": LlamaConfig(**LANGUAGE_MODEL_SHAPE),
    "qwen2": Qwen2Config(use_sliding_window=True, **MIXED, **LANGUAGE_MODEL_SHAPE),
    "qwen3": Qwen3Config(head_dim=8, tie_word_embeddings=True, **LANGUAGE_MODEL_SHAPE),
    "mistral": MistralConfig(sliding_window=16, **LANGUAGE_MODEL_SHAPE),
    # Words that the table multiplies by the square root of the width, and tied tables.
    "gemma": GemmaConfig(head_dim=8, **LANGUAGE_MODEL_SHAPE),
    "gemma2": Gemma2Config(head_dim=8, **MIXED, **LANGUAGE_MODEL_SHAPE),
    "gemma3": Gemma3TextConfig(head_dim=8, **MIXED, **LANGUAGE_MODEL_SHAPE),
    # The model, not the table, multiplies them.
    "granite": GraniteConfig(embedding_multiplier=12.0, **LANGUAGE_MODEL_SHAPE),
    # Rotates half of each head, and has a bias per word in its output layer.
    "phi": PhiConfig(partial_rotary_factor=0.5, **LANGUAGE_MODEL_SHAPE),
    "phi3": Phi3Config(sliding_window=16, **LANGUAGE_MODEL_SHAPE),
    # Absolute positions and transposed weights: the one that notices where counting starts.
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **COMMON),
}


@pytest.fixture(params=FAMILIES)
def built(request, tmp_path):
    """A model of one family, its processor, and a training batch of two rows with four windows."""
    AutoModelForCausalLM.from_config(FAMILIES[request.param]).save_pretrained(tmp_path / "lm")
    language_model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    bias = getattr(language_model.get_output_embeddings(), "bias", None)
    if bias is not None:
        torch.nn.init.normal_(bias, std=0.1)
        language_model.save_pretrained(tmp_path / "lm")
    model, processor = tiny_model(tmp_path, language_model=language_model)
    audio = [[waveform(0.4, 1)], [waveform(1.2, 2), waveform(0.3, 3)]]
    talks = [answered("yes"), answered("a dog", clips=2)]
    return model, processor, processor(talks, audio, add_generation_prompt=False)


def scores(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def test_the_first_block_hears_audio_as_loud_as_words(built):
    model, processor, batch = built
    inner = model.language_model.base_model
    entering = []
    (inner.h if hasattr(inner, "h") else inner.layers)[0].register_forward_pre_hook(
        lambda layer, inputs: entering.append(inputs[0])
    )
    scores(model, batch)
    heard = batch["input_ids"] == processor.audio_token_id
    said = batch["attention_mask"].bool() & ~heard
    assert heard.sum() == 4 * QUERIES
    loudness = [entering[0][places].std().item() for places in (heard, said)]
    assert loudness[0] == pytest.approx(loudness[1], rel=0.35)


def test_a_full_folder_comes_back_through_the_auto_class(built, tmp_path):
    model, processor, batch = built
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(scores(loaded, batch), scores(model, batch))
    rows = len(processor.tokenizer)
    for table in (loaded.get_input_embeddings(), loaded.get_output_embeddings()):
        assert table.weight.shape[0] == rows == loaded.config.text_config.vocab_size
        values = [table.weight, getattr(table, "bias", None)]
        for value in (value for value in values if value is not None):
            assert torch.allclose(value[-1], value[:-1].mean(dim=0), atol=1e-5)


def test_a_step_of_training_comes_back_from_a_partial_folder(built, tmp_path):
    model, _, batch = built
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=2, lora_dropout=0.0))
    before = scores(model, batch)
    model.train()
    first = model(**batch).loss
    first.backward()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in trained)
    torch.optim.Adam(trained, lr=1e-3).step()
    model.eval()
    assert model(**batch).loss < first
    model.save_pretrained(tmp_path / "model")
    loaded = load_partial(tmp_path / "model")
    assert torch.equal(scores(loaded, batch), scores(model, batch))
    assert not torch.allclose(scores(model, batch), before)


def test_a_batch_answers_as_one_by_one(built):
    model, processor, _ = built
    rows = [
        {
            "messages": question("is it so " * length, clips),
            "audios": [(waveform(0.3 + length / 3, 4), 16_000)] * clips,
        }
        for length, clips in ((0, 1), (3, 1), (1, 0), (9, 2))
    ]
    alone = list(generate(model, processor, rows, batch_size=1, max_new_tokens=8))
    assert list(generate(model, processor, rows, batch_size=4, max_new_tokens=8)) == alone
    assert len({row["prediction"] for row in alone}) > 1


def test_the_cache_changes_no_answer(built):
    """Sliding windows keep a part of it only; the prompt and its answer are longer than they are."""
    model, processor, _ = built
    inputs = processor([question("is it so " * 9)], [[waveform(0.5)]])
    assert inputs["input_ids"].shape[1] > 16
    cached, whole = (
        model.generate(**inputs, max_new_tokens=20, do_sample=False, use_cache=cache)
        for cache in (True, False)
    )
    assert torch.equal(cached, whole)
