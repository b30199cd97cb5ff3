"""The front end: windows that lose nothing, normalised and padded as each model was trained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from almosaic.errors import AlmosaicError, AudioError
from almosaic.features import (
    FRONT_END_PRESETS,
    AudioMosaicFeatureExtractor,
    FrontEndSettings,
    log_mel_fbank,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "fbank_kaldi.npz"


def clip(samples, seed=0, scale=0.1):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, samples).astype(np.float32))


@pytest.fixture(scope="module")
def golden():
    """A chirp with an offset and a gap, and what kaldi-native-fbank makes of it."""
    stored = np.load(GOLDEN)
    return torch.from_numpy(stored["waveform"].astype(np.float32) / 32768), torch.from_numpy(
        stored["log_mel"]
    )


@pytest.mark.parametrize(
    "settings, window, mean, divisor",
    [
        (FrontEndSettings(), 1024, -4.2677393, 2 * 4.5689974),
        (FrontEndSettings(preset="esc50"), 512, -6.6268077, 2 * 5.358466),
        (FrontEndSettings(preset="speech_commands"), 128, -6.845978, 2 * 5.5654526),
        (FrontEndSettings(std_factor=1.0), 1024, -4.2677393, 4.5689974),
        (FrontEndSettings(window_frames=64, mean=-3.0, std=2.0), 64, -3.0, 4.0),
    ],
)
def test_golden_features_of_each_preset(golden, settings, window, mean, divisor):
    waveform, log_mel = golden
    found = AudioMosaicFeatureExtractor.from_settings(settings)(waveform)
    features, mask = found["input_features"], found["input_features_mask"]
    windows = -(-len(log_mel) // window)
    assert features.shape == (windows, window, 128) and found["audio_windows"].tolist() == [windows]
    features, mask = features.flatten(0, 1), mask.flatten()
    assert mask.sum() == len(log_mel) and mask[: len(log_mel)].all()
    torch.testing.assert_close(features[mask], (log_mel - mean) / divisor, atol=2e-3 / divisor, rtol=0)
    torch.testing.assert_close(features[~mask], torch.full_like(features[~mask], -mean / divisor))


def test_long_clips_keep_every_frame():
    extractor = AudioMosaicFeatureExtractor(window_frames=128)
    waveforms = [clip(16_000 * 3 + 77), clip(500, 1), clip(16_000, 2)]
    found = extractor(waveforms)
    assert found["audio_windows"].tolist() == [extractor.windows(298), 1, 1] == [3, 1, 1]
    assert found["input_features"].shape == (5, 128, 128)
    assert found["input_features_mask"].sum(1).tolist() == [128, 128, 42, 1, 98]
    log_mel, _ = log_mel_fbank(waveforms[0][None])
    expected = (log_mel[0] - extractor.mean) / (2 * extractor.std)
    rows = found["input_features"][:3][found["input_features_mask"][:3]]
    torch.testing.assert_close(rows, expected, atol=1e-4, rtol=0)
    alone = extractor(waveforms[2])["input_features"]
    torch.testing.assert_close(found["input_features"][4:], alone, atol=1e-4, rtol=0)


def test_cut_ignores_what_lies_beyond_a_clip():
    extractor = AudioMosaicFeatureExtractor(window_frames=16, num_mel_bins=4)
    log_mel = torch.randn(2, 40, 4)
    features, mask, windows = extractor.cut(log_mel, torch.tensor([33, 16]))
    assert windows.tolist() == [3, 1] and features.shape == (4, 16, 4)
    assert mask.sum(1).tolist() == [16, 16, 1, 16]
    padding = -extractor.mean / (extractor.std * extractor.std_factor)
    assert torch.allclose(features[2, 1:], torch.tensor(padding))


def test_save_and_load(tmp_path):
    settings = FrontEndSettings(preset="esc50", std_factor=1.0, window_frames=256)
    extractor = AudioMosaicFeatureExtractor.from_settings(settings)
    extractor.save_pretrained(tmp_path)
    loaded = AudioMosaicFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert (tmp_path / "preprocessor_config.json").exists()
    waveform = clip(16_000)
    assert torch.equal(loaded(waveform)["input_features"], extractor(waveform)["input_features"])


def test_arrays_lists_and_numpy_results():
    extractor = AudioMosaicFeatureExtractor(window_frames=64)
    batch = np.stack([clip(4000, seed).numpy() for seed in range(2)])
    expected = extractor(batch)["input_features"]
    assert expected.shape == (2, 64, 128)
    assert torch.equal(extractor(list(batch))["input_features"], expected)
    assert torch.equal(extractor(torch.from_numpy(batch))["input_features"], expected)
    found = extractor(batch[0], return_tensors="np")
    assert isinstance(found["input_features"], np.ndarray)
    np.testing.assert_array_equal(found["input_features"], expected[:1])
    assert list(found) == ["input_features", "input_features_mask", "audio_windows"]


@pytest.mark.parametrize(
    "call, error, word",
    [
        (lambda: AudioMosaicFeatureExtractor()(clip(800), sampling_rate=44_100), AlmosaicError, "44100"),
        (lambda: AudioMosaicFeatureExtractor()([torch.zeros(2, 800)]), AlmosaicError, "mono"),
        (lambda: AudioMosaicFeatureExtractor()([]), AlmosaicError, "none"),
        (lambda: AudioMosaicFeatureExtractor()(torch.full((800,), torch.nan)), AudioError, "NaN"),
        (lambda: AudioMosaicFeatureExtractor(std=0.0), AlmosaicError, "std"),
        (lambda: AudioMosaicFeatureExtractor(sampling_rate=8000), AlmosaicError, "8000"),
        (lambda: FrontEndSettings(preset="unknown"), ValidationError, "preset"),
        (lambda: FrontEndSettings(std=-1.0), ValidationError, "std"),
    ],
)
def test_mistakes_are_named(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value)
    if issubclass(error, AlmosaicError):
        assert "\n" not in str(caught.value)


def test_presets_are_the_released_constants():
    assert {name: preset.window_frames for name, preset in FRONT_END_PRESETS.items()} == {
        "audioset": 1024,
        "esc50": 512,
        "speech_commands": 128,
        "envsdd": 1024,
        "ltu": 1024,
        "matpac": 608,
    }
    ltu = AudioMosaicFeatureExtractor.from_settings(FrontEndSettings(preset="ltu"))
    assert (ltu.mean, ltu.std, ltu.std_factor, ltu.min_samples) == (-5.081, 4.4849, 1.0, 16_000)
    envsdd = AudioMosaicFeatureExtractor.from_settings(FrontEndSettings(preset="envsdd"))
    assert (envsdd.max_samples, envsdd.std_factor) == (64_600, 2.0)
    usual = {("kaldi", 128, "log_mel")}
    assert {(front.front_end, front.num_mel_bins, front.zeros_in) for front in (ltu, envsdd)} == usual
    matpac = AudioMosaicFeatureExtractor.from_settings(FrontEndSettings(preset="matpac"))
    assert (matpac.mean, matpac.std, matpac.std_factor, matpac.min_samples) == (-7.056, 4.193, 1.0, 0)
    assert (matpac.front_end, matpac.num_mel_bins, matpac.zeros_in) == ("slaney", 80, "normalised")


@pytest.mark.parametrize(("policy", "start"), [("windows", 0), ("first", 0), ("centre", 86)])
def test_long_clips(policy, start):
    """298, 100 and 128 frames in windows of 126: all of a clip, or its first, or its middle window."""
    waveforms = [clip(298 * 160 + 240), clip(100 * 160 + 240, 1), clip(128 * 160 + 240, 2)]
    extractor = AudioMosaicFeatureExtractor(window_frames=126, long_clips=policy)
    found = extractor(waveforms)
    features, mask = found["input_features"], found["input_features_mask"]
    windows = [3, 1, 2] if policy == "windows" else [1, 1, 1]
    assert found["audio_windows"].tolist() == windows == [extractor.windows(n) for n in (298, 100, 128)]
    log_mel, _ = log_mel_fbank(waveforms[0][None])
    expected = (log_mel[0, start : start + 126] - extractor.mean) / (2 * extractor.std)
    torch.testing.assert_close(features[0], expected, atol=1e-4, rtol=0)
    short = features[windows[0]]
    assert mask[windows[0]].sum() == 100 and torch.equal(short[100:], short[125:].expand(26, -1))
    if policy == "centre":
        log_mel, _ = log_mel_fbank(waveforms[2][None])
        expected = (log_mel[0, 1:127] - extractor.mean) / (2 * extractor.std)
        torch.testing.assert_close(features[2], expected, atol=1e-4, rtol=0)
    alone = torch.cat([extractor(waveform)["input_features"] for waveform in waveforms])
    torch.testing.assert_close(features, alone, atol=1e-4, rtol=0)


def test_short_clips_are_padded_before_their_mean_is_taken_out():
    settings = FrontEndSettings(min_samples=16_000, window_frames=128)
    extractor = AudioMosaicFeatureExtractor.from_settings(settings)
    waveforms = [clip(300) + 0.2, clip(9600, 1) + 0.2, clip(20_000, 2)]
    found = extractor(waveforms)
    assert found["input_features_mask"].sum(1).tolist() == [98, 98, 123]
    padded = torch.nn.functional.pad(waveforms[1], (0, 6400))
    plain = AudioMosaicFeatureExtractor(window_frames=128)
    expected = plain(padded)["input_features"]
    torch.testing.assert_close(found["input_features"][1:2], expected, atol=1e-4, rtol=0)
    noisy = torch.nn.functional.pad(waveforms[1], (0, 3000), value=0.5)[None]
    features, _, _ = extractor.featurize(noisy, [9600])
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    with pytest.raises(AudioError, match="300"):
        plain(waveforms[0])


def test_waveforms_are_cut_where_asked():
    extractor = AudioMosaicFeatureExtractor.from_settings(FrontEndSettings(preset="envsdd"))
    long, short = clip(100_000) + 0.1, clip(20_000, 1)
    found = extractor([long, short])
    assert found["input_features_mask"].sum(1).tolist() == [402, 123]
    expected = AudioMosaicFeatureExtractor()(long[:64_600])["input_features"]
    torch.testing.assert_close(found["input_features"][:1], expected, atol=1e-4, rtol=0)
    whole = FrontEndSettings(preset="envsdd", max_samples=None)
    found = AudioMosaicFeatureExtractor.from_settings(whole)(long)
    assert found["input_features_mask"].sum().item() == 623


def test_policies_are_saved_with_the_front_end(tmp_path):
    settings = FrontEndSettings(long_clips="centre", min_samples=800, max_samples=32_000)
    AudioMosaicFeatureExtractor.from_settings(settings).save_pretrained(tmp_path)
    loaded = AudioMosaicFeatureExtractor.from_pretrained(tmp_path)
    assert (loaded.long_clips, loaded.min_samples, loaded.max_samples) == ("centre", 800, 32_000)
    for wrong in (
        {"long_clips": "middle"},
        {"min_samples": -1},
        {"min_samples": 900, "max_samples": 800},
        {"front_end": "mfcc"},
        {"zeros_in": "waveform"},
    ):
        with pytest.raises(AlmosaicError, match="correct the front end's config"):
            AudioMosaicFeatureExtractor(**wrong)


def test_another_filter_bank_is_read_and_padded_as_its_model_was_trained(tmp_path):
    settings = FrontEndSettings(preset="matpac", window_frames=128)
    AudioMosaicFeatureExtractor.from_settings(settings).save_pretrained(tmp_path)
    extractor = AudioMosaicFeatureExtractor.from_pretrained(tmp_path)
    waveforms = [clip(16_000 * 2), clip(9000, 1) + 0.2]
    found = extractor(waveforms)
    features, mask = found["input_features"], found["input_features_mask"]
    assert features.shape == (3, 128, 80) and mask.sum(1).tolist() == [128, 70, 54]
    for waveform, part in ((waveforms[0], slice(0, 2)), (waveforms[1], slice(2, 3))):
        log_mel, _ = log_mel_fbank(waveform[None], num_mel_bins=80, front_end="slaney")
        expected = (log_mel[0] + 7.056) / 4.193
        torch.testing.assert_close(features[part][mask[part]], expected, atol=1e-4, rtol=0)
    assert (features[~mask] == 0).all() and (features[mask] != 0).all()


@pytest.mark.parametrize("zeros_in", ["log_mel", "normalised"])
def test_what_pads_a_window(zeros_in):
    extractor = AudioMosaicFeatureExtractor(window_frames=64, mean=-3.0, std=2.0, zeros_in=zeros_in)
    found = extractor(clip(4000))
    padding = found["input_features"][~found["input_features_mask"]]
    assert len(padding) == 41 and padding.unique().tolist() == [0.75 if zeros_in == "log_mel" else 0.0]


def test_keys_of_a_front_end_change_its_preset():
    settings = FrontEndSettings(preset="matpac", front_end="kaldi", num_mel_bins=64, zeros_in="log_mel")
    extractor = AudioMosaicFeatureExtractor.from_settings(settings)
    assert (extractor.front_end, extractor.num_mel_bins, extractor.zeros_in) == ("kaldi", 64, "log_mel")
    assert (extractor.window_frames, extractor.mean) == (608, -7.056)
    log_mel, _ = log_mel_fbank(clip(8000)[None], num_mel_bins=64)
    assert torch.equal(extractor.log_mel(clip(8000)[None], [8000])[0], log_mel)


def test_a_front_end_saved_before_there_were_two_is_kaldis(tmp_path):
    AudioMosaicFeatureExtractor(window_frames=64).save_pretrained(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    stored = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in stored.items() if k not in ("front_end", "zeros_in")}))
    loaded = AudioMosaicFeatureExtractor.from_pretrained(tmp_path)
    assert (loaded.front_end, loaded.zeros_in) == ("kaldi", "log_mel")
    assert loaded.to_dict() == AudioMosaicFeatureExtractor(window_frames=64).to_dict()
