"""Full folders from runs: equal logits through the Auto classes, whole or not there, no need of the run."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from helpers_export import LORA, logits, tiny_run
from helpers_tiny import LANGUAGE_MODEL_SHAPE, tiny_encoder, tiny_language_model
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    Gemma2Config,
    Phi3Config,
    Qwen3Config,
)

from almosaic.alm import TuneSettings
from almosaic.errors import AlmosaicError
from almosaic.export import export, save_full
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.loading import load_model

FAMILIES = {
    "qwen3, tied": Qwen3Config(head_dim=8, tie_word_embeddings=True, **LANGUAGE_MODEL_SHAPE),
    "gemma2, tied": Gemma2Config(head_dim=8, **LANGUAGE_MODEL_SHAPE),
    "phi3, layers in one": Phi3Config(**LANGUAGE_MODEL_SHAPE),
}


@pytest.fixture
def run(tmp_path):
    """A run with trained adapters above a language model that its folder leaves out."""
    return tiny_run(tmp_path)


@pytest.mark.parametrize("form", ["merged", "full"])
def test_an_exported_run_reloads_through_auto_classes(run, tmp_path, form):
    folder, model, batch = run
    out = export(folder, tmp_path / "out", form)
    loaded = AutoModelForMultimodalLM.from_pretrained(out)
    assert type(AutoProcessor.from_pretrained(out)).__name__ == "AlmosaicProcessor"
    assert AutoConfig.from_pretrained(out).language_model_source is None
    if form == "merged":
        assert torch.allclose(logits(loaded, batch), logits(model, batch), atol=1e-4)
        assert not any("lora" in name for name in loaded.state_dict())
    else:
        assert torch.equal(logits(loaded, batch), logits(model, batch))
    again = AutoModelForMultimodalLM.from_pretrained(export(out, tmp_path / "again", form))
    assert torch.equal(logits(again, batch), logits(loaded, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_come_back_in_half_precision_from_several_files(family, tmp_path):
    words = AutoModelForCausalLM.from_config(FAMILIES[family])
    folder, model, batch = tiny_run(tmp_path, language_model=words, dtype=torch.bfloat16)
    out = export(folder, tmp_path / "out", "full", max_shard_size="40KB")
    assert len(list(out.glob("model-*.safetensors"))) > 1 and not (out / "model.safetensors").exists()
    loaded = AutoModelForMultimodalLM.from_pretrained(out, dtype="auto")
    assert loaded.language_model.dtype == torch.bfloat16
    assert next(loaded.audio_tower.parameters()).dtype == torch.float32
    assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert torch.equal(logits(load_model(out, device="cpu")[0], batch), logits(model, batch))
    merged, _ = load_model(export(folder, tmp_path / "merged"), device="cpu")
    wanted = logits(model, batch).float()
    # Adding the adapters rounds each weight to 8 bits of mantissa once more.
    assert float((logits(merged, batch).float() - wanted).norm() / wanted.norm()) < 0.1
    tables = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    tied = FAMILIES[family].tie_word_embeddings
    assert len(tables[0]) > LANGUAGE_MODEL_SHAPE["vocab_size"] and (tables[0] is tables[1]) == tied


@pytest.mark.parametrize("projector", ["pool", "qformer", "segment_qformer"])
def test_every_projector_comes_back(projector, tmp_path):
    folder, model, batch = tiny_run(tmp_path, projector=projector)
    loaded = AutoModelForMultimodalLM.from_pretrained(export(folder, tmp_path / "out", "full"))
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_a_language_model_in_several_files_is_found_and_exported(tmp_path):
    tiny_language_model(340).save_pretrained(tmp_path / "lm", max_shard_size="40KB")
    assert len(list((tmp_path / "lm").glob("model-*.safetensors"))) > 1
    folder, model, batch = tiny_run(tmp_path, language_model=tmp_path / "lm")
    loaded, _ = load_model(export(folder, tmp_path / "out", "full"), device="cpu")
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_trained_words_are_exported_whole(tmp_path):
    folder, model, batch = tiny_run(tmp_path, TuneSettings(language_model="full"))
    loaded, _ = load_model(export(folder, tmp_path / "out"), device="cpu")
    assert torch.equal(logits(loaded, batch), logits(model, batch))


def test_an_exported_folder_needs_nothing_of_its_run(run, tmp_path):
    folder, model, batch = run
    torch.save((dict(batch), logits(model, batch)), tmp_path / "expected.pt")
    export(folder, tmp_path / "out", "full").rename(tmp_path / "moved")
    shutil.rmtree(folder)
    code = (
        "import sys, torch, almosaic.alm\n"
        "from transformers import AutoModelForMultimodalLM, AutoProcessor\n"
        "batch, expected = torch.load(sys.argv[1])\n"
        "model = AutoModelForMultimodalLM.from_pretrained(sys.argv[2])\n"
        "AutoProcessor.from_pretrained(sys.argv[2])\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(model(**batch).logits, expected)\n"
    )
    command = [sys.executable, "-c", code, tmp_path / "expected.pt", tmp_path / "moved"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_encoder_is_exported_with_its_front_end(tmp_path):
    encoder, extractor = tiny_encoder(), AudioMosaicFeatureExtractor(window_frames=64, mean=-5.0)
    save_full(encoder, extractor, tmp_path / "model")
    out = export(tmp_path / "model", tmp_path / "out")
    features = torch.randn(2, 64, 128)
    with torch.no_grad():
        expected = encoder(features).pooler_output
        assert torch.equal(AutoModel.from_pretrained(out)(features).pooler_output, expected)
    assert AutoFeatureExtractor.from_pretrained(out).mean == -5.0
    assert "feature-extraction" in (out / "README.md").read_text()
    with pytest.raises(AlmosaicError, match="only an audio-language model has an adapter form"):
        export(tmp_path / "model", tmp_path / "adapter", "adapter")


def test_saving_whole_does_not_change_what_the_next_checkpoint_leaves_out(run, tmp_path):
    _, model, _ = run
    before = set(model._keys_to_ignore_on_save)
    save_full(model, AudioMosaicFeatureExtractor(), tmp_path / "out")
    assert before and model._keys_to_ignore_on_save == before


def test_a_folder_that_is_taken_is_not_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(AlmosaicError, match="not an empty folder"):
        export(run[0], tmp_path / "out")
    with pytest.raises(AlmosaicError, match="is not a folder"):
        export(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(AlmosaicError, match="form must be merged, full, adapter, found 'gguf'"):
        export(run[0], tmp_path / "new", "gguf")
    assert not (tmp_path / "new").exists()


def test_a_run_that_stopped_half_way_is_not_taken_for_its_last_whole_stage(run, tmp_path):
    folder = run[0]
    begun = folder / "stages" / "polish"
    begun.mkdir()
    (begun / "stage.json").write_text(json.dumps({"order": 4, "kind": "alm", "done": False}))
    with pytest.raises(AlmosaicError, match=r"stage polish has begun.* such as .*instruct/model"):
        export(folder, tmp_path / "out")
    assert export(folder / "stages" / "instruct" / "model", tmp_path / "out").is_dir()


@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_full_disk_leaves_nothing_behind(run, tmp_path, form, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("almosaic.export.model_card", full)  # the last thing that is written
    with pytest.raises(AlmosaicError, match="no space left on device; free some space"):
        export(run[0], tmp_path / "out", form)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*out*"))


def test_a_kill_in_the_middle_leaves_no_folder_that_looks_finished(run, tmp_path):
    code = (
        "import os, signal, sys\n"
        "import almosaic.export as module\n"
        "module.model_card = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "module.export(sys.argv[1], sys.argv[2], 'full')\n"
    )
    command = [sys.executable, "-c", code, run[0], tmp_path / "out"]
    assert subprocess.run(command, capture_output=True).returncode == -9
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.glob("*out*")] == ["tmp-out"]
    with safe_open(tmp_path / "tmp-out" / "model.safetensors", framework="pt") as stream:
        assert stream.keys()  # the kill came after the weights
    assert (export(run[0], tmp_path / "out") / "README.md").is_file()
    assert not (tmp_path / "tmp-out").exists()


def test_adapters_of_a_quantised_run_are_merged_into_the_weights_in_full_precision(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder, model, batch = tiny_run(tmp_path, LORA, quantize="nf4")
    merged, _ = load_model(export(folder, tmp_path / "merged"), device="cpu")
    modes = {file.stat().st_mode for file in (tmp_path / "merged").iterdir()}
    assert len(modes) == 1, "weights may be read by whoever may read the card"
    precise, _ = load_model(folder, device="cpu", quantize="none")
    assert torch.allclose(logits(merged, batch), logits(precise, batch), atol=1e-4)
    assert not torch.allclose(logits(model, batch), logits(precise, batch), atol=1e-4)
    full, _ = load_model(export(folder, tmp_path / "full", "full"), device="cpu")
    assert torch.equal(logits(full, batch), logits(precise, batch))
    assert full.config.language_model_quantization is None
    adapter, _ = load_model(export(folder, tmp_path / "adapter", "adapter"), device="cpu")
    assert torch.equal(logits(adapter, batch), logits(model, batch))
