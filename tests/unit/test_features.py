"""The front end: Kaldi's numbers, independence from padding, and windows that lose nothing."""

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
    frames_of,
    log_mel_fbank,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "fbank_kaldi.npz"
LOG_FLOOR = -15.942385


def clip(samples, seed=0, scale=0.1):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, samples).astype(np.float32))


@pytest.fixture(scope="module")
def golden():
    """A chirp with an offset and a gap, and what kaldi-native-fbank makes of it."""
    stored = np.load(GOLDEN)
    return torch.from_numpy(stored["waveform"].astype(np.float32) / 32768), torch.from_numpy(
        stored["log_mel"]
    )


def test_golden_log_mel(golden):
    waveform, expected = golden
    log_mel, frames = log_mel_fbank(waveform[None])
    assert frames.tolist() == [len(expected)] == [frames_of(len(waveform))]
    torch.testing.assert_close(log_mel[0], expected, atol=2e-3, rtol=0)


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


@pytest.mark.parametrize("kind", ["noise", "sine", "steps", "quiet"])
def test_against_kaldi_native_fbank(kind):
    knf = pytest.importorskip("kaldi_native_fbank")
    time = torch.arange(24_000) / 16_000
    waveform = {
        "noise": clip(24_000),
        "sine": 0.7 * torch.sin(2 * np.pi * 1000 * time),
        "steps": torch.sign(torch.sin(2 * np.pi * 50 * time)) * 0.5,
        "quiet": clip(24_000, scale=1e-4),
    }[kind]
    waveform = waveform - waveform.mean()
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = 80  # newer releases refuse 128: bin three would be empty
    options.mel_opts.high_freq = 0.0
    fbank = knf.OnlineFbank(options)
    fbank.accept_waveform(16_000, waveform.tolist())
    fbank.input_finished()
    expected = np.stack([fbank.get_frame(index) for index in range(fbank.num_frames_ready)])
    log_mel = log_mel_fbank(waveform[None], num_mel_bins=80)[0][0].numpy()
    assert log_mel.shape == expected.shape
    difference = np.abs(log_mel - expected)
    assert difference.max() < 3e-2 and np.quantile(difference, 0.999) < 5e-3 and difference.mean() < 5e-4


def test_silence_and_bin_three_lie_on_the_floor():
    log_mel, _ = log_mel_fbank(torch.stack([torch.zeros(8000), clip(8000)]))
    assert torch.allclose(log_mel[0], torch.tensor(LOG_FLOOR))
    assert torch.allclose(log_mel[1, :, 3], torch.tensor(LOG_FLOOR))  # no FFT line falls into it


@pytest.mark.parametrize("samples, frames", [(399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)])
def test_frames_of(samples, frames):
    assert frames_of(samples) == frames


def test_padding_and_company_change_nothing():
    lengths = torch.tensor([16_000, 401, 40_000, 23_456])
    batch = torch.zeros(4, 41_000)
    for index, length in enumerate(lengths):
        batch[index, :length] = clip(int(length), seed=index) + 0.1 * index  # an offset per clip
    together, frames = log_mel_fbank(batch, lengths)
    assert together.shape == (4, frames_of(41_000), 128)
    for index, length in enumerate(lengths):
        alone, count = log_mel_fbank(batch[index, None, :length])
        assert frames[index] == count[0] == frames_of(int(length))
        torch.testing.assert_close(together[index, : count[0]], alone[0], atol=2e-4, rtol=0)
        assert (together[index, count[0] :] == 0).all()


def test_samples_beyond_the_length_are_not_heard():
    waveform = clip(16_000)
    waveform[8000:] += 5.0
    expected, _ = log_mel_fbank(waveform[None, :8000])
    found, _ = log_mel_fbank(waveform[None], [8000])
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=2e-4, rtol=0)


def test_large_batches_in_chunks_are_the_same():
    batch = torch.stack([clip(30_000, seed) for seed in range(20)])
    whole, _ = log_mel_fbank(batch)
    torch.testing.assert_close(whole[17], log_mel_fbank(batch[17:18])[0][0], atol=2e-4, rtol=0)


def test_float32_under_autocast():
    waveform = clip(16_000)[None]
    expected, _ = log_mel_fbank(waveform)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = log_mel_fbank(waveform)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_inference_mode_leaves_usable_tables():
    with torch.inference_mode():
        log_mel_fbank(clip(800)[None], num_mel_bins=40)
    waveform = clip(800)[None].requires_grad_()
    log_mel_fbank(waveform, num_mel_bins=40)[0].sum().backward()
    assert waveform.grad is not None and torch.isfinite(waveform.grad).all()


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
        (lambda: log_mel_fbank(clip(800)), AlmosaicError, "[B, S]"),
        (lambda: log_mel_fbank(clip(399)[None]), AudioError, "400"),
        (lambda: log_mel_fbank(torch.zeros(2, 800), [800, 399]), AudioError, "399"),
        (lambda: log_mel_fbank(torch.zeros(2, 800), [800, 801]), AlmosaicError, "801"),
        (lambda: log_mel_fbank(torch.zeros(2, 800), [800]), AlmosaicError, "2 whole lengths"),
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
    }
    ltu = AudioMosaicFeatureExtractor.from_settings(FrontEndSettings(preset="ltu"))
    assert (ltu.mean, ltu.std, ltu.std_factor, ltu.min_samples) == (-5.081, 4.4849, 1.0, 16_000)
    envsdd = AudioMosaicFeatureExtractor.from_settings(FrontEndSettings(preset="envsdd"))
    assert (envsdd.max_samples, envsdd.std_factor) == (64_600, 2.0)


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
    for wrong in ({"long_clips": "middle"}, {"min_samples": -1}, {"min_samples": 900, "max_samples": 800}):
        with pytest.raises(AlmosaicError, match="correct the front end's config"):
            AudioMosaicFeatureExtractor(**wrong)
