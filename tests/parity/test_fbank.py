"""The front end against arrays that the released AudioMosaic code produced."""

import json
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
    settings = FRONT_ENDS[front_end]
    if front_end == "hub_audioset" and clip.endswith("_16k"):
        # That script pads below 16,000 samples at the file's own rate; ours does it at 16 kHz.
        settings = settings.model_copy(update={"min_samples": 16_000})
    extractor = AudioMosaicFeatureExtractor.from_settings(settings)
    waveform = mono(oracle, clip)
    features = extractor(waveform)["input_features"].numpy()
    # The reference cuts a clip at one window; here the first window is the same and the rest is kept,
    # unless the front end is asked to do as the reference.
    expected = oracle[f"{clip}__{front_end}"][0]
    assert_within(features[0], expected, scale=extractor.std * extractor.std_factor)
    extractor.long_clips = "first"
    only = extractor(waveform)["input_features"].numpy()
    assert only.shape == (1, extractor.window_frames, 128)
    assert_within(only[0], expected, scale=extractor.std * extractor.std_factor)


@pytest.mark.parametrize("front_end", ["audioset", "esc", "spc", "hub_audioset"])
def test_statistics_of_features_that_are_not_stored(oracle, front_end):
    """Of every clip the reference noted mean and deviation, also where it left the array out."""
    noted = json.loads((FILE.parent / "fbank_meta.json").read_text())["stats"]
    for clip in CLIPS:
        settings = FRONT_ENDS[front_end].model_copy(update={"long_clips": "first"})
        if front_end == "hub_audioset" and clip.endswith("_16k"):
            settings = settings.model_copy(update={"min_samples": 16_000})
        found = AudioMosaicFeatureExtractor.from_settings(settings)(mono(oracle, clip))["input_features"]
        expected = noted[f"{clip}__{front_end}"]
        assert found.mean().item() == pytest.approx(expected["mean"], abs=1e-3)
        assert found.std(correction=0).item() == pytest.approx(expected["std"], abs=1e-3)


def test_all_clips_in_one_padded_batch(oracle):
    waveforms = [mono(oracle, clip) for clip in CLIPS]
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    log_mel, frames = log_mel_fbank(padded, lengths)
    for index, clip in enumerate(CLIPS):
        assert_within(log_mel[index, : frames[index]].numpy(), oracle[f"{clip}__fbank_raw"])
        assert (log_mel[index, frames[index] :] == 0).all()
