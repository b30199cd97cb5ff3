"""Files of published MATPAC encoders: to a model folder that embeds sounds, and back bit by bit."""

import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers_tiny import waveform
from safetensors.torch import load_file, save_file

from almosaic.cli import main
from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.encoder.conversion import to_released
from almosaic.loading import load_model
from almosaic.released import convert_released, write_released

sys.path.insert(0, str(Path(__file__).parent / "encoder"))
from test_matpac_layout import others, published

TEACHER = {"blocks.0.norm1.weight": torch.zeros(64), "norm.bias": torch.zeros(64)}


@pytest.fixture(scope="module")
def tensors():
    return published(5, 38, depth=1)


@pytest.fixture
def file(tensors, tmp_path):
    save_file(tensors, tmp_path / "matpac_plus_6s_2048_enconly.safetensors")
    return tmp_path / "matpac_plus_6s_2048_enconly.safetensors"


def test_the_command_line_both_ways(file, tensors, tmp_path, capsys):
    out, back = tmp_path / "out", tmp_path / "back.safetensors"
    assert main(["export", "--from-released", str(file), str(out), "--preset", "matpac"]) == 0
    assert main(["export", "--to-released", str(out), str(back)]) == 0
    assert capsys.readouterr().out == f"wrote {out}\nwrote {back}\n"
    found = load_file(back)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[key], value) for key, value in tensors.items())
    encoder, front_end = load_model(out)
    assert type(encoder) is AudioMosaicModel and torch.equal(encoder.cls_token, tensors["cls_token"])
    assert (front_end.front_end, front_end.num_mel_bins, front_end.window_frames) == ("slaney", 80, 608)
    assert (front_end.zeros_in, front_end.std_factor, front_end.min_samples) == ("normalised", 1.0, 0)


def test_sounds_are_embedded_through_the_command(file, tmp_path):
    """1.3 s are 128 frames of 608, 8 columns of 38; what pads the window is not pooled."""
    convert_released(file, tmp_path / "model", "matpac")
    sound = waveform(1.3)[: 127 * 160 + 400]
    soundfile.write(tmp_path / "a.wav", sound, 16_000, subtype="FLOAT")
    out = tmp_path / "out.npz"
    assert main(["embed", str(tmp_path / "model"), str(tmp_path / "a.wav"), "-o", str(out)]) == 0
    (found,) = (value for value in np.load(out).values() if value.dtype == np.float32)
    encoder, front_end = load_model(tmp_path / "model")
    with torch.no_grad():
        tokens = encoder(front_end(sound)["input_features"]).last_hidden_state[0]
    np.testing.assert_allclose(found.reshape(-1), tokens[: 1 + 8 * 5].mean(0), atol=1e-5)
    assert not np.allclose(found.reshape(-1), tokens.mean(0), atol=1e-3)


@pytest.mark.parametrize("columns", [38, 62])
def test_a_checkpoint_of_training_or_a_fine_tuned_file(columns, tmp_path, caplog):
    tensors = published(5, columns, depth=1)
    extra = others({"decoder.mask_token": (1, 1, 8)}) | {"_ema": TEACHER} if columns == 38 else None
    extra = extra or others({"head_norm.running_mean": (320,), "head.weight": (527, 320)})
    state = {"model": tensors | extra, "extra_state": {"epoch": 3}, "last_optimizer_state": None}
    torch.save(state, tmp_path / "checkpoint.pt")
    with caplog.at_level(logging.INFO):
        convert_released(tmp_path / "checkpoint.pt", tmp_path / "out", "matpac")
    told = "left out 3 tensors (decoder, _ema)" if columns == 38 else "left out 2 tensors (head_norm, head)"
    assert [record.getMessage() for record in caplog.records] == [f"{told}: only the encoder is converted"]
    write_released(tmp_path / "out", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], value) for key, value in tensors.items())
    assert load_model(tmp_path / "out")[1].window_frames == 16 * columns


def test_every_mistake_is_one_clear_line(file, tensors, tmp_path, capsys):
    ours = AudioMosaicModel(
        AudioMosaicConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, window_frames=64)
    )
    torch.save(to_released(ours.config, ours.state_dict()), tmp_path / "audiomosaic.pt")
    torch.save({**tensors, "_ema": {"decay": 0.999}}, tmp_path / "nested.pt")
    torch.save({**tensors, "_ema": {"norm.bias": torch.full((64,), torch.nan)}}, tmp_path / "nan.pt")
    torch.save({k: v for k, v in tensors.items() if "qkv" not in k}, tmp_path / "lacking.pt")
    (tmp_path / "labels.txt").write_text("dog\n")
    labels, preset = ["--labels", str(tmp_path / "labels.txt")], ["--preset", "matpac"]
    mistakes = {
        "found MATPAC's: give preset matpac": [file.name, "--preset", "esc50"],
        "expected a published MATPAC encoder, found no usable": ["audiomosaic.pt", *preset],
        "neither std_factor nor probe_layer": [file.name, *preset, "--std-factor", "2"],
        "neither std_factor nor probe_layer with preset": [file.name, *preset, "--probe-layer", "3"],
        "leave labels out": [file.name, *preset, *labels],
        "expected preset ltu": [file.name, *preset, "--language-model", "llama"],
        "found float under '_ema.decay'": ["nested.pt", *preset],
        "NaN or infinity in _ema.norm.bias": ["nan.pt", *preset],
        "2 missing (student_encoder.blocks.0.attn.qkv.weight": ["lacking.pt", *preset],
    }
    for expected, (name, *options) in mistakes.items():
        out = str(tmp_path / "out")
        assert main(["export", "--from-released", str(tmp_path / name), out, *options]) == 2, expected
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: ") and expected in line and len(line) < 500, (expected, line)
    assert not (tmp_path / "out").exists()
