"""How audio-language stages run: precision, recomputed activations, padding, bad rows, what is written."""

import json
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from almosaic.errors import AlmosaicError
from almosaic.loading import load_model
from almosaic.training.alm import _layers
from almosaic.training.alm_parts import Parts
from almosaic.training.optim import OptimSettings

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))
from helpers_tiny import tiny_model
from stages import Tones, alm_settings, losses, run_alm

HEARING = {"projector": "full", "audio_tower": "full", "language_model": "lora", "lora_rank": 2}

LONG = 2500  # times two words, more than the 4096 tokens that the tiny language model reads


def write_chat(folder, words, clips=None):
    """One conversation for each number of words; clip i is in every i-th row, or as `clips` says."""
    folder.mkdir(exist_ok=True)
    soundfile.write(folder / "tone.wav", Tones().waveform(0, 0), 16_000)
    rows = []
    for index, count in enumerate(words):
        found = index % 2 if clips is None else clips[index]
        text = "<audio>" * found + "What is it" + " is it" * count
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]
        rows.append({"id": f"talk-{index}", "messages": messages, "audios": ["tone.wav"] * found})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return [{"name": "chat", "path": str(folder / "rows.jsonl")}]


def logged(folder, name):
    log = json.loads((Path(folder) / "training_log.json").read_text())
    return [entry[name] for entry in log if name in entry]


def test_bf16_learns_as_fp32_does_and_the_trained_parts_stay_precise(tmp_path, bank, parts):
    chosen = {"tune": {**HEARING, "language_model": "full"}, "optim": {"steps": 8}}
    whole = run_alm(tmp_path / "fp32", parts, bank, **chosen)
    chosen["optim"]["precision"] = "bf16"
    half = run_alm(tmp_path / "bf16", parts, bank, **chosen)
    first, last = list(half.values())[:3], list(half.values())[-3:]
    assert sum(last) < 0.9 * sum(first)
    assert half != whole and list(half.values()) == pytest.approx(list(whole.values()), rel=0.03)
    kept = load_file(tmp_path / "bf16/model/model.safetensors")
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}


