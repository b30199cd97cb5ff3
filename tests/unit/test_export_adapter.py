"""Adapter folders: what peft and `load_model` make of them is the run's model; another base is refused."""

import json
import shutil

import pytest
import torch
from helpers_export import LORA, logits, tiny_run
from helpers_tiny import tiny_language_model
from peft import PeftModel
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    GPT2Config,
    Qwen3Config,
)

from almosaic.alm import AlmosaicForConditionalGeneration, TuneSettings
from almosaic.alm.adapter_folder import target_expression
from almosaic.alm.projectors import projector_settings
from almosaic.encoder import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.export import export
from almosaic.loading import load_model

SHAPE = {"vocab_size": 340, "initializer_range": 0.2, "pad_token_id": 3}
QWEN3 = Qwen3Config(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    tie_word_embeddings=True,
    **SHAPE,
)
GPT2 = GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=256, **SHAPE)
BASES = {
    # 340 rows and 340 words: the table grows by the row of <|audio|>.
    "llama": (None, torch.float32),
    "qwen3, tied, half precision": (QWEN3, torch.bfloat16),
    "gpt2, transposed": (GPT2, torch.float32),
}
TUNES = {"lora": LORA, "projector only": TuneSettings()}


def fresh_base(folder, language_model):
    """What the card tells a reader to build: the same language model, a fresh encoder and projector."""
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return AlmosaicForConditionalGeneration.from_parts(
        AudioMosaicModel(config.audio_config),
        AutoModelForCausalLM.from_pretrained(language_model, dtype="auto"),
        projector_settings(config.projector),
        processor.tokenizer,
        layer=config.layer,
        chat_template=processor.chat_template,
    )


@pytest.mark.parametrize("tune", TUNES)
@pytest.mark.parametrize("base", BASES)
def test_peft_and_load_model_give_the_logits_of_the_run(base, tune, tmp_path):
    config, dtype = BASES[base]
    words = None if config is None else AutoModelForCausalLM.from_config(config)
    run, model, batch = tiny_run(tmp_path, TUNES[tune], language_model=words, dtype=dtype)
    out = export(run, tmp_path / "out", "adapter")
    expected = logits(model, batch)
    opened, _ = load_model(out, device="cpu")
    assert torch.equal(logits(opened, batch), expected)
    assert opened.language_model.dtype == dtype
    assert next(opened.multi_modal_projector.parameters()).dtype == torch.float32
    base_model = fresh_base(out, run / "stages" / "lm" / "model").eval()
    assert not torch.equal(logits(base_model, batch), expected)
    wrapped = PeftModel.from_pretrained(base_model, out).eval()
    assert torch.equal(logits(wrapped, batch), expected)
    assert wrapped.base_model.model.generation_config.to_dict() == opened.generation_config.to_dict()


@pytest.mark.parametrize("projector", ["pool", "qformer", "segment_qformer"])
def test_every_projector_travels_in_the_adapter(projector, tmp_path):
    run, model, batch = tiny_run(tmp_path, projector=projector)
    out = export(run, tmp_path / "out", "adapter")
    assert torch.equal(logits(load_model(out, device="cpu")[0], batch), logits(model, batch))
    wrapped = PeftModel.from_pretrained(fresh_base(out, run / "stages" / "lm" / "model"), out).eval()
    assert torch.equal(logits(wrapped, batch), logits(model, batch))


def test_an_adapter_folder_is_small_and_says_what_it_adapts(tmp_path):
    run, _, _ = tiny_run(tmp_path)
    out = export(run, tmp_path / "out", "adapter")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["audio_tower", "multi_modal_projector"] and config["r"] == 4
    assert config["target_modules"].startswith(r"language_model\.model\.layers\.\d+\.")
    assert config["base_model_name_or_path"] == "../run/stages/lm/model"
    with safe_open(out / "adapter_model.safetensors", framework="pt") as stream:
        names = set(stream.keys())
    assert not [n for n in names if ".language_model." in n and "lora_" not in n]
    assert len([n for n in names if "lora_A" in n]) == 2 * 7
    assert "base_model.model.multi_modal_projector.linear_1.weight" in names
    assert not list(out.glob("model*.safetensors")) and (out / "README.md").is_file()
    with pytest.raises(AlmosaicError, match=r"load it with almosaic\.load_model"):
        AutoModelForMultimodalLM.from_pretrained(out)
    again = export(out, tmp_path / "again", "adapter")
    assert (again / "adapter_model.safetensors").read_bytes() == (
        out / "adapter_model.safetensors"
    ).read_bytes()


def test_a_layer_that_the_pattern_would_wrongly_match_is_left_alone(tmp_path):
    _, model, _ = tiny_run(tmp_path, LORA.model_copy(update={"lora_targets": ("q_proj",)}))
    # Adapters in the first block only: a pattern for every block would add fresh ones to the second.
    attention = model.language_model.model.layers[1].self_attn
    attention.q_proj = attention.q_proj.get_base_layer()
    assert target_expression(model) == r"language_model\.model\.layers\.0\.self_attn\.q_proj"


def test_an_adapter_opens_the_base_where_it_lies_now(tmp_path):
    run, model, batch = tiny_run(tmp_path)
    out = export(run, tmp_path / "out", "adapter")
    shutil.move(run / "stages" / "lm" / "model", tmp_path / "moved")
    with pytest.raises(AlmosaicError, match="language_model="):
        load_model(out, device="cpu")
    opened, _ = load_model(out, language_model=tmp_path / "moved", device="cpu")
    assert torch.equal(logits(opened, batch), logits(model, batch))


@pytest.mark.parametrize("other", ["hash", "width", "family"])
def test_another_base_is_one_clear_line(other, tmp_path):
    run, _, _ = tiny_run(tmp_path)
    out = export(run, tmp_path / "out", "adapter")
    words = {
        "hash": lambda: tiny_language_model(340, seed=5),
        "width": lambda: tiny_language_model(340, hidden_size=16),
        "family": lambda: AutoModelForCausalLM.from_config(QWEN3),
    }[other]()
    words.save_pretrained(tmp_path / "other")
    with pytest.raises(AlmosaicError) as caught:
        load_model(out, language_model=tmp_path / "other", device="cpu")
    found = {"hash": "llama of width 32", "width": "llama of width 16", "family": "qwen3 of width 32"}[other]
    text = str(caught.value)
    assert "llama of width 32 with sha256" in text and f"is a {found} with" in text and "\n" not in text


def test_trained_words_have_no_adapter_form(tmp_path):
    run, _, _ = tiny_run(tmp_path, TuneSettings(language_model="full"))
    with pytest.raises(AlmosaicError, match="export it whole"):
        export(run, tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("tmp-*"))
