"""Where a stage's model comes from, what each part learns at, and what a checkpoint holds in consequence."""

import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from almosaic.alm.quantization import quantization_of
from almosaic.errors import AlmosaicError
from almosaic.loading import load_model
from almosaic.training.alm_parts import Parts, open_language_model

sys.path.insert(0, str(Path(__file__).parent))
from stages import run_alm

LORA = {"projector": "full", "language_model": "lora", "lora_rank": 2, "lora_dropout": 0.0}
QLORA = {"tune": {**LORA, "lora_dropout": 0.3}, "optim": {"steps": 8, "save_steps": 4, "learning_rate": 1e-2}}


def tensors(folder):
    return load_file(folder / "model.safetensors")


def part_of(name):
    return name.split(".")[0]


def test_every_part_moves_at_its_own_rate(tmp_path, bank, parts):
    tune = {**LORA, "audio_tower": "full"}
    run_alm(tmp_path / "start", parts, bank, tune=tune, optim={"steps": 1})
    rates = {"audio_tower": 1e-5, "projector": 1e-3, "language_model": 1e-2}
    optim = {"steps": 1, "learning_rate": rates, "warmup": 0.0, "weight_decay": 0.0, "max_grad_norm": 0.0}
    start = Parts(start=tmp_path / "start" / "model")
    run_alm(tmp_path / "next", start, bank, projector=None, tune=tune, optim=optim)
    before, after = tensors(tmp_path / "start" / "model"), tensors(tmp_path / "next" / "model")
    assert before.keys() == after.keys()
    moved = {}
    for name in after:
        step = float((after[name] - before[name]).abs().max())
        moved[part_of(name)] = max(step, moved.get(part_of(name), 0.0))
    # Adam's first step is the learning rate, wherever there is a gradient.
    expected = {"audio_tower": 1e-5, "multi_modal_projector": 1e-3, "language_model": 1e-2}
    assert moved == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("tune", "adapters", "whole"),
    [
        ({"projector": "full"}, False, False),
        (LORA, True, False),
        ({**LORA, "projector": "frozen"}, True, False),
        ({"audio_tower": "full"}, False, False),
        ({"language_model": "full"}, False, True),
    ],
    ids=["projector", "lora", "lora alone", "encoder", "language model"],
)
def test_checkpoints_hold_what_is_trained_and_the_audio_parts(tmp_path, bank, parts, tune, adapters, whole):
    run_alm(tmp_path, parts, bank, tune=tune, optim={"steps": 2, "save_steps": 1})
    model, _ = load_model(tmp_path / "model", device="cpu")
    everything = set(model.state_dict())
    base = {name for name in everything if part_of(name) == "language_model" and "lora_" not in name}
    assert any("lora_" in name for name in everything) == adapters
    for folder in (tmp_path / "checkpoint-1", tmp_path / "checkpoint-2", tmp_path / "model"):
        kept = set(tensors(folder))
        assert kept == (everything if whole else everything - base)
        assert {part_of(name) for name in kept} >= {"audio_tower", "multi_modal_projector"}
    source = model.config.language_model_source
    assert (source is None) == whole
    if not whole:
        assert len(source["sha256"]) == 64 and Path(source["path"]) == Path(parts.language_model).resolve()


@pytest.fixture(scope="module")
def quantised(bank, parts, tmp_path_factory):
    """A QLoRA stage of eight steps with a checkpoint in the middle, and its losses."""
    pytest.importorskip("bitsandbytes")
    folder = tmp_path_factory.mktemp("qlora")
    return folder, run_alm(folder, parts, bank, quantize="nf4", **QLORA)


def test_a_quantised_stage_learns_and_writes_no_base(quantised, parts, bank, tmp_path):
    folder, losses = quantised
    assert losses[8] < losses[1]
    for name in ("checkpoint-4", "checkpoint-8", "model"):
        kept = tensors(folder / name)
        assert all("lora_" in key for key in kept if part_of(key) == "language_model")
    model, _ = load_model(folder / "model", device="cpu")
    assert quantization_of(model) == "nf4" == model.config.language_model_quantization
    plain = run_alm(tmp_path, parts, bank, **{**QLORA, "optim": {**QLORA["optim"], "steps": 1}})
    assert plain[1] != losses[1] and plain[1] == pytest.approx(losses[1], rel=0.05)


