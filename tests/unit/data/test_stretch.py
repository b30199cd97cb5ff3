"""Time stretch and pitch shift by their effect: where onsets and tones go, and what stays as it was."""

import math

import numpy as np
import pytest
import torch

from almosaic.data import stretch
from almosaic.data.augment import Draws, PitchShift, TimeStretch, augment_waveforms
from almosaic.data.stretch import pitch_shift, time_stretch

RATE = 16_000
GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


def whole(waveforms):
    return torch.full((len(waveforms),), waveforms.shape[1])


def tones(frequencies, samples=24_000):
    time = torch.arange(samples, dtype=torch.float64) / RATE
    return (0.3 * torch.sin(2 * math.pi * torch.tensor(frequencies)[:, None] * time)).float()


def level_of(waveform):
    return float(waveform.square().mean().sqrt())


def pitch_of(waveform):
    """Frequency in Hz of the strongest tone in the middle of a waveform, to a tenth of a cent."""
    middle = waveform[6000:18_000].double()
    spectrum = torch.fft.rfft(middle * torch.hann_window(12_000, dtype=torch.float64), 1 << 17).abs().log()
    top = int(spectrum.argmax())
    left, peak, right = spectrum[top - 1 : top + 2].tolist()
    return (top + 0.5 * (left - right) / (left - 2 * peak + right)) * RATE / (1 << 17)


def purity_of(waveform, frequency):
    """Power of the tone in dB over everything else in the middle."""
    middle = waveform[6000:18_000].double().numpy()
    time = 2 * np.pi * frequency * np.arange(12_000) / RATE
    tone = np.stack([np.sin(time), np.cos(time)], 1)
    rest = middle - tone @ np.linalg.lstsq(tone, middle, rcond=None)[0]
    return 10 * np.log10((middle**2).mean() / (rest**2).mean())


def bursts(onsets, samples):
    """Noise that sets in at once and dies away."""
    waveform = np.zeros(samples, dtype=np.float32)
    shape = np.exp(-np.arange(1500) / 300) * np.random.default_rng(0).normal(0, 0.3, 1500)
    for onset in onsets:
        waveform[onset : onset + 1500] += shape.astype(np.float32)
    return torch.from_numpy(waveform)


def onset_near(waveform, expected):
    """Where the power first comes to a quarter of its highest value within 0.1 s of `expected`."""
    power = np.convolve(
        waveform[expected - 1600 : expected + 1600].double().numpy() ** 2, np.ones(80), "same"
    )
    return expected - 1600 + int(np.flatnonzero(power > 0.25 * power.max())[0])


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_pitch_shift_moves_tones_by_the_semitones(device):
    frequencies = [110.0, 220.0, 440.0, 1000.0, 2500.0, 5000.0]
    semitones = [-4.0, -2.3, -0.4, 1.1, 3.0, 4.0]
    pairs = [(hertz, step) for hertz in frequencies for step in semitones]
    waveforms = tones([hertz for hertz, _ in pairs]).to(device)
    found = pitch_shift(waveforms, whole(waveforms), torch.tensor([step for _, step in pairs])).cpu()
    assert found.shape == waveforms.shape
    for row, (hertz, step) in zip(found, pairs, strict=True):
        expected = hertz * 2 ** (step / 12)
        assert abs(1200 * math.log2(pitch_of(row) / expected)) < 1, f"{hertz} Hz by {step}"
        assert purity_of(row, expected) > 40
        assert level_of(row[6000:18_000]) == pytest.approx(0.3 / math.sqrt(2), rel=0.02)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_stretch_moves_onsets_by_the_rate_and_keeps_pitch(device):
    onsets, samples = [6000, 14_000, 22_000, 30_000], 48_000
    rates = [0.7, 0.8, 0.95, 1.1, 1.2, 1.3]
    waveforms = bursts(onsets, samples).repeat(len(rates), 1).to(device)
    found = time_stretch(waveforms, whole(waveforms), torch.tensor(rates)).cpu()
    assert found.shape == waveforms.shape
    for row, rate in zip(found, rates, strict=True):
        for onset in onsets:
            moved = round(onset / rate)
            if moved < samples - 1600:
                assert abs(onset_near(row, moved) - moved) < 0.008 * RATE, f"{onset} at rate {rate}"
                power = row[moved - 1600 : moved + 1600].square()
                assert power[:1520].sum() < 0.03 * power.sum(), "an onset restarts the phases: no pre-echo"
    stretched = time_stretch(tones([330.0] * 3), torch.full((3,), 24_000), torch.tensor([0.7, 0.9, 1.2]))
    for row in stretched:
        assert abs(1200 * math.log2(pitch_of(row) / 330)) < 1
        assert purity_of(row, pitch_of(row)) > 40


