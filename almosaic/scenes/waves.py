"""The sounds of the built-in generator: each function draws its parameters and returns [S] samples."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RATE = 16_000

Wave = NDArray[np.float64]
Renderer = Callable[[np.random.Generator, int], Wave]


def _time(samples: int) -> Wave:
    return np.arange(samples) / RATE


def _tone(frequency: Wave | float, samples: int) -> Wave:
    """A sine whose frequency in Hz may change from sample to sample."""
    return np.sin(2 * np.pi / RATE * np.cumsum(np.broadcast_to(frequency, samples)))


def _harmonics(pitch: Wave | float, strengths: Wave, samples: int) -> Wave:
    """Harmonics 1, 2, ... of `pitch` with the given strengths, by the Chebyshev recurrence of sines."""
    phase = 2 * np.pi / RATE * np.cumsum(np.broadcast_to(pitch, samples))
    turn, previous, current = 2 * np.cos(phase), np.zeros(samples), np.sin(phase)
    total = np.zeros(samples)
    for strength in strengths:
        total += strength * current
        previous, current = current, turn * current - previous
    return total


def _noise(rng: np.random.Generator, samples: int, low: float, high: float) -> Wave:
    """Gaussian noise between `low` and `high` Hz with edges of a fifth of an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    octave = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 1.0))
    inside = np.minimum(octave - np.log2(low), np.log2(high) - octave)
    band = np.fft.irfft(spectrum * np.clip(inside / 0.2 + 0.5, 0, 1), samples)
    return band / (np.std(band) + 1e-9)


def _decay(samples: int, seconds: float) -> Wave:
    """Fall by 60 dB in `seconds`."""
    return np.exp(-6.9 / seconds * _time(samples))


def _repeat(samples: int, starts: Wave, sounds: list[Wave]) -> Wave:
    """Add a short sound at each start (seconds), cut at the end."""
    total = np.zeros(samples)
    for start, sound in zip(starts, sounds, strict=True):
        at = int(start * RATE)
        part = sound[: max(0, samples - at)]
        total[at : at + len(part)] += part
    return total


def _regular(rng: np.random.Generator, samples: int, rate: float, wobble: float) -> Wave:
    """Starts at `rate` per second, each moved by up to `wobble` of a period."""
    starts = np.arange(0, samples / RATE, 1 / rate)
    return np.maximum(starts + rng.uniform(-wobble, wobble, len(starts)) / rate, 0.0)


def beep(rng: np.random.Generator, samples: int) -> Wave:
    """One steady pure tone."""
    return _tone(rng.uniform(700, 1400), samples)


def riser(rng: np.random.Generator, samples: int) -> Wave:
    """A tone that climbs two octaves or more."""
    ratio = rng.uniform(4, 7)
    return _tone(rng.uniform(250, 500) * ratio ** np.linspace(0, 1, samples), samples)


def faller(rng: np.random.Generator, samples: int) -> Wave:
    """A tone that drops two octaves or more."""
    ratio = rng.uniform(4, 7)
    return _tone(rng.uniform(2000, 3400) / ratio ** np.linspace(0, 1, samples), samples)


def siren(rng: np.random.Generator, samples: int) -> Wave:
    """A tone that wails up and down two to four times a second."""
    swing = np.sin(2 * np.pi * (rng.uniform(2.2, 3.6) * _time(samples) + rng.random()))
    pitch = rng.uniform(800, 1100) * 2 ** (rng.uniform(0.55, 0.8) * swing)
    return _harmonics(pitch, np.array([1.0, 0.25, 0.15]), samples)


def bird(rng: np.random.Generator, samples: int) -> Wave:
    """A high call that sweeps fast around 4 kHz."""
    swing = np.sin(2 * np.pi * (rng.uniform(14, 24) * _time(samples) + rng.random()))
    pitch = rng.uniform(3300, 5000) * 2 ** (0.3 * swing)
    return _tone(pitch, samples) * (0.6 + 0.4 * swing)


def hiss(rng: np.random.Generator, samples: int) -> Wave:
    """Steady noise above 4 kHz."""
    return _noise(rng, samples, rng.uniform(3800, 5000), 7900)


