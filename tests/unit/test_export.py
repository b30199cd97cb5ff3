"""Full folders from runs: equal logits through the Auto classes, merged or not, with a model card."""

import json

import pytest
import torch
from helpers_tiny import answered, tiny_encoder, tiny_language_model, tiny_model, tiny_tokenizer, waveform
from transformers import (
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
    LlamaForCausalLM,
)

from almosaic.alm import TuneSettings, apply_tuning
from almosaic.errors import AlmosaicError
from almosaic.export import export, save_full
from almosaic.features import AudioMosaicFeatureExtractor


@pytest.fixture
def run(tmp_path):
    """A run with one stage of trained adapters, saved without the frozen language model."""
    size = len(tiny_tokenizer(tmp_path / "scratch"))
    folder = tmp_path / "run"
    tiny_language_model(size).save_pretrained(folder / "stages" / "lm" / "model")
    language_model = LlamaForCausalLM.from_pretrained(folder / "stages" / "lm" / "model")
    model, processor = tiny_model(tmp_path, language_model=language_model)
    apply_tuning(model, TuneSettings(language_model="lora", lora_rank=4))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    stage = folder / "stages" / "instruct"
    model.save_pretrained(stage / "model")
    processor.save_pretrained(stage / "model")
    (stage / "stage.json").write_text('{"order": 3, "kind": "alm"}')
    (folder / "recipe.yaml").write_text("task: curriculum\n")
    rows = [{"set": "esc50", "score": 0.5, "layer": None, "parts": {"dev": 0.5}}, {"set": "b", "layer": 2}]
    scores = {"schema_version": 2, "qa": {"accuracy": 0.875, "n": 40}, "captions": None, "probe": rows}
    (folder / "results.json").write_text(json.dumps(scores))
    batch = processor([answered()], [[waveform(1.2)]], add_generation_prompt=False)
    return folder, model.eval(), batch


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("merge", [True, False])
def test_an_exported_run_reloads_through_auto_classes(run, tmp_path, merge):
    folder, model, batch = run
    out = export(folder, tmp_path / "out", "merged" if merge else "full")
    loaded = AutoModelForMultimodalLM.from_pretrained(out)
    AutoProcessor.from_pretrained(out)
    if merge:
        assert torch.allclose(logits(loaded, batch), logits(model, batch), atol=1e-4)
        assert not any("lora" in name for name in loaded.state_dict())
    else:
        assert torch.equal(logits(loaded, batch), logits(model, batch))
    assert json.loads((out / "config.json").read_text())["language_model_source"] is None
    again = AutoModelForMultimodalLM.from_pretrained(
        export(out, tmp_path / "again", "merged" if merge else "full")
    )
    assert torch.equal(logits(again, batch), logits(loaded, batch))


def test_the_model_card_tells_parts_scores_and_recipe(run, tmp_path):
    card = (export(run[0], tmp_path / "out", "full") / "README.md").read_text()
    assert "pipeline_tag: audio-text-to-text" in card
    assert "| qa | value |\n| --- | --- |\n| accuracy | 0.875 |\n| n | 40 |\n" in card
    assert "| set | score | layer |\n| --- | --- | --- |\n| esc50 | 0.5 |  |\n| b |  | 2 |\n" in card
    assert "schema_version" not in card and "captions" not in card
    assert "task: curriculum" in card and "rank 4, not merged" in card
    assert "2 blocks of width 32" in card and "4 audio tokens per window" in card


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
    assert not (tmp_path / "new").exists()
