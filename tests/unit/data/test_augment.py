"""Augmentation by its effect: what each step does, what it draws, and that the batch does not matter."""

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from almosaic.data import augment
from almosaic.data.augment import (
    AugmentStep,
    BandStop,
    Draws,
    Gain,
    GaussianSnr,
    HighPass,
    LogGain,
    LogNoise,
    LogRoll,
    PitchShift,
    Polarity,
    RollGain,
    TimeStretch,
    augment_log_mel,
    augment_waveforms,
)
from almosaic.data.steps import roll, roll_at_once
from almosaic.log_mel import LOG_FLOOR, log_mel_fbank

EVERY_WAVEFORM_STEP = [
    RollGain(),
    Polarity(),
    TimeStretch(),
    GaussianSnr(),
    Gain(),
    HighPass(),
    BandStop(),
    PitchShift(),
]
STEP_IDS = [*(step.name for step in EVERY_WAVEFORM_STEP), "all"]
EVERY_LOG_MEL_STEP = [LogGain(), LogNoise(), LogRoll()]


def noise(rows, samples=16_000, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 0.1, (rows, samples)).astype(np.float32))


def changed(waveforms, *steps, lengths=None, parts=("test",)):
    if lengths is None:
        lengths = torch.full((len(waveforms),), waveforms.shape[1])
    return augment_waveforms(waveforms, lengths, steps, Draws(parts, range(len(waveforms))))


def decibels(ratio):
    return 20 * np.log10(np.asarray(ratio, dtype=np.float64))


def assert_uniform(values, low, high):
    """Inside the range, with the mean, spread and extremes of uniform draws."""
    values = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    assert values.min() > -0.01 and values.max() < 1.01
    assert values.min() < 0.02 and values.max() > 0.98
    assert abs(values.mean() - 0.5) < 0.04 and abs(values.var() - 1 / 12) < 0.01
    assert np.abs(np.histogram(values, 5, (-0.01, 1.01))[0] / len(values) - 0.2).max() < 4.5 * np.sqrt(
        0.16 / len(values)
    )


def test_polarity():
    waveforms = noise(400, 500)
    found = changed(waveforms, Polarity())
    flipped = (found == -waveforms).all(1)
    assert ((found == waveforms).all(1) ^ flipped).all()
    assert 0.43 < flipped.float().mean() < 0.57
    assert torch.equal(changed(waveforms, Polarity(p=1.0)), -waveforms)
    assert torch.equal(changed(waveforms, Polarity(p=0.0)), waveforms)


def test_gain():
    found = changed(torch.ones(1000, 400), Gain(p=1.0))
    assert (found == found[:, :1]).all()
    assert_uniform(decibels(found[:, 0]), -12, 12)


def test_roll_is_exact_and_stays_inside_the_clip():
    samples, lengths = 1000, torch.arange(401, 1001)
    ramp = torch.arange(1.0, samples + 1).repeat(600, 1)
    found = changed(ramp, RollGain(), lengths=lengths)
    shifts, gains = [], []
    for row, length in zip(found.double().numpy(), lengths.tolist(), strict=True):
        assert (row[length:] == 0).all()
        gains.append(row[:length].sum() / (length * (length + 1) / 2))
        restored = np.rint(row[:length] / gains[-1]).astype(int)
        shifts.append(int(restored.argmin()))
        np.testing.assert_array_equal(restored, np.roll(np.arange(1, length + 1), shifts[-1]))
    assert_uniform(np.array(shifts) / (lengths.numpy() - 1), 0, 1)
    gains = np.array(gains)
    assert 0.5 < gains.min() < 0.75 and 1.25 < gains.max() < 1.5
    assert abs(gains.mean() - 1.0) < 0.015 and abs(gains.var() - 100 / (400 * 21)) < 0.0015  # Beta(10, 10)


def test_one_gather_rolls_like_row_by_row():
    lengths, shift = torch.tensor([50, 20, 1, 33]), torch.tensor([7, -3, 0, 32])
    for batch in (noise(4, 50), torch.randn(4, 50, 3)):
        assert torch.equal(roll_at_once(batch, lengths, shift), roll(batch, lengths, shift))