def wind(rng: np.random.Generator, samples: int) -> Wave:
    """Low noise that swells and sinks."""
    swell = np.sin(2 * np.pi * (rng.uniform(0.8, 2.0) * _time(samples) + rng.random()))
    return _noise(rng, samples, rng.uniform(150, 250), rng.uniform(500, 800)) * (1 + 0.5 * swell)


def knock(rng: np.random.Generator, samples: int) -> Wave:
    """Two to five dull knocks."""
    starts = _regular(rng, samples, rng.uniform(5, 7.5), 0.08)
    body = rng.uniform(180, 380)
    length = int(0.12 * RATE)
    hit = (_tone(body, length) + 0.6 * _tone(body * 2.3, length)) * _decay(length, rng.uniform(0.06, 0.1))
    return _repeat(samples, starts, [hit * rng.uniform(0.7, 1) for _ in starts])


def tick(rng: np.random.Generator, samples: int) -> Wave:
    """Dry clicks at an even pace."""
    starts = _regular(rng, samples, rng.uniform(6, 10), 0.0)
    length = int(0.02 * RATE)
    click = _tone(rng.uniform(2000, 3200), length) * _decay(length, 0.012)
    return _repeat(samples, starts, [click] * len(starts))


def bell(rng: np.random.Generator, samples: int) -> Wave:
    """A struck bell: inharmonic partials that ring out."""
    pitch = rng.uniform(450, 800)
    total = np.zeros(samples)
    for ratio, strength in ((0.5, 0.5), (1.0, 1.0), (1.2, 0.7), (2.0, 0.8), (2.76, 0.6), (5.4, 0.4)):
        total += (
            strength * _tone(pitch * ratio, samples) * _decay(samples, rng.uniform(1.2, 1.8) / ratio**0.4)
        )
    return total


def pluck(rng: np.random.Generator, samples: int) -> Wave:
    """A plucked string: harmonics of a low note, the high ones dying first."""
    pitch = rng.uniform(130, 300)
    total = np.zeros(samples)
    for number in range(1, 13):
        total += (
            _tone(pitch * number, samples) * _decay(samples, rng.uniform(1.0, 1.3) / number**0.8) / number
        )
    return total


def buzz(rng: np.random.Generator, samples: int) -> Wave:
    """A harsh steady hum with harmonics up to 4 kHz."""
    pitch = rng.uniform(95, 150)
    return _harmonics(pitch, np.arange(1.0, int(4000 / pitch)) ** -0.35, samples)


def engine(rng: np.random.Generator, samples: int) -> Wave:
    """A low motor: uneven thumps twenty to thirty-five times a second."""
    pitch = rng.uniform(20, 35)
    throb = 0.5 + 0.5 * np.sin(2 * np.pi * pitch * _time(samples)) ** 3
    tones = _harmonics(pitch * 2, np.arange(1.0, 9.0) ** -0.8, samples)
    return tones + 0.7 * throb * _noise(rng, samples, 50, rng.uniform(180, 280))


def drum(rng: np.random.Generator, samples: int) -> Wave:
    """One hit: a tone that drops in pitch under a burst of noise."""
    pitch = rng.uniform(70, 110) * (1 + 2.0 * _decay(samples, 0.15))
    skin = _tone(pitch, samples) * _decay(samples, rng.uniform(0.35, 0.55))
    return skin + 0.25 * _noise(rng, samples, 300, 6000) * _decay(samples, rng.uniform(0.08, 0.15))


def shaker(rng: np.random.Generator, samples: int) -> Wave:
    """Short bursts of high noise at a dancing pace."""
    starts = _regular(rng, samples, rng.uniform(7, 10.5), 0.05)
    length = int(0.07 * RATE)
    bursts = [_noise(rng, length, rng.uniform(4500, 5200), 7900) * _decay(length, 0.07) for _ in starts]
    return _repeat(samples, starts, bursts)


