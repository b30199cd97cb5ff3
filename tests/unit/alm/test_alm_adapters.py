"""Adapters go into the language model alone, whatever its layers and those of the audio parts are called."""

import pytest
import torch
from helpers_tiny import answered, tiny_language_model, tiny_model, waveform
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM, GPT2Config, PhiConfig

from almosaic.alm import TuneSettings, apply_tuning
from almosaic.alm.adapters import lora_names
from almosaic.alm.tuning import merge_adapters
from almosaic.errors import AlmosaicError

PROJECTORS = ("pool", "mlp", "qformer", "segment_qformer")


def phi():
    """Its layers are called like those of the encoder (fc1, fc2) and of a Q-Former (dense)."""
    torch.manual_seed(0)
    config = PhiConfig(
        vocab_size=340,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
    )
    return AutoModelForCausalLM.from_config(config)


def gpt2():
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 340}
    return AutoModelForCausalLM.from_config(GPT2Config(initializer_range=0.2, **shape))


def adapted(model):
    return {name for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@pytest.mark.parametrize("projector", PROJECTORS)
@pytest.mark.parametrize(
    ("targets", "layers"),
    [(("dense", "fc1", "fc2"), 6), (("q_proj", "dense"), 4), ("all-linear", 12)],
    ids=["shared names", "mixed", "all"],
)
def test_names_that_the_audio_parts_share_are_adapted_in_the_language_model_alone(
    tmp_path, projector, targets, layers
):
    model, _ = tiny_model(tmp_path, projector, language_model=phi())
    outside = [name for name, _ in model.named_modules() if not name.startswith("language_model.")]
    shared = {name.rpartition(".")[2] for name in outside} & {"dense", "fc1", "fc2"}
    assert {"fc1", "fc2"} <= shared and ("dense" in shared) == projector.endswith("qformer")
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=2, lora_targets=targets))
    assert len(adapted(model)) == layers
    assert all(name.startswith("language_model.model.layers.") for name in adapted(model))
    chosen = {name.rpartition(".")[2] for name in adapted(model)}
    assert (
        chosen == {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"}
        if targets == "all-linear"
        else set(targets)
    )


@pytest.mark.parametrize("projector", ["qformer", "segment_qformer"])
def test_names_that_only_the_audio_parts_have_are_unknown(tmp_path, projector):
    model, _ = tiny_model(tmp_path, projector)
    inside = {name.rpartition(".")[2] for name, _ in model.multi_modal_projector.named_modules()}
    assert {"query", "value"} <= inside
    settings = TuneSettings(language_model="lora", lora_targets=("query", "value"))
    with pytest.raises(AlmosaicError, match="names query, which this language model does not have"):
        apply_tuning(model, settings)
    assert not adapted(model) and model.config.lora is None


@pytest.mark.parametrize("make", [lambda: tiny_language_model(340), phi, gpt2], ids=["llama", "phi", "gpt2"])
def test_the_output_layer_is_never_adapted(make):
    language_model = make()
    head = next(
        name
        for name, module in language_model.named_modules()
        if module is language_model.get_output_embeddings()
    )
    assert lora_names(language_model, "all-linear") and head not in lora_names(language_model, "all-linear")
    with pytest.raises(AlmosaicError, match=f"names {head}, which this language model does not have"):
        lora_names(language_model, (head,))


@pytest.mark.parametrize("make", [phi, gpt2])
def test_merged_adapters_give_the_logits_of_separate_ones(tmp_path, make):
    model, processor = tiny_model(tmp_path, language_model=make())
    batch = processor([answered()], [[waveform(0.4)]], add_generation_prompt=False)
    with torch.no_grad():
        before = model(**batch).logits
        apply_tuning(model, TuneSettings(language_model="lora", lora_rank=2))
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
        model.eval()
        separate = model(**batch).logits
        merge_adapters(model)
        merged = model(**batch).logits
    assert not torch.allclose(separate, before, atol=0.1)
    assert torch.allclose(merged, separate, atol=1e-4)
    assert not adapted(model)


def test_adapters_beside_half_precision_weights_stay_precise_through_a_folder(tmp_path):
    model, _ = tiny_model(tmp_path, language_model=tiny_language_model(340).to(torch.bfloat16))
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=2))
    model.save_pretrained(tmp_path / "model")  # made in memory: weights are written whole
    for kept in (model, type(model).from_pretrained(tmp_path / "model")):
        kinds = {name: parameter.dtype for name, parameter in kept.language_model.named_parameters()}
        assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
        assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}