def test_faster_clips_end_in_zeros_and_slower_ones_are_cut():
    waveforms = tones([500.0] * 3, 20_000)
    found = time_stretch(waveforms, whole(waveforms), torch.tensor([1.25, 1.0, 0.75]))
    assert (found[0, 16_000:] == 0).all() and found[0, 15_000:15_900].abs().max() > 0.2
    torch.testing.assert_close(found[1], waveforms[1], atol=1e-5, rtol=0)
    assert found[2, -500:].abs().max() > 0.2


def test_nothing_is_done_by_no_shift():
    waveforms = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, (2, 9000)).astype(np.float32))
    # Reading at every sample keeps what lies below the cut-off of the interpolation.
    low = torch.fft.irfft(torch.fft.rfft(waveforms)[:, :3300], 9000)
    found = pitch_shift(low, whole(low), torch.zeros(2))
    assert level_of((found - low)[:, 100:-100]) < 5e-3 * level_of(low)


def test_phases_stay_together():
    """A voice is made of pulses: its partials keep their phase relations, and its peaks with them."""
    time = torch.arange(32_000, dtype=torch.float64) / RATE
    phase = 2 * math.pi * torch.cumsum(130 * (1 + 0.03 * torch.sin(2 * math.pi * 5 * time)), 0) / RATE
    voice = sum(0.1 / k * torch.cos(k * phase) for k in range(1, 40)).float()

    def crest(waveform):
        return float(waveform.abs().quantile(0.999) / waveform.square().mean().sqrt())

    rates = torch.tensor([0.75, 0.9, 1.2])
    found = time_stretch(voice.repeat(3, 1), torch.full((3,), 32_000), rates)
    assert crest(voice) > 4.5  # partials in random phases come to about 2.9
    for row in found:
        assert crest(row[3000:22_000]) > 3.1
        assert level_of(row[3000:22_000]) == pytest.approx(level_of(voice), rel=0.03)


def test_a_glide_stays_a_glide():
    time = torch.arange(32_000, dtype=torch.float64) / RATE
    glide = (0.2 * torch.sin(2 * math.pi * (300 * time + 400 * time**2))).float()
    found = time_stretch(glide[None], torch.tensor([32_000]), torch.tensor([0.75]))[0, 4000:28_000]
    level = found.double().square().unfold(0, 400, 100).mean(1).sqrt()
    assert level.min() > 0.97 * level.max()


def test_what_would_pass_nyquist_is_taken_out():
    found = pitch_shift(tones([7000.0, 6000.0]), torch.full((2,), 24_000), torch.tensor([4.0, 4.0]))
    assert level_of(found[0, 2000:-2000]) < 2e-3
    assert level_of(found[1, 2000:-2000]) > 0.2


def test_only_a_clips_own_samples_count():
    waveforms = tones([300.0, 700.0, 900.0], 16_000)
    lengths = torch.tensor([16_000, 9000, 500])
    waveforms[torch.arange(16_000) >= lengths[:, None]] = 0.0
    for effect, amounts in ((time_stretch, [0.8, 1.2, 0.9]), (pitch_shift, [-3.0, 2.0, 4.0])):
        together = effect(waveforms, lengths, torch.tensor(amounts))
        for row, length in enumerate(lengths.tolist()):
            alone = effect(
                waveforms[row, None, :length], lengths[row, None], torch.tensor(amounts[row : row + 1])
            )
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-6, rtol=0)