def test_a_quantised_stage_resumes_exactly(quantised, parts, bank, tmp_path):
    folder, losses = quantised
    (tmp_path / "checkpoint-4").symlink_to(folder / "checkpoint-4")
    resumed = run_alm(tmp_path, parts, bank, resume=True, quantize="nf4", **QLORA)
    assert resumed == losses
    once, again = tensors(folder / "model"), tensors(tmp_path / "model")
    assert once.keys() == again.keys() and all(torch.equal(once[name], again[name]) for name in once)


def test_a_stage_goes_on_from_a_quantised_one_as_it_was(quantised, bank, tmp_path):
    start = Parts(start=quantised[0] / "model")
    settings = {"projector": None, "tune": QLORA["tune"], "optim": {"steps": 2, "learning_rate": 1e-3}}
    run_alm(tmp_path / "a", start, bank, **settings)
    model, _ = load_model(tmp_path / "a" / "model", device="cpu")
    assert quantization_of(model) == "nf4"
    run_alm(tmp_path / "b", start, bank, quantize="nf4", **settings)
    with pytest.raises(AlmosaicError, match="starts from a model trained with nf4; leave `quantize` out, or"):
        run_alm(tmp_path / "c", start, bank, quantize="int8", **settings)
    with pytest.raises(AlmosaicError, match="full cannot train weights quantised to nf4"):
        run_alm(tmp_path / "d", start, bank, **{**settings, "tune": {"language_model": "full"}})
    with pytest.raises(ValidationError, match="full cannot train weights quantised to nf4"):
        run_alm(tmp_path / "e", start, bank, quantize="nf4", tune={"language_model": "full"})


def test_weights_that_are_stored_quantised_are_no_start(quantised, bank, tmp_path):
    model, processor = load_model(quantised[0] / "model", device="cpu", quantize="none")
    model._keys_to_ignore_on_save = set()
    for part in (model, processor):
        part.save_pretrained(tmp_path / "whole")
    small, _ = load_model(tmp_path / "whole", device="cpu", quantize="nf4")
    for part in (small, processor):
        part.save_pretrained(tmp_path / "small")
    with pytest.raises(AlmosaicError, match="holds quantised weights, which a stage cannot go on from"):
        run_alm(tmp_path / "run", Parts(start=tmp_path / "small"), bank, projector=None)


def test_published_types_are_kept_unless_words_are_trained(parts, bank, tmp_path):
    half, tokenizer = open_language_model(parts.language_model, torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    tokenizer.save_pretrained(tmp_path / "half")
    assert open_language_model(tmp_path / "half")[0].dtype == torch.bfloat16
    published = Parts(audio_tower=parts.audio_tower, language_model=tmp_path / "half")
    run_alm(tmp_path / "lora", published, bank, tune=LORA, optim={"steps": 1})
    kept = tensors(tmp_path / "lora" / "model")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    assert load_model(tmp_path / "lora" / "model", device="cpu")[0].dtype == torch.bfloat16
    run_alm(tmp_path / "full", published, bank, tune={"language_model": "full"}, optim={"steps": 1})
    assert {tensor.dtype for tensor in tensors(tmp_path / "full" / "model").values()} == {torch.float32}


def test_a_language_model_that_is_not_there_is_named_at_once(tmp_path, monkeypatch):
    asked = []

    def unreachable(self, name, timeout):
        asked.append((name, timeout))
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("asked the hub")
    )
    with pytest.raises(
        AlmosaicError, match=r"'nobody/here' cannot be had: .*hub cache.*service not known"
    ) as error:
        open_language_model("nobody/here")
    assert "\n" not in str(error.value) and asked == [("nobody/here", 5.0)]
    for name in (tmp_path / "nothing", "./nothing", "some/where/else"):
        with pytest.raises(AlmosaicError, match="cannot be had: no such folder"):
            open_language_model(name)
    assert len(asked) == 1