def test_signal_to_noise_ratio():
    waveforms, lengths = torch.zeros(300, 20_000), torch.full((300,), 16_000)
    waveforms[:, :16_000] = torch.sin(torch.arange(16_000) * 0.3) * torch.logspace(-3, 0, 300)[:, None]
    found = changed(waveforms, GaussianSnr(p=1.0), lengths=lengths)
    added = (found - waveforms)[:, :16_000]
    assert (found[:, 16_000:] == 0).all()
    ratio = decibels(waveforms[:, :16_000].square().mean(1).sqrt() / added.square().mean(1).sqrt())
    assert_uniform(ratio, 5, 40)
    exact = changed(waveforms, GaussianSnr(p=1.0, snr_db=(20, 20)), lengths=lengths)
    ratio = decibels(waveforms.square().sum(1).sqrt() / (exact - waveforms).square().sum(1).sqrt())
    np.testing.assert_allclose(ratio, 20, atol=0.2)
    white = (
        torch.fft.rfft(added / added.square().mean(1, keepdim=True).sqrt()).abs().square().mean(0) / 16_000
    )
    bands = white[1:].view(8, -1).mean(1)
    torch.testing.assert_close(bands, torch.ones(8), atol=0.02, rtol=0)
    assert np.abs(np.corrcoef(added[:20])[np.triu_indices(20, 1)]).max() < 0.05


def test_silence_stays_silent():
    assert (changed(torch.zeros(20, 800), *EVERY_WAVEFORM_STEP) == 0).all()


def levels_of(step, rows):
    """Magnitude response in dB at multiples of 4 Hz; the first sample is 0, so filters start from rest."""
    impulse = torch.zeros(rows, 32_000)
    impulse[:, 4000] = 1.0
    spectrum = torch.fft.rfft(changed(impulse, step).double()[:, 4000:], 32_000).abs()
    return decibels(spectrum.clamp_min(1e-9))[:, ::8]


def test_high_pass_corner_and_slope():
    levels = levels_of(HighPass(p=1.0, cutoff_hertz=(400, 400)), 60)
    np.testing.assert_allclose(levels[:, 100], -3.01, atol=0.1)
    slopes = np.rint((levels[:, 40] - levels[:, 20]) / 6.02).astype(int)
    assert {2, 3, 4} == set(slopes.tolist()) and np.bincount(slopes)[2:].min() > 8
    np.testing.assert_allclose(levels[:, 1500:2000], 0, atol=0.05)


def test_high_pass_corners_are_uniform_in_mel():
    levels = levels_of(HighPass(p=1.0), 300)
    corners = (levels > -3.01).argmax(1) * 4.0
    assert_uniform(np.log1p(corners / 700), np.log1p(20 / 700), np.log1p(2400 / 700))


def test_band_stop_corners():
    levels = levels_of(BandStop(p=1.0, centre_hertz=(1000, 1000), bandwidth_fraction=(0.8, 0.8)), 20)
    np.testing.assert_allclose(levels[:, [150, 350]], -3.01, atol=0.15)
    assert (levels[:, 229] < -40).all()  # the geometric mean of the corners
    np.testing.assert_allclose(levels[:, [5, 1900]], 0, atol=0.1)


def test_band_stop_draws():
    levels = levels_of(BandStop(p=1.0), 300)
    stopped = levels < -3.01
    upper = np.array([np.flatnonzero(row).max() for row in stopped]) * 4.0
    lower = np.array([np.flatnonzero(row).min() for row in stopped]) * 4.0
    assert lower.min() <= 8 and 6000 < upper.max() < 8000
    centre = (lower + upper) / 2
    assert_uniform(np.log1p(centre / 700), np.log1p(200 / 700), np.log1p(4000 / 700))
    assert_uniform((upper - lower) / centre, 0.5, 1.99)


@pytest.mark.parametrize(
    "steps", [*([step] for step in EVERY_WAVEFORM_STEP), EVERY_WAVEFORM_STEP], ids=STEP_IDS
)
def test_waveforms_do_not_depend_on_the_batch(steps):
    lengths = torch.tensor([16_000, 7001, 400, 12_345, 9000])
    waveforms = noise(5)
    clips = [40, 2, 7, 100, 7]
    if len(steps) == 1:
        steps = [steps[0].model_copy(update={"p": 1.0})]
    together = augment_waveforms(waveforms, lengths, steps, Draws((1, "view"), clips))
    assert together.shape == waveforms.shape
    # A vocoder passes on what filters before it round differently, at its weakest bins enlarged.
    close = 1e-6 if len(steps) == 1 else 3e-4
    for row, (clip, length) in enumerate(zip(clips, lengths.tolist(), strict=True)):
        alone = augment_waveforms(waveforms[row, None, :length], [length], steps, Draws((1, "view"), [clip]))
        torch.testing.assert_close(together[row, :length], alone[0], atol=close, rtol=0)
        assert (together[row, length:] == 0).all()
    again = augment_waveforms(waveforms, lengths, steps, Draws((1, "view"), torch.tensor(clips)))
    assert torch.equal(again, together)
    if steps != [Polarity(p=1.0)]:
        other = augment_waveforms(waveforms, lengths, steps, Draws((2, "view"), clips))
        assert not torch.allclose(other[0], together[0])


