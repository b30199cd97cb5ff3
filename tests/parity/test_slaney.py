"""The filter bank on Slaney's scale against arrays that the MATPAC authors' inference code produced."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from almosaic.features import AudioMosaicFeatureExtractor, FrontEndSettings
from almosaic.log_mel import log_mel_fbank, mel_bank

ORACLE = Path(os.environ.get("ALMOSAIC_ORACLE", Path(__file__).parents[3] / "shared" / "oracle"))
FILE = ORACLE / "matpac" / "matpac_inference.safetensors"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no oracle at {FILE}; set ALMOSAIC_ORACLE")


@pytest.fixture(scope="module")
def oracle():
    return load_file(FILE)


@pytest.mark.parametrize("bins", [48, 80])
def test_filter_banks(oracle, bins):
    """The reference's triangles are rounded to single precision on the way, ours at the end."""
    expected = oracle[f"mel_filterbank_{bins}"]
    torch.testing.assert_close(mel_bank("slaney", bins, torch.device("cpu")), expected, atol=2e-7, rtol=0)


@pytest.mark.parametrize(("name", "bins", "samples"), [("log_mel", 48, 27_200), ("log_mel_80", 80, 8000)])
def test_log_mel(oracle, name, bins, samples):
    found, frames = log_mel_fbank(oracle["waveform"][:, :samples], num_mel_bins=bins, front_end="slaney")
    expected = oracle[name].transpose(1, 2)
    assert found.shape == expected.shape and frames.tolist() == [expected.shape[1]] * 2
    difference = (found - expected).abs()
    assert difference.max() < 2e-4 and difference.mean() < 5e-6


def test_normalised_windows_and_their_padding(oracle):
    """168 frames in windows of 96, the second one padded with zeros behind the normalisation."""
    settings = FrontEndSettings(preset="matpac", num_mel_bins=48, window_frames=96)
    found = AudioMosaicFeatureExtractor.from_settings(settings)(list(oracle["waveform"]))
    windows = found["input_features"].reshape(2, 192, 48)
    expected = oracle["log_mel_normalised"].transpose(1, 2)
    torch.testing.assert_close(windows[:, :168], expected, atol=1e-4, rtol=0)
    assert (windows[:, 168:] == 0).all()
    assert found["input_features_mask"].reshape(2, 192).sum(1).tolist() == [168, 168]
