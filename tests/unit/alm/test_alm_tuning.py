"""What a stage trains, what a run folder holds, and how both come back."""

import json
import shutil

import pytest
import torch
from helpers_tiny import answered, tiny_language_model, tiny_model, tiny_tokenizer, waveform
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from almosaic.alm import AlmosaicForConditionalGeneration, TuneSettings, apply_tuning, load_partial
from almosaic.alm.tuning import frozen_language_model_keys, merge_adapters
from almosaic.errors import AlmosaicError

LORA = TuneSettings(language_model="lora", lora_rank=4)


@pytest.fixture
def built(tmp_path):
    """A model whose language model comes from a folder of the run, its processor and a batch."""
    size = len(tiny_tokenizer(tmp_path / "scratch"))
    tiny_language_model(size).save_pretrained(tmp_path / "run" / "lm" / "model")
    language_model = LlamaForCausalLM.from_pretrained(tmp_path / "run" / "lm" / "model")
    model, processor = tiny_model(tmp_path, language_model=language_model)
    talks, audio = [answered("yes"), answered("a dog")], [[waveform(0.4, 1)], [waveform(1.2, 2)]]
    return model, processor, processor(talks, audio, add_generation_prompt=False)


def step(model, batch):
    """One optimizer step in training mode; which parameters it changed."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=0.5)
    model.train()
    for _ in range(2):  # the first step of LoRA moves only its second factor
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize(
    "settings",
    [
        TuneSettings(),
        LORA,
        TuneSettings(projector="frozen", language_model="lora", lora_targets=("q_proj", "v_proj")),
        TuneSettings(language_model="full"),
        TuneSettings(audio_tower="full"),
        TuneSettings(projector="full", language_model="lora", audio_tower="full"),
    ],
    ids=lambda settings: "-".join([settings.projector, settings.language_model, settings.audio_tower]),
)
def test_what_is_tuned_changes_and_what_is_frozen_does_not(built, settings):
    model, _, batch = built
    counts = apply_tuning(model, settings)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert step(model, batch) == trainable
    assert (counts["projector"] > 0) == (settings.projector == "full")
    assert (counts["audio_tower"] > 0) == (settings.audio_tower == "full")
    assert (counts["language_model"] > 0) == (settings.language_model != "frozen")
    assert sum(counts.values()) == sum(dict(model.named_parameters())[name].numel() for name in trainable)


def test_blocks_above_the_chosen_layer_are_not_trained(tmp_path):
    model, processor = tiny_model(tmp_path, layer=0)
    apply_tuning(model, TuneSettings(audio_tower="full"))
    batch = processor([answered()], [[waveform(0.4)]], add_generation_prompt=False)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert step(model, batch) == trainable
    assert not any(name.startswith("audio_tower.blocks.1.") for name in trainable)


def test_adapters_sit_in_the_language_model_alone(built):
    model, _, _ = built
    apply_tuning(model, LORA)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapted) == 14 and all(name.startswith("language_model.model.layers.") for name in adapted)
    with pytest.raises(
        AlmosaicError, match="names qkv, which this language model does not have; it has down_proj"
    ):
        apply_tuning(model, TuneSettings(language_model="lora", lora_targets=("qkv",)))


def test_fresh_adapters_change_nothing_and_merging_changes_only_rounding(built):
    model, _, batch = built
    before = logits(model, batch)
    apply_tuning(model, LORA)
    model.eval()
    assert torch.equal(logits(model, batch), before)
    step(model, batch)
    trained = logits(model, batch)
    assert not torch.allclose(trained, before, atol=1e-2)
    merge_adapters(model)
    assert torch.allclose(logits(model, batch), trained, atol=1e-4)
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    assert model.config.lora is None and model.config.language_model_source is None


@pytest.mark.parametrize("settings", [TuneSettings(), LORA], ids=["projector", "lora"])
def test_a_run_folder_leaves_out_exactly_the_frozen_language_model(built, tmp_path, settings):
    model, _, batch = built
    apply_tuning(model, settings)
    step(model, batch)
    folder = tmp_path / "run" / "align" / "model"
    model.save_pretrained(folder)
    stored = set(load_file(folder / "model.safetensors"))
    everything = set(model.state_dict())
    frozen = {name for name in everything if name.startswith("language_model.") and "lora_" not in name}
    assert frozen_language_model_keys(model) == frozen and stored == everything - frozen
    source = json.loads((folder / "config.json").read_text())["language_model_source"]
    assert source["path"] == "../../lm/model" and len(source["sha256"]) == 64
    loaded = load_partial(folder)
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    # A moved run still finds its language model.
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    again = load_partial(tmp_path / "elsewhere" / "align" / "model")
    assert torch.equal(logits(again, batch), logits(model, batch))
    # A further save of what was loaded is still partial.
    again.save_pretrained(tmp_path / "elsewhere" / "next" / "model")
    assert set(load_file(tmp_path / "elsewhere" / "next" / "model" / "model.safetensors")) == stored


def test_stages_go_on_with_the_same_adapters_and_merge_others(built, tmp_path):
    model, _, batch = built
    apply_tuning(model, LORA)
    step(model, batch)
    names = {name for name, _ in model.named_parameters() if "lora_" in name}
    before = logits(model, batch)
    apply_tuning(model, TuneSettings())
    assert names == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert not any(parameter.requires_grad for parameter in model.language_model.parameters())
    model.save_pretrained(tmp_path / "run" / "frozen")
    assert torch.equal(logits(load_partial(tmp_path / "run" / "frozen"), batch), before)
    apply_tuning(model, LORA)
    assert torch.equal(logits(model.eval(), batch), before)
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=2))
    assert torch.allclose(logits(model.eval(), batch), before, atol=1e-4)
    assert model.config.lora["rank"] == 2 and not model._keys_to_ignore_on_save


def test_a_language_model_trained_in_full_is_saved_whole(built, tmp_path):
    model, _, batch = built
    apply_tuning(model, TuneSettings(language_model="full"))
    step(model, batch)
    apply_tuning(model, TuneSettings())  # a later stage freezes it, but nothing else has its weights
    model.save_pretrained(tmp_path / "model")
    loaded = AlmosaicForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_adapters_saved_whole_reload_with_equal_logits(tmp_path):
    model, processor = tiny_model(tmp_path)  # made in memory, so there is no source to leave weights to
    batch = processor([answered()], [[waveform(0.4)]], add_generation_prompt=False)
    apply_tuning(model, LORA)
    step(model, batch)
    model.save_pretrained(tmp_path / "model")
    loaded = AlmosaicForConditionalGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_a_fresh_model_of_a_named_configuration_has_no_source(tmp_path):
    tiny_language_model(len(tiny_tokenizer(tmp_path / "scratch")), seed=0).save_pretrained(tmp_path / "lm")
    other = tiny_language_model(len(tiny_tokenizer(tmp_path / "scratch")), seed=1)
    other.name_or_path = str(tmp_path / "lm")
    model, _ = tiny_model(tmp_path, language_model=other)
    assert model.config.language_model_source is None


def test_a_run_folder_that_does_not_fit_is_named(built, tmp_path):
    model, _, _ = built
    apply_tuning(model, TuneSettings())
    folder = tmp_path / "run" / "align"
    model.save_pretrained(folder)
    with pytest.raises(AlmosaicError, match="leaves out the frozen language model weights"):
        AlmosaicForConditionalGeneration.from_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    gain = tensors.pop("multi_modal_projector.linear_1.bias")
    save_file({**tensors, "extra": gain}, folder / "model.safetensors")
    with pytest.raises(AlmosaicError, match=r"missing multi_modal_projector.linear_1.bias; unexpected extra"):
        load_partial(folder)


def test_another_or_a_lost_language_model_is_named(built, tmp_path):
    model, _, batch = built
    apply_tuning(model, TuneSettings())
    folder, lm = tmp_path / "run" / "align", tmp_path / "run" / "lm" / "model"
    model.save_pretrained(folder)
    shutil.move(lm, tmp_path / "moved")
    with pytest.raises(AlmosaicError, match="neither a folder nor in the local hub cache"):
        load_partial(folder)
    loaded = load_partial(folder, language_model=tmp_path / "moved")
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    tiny_language_model(model.config.audio_token_id, seed=9).save_pretrained(lm)
    with pytest.raises(
        AlmosaicError,
        match=r"trained on a llama of width 32 with sha256 \w{12}, but .* is a llama of width 32 with \w{12}",
    ):
        load_partial(folder)


def test_a_stage_that_trains_nothing_is_refused(built):
    with pytest.raises(AlmosaicError, match="freezes every part"):
        apply_tuning(built[0], TuneSettings(projector="frozen"))
