"""A published MATPAC encoder in our class against what the authors' own modules make of the same input."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from almosaic.encoder import AudioMosaicModel
from almosaic.encoder.matpac import from_matpac, to_matpac
from almosaic.features import AudioMosaicFeatureExtractor, FrontEndSettings

ORACLE = Path(os.environ.get("ALMOSAIC_ORACLE", Path(__file__).parents[3] / "shared" / "oracle")) / "matpac"
pytestmark = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no oracle at {ORACLE}; set ALMOSAIC_ORACLE")
COLUMNS, BANDS, PATCH = 6, 3, 16
TOLERANCE = {"atol": 2e-5, "rtol": 1e-5}  # as the oracle's README suggests


@pytest.fixture(scope="module")
def state():
    return load_file(ORACLE / "matpac_state.safetensors")


@pytest.fixture(scope="module")
def encoder(state):
    config, weights = from_matpac(state, 48, num_attention_heads=3)
    model = AudioMosaicModel(config).eval()
    model.load_state_dict(weights)
    return model


@pytest.fixture(scope="module")
def inference():
    """The reference puts the columns of a clip's fast windows in turn; here they are in order of time."""
    stored = load_file(ORACLE / "matpac_inference.safetensors")
    for name, axis in (("fast_frames", 1), ("fast_layers", 2)):
        in_turn = stored[name].unflatten(axis, (COLUMNS, -1))
        stored[name] = in_turn.transpose(axis, axis + 1).flatten(axis, axis + 1)
    return stored


def frame_vectors(tokens):
    """Patch tokens [B, Tp * Fp, D] -> [B, Tp, Fp * D]: the bands of a column side by side, low first."""
    return tokens.unflatten(1, (-1, BANDS)).flatten(2)


@torch.no_grad()
def read(encoder, features, fast=False):
    """Frame vectors and those of every layer of normalised log-mels [B, T', F], window by window.

    The last window is padded to whole columns, or (fast) to a whole window.
    """
    window = encoder.config.window_frames
    size = window if fast else PATCH
    features = torch.nn.functional.pad(features, (0, 0, 0, -features.shape[1] % size))
    frames, layers = [], []
    for piece in features.split(window, dim=1):
        found = encoder(piece, output_hidden_states=True)
        blocks = (*found.hidden_states[1:-1], found.last_hidden_state)
        layers.append(torch.stack([frame_vectors(tokens[:, 1:]) for tokens in blocks], dim=1))
        frames.append(frame_vectors(found.last_hidden_state[:, 1:]))
    return torch.cat(frames, dim=1), torch.cat(layers, dim=2)


@pytest.mark.parametrize("mode", ["precise", "fast"])
def test_frames_layers_and_pooled_vectors(encoder, inference, mode):
    features = inference["log_mel_normalised"].transpose(1, 2)
    frames, layers = read(encoder, features, fast=mode == "fast")
    torch.testing.assert_close(frames, inference[f"{mode}_frames"], **TOLERANCE)
    torch.testing.assert_close(layers, inference[f"{mode}_layers"], **TOLERANCE)
    torch.testing.assert_close(frames.mean(1), inference[f"{mode}_pooled"], **TOLERANCE)


def front_end(window_frames=96):
    settings = FrontEndSettings(preset="matpac", num_mel_bins=48, window_frames=window_frames)
    return AudioMosaicFeatureExtractor.from_settings(settings)


@pytest.mark.parametrize(("mode", "samples"), [("precise", None), ("fast", None), ("short", 9000)])
def test_from_the_waveform(encoder, inference, mode, samples):
    """Our front end, its windows and our encoder; 9,000 samples are 54 frames, 4 columns of the table."""
    log_mel, _ = front_end().log_mel(inference["waveform"][:, :samples], [samples or 27_200] * 2)
    frames, _ = read(encoder, (log_mel + 7.056) / 4.193, fast=mode == "fast")
    torch.testing.assert_close(frames, inference[f"{mode}_frames"], atol=5e-5, rtol=1e-4)


def test_windows_of_the_saved_front_end_are_the_fast_mode(encoder, inference):
    windows = front_end()(list(inference["waveform"]))["input_features"]
    with torch.no_grad():
        tokens = encoder(windows).last_hidden_state[:, 1:]
    frames = frame_vectors(tokens).reshape(2, 2 * COLUMNS, -1)
    torch.testing.assert_close(frames, inference["fast_frames"], atol=5e-5, rtol=1e-4)


def test_visible_tokens_of_the_student(encoder):
    """The reference counts patches frequency by frequency and reads them in shuffled order."""
    stored = load_file(ORACLE / "matpac_io.safetensors")
    theirs = stored["ids_shuffle"][:, :5]
    ours = (theirs % COLUMNS) * BANDS + theirs // COLUMNS
    with torch.no_grad():
        found = encoder(stored["source"].transpose(1, 2), ids_keep=ours).last_hidden_state
    torch.testing.assert_close(found, stored["student_tokens"], **TOLERANCE)


def test_embedded_masked_patches(encoder):
    """What the teacher reads: the same embedding with positions, without a norm."""
    stored = load_file(ORACLE / "matpac_io.safetensors")
    theirs = stored["ids_shuffle"][:, 5:]
    ours = (theirs % COLUMNS) * BANDS + theirs // COLUMNS
    with torch.no_grad():
        found = encoder.embed(stored["source"].transpose(1, 2), ours)[:, 1:]
    torch.testing.assert_close(found, stored["masked_patch_embeddings"], **TOLERANCE)


@pytest.mark.parametrize("name", ["matpac", "matpacpp_soft"])
def test_round_trip(name, tmp_path):
    state = load_file(ORACLE / f"{name}_state.safetensors")
    config, weights = from_matpac(state, 48, num_attention_heads=3)
    model = AudioMosaicModel(config)
    model.load_state_dict(weights)
    save_file(to_matpac(config, model.state_dict()), tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert len(back) == 30 and all(torch.equal(value, state[key]) for key, value in back.items())