def test_half_precision_words_leave_the_audio_parts_in_single_precision(tmp_path, bank, parts):
    """As a hub model is kept: the frozen language model in bfloat16, what is trained in float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = AutoModelForCausalLM.from_pretrained(parts.language_model, dtype=torch.bfloat16)
    words.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(parts.language_model).save_pretrained(tmp_path / "half")
    joined = Parts(audio_tower=parts.audio_tower, language_model=tmp_path / "half")
    found = run_alm(
        tmp_path / "run",
        joined,
        bank,
        tune=HEARING,
        optim={"steps": 20, "learning_rate": 3e-2, "precision": "bf16"},
    )
    assert sum(list(found.values())[-3:]) < 0.98 * sum(list(found.values())[:3])
    model, _ = load_model(tmp_path / "run/model", device="cpu")
    kinds = {
        name: {value.dtype for value in getattr(model, name).parameters()}
        for name in ("audio_tower", "multi_modal_projector")
    }
    assert kinds == {"audio_tower": {torch.float32}, "multi_modal_projector": {torch.float32}}
    assert model.language_model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_the_projector_alone_learns_through_activations_computed_twice(tmp_path, bank, parts):
    fresh = run_alm(tmp_path / "kept", parts, bank, optim={"steps": 3})
    twice = {"steps": 3, "trainer": {"gradient_checkpointing": True}}
    recomputed = run_alm(tmp_path / "twice", parts, bank, optim=twice)
    assert list(recomputed.values()) == pytest.approx(list(fresh.values()), rel=1e-5)
    assert recomputed[3] != recomputed[1]


def test_rows_of_like_length_save_padding(tmp_path, bank, parts):
    data = write_chat(tmp_path / "data", range(96), clips=[0] * 96)
    chosen = {"data": data, "optim": {"steps": 24, "batch_size": 4}}
    run_alm(tmp_path / "mixed", parts, bank, **chosen)
    run_alm(tmp_path / "grouped", parts, bank, group_by_length=True, **chosen)
    mixed, grouped = (sum(logged(tmp_path / name, "padding_share")) for name in ("mixed", "grouped"))
    assert 0 < grouped < 0.5 * mixed


def test_rows_that_do_not_fit_are_named_and_replaced_or_stop_the_run(tmp_path, bank, parts, caplog):
    data = write_chat(tmp_path / "data", [1, 2, 3, 4, LONG, 5, 6, 7])
    named = r"row talk-4: [4-9]\d{3} tokens, but the language model reads 4096 at most; shorten"
    with pytest.raises(AlmosaicError, match=rf"1 of 8 rows cannot be used, .*; the last: {named}") as caught:
        run_alm(tmp_path / "a", parts, bank, data=data)
    assert "\n" not in str(caught.value)
    caplog.clear()
    assert len(run_alm(tmp_path / "b", parts, bank, data=data, bad_clip_share=0.2)) == 6
    assert caplog.text.count("skipped row 4, the next one takes its place: row talk-4: ") == 1


def test_a_batch_of_nothing_but_bad_rows_stops_the_run_in_one_line(tmp_path, bank, parts):
    data = write_chat(tmp_path / "data", [LONG] * 8)
    optim = {"batch_size": 4, "accumulation": 2, "workers": 1}
    with pytest.raises(
        AlmosaicError, match=r"\d of 8 rows cannot be used, .*; the last: row talk-"
    ) as caught:
        run_alm(tmp_path / "a", parts, bank, data=data, optim=optim, bad_clip_share=0.3)
    assert "\n" not in str(caught.value)


def test_conversations_without_any_clip_train_too(tmp_path, bank, parts):
    data = write_chat(tmp_path / "data", [1, 2, 3, 4], clips=[0] * 4)
    tune = {"projector": "full", "language_model": "lora", "lora_rank": 2}
    found = run_alm(tmp_path / "a", parts, bank, data=data, tune=tune)
    assert found[6] < found[1]


def test_checkpoints_leave_the_frozen_words_out(tmp_path, bank, parts):
    tune = {"projector": "full", "language_model": "lora", "lora_rank": 2}
    run_alm(tmp_path, parts, bank, tune=tune, optim={"steps": 2})
    words = sum(value.numel() for value in load_file(parts.language_model / "model.safetensors").values())
    for name in ("checkpoint-2", "model"):
        kept = load_file(tmp_path / name / "model.safetensors")
        assert any(key.startswith("audio_tower.") for key in kept), (
            "a folder without its encoder hears nothing"
        )
        own = [value for key, value in kept.items() if key.startswith("language_model.")]
        assert 0 < sum(value.numel() for value in own) < words / 4
        size = (tmp_path / name / "model.safetensors").stat().st_size
        assert size < 4 * sum(value.numel() for value in kept.values()) + 50_000
    state = torch.load(tmp_path / "checkpoint-2/optimizer.pt", weights_only=True)
    trained = {key for key in kept if "lora_" in key or key.startswith("multi_modal_projector.")}
    assert len(state["state"]) == len(trained)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_quantised_words_are_not_sharded(scheme):
    with pytest.raises(ValueError, match=f"trainer.fsdp cannot shard a language model quantised to {scheme}"):
        alm_settings(quantize=scheme, optim={"trainer": {"fsdp": True}})


def test_layers_to_gather_are_those_of_the_language_model_alone(tmp_path):
    sharded = OptimSettings(steps=1, trainer={"fsdp": True})
    model, _ = tiny_model(tmp_path)
    assert "Block" in model._no_split_modules and _layers(model, sharded) == ["LlamaDecoderLayer"]
    model.language_model._no_split_modules = None
    with pytest.raises(AlmosaicError, match="LlamaForCausalLM does not say what its layers are"):
        _layers(model, sharded)
    model.config.language_model_quantization = "int8"
    with pytest.raises(AlmosaicError, match=r"trainer\.fsdp cannot shard a language model quantised to int8"):
        _layers(model, sharded)
    assert _layers(model, OptimSettings(steps=1)) == []


def test_losses_are_logged_with_the_share_of_padding(tmp_path, bank, parts):
    run_alm(tmp_path, parts, bank, optim={"steps": 2})
    shares = logged(tmp_path, "padding_share")
    assert len(losses(tmp_path)) == len(shares) == 2 and all(0 <= share < 1 for share in shares)
