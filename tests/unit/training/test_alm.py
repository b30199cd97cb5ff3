"""Audio-language stages: cached features change nothing, every kind of data works, misfits are one line."""

import json
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from almosaic.errors import AlmosaicError
from almosaic.inference import generate
from almosaic.loading import load_model
from almosaic.training.alm_parts import Parts

sys.path.insert(0, str(Path(__file__).parent))
from stages import Tones, run_alm


@pytest.fixture(scope="module")
def aligned(bank, parts, tmp_path_factory):
    """A stage that trained the projector alone, and its losses."""
    folder = tmp_path_factory.mktemp("align")
    return folder, run_alm(folder, parts, bank)


def tensors(folder):
    return load_file(folder / "model.safetensors")


def test_cached_and_fresh_features_give_the_same_losses(tmp_path, bank, parts, aligned):
    cached = run_alm(tmp_path, parts, bank, cache_features=True)
    assert list(cached.values()) == pytest.approx(list(aligned[1].values()), abs=2e-3)
    assert any(path.name.startswith("features-") for path in (tmp_path / "features").iterdir())


def test_the_projector_learns_and_the_rest_is_not_saved(aligned):
    folder, losses = aligned
    assert losses[6] < losses[1]
    kept = tensors(folder / "model")
    assert not any(name.startswith("language_model") for name in kept)
    for name in ("model.safetensors", "processor_config.json", "generation_config.json"):
        assert (folder / "model" / name).is_file()


def test_the_model_answers_after_loading(aligned):
    model, processor = load_model(aligned[0] / "model", device="cpu")
    content = [{"type": "audio"}, {"type": "text", "text": "What can be heard?"}]
    row = {
        "id": "x",
        "messages": [{"role": "user", "content": content}],
        "audios": [(Tones().waveform(0, 0), 16000)],
    }
    (record,) = generate(model, processor, [row], max_new_tokens=4)
    assert record["id"] == "x" and isinstance(record["prediction"], str)


def test_a_later_stage_starts_from_an_earlier_one_and_tunes_what_it_is_told(tmp_path, bank, aligned):
    start = Parts(start=aligned[0] / "model")
    rates = {"projector": 1e-3, "language_model": 1e-2}
    tune = {"projector": "full", "language_model": "lora", "lora_rank": 2}
    run_alm(tmp_path, start, bank, projector=None, tune=tune, optim={"learning_rate": rates, "steps": 3})
    before, after = tensors(aligned[0] / "model"), tensors(tmp_path / "model")
    changed = {
        name.split(".")[0]
        for name in after
        if name not in before or not torch.equal(before[name], after[name])
    }
    assert changed == {"multi_modal_projector", "language_model"}
    assert all("lora_" in name for name in after if name.startswith("language_model"))


def test_all_parts_can_be_trained(tmp_path, bank, aligned):
    tune = {"projector": "full", "language_model": "full", "audio_tower": "full"}
    start = Parts(start=aligned[0] / "model")
    run_alm(tmp_path, start, bank, projector=None, tune=tune, optim={"steps": 2})
    before, after = tensors(aligned[0] / "model"), tensors(tmp_path / "model")
    assert any("audio_tower" in name and not torch.equal(before[name], after[name]) for name in before)
    model, _ = load_model(tmp_path / "model", device="cpu")
    assert model.config.language_model_source is None


def write_clips(folder, count=4):
    soundfile = pytest.importorskip("soundfile")
    folder.mkdir(exist_ok=True)
    for index in range(count):
        soundfile.write(folder / f"{index}.wav", Tones().waveform(index, 0), 16_000)


def test_chat_files_captions_and_scenes_mix(tmp_path, bank, parts):
    write_clips(tmp_path)
    answer = {"role": "assistant", "content": "yes"}
    rows = [
        {
            "messages": [{"role": "user", "content": "<audio><audio>Same?"}, answer],
            "audios": ["0.wav", "1.wav"],
        },
        {"messages": [{"role": "user", "content": "Are you there?"}, answer]},
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    captions = [
        {"id": str(n), "audio": f"{n}.wav", "captions": ["a tone"], "fold": str(n % 2)} for n in range(4)
    ]
    (tmp_path / "clips.jsonl").write_text("\n".join(json.dumps(row) for row in captions))
    data = [
        {"name": "chat", "path": str(tmp_path / "chat.jsonl")},
        {"name": "captions", "manifest": str(tmp_path / "clips.jsonl"), "folds": ["1"], "crop_seconds": 0.5},
        {"name": "scenes", "scenes": 4},
    ]
    fresh = run_alm(tmp_path / "run", parts, bank, data=data, optim={"batch_size": 2})
    cached = run_alm(
        tmp_path / "cached", parts, bank, data=data[:1], cache_features=True, optim={"batch_size": 1}
    )
    assert len(fresh) == 6 and all(
        map(torch.isfinite, map(torch.tensor, [*fresh.values(), *cached.values()]))
    )


@pytest.mark.parametrize("cache_features", [False, True])
def test_a_missing_clip_is_named_and_skipped_or_stops_the_run(tmp_path, bank, parts, caplog, cache_features):
    write_clips(tmp_path)
    captions = [{"id": str(n), "audio": f"{n}.wav", "captions": ["a tone"]} for n in range(5)]
    (tmp_path / "clips.jsonl").write_text("\n".join(json.dumps(row) for row in captions))
    data = [{"name": "captions", "manifest": str(tmp_path / "clips.jsonl")}]
    chosen = {"data": data, "cache_features": cache_features}
    with pytest.raises(AlmosaicError, match=r"1 of 5 (clips|rows) cannot be used.*4\.wav"):
        run_alm(tmp_path / "a", parts, bank, **chosen)
    assert len(run_alm(tmp_path / "b", parts, bank, bad_clip_share=0.3, **chosen)) == 6
    assert "4.wav: no such file" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache_features": True, "tune": {"audio_tower": "full"}}, "needs tune.audio_tower: frozen"),
        ({"tune": {"projector": "frozen"}}, "tune freezes every part"),
        ({"optim": {"learning_rate": {"language_model": 1e-3}}}, r"each trained part \(projector\)"),
        ({"max_audio_seconds": 1.0}, "longer than the limit of 1 s"),
        ({"layer": 7}, "layer 7 does not exist"),
        ({"data": []}, "at least 1 item"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, bank, parts, changes, message):
    with pytest.raises((AlmosaicError, ValidationError), match=message):
        run_alm(tmp_path, parts, bank, **changes)


def test_parts_must_fit_together(tmp_path, bank, parts, aligned):
    start = aligned[0] / "model"
    wrong = [
        (Parts(), {}, "from audio_tower and language_model; found audio_tower None"),
        (Parts(start=start, language_model="x"), {}, "give an earlier stage to start from, or"),
        (Parts(start=start), {"projector": {"name": "mlp", "queries": 8}}, "leave `projector` out"),
        (Parts(start=start), {"projector": None, "layer": 0}, "leave it out"),
        (Parts(start=parts.audio_tower), {"projector": None}, "is not an audio-language model"),
        (Parts(audio_tower=start, language_model=parts.language_model), {}, "is not an encoder"),
        (Parts(audio_tower=parts.audio_tower, language_model=tmp_path), {}, "cannot be had"),
    ]
    for given, changes, message in wrong:
        with pytest.raises(AlmosaicError, match=message):
            run_alm(tmp_path, given, bank, **changes)
    with pytest.raises(AlmosaicError, match="needs a bank of clips"):
        run_alm(tmp_path, parts, None)
