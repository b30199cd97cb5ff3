"""The front end against arrays that the released AudioMosaic code produced."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from almosaic.features import AudioMosaicFeatureExtractor, FrontEndSettings, log_mel_fbank

ORACLE = Path(os.environ.get("ALMOSAIC_ORACLE", Path(__file__).parents[3] / "shared" / "oracle"))
FILE = ORACLE / "audiomosaic" / "fbank_io.npz"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason=f"no oracle at {FILE}; set ALMOSAIC_ORACLE")

CLIPS = [
    "chirp_10s3_16k",
    "noise_1s_16k",
    "tone_then_silence_5s_16k",
    "short_0s6_16k",
    "stereo_1s5_48k",
    "noise_0s9_44k1",
]
FRONT_ENDS = {
    "audioset": FrontEndSettings(),
    "esc": FrontEndSettings(preset="esc50"),
    "spc": FrontEndSettings(preset="speech_commands"),
    "hub_audioset": FrontEndSettings(std_factor=1.0),
}


@pytest.fixture(scope="module")
def oracle():
    return np.load(FILE)


def mono(oracle, clip):
    """The stored waveform at 16 kHz: other resamplers than the reference's do not match sample by sample."""
    if f"{clip}__resampled_mono" in oracle:
        return torch.from_numpy(oracle[f"{clip}__resampled_mono"]).reshape(-1)
    return torch.from_numpy(oracle[f"{clip}__wav_int16"].astype(np.float32).mean(0) / 32768)


def assert_within(found, expected, scale=1.0):
    """The tolerances of the oracle's README for an own filter bank, divided like the features."""
    difference = np.abs(found - expected)
    assert difference.max() <= 3e-2 / scale
    assert np.quantile(difference, 0.999) <= 1e-2 / scale
    assert difference.mean() <= 5e-4 / scale


@pytest.mark.parametrize("clip", CLIPS)
def test_raw_log_mel(oracle, clip):
    log_mel, frames = log_mel_fbank(mono(oracle, clip)[None])
    expected = oracle[f"{clip}__fbank_raw"]
    assert frames.tolist() == [len(expected)]
    assert_within(log_mel[0].numpy(), expected)


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("clip", CLIPS)
def test_normalised_features(oracle, clip, front_end):
    if f"{clip}__{front_end}" not in oracle:
        pytest.skip("not stored in the oracle")
    extractor = AudioMosaicFeatureExtractor.from_settings(FRONT_ENDS[front_end])
    waveform = mono(oracle, clip)
    if front_end == "hub_audioset" and oracle[f"{clip}__wav_int16"].shape[1] < 16_000:
        waveform = torch.nn.functional.pad(waveform, (0, 16_000 - len(waveform)))  # that script pads these
    features = extractor(waveform)["input_features"].numpy()
    # The reference cuts a clip at one window; here the first window is the same and the rest is kept.
    expected = oracle[f"{clip}__{front_end}"][0]
    assert_within(features[0], expected, scale=extractor.std * extractor.std_factor)


def test_all_clips_in_one_padded_batch(oracle):
    waveforms = [mono(oracle, clip) for clip in CLIPS]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    log_mel, frames = log_mel_fbank(padded, lengths)
    for index, clip in enumerate(CLIPS):
        assert_within(log_mel[index, : frames[index]].numpy(), oracle[f"{clip}__fbank_raw"])
        assert (log_mel[index, frames[index] :] == 0).all()
