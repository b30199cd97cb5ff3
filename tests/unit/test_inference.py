"""Loading, embedding, answering and streaming, and what happens when something is wrong."""

import json
import shutil
import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from helpers_tiny import question, tiny_encoder, tiny_model, waveform
from safetensors.torch import load_file, save_file

from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.inference import embed, generate, load_model, stream

CLIP = (waveform(0.5), 16_000)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("inference"))


def row(name, clips=1, text="what do you hear", **changes):
    return {"id": name, "messages": question(text, clips), "audios": [CLIP] * clips, **changes}


def test_results_come_in_order_and_bad_rows_do_not_stop_the_rest(built):
    rows = [
        row("long", text="which sound comes first, the bell or the dog"),
        row("missing", audios=["nowhere.wav"]),
        row("count", clips=2, audios=[CLIP]),
        row("text", clips=0),
        {"audios": []},
        row("short", text="rain"),
    ]
    results = list(generate(*built, iter(rows), batch_size=2, max_new_tokens=4))
    assert [result["id"] for result in results] == ["long", "missing", "count", "text", 4, "short"]
    errors = {result["id"]: result["error"] for result in results if "error" in result}
    assert set(errors) == {"missing", "count", 4}
    assert "nowhere.wav" in errors["missing"] and "2 audio placeholders but 1 clips" in errors["count"]
    assert all(isinstance(result["prediction"], str) for result in results if "error" not in result)


def test_more_rows_than_one_sorting_window(built):
    rows = [row(index, clips=index % 2) for index in range(20)]
    results = list(generate(*built, rows, batch_size=2, max_new_tokens=1))
    assert [result["id"] for result in results] == list(range(20))


def test_a_prompt_beyond_the_context_is_an_error_of_its_row(built):
    results = list(generate(*built, [row("long", text="rain " * 300), row("fine")], max_new_tokens=4))
    assert "more than the context of 256 holds" in results[0]["error"]
    assert "prediction" in results[1]
    with pytest.raises(AlmosaicError, match="context of 256"):
        next(stream(*built, row("long", text="rain " * 300)))


def test_clips_may_be_named_in_the_messages(built, tmp_path):
    soundfile.write(tmp_path / "clip.wav", CLIP[0], 16_000, subtype="FLOAT")
    messages = question()
    messages[0]["content"][0] = {"type": "audio", "path": str(tmp_path / "clip.wav")}
    named = list(generate(*built, [{"id": "a", "messages": messages}], max_new_tokens=4))
    assert named == list(generate(*built, [row("a")], max_new_tokens=4))