def test_pieces_that_fit_the_cache_change_nothing(monkeypatch):
    waveforms, lengths = noise(7, 4000), torch.arange(1000, 4500, 500)
    draws = Draws((1,), range(10, 17))
    whole = augment_waveforms(waveforms, lengths, EVERY_WAVEFORM_STEP, draws)
    monkeypatch.setattr(augment, "_CPU_CHUNK_SAMPLES", 12_000)
    torch.testing.assert_close(
        augment_waveforms(waveforms, lengths, EVERY_WAVEFORM_STEP, draws), whole, atol=3e-4, rtol=0
    )


def test_inputs_are_left_alone():
    waveforms, log_mel = noise(3), torch.randn(3, 20, 8)
    before = waveforms.clone(), log_mel.clone()
    changed(waveforms, *EVERY_WAVEFORM_STEP)
    augment_log_mel(log_mel, torch.tensor([20, 10, 5]), EVERY_LOG_MEL_STEP, Draws((0,), range(3)), "kaldi")
    assert torch.equal(waveforms, before[0]) and torch.equal(log_mel, before[1])


def test_a_repeated_step_draws_anew():
    found = changed(torch.ones(500, 400), Gain(p=1.0), Gain(p=1.0))
    once = changed(torch.ones(500, 400), Gain(p=1.0))
    second = decibels(found[:, 0] / once[:, 0])
    assert_uniform(second, -12, 12)
    assert abs(np.corrcoef(decibels(once[:, 0]), second)[0, 1]) < 0.15


def test_one_list_serves_both_domains():
    waveforms = noise(4)
    steps = [*EVERY_LOG_MEL_STEP, *EVERY_WAVEFORM_STEP]
    assert torch.equal(changed(waveforms, *EVERY_LOG_MEL_STEP), waveforms)
    assert not torch.equal(changed(waveforms, *steps), waveforms)
    log_mel, frames = log_mel_fbank(waveforms)
    found = augment_log_mel(log_mel, frames, EVERY_WAVEFORM_STEP, Draws((0,), range(4)), "kaldi")
    assert torch.equal(found, log_mel)


def test_log_gain_is_a_gain():
    waveforms = noise(200, 4000)
    log_mel, frames = log_mel_fbank(waveforms)
    found = augment_log_mel(log_mel, frames, [LogGain()], Draws((0,), range(200)), "kaldi")
    assert found.min() == pytest.approx(LOG_FLOOR, abs=1e-5)  # a waveform's gain does not move it either
    gain_db = (found - log_mel)[:, 0, 60].numpy() * 10 / np.log(10)
    assert_uniform(gain_db, -6, 6)
    louder, _ = log_mel_fbank(waveforms * torch.from_numpy(10 ** (gain_db / 20))[:, None])
    audible = (louder > LOG_FLOOR + 0.1) & (log_mel > LOG_FLOOR + 0.1)
    torch.testing.assert_close(found[audible], louder[audible], atol=5e-3, rtol=0)


@pytest.mark.parametrize(("front_end", "bins"), [("kaldi", 128), ("slaney", 80)])
def test_log_noise_is_the_mean_of_added_white_noise(front_end, bins):
    def spectrum(waveform):
        return log_mel_fbank(waveform[None], num_mel_bins=bins, front_end=front_end)

    tone = 0.05 * torch.sin(torch.arange(64_000) * 0.4)
    steps = [LogNoise(level_db=(-50, -50))]
    log_mel, frames = spectrum(tone)
    found = augment_log_mel(log_mel, frames, steps, Draws((0,), [0]), front_end)
    noisy = tone + 10 ** (-50 / 20) * noise(1, 64_000)[0] / 0.1
    expected = spectrum(noisy)[0][0].exp().mean(0).log()
    # Far below Kaldi's scale, noise of this level is near the floor that is added before the logarithm.
    above_the_floor = expected > LOG_FLOOR + 2.5
    assert above_the_floor.sum() > (120 if front_end == "kaldi" else 60)
    difference = (found[0].exp().mean(0).log() - expected)[above_the_floor]
    assert difference.abs().max() < 0.2 and abs(difference.mean()) < 0.03


