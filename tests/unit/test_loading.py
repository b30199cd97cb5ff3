"""Folders that are damaged, half written, foreign or of another version: one line says what is wrong."""

import json
import shutil

import pytest
import torch
from helpers_export import logits, tiny_run
from helpers_tiny import tiny_encoder
from safetensors.torch import load_file, save_file

from almosaic.errors import AlmosaicError
from almosaic.export import export, save_full
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.loading import load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A whole model, an adapter, a run's own folder and an encoder."""
    place = tmp_path_factory.mktemp("whole")
    run, _, _ = tiny_run(place)
    save_full(tiny_encoder(), AudioMosaicFeatureExtractor(window_frames=64), place / "encoder")
    return {
        "whole": export(run, place / "out"),
        "adapter": export(run, place / "adapter", "adapter"),
        "partial": run / "stages" / "instruct" / "model",
        "encoder": place / "encoder",
        "lm": run / "stages" / "lm" / "model",
    }


@pytest.fixture
def damaged(folders, tmp_path):
    """A function that copies a folder, and the language model to where the copy looks for it."""

    def copy(kind, **changes):
        folder = shutil.copytree(folders[kind], tmp_path / kind)
        path = folder / "config.json"
        config = json.loads(path.read_text())
        if config.get("language_model_source"):
            config["language_model_source"]["path"] = str(folders["lm"])
        for key, value in changes.items():
            part, _, name = key.rpartition("__")
            (config[part] if part else config)[name] = value
        path.write_text(json.dumps(config))
        return folder

    return copy


def refused(folder, *words, **options):
    with pytest.raises(AlmosaicError) as caught:
        load_model(folder, device="cpu", **options)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500 and str(folder) in text
    for word in words:
        assert word in text, text


def dequantized(module):
    """The weights that a 4-bit layer computes with."""
    from bitsandbytes.functional import dequantize_4bit

    module.state_dict()  # back from the layout in which some CPUs keep them
    return dequantize_4bit(module.weight.data, module.weight.quant_state)


KINDS = ["whole", "adapter", "partial", "encoder"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_copy_loads(kind, damaged):
    load_model(damaged(kind), device="cpu")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_missing_or_half_there(kind, damaged):
    folder = damaged(kind)
    (file,) = folder.glob("*model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "not fully covered")
    file.unlink()
    refused(folder, "model.safetensors" if kind != "partial" else "holds no *.safetensors")


def test_one_of_several_files_of_weights_is_missing(folders, tmp_path):
    out = export(folders["whole"], tmp_path / "out", max_shard_size="40KB")
    next(out.glob("model-00002-*.safetensors")).unlink()
    refused(out, "model-00002")


@pytest.mark.parametrize("kind", ["whole", "adapter", "partial"])
def test_weights_that_no_part_asks_for(kind, damaged):
    folder = damaged(kind)
    (file,) = folder.glob("*model.safetensors")
    save_file({**load_file(file), "later.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    refused(folder, "later.weight")


def test_weights_of_another_shape_than_the_configuration_says(damaged):
    refused(damaged("whole", audio_config__hidden_size=48), "should be", "48", "and is", "32", "such weights")


@pytest.mark.parametrize("kind", ["whole", "adapter", "encoder"])
@pytest.mark.parametrize(("text", "word"), [('{"model_type": "almo', "is damaged"), ("[1]", "found list")])
def test_a_configuration_that_cannot_be_read(kind, text, word, damaged):
    folder = damaged(kind)
    (folder / "config.json").write_text(text)
    refused(folder, word)


def test_a_model_of_another_kind(damaged):
    refused(damaged("whole", model_type="whisper"), "type whisper", "expected audiomosaic")


@pytest.mark.parametrize("kind", ["whole", "adapter", "partial"])
def test_parts_that_only_a_later_version_knows(kind, damaged):
    newer = {"transformers_version": "99.0", "projector": {"name": "perceiver", "queries": 4}}
    refused(damaged(kind, **newer), "perceiver", "written with transformers 99.0")


@pytest.mark.parametrize("kind", ["whole", "partial"])
def test_a_language_model_that_the_library_does_not_know(kind, damaged):
    refused(damaged(kind, text_config__model_type="llama9"), "llama9")


def test_files_beside_the_weights_are_needed_too(damaged, tmp_path):
    folder = damaged("whole")
    (folder / "generation_config.json").unlink()
    refused(folder, "lacks generation_config.json")
    shutil.rmtree(folder)
    folder = damaged("whole")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    refused(folder, "tokenizer")


def test_adapters_of_another_rank(damaged):
    lora = {"rank": 9, "alpha": 32, "dropout": 0.0, "targets": "all-linear"}
    refused(damaged("adapter", lora=lora), "size mismatch")
    (file,) = damaged("partial", lora={"rank": 4}).glob("config.json")
    refused(file.parent, "no 'targets'")


def test_a_whole_folder_takes_no_other_language_model(folders):
    refused(folders["whole"], "leave language_model", language_model=folders["lm"])


@pytest.mark.parametrize("kind", ["whole", "adapter"])
@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_exported_folders_load_in_few_bits(kind, quantize, folders, tmp_path):
    pytest.importorskip("bitsandbytes")
    _, _, batch = tiny_run(tmp_path)
    precise, _ = load_model(folders[kind], device="cpu")
    small, _ = load_model(folders[kind], device="cpu", quantize=quantize)
    kinds = {type(module).__name__ for module in small.language_model.modules()}
    assert kinds & {"Linear4bit", "Linear8bitLt"}
    for part in ("audio_tower", "multi_modal_projector"):
        loaded = getattr(small, part).state_dict()
        for name, tensor in getattr(precise, part).state_dict().items():
            assert torch.equal(loaded[name], tensor), name
    found = logits(small, batch)
    assert not torch.allclose(logits(precise, batch), found, atol=1e-3)
    if quantize == "nf4":  # four bits of random weights say little, but are exact about what they hold
        modules = dict(precise.named_modules())
        for name, module in small.named_modules():
            if type(module).__name__ == "Linear4bit":
                modules[name].weight.data = dequantized(module)
    wanted = logits(precise, batch)
    assert float((found - wanted).norm() / wanted.norm()) < (1e-4 if quantize == "nf4" else 0.1)