def test_sampling_is_seeded_and_checked(built):
    settings = {"temperature": 1.5, "top_k": 50, "num_return_sequences": 3, "max_new_tokens": 5}
    first, again, other = (list(generate(*built, [row("a")], seed=seed, **settings)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first[0]["predictions"]) == 3 and first[0]["prediction"] == first[0]["predictions"][0]
    for wrong, message in ({"tempreature": 1.0}, "tempreature"), ({"top_p": 2.0}, "top_p"):
        with pytest.raises(AlmosaicError, match=f"sampling setting {message}"):
            list(generate(*built, [row("a")], **wrong))


def test_training_mode_is_put_back(built):
    model, processor = built
    model.train()
    try:
        trained = list(generate(model, processor, [row("a")], max_new_tokens=2))
        assert model.training
    finally:
        model.eval()
    assert trained == list(generate(model, processor, [row("a")], max_new_tokens=2))


def test_a_stream_is_the_answer_in_pieces(built):
    expected = next(generate(*built, [row("a")], max_new_tokens=12))["prediction"]
    assert "".join(stream(*built, row("a"), max_new_tokens=12)).strip() == expected


def test_a_stream_raises_what_the_model_raised_and_never_hangs(built, monkeypatch):
    model, processor = built

    def fail(**inputs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(stream(model, processor, row("a")))


def test_leaving_a_stream_stops_the_model(built):
    model, processor = built
    before, steps = threading.active_count(), []

    def slow_step(*call):
        steps.append(time.sleep(0.005))

    hook = model.language_model.register_forward_hook(slow_step)
    answer = stream(model, processor, row("a"), max_new_tokens=150)
    next(answer)
    answer.close()
    hook.remove()
    assert threading.active_count() == before and len(steps) < 100


def test_vectors_are_means_over_tokens_then_windows(built):
    model, processor = built
    extractor, tower = processor.feature_extractor, model.audio_tower
    clips = [waveform(0.5, 1), waveform(1.5, 2), waveform(0.3, 3)]
    inputs = extractor(clips)
    with torch.no_grad():
        output = tower(inputs["input_features"], output_hidden_states=True)
    assert inputs["audio_windows"].tolist() == [1, 3, 1]
    shares = inputs["input_features_mask"][1:4].sum(1, keepdim=True) / 148  # of the frames of the second clip
    sources = [(clip, 16_000) for clip in clips]
    for layer, tokens in ((None, output.last_hidden_state), (0, output.hidden_states[1])):
        windows = tokens.mean(1)
        expected = torch.stack([windows[0], (shares * windows[1:4]).sum(0), windows[4]]).numpy()
        for size in (1, 2, 8):
            found = list(embed(model, sources, layer=layer, batch_size=size, feature_extractor=extractor))
            assert [name for name, _ in found] == ["0", "1", "2"]
            assert np.allclose(np.stack([vector for _, vector in found]), expected, atol=1e-5)


def test_pooling_may_be_chosen(built):
    model, processor = built
    extractor, sources = processor.feature_extractor, [(waveform(0.3), 16_000)]
    inputs = extractor([waveform(0.3)])
    with torch.no_grad():
        tokens = model.audio_tower(inputs["input_features"]).last_hidden_state[0]
    real = inputs["input_features_mask"][0].reshape(4, 16).any(1).repeat_interleave(8)
    expected = {"mean": tokens.mean(0), "cls": tokens[0]}
    expected["mean_valid"] = torch.cat([tokens[:1], tokens[1:][real]]).mean(0)
    for pooling, vector in expected.items():
        ((_, found),) = embed(model, sources, feature_extractor=extractor, pooling=pooling)
        assert np.allclose(found, vector.numpy(), atol=1e-5), pooling
    assert not torch.allclose(expected["mean"], expected["mean_valid"], atol=1e-3)


def test_a_bad_clip_is_raised_or_noted(built):
    model, processor = built
    sources = [CLIP, "nowhere.wav", CLIP]
    with pytest.raises(AudioError, match=r"nowhere\.wav"):
        list(embed(model, sources, feature_extractor=processor.feature_extractor))
    failures = []
    found = list(embed(model, sources, feature_extractor=processor.feature_extractor, failures=failures))
    assert [name for name, _ in found] == ["0", "2"] and failures[0][0] == "nowhere.wav"
    with pytest.raises(AlmosaicError, match="layer 7 does not exist; the encoder has blocks 0 to 1"):
        next(embed(model, sources, layer=7))
    with pytest.raises(AlmosaicError, match="no front end"):
        next(embed(model, sources))


def save_stage(run, name, order, kind, model, processor):
    folder = run / "stages" / name
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    (folder / "stage.json").write_text(json.dumps({"order": order, "kind": kind}))


def test_a_run_stands_for_its_last_finished_stage(built, tmp_path):
    model, processor = built
    save_stage(
        tmp_path, "encoder", 1, "pretrain", tiny_encoder(), AudioMosaicFeatureExtractor(window_frames=64)
    )
    save_stage(tmp_path, "align", 2, "alm", model, processor)
    (tmp_path / "stages" / "instruct").mkdir()
    (tmp_path / "stages" / "instruct" / "stage.json").write_text('{"order": 3, "kind": "alm"}')
    loaded, loaded_processor = load_model(tmp_path, device="cpu")
    expected = list(generate(model, processor, [row("a")], max_new_tokens=4))
    assert list(generate(loaded, loaded_processor, [row("a")], max_new_tokens=4)) == expected
    encoder, extractor = load_model(tmp_path, kind="pretrain", device="cpu")
    assert next(embed(encoder, [CLIP]))[1].shape == (32,) and extractor.window_frames == 64
    shutil.rmtree(tmp_path / "stages" / "align")
    assert type(load_model(tmp_path, device="cpu")[0]).__name__ == "AudioMosaicModel"


def test_folders_that_hold_no_model_are_named(built, tmp_path):
    model, processor = built
    with pytest.raises(AlmosaicError, match="is not a folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(AlmosaicError, match="nor a finished stage"):
        load_model(tmp_path)
    model.language_model.save_pretrained(tmp_path / "llama")
    with pytest.raises(AlmosaicError, match="of type llama"):
        load_model(tmp_path / "llama")
    whole = tmp_path / "whole"
    model.save_pretrained(whole)
    processor.save_pretrained(whole)
    tensors = load_file(whole / "model.safetensors")
    del tensors["multi_modal_projector.linear_1.bias"]
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AlmosaicError, match=r"lacks 1 weights .* multi_modal_projector.linear_1.bias"):
        load_model(whole)
    (whole / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(AlmosaicError, match="cannot be loaded"):
        load_model(whole)
    (whole / "model.safetensors").unlink()
    with pytest.raises(AlmosaicError, match="cannot be loaded"):
        load_model(whole)
