"""The samples of a scene, and what can be measured in them: level, number of sounds, audibility."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from almosaic.audio import SAMPLING_RATE
from almosaic.scenes.clips import Bank
from almosaic.scenes.scene import Event, Scene

FADE_SECONDS = 0.01
FRAME_SECONDS = 0.02
ACTIVE_BELOW_DB = 40.0  # quieter frames are pauses
BRIDGED_SECONDS = 0.25  # a shorter pause belongs to the sound
BURST_SECONDS = 0.03  # a shorter burst is no sound
MIN_LOUDNESS_GAP_DB = 6.0
MIN_ABOVE_NOISE_DB = 6.0
MAX_GAIN_DB = 50.0

Audio = NDArray[np.float32]

_FRAME = round(FRAME_SECONDS * SAMPLING_RATE)
_RISE = (np.arange(round(FADE_SECONDS * SAMPLING_RATE), dtype=np.float32) + 0.5) / round(
    FADE_SECONDS * SAMPLING_RATE
)


def mix(scene: Scene, bank: Bank) -> Audio:
    """Noise floor plus the events with their fades and gains, times the scene gain; [S] at 16 kHz."""
    samples = round(scene.duration_seconds * SAMPLING_RATE)
    noise = np.random.Generator(np.random.PCG64(scene.seed)).standard_normal(samples, dtype=np.float32)
    audio = noise * np.float32(10 ** (scene.noise_dbfs / 20))
    for event in scene.events:
        sound = cut(bank, event.clip_id, event.source_start, event.source_end) * np.float32(
            10 ** (event.gain_db / 20)
        )
        sound[: len(_RISE)] *= _RISE[: len(sound)]
        sound[-len(_RISE) :] *= _RISE[::-1][-len(sound) :]
        start = round(event.onset * SAMPLING_RATE)
        audio[start : start + len(sound)] += sound[: samples - start]
    return audio * np.float32(10 ** (scene.gain_db / 20))


def cut(bank: Bank, clip_id: str, start: float, end: float) -> Audio:
    """A part of a clip, [S]; seconds."""
    return bank.waveform(bank.by_id[clip_id])[round(start * SAMPLING_RATE) : round(end * SAMPLING_RATE)]


def active_dbfs(audio: Audio) -> float:
    """RMS over the frames that are no pauses, in dBFS."""
    powers = _frame_powers(audio)
    return _decibels(float(powers[powers >= powers.max() * 10 ** (-ACTIVE_BELOW_DB / 10)].mean()))


def count_sounds(audio: Audio, noise_dbfs: float) -> int:
    """How many separate sounds the energy shows: pauses under 0.25 s bridged, bursts under 0.03 s dropped."""
    powers = _frame_powers(audio)
    floor = max(powers.max() * 10 ** (-ACTIVE_BELOW_DB / 10), 10 ** ((noise_dbfs + MIN_ABOVE_NOISE_DB) / 10))
    active = np.flatnonzero(powers > floor)
    if len(active) == 0:
        return 0
    breaks = np.flatnonzero(np.diff(active) - 1 >= BRIDGED_SECONDS / FRAME_SECONDS)
    starts = active[np.concatenate([[0], breaks + 1])]
    ends = active[np.concatenate([breaks, [len(active) - 1]])] + 1
    return int(np.sum((ends - starts) * FRAME_SECONDS > BURST_SECONDS))


def problems(scene: Scene, audio: Audio) -> Iterator[str]:
    """What the audio does not show as the record says; nothing when the scene is good."""
    noise = scene.noise_dbfs + scene.gain_db
    for event in scene.events:
        power = _rms_dbfs(_span(event, audio))
        if power < noise + MIN_ABOVE_NOISE_DB or event.gain_db > MAX_GAIN_DB:
            yield (
                f"{event.label} (clip {event.clip_id}) is not heard: {power:.0f} dBFS at a gain of "
                f"{event.gain_db:.0f} dB over noise of {noise:.0f} dBFS"
            )
    first = scene.events[0]
    if scene.template == "count":
        found = count_sounds(audio, noise)
        if found != len(scene.events):
            yield (
                f"{len(scene.events)} times {first.label} (clip {first.clip_id}) is heard as {found} sounds"
            )
    if scene.template == "louder":
        quiet, loud = sorted(scene.events, key=lambda event: event.level_dbfs)
        gap = _rms_dbfs(_span(loud, audio)) - _rms_dbfs(_span(quiet, audio))
        if gap < MIN_LOUDNESS_GAP_DB:
            yield (
                f"{loud.label} (clip {loud.clip_id}) is only {gap:.1f} dB louder than {quiet.label} "
                f"(clip {quiet.clip_id})"
            )


def _span(event: Event, audio: Audio) -> Audio:
    return audio[round(event.onset * SAMPLING_RATE) : round(event.end * SAMPLING_RATE)]


def _rms_dbfs(audio: Audio) -> float:
    return _decibels(float(np.mean(np.square(audio, dtype=np.float64))))


def _frame_powers(audio: Audio) -> NDArray[np.float64]:
    """Mean square of each 20-ms frame; a shorter rest is a frame of its own only if there is no other."""
    frames = max(len(audio) // _FRAME, 1)
    used = audio[: frames * _FRAME].astype(np.float64)
    powers: NDArray[np.float64] = np.square(used).reshape(frames, -1).mean(axis=1)
    return powers


def _decibels(power: float) -> float:
    return float(10 * np.log10(power + 1e-12))