def test_blocks_of_frames_change_nothing(monkeypatch):
    waveforms = bursts([3000, 9000], 20_000).repeat(3, 1) + tones([300.0, 800.0, 2000.0], 20_000)
    lengths, amounts = torch.tensor([20_000, 11_000, 16_000]), torch.tensor([0.75, 1.2, 0.9])
    found = time_stretch(waveforms, lengths, amounts), pitch_shift(waveforms, lengths, amounts)
    monkeypatch.setattr(stretch, "_CPU_FRAMES", 5)
    again = time_stretch(waveforms, lengths, amounts), pitch_shift(waveforms, lengths, amounts)
    for one, other in zip(found, again, strict=True):
        for row, length in enumerate(lengths.tolist()):
            torch.testing.assert_close(one[row, :length], other[row, :length], atol=1e-5, rtol=0)


def test_silence_and_a_tone_after_it():
    waveforms = tones([1000.0] * 2, 20_000)
    waveforms[0] = 0.0
    waveforms[1, :9000] = 0.0
    for found in (
        time_stretch(waveforms, whole(waveforms), torch.tensor([0.8, 0.8])),
        pitch_shift(waveforms, whole(waveforms), torch.tensor([2.0, 2.0])),
    ):
        assert (found[0] == 0).all()
        assert level_of(found[1, 14_000:18_000]) == pytest.approx(0.212, rel=0.03)


def test_drawn_rates_are_uniform():
    """A clip that ends in a tone tells its rate by where the tone ends."""
    rows, samples = 240, 8000
    waveforms = tones([1500.0], 2400).repeat(rows, 1)
    waveforms = torch.nn.functional.pad(waveforms, (0, samples - 2400))
    found = augment_waveforms(waveforms, whole(waveforms), [TimeStretch(p=1.0)], Draws((5,), range(rows)))
    power = found.square().unfold(1, 80, 20).mean(2)
    ends = np.array([int(np.flatnonzero(row > 0.25 * 0.045)[-1]) * 20 + 40 for row in power.numpy()])
    drawn = 0.7 + 0.6 * Draws((5,), range(rows)).uniform("0 time_stretch", 1)[:, 0].numpy()
    np.testing.assert_allclose(2400 / ends, drawn, atol=0.035)
    assert drawn.min() < 0.72 and drawn.max() > 1.28 and abs(drawn.mean() - 1.0) < 0.04


def test_drawn_semitones_are_uniform():
    rows = 60
    waveforms = tones([800.0]).repeat(rows, 1)
    found = augment_waveforms(waveforms, whole(waveforms), [PitchShift(p=1.0)], Draws((5,), range(rows)))
    moved = np.array([12 * math.log2(pitch_of(row) / 800) for row in found])
    drawn = -4 + 8 * Draws((5,), range(rows)).uniform("0 pitch_shift", 1)[:, 0].numpy()
    np.testing.assert_allclose(moved, drawn, atol=0.01)
    assert -4.01 < moved.min() < -3.6 and 3.6 < moved.max() < 4.01 and abs(moved.mean()) < 0.8


def test_how_often_and_where_in_the_settings():
    waveforms = tones([700.0], 1600).repeat(400, 1)
    for step in (TimeStretch(), PitchShift()):
        found = augment_waveforms(waveforms, whole(waveforms), [step], Draws((1,), range(400)))
        met = (found != waveforms).any(1).float().mean()
        assert abs(met - step.p) < 0.07
    assert TimeStretch().p == 0.7 and TimeStretch().rate == (0.7, 1.3)
    assert PitchShift().p == 0.6 and PitchShift().semitones == (-4, 4)
    with pytest.raises(ValueError, match="0 to 1"):
        TimeStretch(rate=(0.0, 1.0))
    with pytest.raises(ValueError, match="within -24 and 24"):
        PitchShift(semitones=(0.0, 30.0))


def test_autocast_does_not_lower_the_precision():
    waveforms = tones([700.0], 8000)
    steps, draws = [TimeStretch(p=1.0), PitchShift(p=1.0)], Draws((1,), [3])
    plain = augment_waveforms(waveforms, [8000], steps, draws)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment_waveforms(waveforms, [8000], steps, draws), plain)
