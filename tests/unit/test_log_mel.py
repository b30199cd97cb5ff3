"""The filter banks: their numbers, and independence from padding and from the company in a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from almosaic.errors import AlmosaicError, AudioError
from almosaic.log_mel import frames_of, log_mel_fbank, mel_bank, white_noise_log_mel

GOLDEN = Path(__file__).parents[1] / "golden"
LOG_FLOOR = -15.942385
BANKS = {"kaldi": 128, "slaney": 80}
both = pytest.mark.parametrize("front_end", BANKS)


def clip(samples, seed=0, scale=0.1):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, samples).astype(np.float32))


def log_mel_of(waveforms, lengths=None, front_end="kaldi"):
    return log_mel_fbank(waveforms, lengths, num_mel_bins=BANKS[front_end], front_end=front_end)


@both
def test_golden_log_mel(front_end):
    """A chirp with an offset and a gap: by kaldi-native-fbank, and by the definition in double precision."""
    stored = np.load(GOLDEN / ("fbank_kaldi.npz" if front_end == "kaldi" else "log_mel_slaney.npz"))
    waveform = torch.from_numpy(stored["waveform"].astype(np.float32) / 32768)
    log_mel, frames = log_mel_of(waveform[None], front_end=front_end)
    assert frames.tolist() == [len(stored["log_mel"])] == [frames_of(len(waveform))]
    tolerance = 2e-3 if front_end == "kaldi" else 5e-4
    torch.testing.assert_close(log_mel[0], torch.from_numpy(stored["log_mel"]), atol=tolerance, rtol=0)


def test_slaney_triangles_are_of_equal_area_and_wide_above_1_khz():
    bank = mel_bank("slaney", 40, torch.device("cpu")).double()
    assert bank.shape == (201, 40)
    torch.testing.assert_close(bank[:, 20:].sum(0) * 40.0, torch.ones(20).double(), atol=2e-2, rtol=0)
    hertz = torch.arange(201).double() * 40.0
    centres = (bank * hertz[:, None]).sum(0) / bank.sum(0)
    steps, ratios = centres[1:10].diff(), centres[20:39] / centres[19:38]
    assert steps.max() / steps.min() < 1.4 and ratios.max() / ratios.min() < 1.03
    assert not bank[hertz < 50].any() and bank[hertz == 7800].any()


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
    silent, _ = log_mel_of(torch.zeros(1, 800), front_end="slaney")
    assert torch.allclose(silent, torch.tensor(LOG_FLOOR))
    assert torch.allclose(log_mel[1, :, 3], torch.tensor(LOG_FLOOR))  # no FFT line falls into it


@pytest.mark.parametrize("samples, frames", [(399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)])
def test_frames_of(samples, frames):
    assert frames_of(samples) == frames


@both
def test_padding_and_company_change_nothing(front_end):
    lengths = torch.tensor([16_000, 401, 40_000, 23_456])
    batch = torch.zeros(4, 41_000)
    for index, length in enumerate(lengths):
        batch[index, :length] = clip(int(length), seed=index) + 0.1 * index  # an offset per clip
    together, frames = log_mel_of(batch, lengths, front_end)
    assert together.shape == (4, frames_of(41_000), BANKS[front_end])
    for index, length in enumerate(lengths):
        alone, count = log_mel_of(batch[index, None, :length], None, front_end)
        assert frames[index] == count[0] == frames_of(int(length))
        torch.testing.assert_close(together[index, : count[0]], alone[0], atol=2e-4, rtol=0)
        assert (together[index, count[0] :] == 0).all()


@both
def test_samples_beyond_the_length_are_not_heard(front_end):
    waveform = clip(16_000)
    waveform[8000:] += 5.0
    expected, _ = log_mel_of(waveform[None, :8000], None, front_end)
    found, _ = log_mel_of(waveform[None], [8000], front_end)
    torch.testing.assert_close(found[:, : expected.shape[1]], expected, atol=2e-4, rtol=0)


def test_large_batches_in_chunks_are_the_same():
    batch = torch.stack([clip(30_000, seed) for seed in range(20)])
    whole, _ = log_mel_fbank(batch)
    torch.testing.assert_close(whole[17], log_mel_fbank(batch[17:18])[0][0], atol=2e-4, rtol=0)


@both
def test_float32_under_autocast(front_end):
    waveform = clip(16_000)[None]
    expected, _ = log_mel_of(waveform, None, front_end)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = log_mel_of(waveform, None, front_end)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_inference_mode_leaves_usable_tables():
    with torch.inference_mode():
        log_mel_fbank(clip(800)[None], num_mel_bins=40)
    waveform = clip(800)[None].requires_grad_()
    log_mel_fbank(waveform, num_mel_bins=40)[0].sum().backward()
    assert waveform.grad is not None and torch.isfinite(waveform.grad).all()


@both
def test_white_noise_has_the_power_that_is_foretold(front_end):
    log_mel, _ = log_mel_of(clip(320_000, scale=1.0)[None], None, front_end)
    expected = white_noise_log_mel(front_end, BANKS[front_end], torch.device("cpu"))
    heard = expected > LOG_FLOOR + 1.0  # no FFT line falls into Kaldi's band 3
    heard[0] = front_end == "slaney"  # Kaldi takes the frame's mean out of the lowest band
    assert heard.sum() >= BANKS[front_end] - 2
    difference = log_mel[0].double().exp().mean(0).log() - expected
    assert difference[heard].abs().max() < 0.12 and difference[heard].mean().abs() < 0.01


@pytest.mark.parametrize(
    "call, error, word",
    [
        (lambda: log_mel_fbank(clip(800)), AlmosaicError, "[B, S]"),
        (lambda: log_mel_fbank(clip(399)[None]), AudioError, "400"),
        (lambda: log_mel_fbank(torch.zeros(2, 800), [800, 399]), AudioError, "399"),
        (lambda: log_mel_fbank(torch.zeros(2, 800), [800, 801]), AlmosaicError, "801"),
        (lambda: log_mel_fbank(torch.zeros(2, 800), [800]), AlmosaicError, "2 whole lengths"),
    ],
)
def test_mistakes_are_named(call, error, word):
    with pytest.raises(error) as caught:
        call()
    assert word in str(caught.value) and "\n" not in str(caught.value)