def zap(rng: np.random.Generator, samples: int) -> Wave:
    """A rattling run of very fast falls from over 2 kHz, rich in harmonics."""
    cycle = (rng.uniform(8, 13) * _time(samples)) % 1.0
    pitch = rng.uniform(1900, 2600) * 2 ** (-rng.uniform(3.0, 4.0) * cycle)
    return _harmonics(pitch, np.array([1.0, 0.0, 0.35]), samples) * (1 - 0.5 * cycle)


def warble(rng: np.random.Generator, samples: int) -> Wave:
    """A tone near 2 kHz that shakes in pitch."""
    swing = np.sin(2 * np.pi * (rng.uniform(9, 13) * _time(samples) + rng.random()))
    return _tone(rng.uniform(1700, 2300) * 2 ** (rng.uniform(0.18, 0.28) * swing), samples)


def tremolo(rng: np.random.Generator, samples: int) -> Wave:
    """A low note whose loudness throbs."""
    throb = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(6, 9) * _time(samples) + rng.random()))
    return _harmonics(rng.uniform(350, 600), np.array([1.0, 0.3]), samples) * throb**1.5


def chord(rng: np.random.Generator, samples: int) -> Wave:
    """Three sustained notes, major or minor."""
    root = rng.uniform(200, 330)
    third = 1.26 if rng.random() < 0.5 else 1.19
    strengths = np.array([1.0, 0.6, 0.45, 0.3, 0.2])
    total = np.zeros(samples)
    for ratio in (1.0, third, 1.498):
        total += _harmonics(root * ratio, strengths, samples)
    return total * np.minimum(_time(samples) / 0.06, 1)


def doorbell(rng: np.random.Generator, samples: int) -> Wave:
    """Two ringing notes, high then low."""
    pitch, turn = rng.uniform(950, 1300), int(samples * rng.uniform(0.4, 0.5))
    strengths = np.array([1.0, 0.0, 0.3])
    high = _harmonics(pitch, strengths, turn) * _decay(turn, 1.2)
    low = _harmonics(pitch * 0.63, strengths, samples - turn) * _decay(samples - turn, 1.2)
    return np.concatenate([high, low])


def bubbles(rng: np.random.Generator, samples: int) -> Wave:
    """Many short blips that each rise in pitch."""
    starts = np.arange(0, samples / RATE, 1 / rng.uniform(13, 19))
    starts = np.maximum(starts + rng.uniform(-0.02, 0.02, len(starts)), 0)
    length = int(0.06 * RATE)
    shape = np.sin(np.linspace(0, np.pi, length)) ** 2
    blips = [_tone(rng.uniform(450, 1000) * 2 ** np.linspace(0, 1.0, length), length) * shape for _ in starts]
    return _repeat(samples, starts, blips)


def crackle(rng: np.random.Generator, samples: int) -> Wave:
    """Sparse random snaps of every strength."""
    snaps = rng.random(samples) < rng.uniform(60, 100) / RATE
    pulses = snaps * rng.uniform(0.2, 1.0, samples)
    snap = np.exp(-np.arange(48) / 9) * rng.standard_normal(48)
    return np.convolve(pulses, snap)[:samples] + 1e-3 * rng.standard_normal(samples)


def vowel(rng: np.random.Generator, samples: int) -> Wave:
    """A sung voice: a vibrating pitch under the resonances of an open vowel."""
    mean = rng.uniform(130, 240)
    vibrato = np.sin(2 * np.pi * (rng.uniform(4.5, 6.0) * _time(samples) + rng.random()))
    frequencies = mean * np.arange(1, int(3600 / mean))
    scale = rng.uniform(0.95, 1.1)
    resonances = ((730, 90, 1.0), (1150, 100, 0.7), (2550, 140, 0.45))
    strengths = sum(
        gain / (1 + ((frequencies - centre * scale) / width) ** 2) for centre, width, gain in resonances
    )
    return _harmonics(mean * (1 + 0.015 * vibrato), np.asarray(strengths), samples)


def steam(rng: np.random.Generator, samples: int) -> Wave:
    """Puffs of broad mid-range noise, four to six a second."""
    cycle = (rng.uniform(4.5, 6.5) * _time(samples) + rng.random()) % 1.0
    return _noise(rng, samples, rng.uniform(700, 1000), rng.uniform(3000, 4000)) * (1 - cycle) ** 1.5
