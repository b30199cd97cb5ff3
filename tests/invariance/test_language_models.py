"""Any causal language model will do: adapters, left padding and partial folders across families."""

import pytest
import torch
from helpers_tiny import answered, question, tiny_model, waveform
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, Phi3Config, Qwen2Config, Qwen3Config

from almosaic.alm import TuneSettings, apply_tuning, load_partial
from almosaic.inference import generate

COMMON = {"vocab_size": 340, "initializer_range": 0.2}
SHAPE = COMMON | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 3,
}
FAMILIES = {
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(head_dim=8, **SHAPE),
    "gemma2": Gemma2Config(head_dim=8, **SHAPE),
    "phi3": Phi3Config(**SHAPE),
    # Absolute positions and transposed weights: the one that notices where counting starts.
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **COMMON),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_trains_answers_and_comes_back(family, tmp_path):
    AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(tmp_path / "lm")
    language_model = AutoModelForCausalLM.from_pretrained(tmp_path / "lm")
    model, processor = tiny_model(tmp_path, language_model=language_model)
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=2))
    audio = [[waveform(0.4, 1)], [waveform(1.2, 2), waveform(0.3, 3)]]
    batch = processor([answered("yes"), answered("a dog", clips=2)], audio, add_generation_prompt=False)
    model.train()
    model(**batch).loss.backward()
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.optim.SGD(trainable, lr=1.0).step()
    model.eval()
    model.save_pretrained(tmp_path / "model")
    loaded = load_partial(tmp_path / "model")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    rows = [
        {
            "messages": question("is it so " * length, clips),
            "audios": [(waveform(0.3 + length, 4), 16_000)] * clips,
        }
        for length, clips in ((0, 1), (3, 1), (1, 0))
    ]
    alone = list(generate(loaded, processor, rows, batch_size=1, max_new_tokens=5))
    assert list(generate(loaded, processor, rows, batch_size=3, max_new_tokens=5)) == alone
    assert all("prediction" in row for row in alone)
