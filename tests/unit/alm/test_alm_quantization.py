"""Language models in 4 and 8 bits: what is quantised, what is saved, what comes back, what is refused."""

import json
import shutil
import sys

import pytest
import torch
from helpers_tiny import answered, question, tiny_language_model, tiny_model, tiny_tokenizer, waveform
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM, BitsAndBytesConfig, GPT2Config

from almosaic.alm import TuneSettings, apply_tuning, load_partial
from almosaic.alm.quantization import load_language_model, quantization_of, quantized_layers, weight_bytes
from almosaic.alm.tuning import merge_adapters
from almosaic.errors import AlmosaicError
from almosaic.export import save_full
from almosaic.inference import generate
from almosaic.loading import load_model

pytest.importorskip("bitsandbytes")
LORA = TuneSettings(language_model="lora", lora_rank=4)
SCHEMES = ("nf4", "fp4", "int8")


@pytest.fixture
def language_model(tmp_path):
    """Folder of a language model in single precision, wide enough for whole blocks of 64 weights."""
    size = len(tiny_tokenizer(tmp_path / "scratch"))
    tiny_language_model(size, hidden_size=64, initializer_range=0.1).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def joined(folder, language_model, quantize, dtype="auto", **changes):
    """A model on a quantised base, its processor and a batch of two rows."""
    base = load_language_model(language_model, quantize, dtype, "cpu")
    model, processor = tiny_model(folder, language_model=base, **changes)
    talks, audio = [answered("yes"), answered("a dog")], [[waveform(0.4, 1)], [waveform(1.2, 2)]]
    return model, processor, processor(talks, audio, add_generation_prompt=False)


