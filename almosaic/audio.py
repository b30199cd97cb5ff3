"""From a file, bytes or an array to a mono float32 waveform: decoded, checked, resampled."""

import wave
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from almosaic.audio_source import AudioSource as AudioSource
from almosaic.audio_source import describe, open_source
from almosaic.errors import AudioError
from almosaic.ffmpeg import decode_with_ffmpeg, mp4_seconds
from almosaic.remote import fetch, is_remote
from almosaic.truncation import cut_page, missing_seconds

SAMPLING_RATE = 16_000
MIN_SECONDS = 0.025  # one analysis frame
MAX_SECONDS = 300.0
MAX_LEVEL = 1e6  # samples are about -1 to 1; garbage read as floats is not
AUDIO_SUFFIXES = frozenset(
    {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aac", ".aif", ".aiff", ".webm"}
)
_HEADER_SLACK_SECONDS = 0.1  # the length in an MP3 header is an estimate
_UNKNOWN_FRAMES = 2**62  # libsndfile gives a FLAC that was written to a pipe more frames than this

_Decoded = tuple[NDArray[np.float32], int]  # [S, channels] and the rate


def load_audio(
    source: AudioSource,
    sampling_rate: int = SAMPLING_RATE,
    *,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    max_seconds: float = MAX_SECONDS,
    allow_remote: bool = False,
) -> NDArray[np.float32]:
    """Return the clip as one mono waveform [S], float32, resampled first and averaged over channels after.

    Args:
        source: a path, a `file:` or `data:` URI, the bytes of a file, a binary file object (from its
            beginning where it can be seeked, else read to its end), or `(array, rate)` with the array [S],
            [S, channels] or [channels, S]: the smaller axis is taken as the channels. Integer arrays are
            scaled to [-1, 1].
        sampling_rate: rate of the result in Hz.
        start_seconds: where to begin; files are seeked, not decoded from the start.
        duration_seconds: read at most this much from there (less where the clip ends), None = to the end.
        max_seconds: a longer clip, or a longer cut of it when `duration_seconds` is given, is an error.
        allow_remote: fetch `http://` and `https://` addresses, as `remote.fetch` limits them.

    Raises:
        AudioError: the clip is missing, unreadable, empty, not finite, below 25 ms or above `max_seconds`.
    """
    name = describe(source)
    if not start_seconds >= 0 or not (duration_seconds is None or duration_seconds > 0):
        raise AudioError(
            f"{name}: expected start_seconds >= 0 and duration_seconds > 0, "
            f"found {start_seconds} and {duration_seconds}"
        )
    if allow_remote and is_remote(source):
        source = fetch(str(source))
    # One second more than allowed is enough to know that a clip is too long.
    wanted = min(duration_seconds or np.inf, max_seconds + 1.0)
    samples, rate = _decode(source, name, start_seconds, wanted, max_seconds)
    seconds = len(samples) / rate
    if len(samples) == 0:
        raise AudioError(f"{name}: no samples from {start_seconds:g} s on; check the file or start_seconds")
    if seconds < MIN_SECONDS:
        raise AudioError(
            f"{name}: {seconds * 1000:.1f} ms is too short, at least 25 ms are needed; drop the clip"
        )
    _refuse_long(name, seconds, np.inf, max_seconds, "at least " if seconds >= wanted else "")
    if not np.abs(samples).max() <= MAX_LEVEL:  # also where the largest is NaN
        raise AudioError(_wild(samples, rate, name))
    if rate != sampling_rate:
        samples = _resample(samples, rate, sampling_rate, name)
    return np.ascontiguousarray(samples.mean(axis=1), dtype=np.float32)


def load_named(sources: Any, sampling_rate: int | None = None) -> Any:
    """`load_audio` for a path or URI, or each of a list, as the library's pipelines ask; else as it is."""
    if isinstance(sources, list):
        return [load_named(source, sampling_rate) for source in sources]
    return load_audio(sources, sampling_rate or SAMPLING_RATE) if isinstance(sources, str | Path) else sources


def decoded_seconds(source: AudioSource) -> float:
    """Decode a clip of any length piece by piece, so that every sample is checked, and return its seconds.

    Raises:
        AudioError: as `load_audio`, except that no clip is too long.
    """
    pieces = max(1, int(audio_duration(source) // MAX_SECONDS))
    samples = 0
    for piece in range(pieces):
        length = MAX_SECONDS if piece < pieces - 1 else None
        start = piece * MAX_SECONDS
        cut = load_audio(source, start_seconds=start, duration_seconds=length, max_seconds=2 * MAX_SECONDS)
        samples += len(cut)
    return samples / SAMPLING_RATE


def audio_duration(source: AudioSource) -> float:
    """Return the length of a clip in seconds, from the file's header where it says so.

    Raises:
        AudioError: as `load_audio`, for what cannot be read at all.
    """
    name = describe(source)
    if not isinstance(source, tuple):
        source = open_source(source, name)
        soundfile = _soundfile()
        if soundfile is not None:
            # Decode below what is not a format of libsndfile, or has no length in its header.
            with suppress(soundfile.SoundFileError, TypeError):
                info = soundfile.info(source)
                if info.frames < _UNKNOWN_FRAMES:
                    return float(info.frames / info.samplerate)
            if (seconds := mp4_seconds(source)) is not None:
                return seconds
    samples, rate = _decode(source, name, 0.0, np.inf)
    return len(samples) / rate


def _refuse_long(name: str, left: float, wanted: float, limit: float, least: str = "") -> None:
    """AudioError where `left` seconds, of which `wanted` are read, are more than `limit`."""
    if min(left, wanted) > limit:
        raise AudioError(
            f"{name}: {least}{left:.1f} s, longer than the limit of {limit:g} s; split it, or pass "
            "start_seconds and duration_seconds, or raise the limit (max_seconds, max_audio_seconds)"
        )


def _wild(samples: NDArray[np.float32], rate: int, name: str) -> str:
    """Say how many samples are no sound, and where the first of them is."""
    wild = (~(np.abs(samples) <= MAX_LEVEL)).any(axis=1)
    return (
        f"{name}: expected samples of about -1 to 1, found {int(wild.sum())} of {len(samples)} NaN, infinite "
        f"or above {MAX_LEVEL:g}, the first {int(wild.argmax()) / rate:.3f} s into the cut; re-export it"
    )


def _reason(error: Exception) -> str:
    """Return what libsndfile said, without the file object that soundfile puts in front."""
    text = " ".join(str(getattr(error, "error_string", error)).split()).rstrip(".")
    return "no sampling rate or no channels in the header" if "SF_INFO" in text else text


def _decode(source: AudioSource, name: str, start: float, wanted: float, limit: float = np.inf) -> _Decoded:
    """Return samples [S, channels] from `start` on, at most `wanted` seconds of them, and their rate.

    A header that promises more than `limit` of the wanted seconds is an error before anything is decoded.
    """
    if isinstance(source, tuple):
        return _from_array(source, name, start, wanted)
    file = open_source(source, name)
    soundfile = _soundfile()
    if soundfile is None:
        return _from_wave(file, name, start, wanted)
    try:
        opened = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless format, by its suffix
        _refuse_long(name, (mp4_seconds(file) or 0.0) - start, wanted, limit)
        return _through_ffmpeg(file, name, start, wanted, reason=_reason(error))
    with opened:
        if opened.frames >= _UNKNOWN_FRAMES:
            return _through_ffmpeg(file, name, start, wanted, reason="no length in the header")
        if opened.format == "OGG" and (cut := cut_page(file)) is not None:
            raise AudioError(
                f"{name}: damaged, its last page is cut off after {cut[1]} of {cut[0]} bytes; fetch it again"
            )
        if opened.format != "MP3":  # an estimate, and no reason to refuse the clip
            _refuse_long(name, opened.frames / opened.samplerate - start, wanted, limit)
        return _from_soundfile(opened, name, start, wanted)


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the package without its library
        return None
    return soundfile


def _span(start: float, wanted: float, rate: int) -> tuple[int, int]:
    """Return first sample and sample count of a cut; a count of -1 = to the end."""
    return round(start * rate), -1 if wanted == np.inf else max(1, round(wanted * rate))


def _from_soundfile(opened: Any, name: str, start: float, wanted: float) -> _Decoded:
    rate, total = int(opened.samplerate), int(opened.frames)
    first, count = _span(start, wanted, rate)
    if first >= total:
        return np.zeros((0, opened.channels), np.float32), rate
    expected = total - first if count < 0 else min(count, total - first)
    try:
        opened.seek(first)
        samples: NDArray[np.float32] = opened.read(expected, dtype="float32", always_2d=True)
    except RuntimeError as error:  # the base of libsndfile's errors
        raise AudioError(f"{name}: damaged, decoding fails ({_reason(error)}); fetch it again") from error
    missing = max((expected - len(samples)) / rate, missing_seconds(opened))
    if missing > _HEADER_SLACK_SECONDS:
        raise AudioError(f"{name}: damaged, {missing:.2f} s fewer than its header promises; fetch it again")
    return samples, rate


def _from_array(source: tuple[NDArray[Any], int], name: str, start: float, wanted: float) -> _Decoded:
    if len(source) != 2 or np.ndim(source[1]) != 0:
        raise AudioError(f"{name}: expected (array, rate), found {len(source)} items or no number second")
    samples, rate = np.asarray(source[0]), source[1]
    if not rate > 0 or int(rate) != rate:
        raise AudioError(f"{name}: expected a positive whole sampling rate in Hz, found {rate}")
    if samples.ndim not in (1, 2) or samples.dtype.kind not in "iuf":
        raise AudioError(
            f"{name}: expected numbers of shape [S], [S, channels] or [channels, S], "
            f"found {samples.dtype} of shape {list(samples.shape)}"
        )
    if samples.ndim == 1:
        samples = samples[:, None]
    elif samples.shape[0] < samples.shape[1]:
        samples = samples.T
    first, count = _span(start, wanted, int(rate))
    samples = samples[first:] if count < 0 else samples[first : first + count]
    return _to_float(samples), int(rate)


def _to_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Scale whole numbers by their range: unsigned ones are centred on its middle."""
    if samples.dtype.kind == "f":
        return samples.astype(np.float32)
    half = 2.0 ** (samples.dtype.itemsize * 8 - 1)
    middle = half if samples.dtype.kind == "u" else 0.0
    return ((samples.astype(np.float64) - middle) / half).astype(np.float32)


def _from_wave(file: str | BinaryIO, name: str, start: float, wanted: float) -> _Decoded:
    """Read a PCM WAV file with the standard library, where soundfile is not installed."""
    try:
        with wave.open(file, "rb") as opened:
            rate, channels, width = opened.getframerate(), opened.getnchannels(), opened.getsampwidth()
            if rate <= 0:
                raise AudioError(
                    f"{name}: expected a positive sampling rate, found {rate}; repair the header"
                )
            first, count = _span(start, wanted, rate)
            opened.setpos(min(first, opened.getnframes()))
            data = opened.readframes(opened.getnframes() if count < 0 else count)
    except (wave.Error, EOFError) as error:
        raise AudioError(
            f"{name}: without soundfile only PCM WAV is read ({error}); pip install soundfile"
        ) from error
    if width == 3:  # widen 24 bits to 32 by an empty low byte
        widened = np.zeros((len(data) // 3, 4), np.uint8)
        widened[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, width = widened.tobytes(), 4
    samples = np.frombuffer(data, "u1" if width == 1 else f"<i{width}")
    return _to_float(samples.reshape(-1, channels)), rate


def _through_ffmpeg(file: str | BinaryIO, name: str, start: float, wanted: float, reason: str) -> _Decoded:
    samples, rate = decode_with_ffmpeg(file, name, start + wanted, reason)
    first, count = _span(start, wanted, rate)
    return (samples[first:] if count < 0 else samples[first : first + count]), rate


def _resample(samples: NDArray[np.float32], rate: int, target: int, name: str) -> NDArray[np.float32]:
    """Resample [S, channels] with soxr: alias below -80 dB, flat within 0.1 dB to 7 kHz at 16 kHz."""
    try:
        import soxr
    except ImportError as error:
        raise AudioError(
            f"{name}: {rate} Hz needs resampling to {target} Hz; pip install soxr, or give {target} Hz files"
        ) from error
    try:
        resampled: NDArray[np.float32] = soxr.resample(samples, rate, target, quality="HQ")
    except (RuntimeError, ValueError) as error:
        raise AudioError(f"{name}: cannot be resampled from {rate} to {target} Hz ({error})") from error
    return resampled