def test_levels_of_log_noise_are_drawn_in_decibels():
    silence, draws = torch.full((300, 4, 128), -30.0), Draws((0,), range(300))
    steps = [LogNoise(level_db=(-50, -50))]
    found = augment_log_mel(silence[:1], torch.tensor([4]), steps, Draws((0,), [0]), "kaldi")
    levels = augment_log_mel(silence, torch.full((300,), 4), [LogNoise()], draws, "kaldi")[:, 0, 90]
    assert levels.min() > -30
    assert_uniform((levels - found[0, 0, 90]).numpy() * 10 / np.log(10) - 50, -70, -40)


def test_log_roll_stays_inside_the_clip():
    frames = torch.arange(30, 430)
    log_mel = (torch.arange(1.0, 431.0)[:, None] + torch.zeros(2)).repeat(400, 1, 1)
    log_mel[torch.arange(430) >= frames[:, None]] = 0.0
    found = augment_log_mel(log_mel, frames, [LogRoll(max_frames=10)], Draws((0,), range(400)), "kaldi")
    shifts = []
    for row, before, count in zip(found.numpy(), log_mel.numpy(), frames.tolist(), strict=True):
        shift = int(row[:count, 0].argmin())
        shifts.append(shift - count if shift > 10 else shift)
        np.testing.assert_array_equal(row[:count], np.roll(before[:count], shifts[-1], axis=0))
        assert (row[count:] == 0).all()
    assert set(shifts) == set(range(-10, 11))
    draws = Draws((0,), range(400))
    short = augment_log_mel(log_mel[:, :3], torch.full((400,), 3), [LogRoll()], draws, "kaldi")
    assert (short.sort(1).values == log_mel[:, :3]).all()


def test_log_mel_does_not_depend_on_the_batch():
    log_mel, frames = torch.randn(3, 50, 16) - 5, torch.tensor([50, 20, 33])
    together = augment_log_mel(log_mel, frames, EVERY_LOG_MEL_STEP, Draws((3,), [5, 6, 7]), "kaldi")
    for row, count in enumerate(frames.tolist()):
        alone = augment_log_mel(
            log_mel[row, None, :count], frames[row, None], EVERY_LOG_MEL_STEP, Draws((3,), [5 + row]), "kaldi"
        )
        assert torch.equal(together[row, :count], alone[0])
        assert (together[row, count:] == 0).all()


def test_probability_is_per_clip():
    found = changed(torch.ones(2000, 400), Gain(gain_db=(6, 6)))
    assert 0.27 < (found[:, 0] != 1).float().mean() < 0.33


def test_settings_are_a_closed_union():
    adapter = TypeAdapter(list[AugmentStep])
    steps = adapter.validate_python([{"name": "gain", "gain_db": [-3, 3], "p": 1}, {"name": "log_roll"}])
    assert steps == [Gain(p=1.0, gain_db=(-3.0, 3.0)), LogRoll()]
    assert adapter.validate_python(adapter.dump_python(EVERY_WAVEFORM_STEP)) == EVERY_WAVEFORM_STEP
    for mistake in (
        {"name": "reverb"},
        {"name": "gain", "p": 1.5},
        {"name": "gain", "gain_db": [3, -3]},
        {"name": "gain", "snr_db": [3, 5]},
        {"name": "high_pass", "rolloff_db": [13]},
        {"name": "high_pass", "rolloff_db": []},
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python([mistake])


def test_the_released_ranges_are_the_defaults():
    assert [step.p for step in EVERY_WAVEFORM_STEP] == [1.0, 0.5, 0.7, 0.5, 0.3, 0.3, 0.5, 0.6]
    assert GaussianSnr().snr_db == (5, 40) and Gain().gain_db == (-12, 12)
    assert HighPass().cutoff_hertz == (20, 2400) and HighPass().rolloff_db == (12, 18, 24)
    assert BandStop().centre_hertz == (200, 4000) and BandStop().bandwidth_fraction == (0.5, 1.99)


def test_draws_of_names_and_rows():
    draws = Draws(("run", 4), [3, 1, 2])
    assert draws.uniform("a", 5).shape == (3, 5)
    assert not torch.equal(draws.uniform("a", 5), draws.uniform("b", 5))
    picked = draws.rows(np.array([2, 0]))
    assert torch.equal(picked.uniform("a", 5), draws.uniform("a", 5)[[2, 0]])
    assert torch.equal(picked.normal("n", 100), draws.normal("n", 100)[[2, 0]])
    shorter = draws.normal("n", 120, torch.tensor([100, 50, 100]))
    assert torch.equal(shorter[0, :100], draws.normal("n", 100)[0]) and (shorter[1, 50:] == 0).all()