def trained(model, batch, steps=2):
    """The model after steps that move adapters and projector well away from their start."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    return model.eval()


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits.float()


def distance(found, expected):
    """Relative distance of two sets of logits."""
    return float((found - expected).norm() / expected.norm())


def names_of(model):
    """Names of the quantised layers, where adapters are without their wrapper."""
    return {name.removesuffix(".base_layer") for name in quantized_layers(model)}


def frozen_tensors(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if "lora_" not in name}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linear_layers_of_the_language_model_alone_are_quantised(tmp_path, language_model, scheme):
    model, _, _ = joined(tmp_path, language_model, scheme, torch.bfloat16)
    apply_tuning(model, LORA)
    assert quantization_of(model) == scheme == model.config.language_model_quantization
    assert len(names_of(model)) == 14
    assert all(name.startswith("language_model.model.layers.") for name in names_of(model))
    kinds = {name: parameter.dtype for name, parameter in model.named_parameters()}
    precise = ("audio_tower", "multi_modal_projector")
    assert {kind for name, kind in kinds.items() if name.startswith(precise)} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    words = ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight")
    assert {kinds[name] for name in words} == {torch.bfloat16} == {model.dtype}
    config = AutoModelForCausalLM.from_pretrained(language_model).config
    assert model.config.text_config.to_dict().keys() == config.to_dict().keys()


def test_double_quantisation_of_the_scales_and_bfloat16_for_products(tmp_path, language_model):
    layer = load_language_model(language_model, "nf4", torch.bfloat16, "cpu").model.layers[0].mlp.up_proj
    assert layer.weight.quant_state.nested and layer.compute_dtype == torch.bfloat16


def test_weights_shrink(tmp_path):
    size = len(tiny_tokenizer(tmp_path / "scratch"))
    wide = tiny_language_model(size, hidden_size=256, intermediate_size=1024, num_hidden_layers=4)
    wide.save_pretrained(tmp_path / "wide")
    tables = 2 * 4 * size * 256  # two word tables in single precision
    single = weight_bytes(load_language_model(tmp_path / "wide")) - tables
    half = weight_bytes(load_language_model(tmp_path / "wide", None, torch.bfloat16)) - tables // 2
    eight, four = (
        weight_bytes(load_language_model(tmp_path / "wide", scheme, torch.bfloat16, "cpu")) - tables // 2
        for scheme in ("int8", "nf4")
    )
    assert half == single / 2
    assert 0.50 < eight / half < 0.52
    assert 0.25 < four / half < 0.28


@pytest.mark.parametrize("scheme", SCHEMES)
def test_adapters_learn_and_quantised_weights_do_not_move(tmp_path, language_model, scheme):
    model, _, batch = joined(tmp_path, language_model, scheme)
    apply_tuning(model, LORA)
    before, start = frozen_tensors(model.language_model), logits(model, batch)
    trainable = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trained(model, batch)
    after = frozen_tensors(model.language_model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(torch.equal(model.get_parameter(name), value) for name, value in trainable.items())
    assert distance(logits(model, batch), start) > 0.01


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_run_folder_holds_no_base_and_loads_with_equal_logits(tmp_path, language_model, scheme):
    model, processor, batch = joined(tmp_path, language_model, scheme)
    apply_tuning(model, LORA)
    trained(model, batch)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "run")
    stored = set(load_file(tmp_path / "run" / "model.safetensors"))
    base = {name for name in stored if name.startswith("language_model.") and "lora_" not in name}
    assert not base and any("lora_" in name for name in stored)
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["language_model_quantization"] == scheme
    assert "quantization_config" not in {*written, *written["text_config"]}
    loaded, _ = load_model(tmp_path / "run", device="cpu")
    assert quantization_of(loaded) == scheme
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    loaded.save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == stored
    apply_tuning(loaded, LORA)  # a second stage goes on with the same adapters
    assert torch.equal(logits(loaded.eval(), batch), logits(model, batch))
    assert distance(logits(trained(loaded, batch), batch), logits(model, batch)) > 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merging_adds_to_the_weights_that_were_quantised(tmp_path, language_model, scheme):
    model, _, batch = joined(tmp_path, language_model, scheme)
    apply_tuning(model, LORA)
    trained(model, batch)
    model.save_pretrained(tmp_path / "run")
    precise = load_partial(tmp_path / "run", quantize="none")
    assert quantization_of(precise) is None and precise.config.language_model_quantization == scheme
    expected, quantised = logits(precise, batch), logits(model, batch)
    merge_adapters(model)
    assert torch.allclose(logits(model, batch), expected, atol=1e-4)
    # What is lost or won against the quantised model is the error of quantising, nothing of the merge.
    assert distance(logits(model, batch), quantised) == pytest.approx(distance(expected, quantised), rel=0.01)
    assert distance(expected, quantised) > 1e-3
    config = model.config
    assert config.lora is config.language_model_quantization is config.language_model_source is None
    model.save_pretrained(tmp_path / "merged")
    whole = AutoModelForMultimodalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(whole, batch), logits(model, batch))


def test_merging_needs_the_weights_that_were_quantised(tmp_path, language_model):
    model, processor, batch = joined(tmp_path, language_model, "nf4")
    apply_tuning(model, LORA)
    model.save_pretrained(tmp_path / "run")
    save_full(load_partial(tmp_path / "run", quantize="none"), processor, tmp_path / "full")
    stored, _ = load_model(tmp_path / "full", device="cpu", quantize="nf4")
    before = logits(stored, batch)
    with pytest.raises(AlmosaicError, match="whose originals are not recorded"):
        merge_adapters(stored)
    assert torch.equal(logits(stored, batch), before) and stored.config.lora is not None
    tiny_language_model(model.config.audio_token_id, seed=5, hidden_size=64).save_pretrained(language_model)
    with pytest.raises(AlmosaicError, match=r"quantised from weights with sha256 \w{12}, but now has \w{12}"):
        merge_adapters(model)
    shutil.rmtree(language_model)
    with pytest.raises(AlmosaicError, match="neither a folder nor in the local hub cache"):
        merge_adapters(model)


def test_stages_that_would_change_quantised_weights_are_refused(tmp_path, language_model):
    model, _, batch = joined(tmp_path, language_model, "nf4")
    with pytest.raises(AlmosaicError, match="full cannot train weights quantised to nf4; use lora"):
        apply_tuning(model, TuneSettings(language_model="full"))
    apply_tuning(model, LORA)
    trained(model, batch)
    before = logits(model, batch)
    other = TuneSettings(language_model="lora", lora_rank=2, lora_targets=("q_proj",))
    message = r"merge adapters \(rank 4, .*all-linear\) into weights quantised to nf4.*found rank 2, .*q_proj"
    with pytest.raises(AlmosaicError, match=message):
        apply_tuning(model, other)
    apply_tuning(model, TuneSettings())
    assert torch.equal(logits(model.eval(), batch), before)


def whole_folder(folder, language_model, unmerged):
    """A folder of whole weights, with adapters beside or inside them; the model, its processor, a batch."""
    model, processor, batch = joined(folder, language_model, None, torch.bfloat16)
    apply_tuning(model, LORA)
    trained(model, batch)
    if not unmerged:
        merge_adapters(model)
    save_full(model, processor, folder / "whole")
    return model, processor, batch


@pytest.mark.parametrize("unmerged", [False, True], ids=["merged", "adapters"])
def test_the_auto_class_quantises_the_language_model_alone(tmp_path, language_model, unmerged):
    model, processor, batch = whole_folder(tmp_path, language_model, unmerged)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path / "whole", quantization_config=settings).eval()
    assert len(names_of(loaded)) == 14
    assert all(name.startswith("language_model.model.layers.") for name in names_of(loaded))
    kinds = {name: parameter.dtype for name, parameter in loaded.named_parameters()}
    precise = ("audio_tower", "multi_modal_projector")
    assert {kind for name, kind in kinds.items() if name.startswith(precise)} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" in name} <= {torch.float32}
    assert kinds["language_model.lm_head.weight"] == torch.bfloat16
    assert 1e-3 < distance(logits(loaded, batch), logits(model, batch)) < 0.6
    row = {"messages": question(), "audios": [(waveform(0.5), 16_000)]}
    (record,) = generate(loaded, processor, [row], max_new_tokens=4)
    assert isinstance(record["prediction"], str) and "error" not in record


@pytest.mark.parametrize("unmerged", [False, True], ids=["merged", "adapters"])
@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_folder_quantised_when_loaded_can_be_kept(tmp_path, language_model, scheme, unmerged):
    _, processor, batch = whole_folder(tmp_path, language_model, unmerged)
    model, _ = load_model(tmp_path / "whole", device="cpu", quantize=scheme)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "small")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "small")]
    assert sizes[1] < sizes[0]
    again, _ = load_model(tmp_path / "small", device="cpu")
    assert quantization_of(again) == scheme and torch.equal(logits(again, batch), logits(model, batch))
    with pytest.raises(AlmosaicError, match="is stored quantised already"):
        load_model(tmp_path / "small", device="cpu", quantize="nf4")


def test_quantised_weights_are_not_written_where_nothing_says_so(tmp_path, language_model):
    model, _, _ = joined(tmp_path, language_model, "nf4")
    with pytest.raises(AlmosaicError, match="quantised to nf4 and cannot be written with this model"):
        model.save_pretrained(tmp_path / "whole")
    assert not (tmp_path / "whole" / "model.safetensors").exists()


def test_answers_do_not_change_the_weights(tmp_path, language_model):
    """Some CPUs make the library repack weights at the first answer, unless it is told not to."""
    model, _, batch = joined(tmp_path, language_model, "nf4")
    apply_tuning(model, LORA)
    before = frozen_tensors(model.language_model)
    logits(model.eval(), batch)
    after = frozen_tensors(model.language_model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.train()
    torch.manual_seed(0)
    model(**batch).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_checkpointing_with_everything_below_the_adapters_frozen(tmp_path, language_model):
    settings = TuneSettings(projector="frozen", language_model="lora", lora_rank=4, lora_dropout=0.0)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, _, batch = joined(tmp_path, language_model, "nf4")
        apply_tuning(model, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(len(name)))
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model(**batch).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    plain, recomputed = gradients
    assert all(plain[name].abs().sum() > 0 for name in plain)
    assert all(torch.allclose(plain[name], recomputed[name], rtol=1e-4, atol=1e-7) for name in plain)


def test_transposed_layers_are_quantised_and_merged(tmp_path):
    config = GPT2Config(
        n_embd=64, n_layer=2, n_head=4, n_positions=256, vocab_size=340, initializer_range=0.1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lm")
    model, _, batch = joined(tmp_path, tmp_path / "lm", "nf4")
    assert len(names_of(model)) == 8 and "language_model.lm_head" not in names_of(model)
    apply_tuning(model, LORA)
    trained(model, batch)
    model.save_pretrained(tmp_path / "run")
    assert torch.equal(logits(load_partial(tmp_path / "run"), batch), logits(model, batch))
    expected = logits(load_partial(tmp_path / "run", quantize="none"), batch)
    merge_adapters(model)
    assert torch.allclose(logits(model, batch), expected, atol=1e-4)


def test_what_cannot_be_quantised_is_one_line(tmp_path, language_model, monkeypatch):
    settings = BitsAndBytesConfig(load_in_4bit=True)
    stored = AutoModelForCausalLM.from_pretrained(language_model, quantization_config=settings)
    stored.save_pretrained(tmp_path / "small")
    with pytest.raises(AlmosaicError, match="is stored quantised; name its full-precision weights"):
        load_language_model(tmp_path / "small", "nf4", device="cpu")
    tiny_language_model(340, num_hidden_layers=0).save_pretrained(tmp_path / "flat")
    with pytest.raises(AlmosaicError, match=r"needs linear layers .*LlamaForCausalLM\) has none"):
        load_language_model(tmp_path / "flat", "nf4", device="cpu")
    with pytest.raises(AlmosaicError, match="quantize: int4 is unknown; choose one of nf4, fp4, int8"):
        load_language_model(language_model, "int4", device="cpu")

    def unsupported(*args, **kwargs):
        raise RuntimeError("None of the available devices\nare supported")

    with monkeypatch.context() as patched:
        patched.setattr(AutoModelForCausalLM, "from_pretrained", unsupported)
        with pytest.raises(
            AlmosaicError, match=r"cannot be quantised to nf4 here .*leave quantize out"
        ) as error:
            load_language_model(language_model, "nf4", device="cpu")
        assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        AlmosaicError, match=r"nf4 needs bitsandbytes.*pip install 'almosaic\[quant\]'"
    ) as error:
        load_language_model(language_model, "nf4", device="cpu")
    assert "\n" not in str(error.value)


def test_an_encoder_is_not_quantised(tmp_path, language_model):
    model, processor, _ = joined(tmp_path, language_model, None)
    model.audio_tower.save_pretrained(tmp_path / "tower")
    processor.feature_extractor.save_pretrained(tmp_path / "tower")
    with pytest.raises(AlmosaicError, match="is an encoder, and quantize is for language models"):
        load_model(tmp_path / "tower", device="cpu", quantize="nf4")
