"""From a file, bytes or an array to a mono float32 waveform: decoded, checked, resampled."""

import base64
import binascii
import io
import shutil
import struct
import subprocess
import wave
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

import numpy as np
from numpy.typing import NDArray

from almosaic.errors import AudioError
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

AudioSource = str | Path | bytes | BinaryIO | tuple[NDArray[Any], int]
_Decoded = tuple[NDArray[np.float32], int]  # [S, channels] and the rate


def load_audio(
    source: AudioSource,
    sampling_rate: int = SAMPLING_RATE,
    *,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    max_seconds: float = MAX_SECONDS,
) -> NDArray[np.float32]:
    """Return the clip as one mono waveform [S], float32, resampled first and averaged over channels after.

    Args:
        source: a path, a `data:` URI, the bytes of a file, a binary file object (from its beginning where it
            can be seeked, else read to its end), or `(array, rate)` with the array [S], [S, channels] or
            [channels, S]: the smaller axis is taken as the channels. Integer arrays are scaled to [-1, 1].
        sampling_rate: rate of the result in Hz.
        start_seconds: where to begin; files are seeked, not decoded from the start.
        duration_seconds: read at most this much from there (less where the clip ends), None = to the end.
        max_seconds: a longer clip, or a longer cut of it when `duration_seconds` is given, is an error.

    Raises:
        AudioError: the clip is missing, unreadable, empty, not finite, below 25 ms or above `max_seconds`.
    """
    name = _describe(source)
    if not start_seconds >= 0 or not (duration_seconds is None or duration_seconds > 0):
        raise AudioError(
            f"{name}: expected start_seconds >= 0 and duration_seconds > 0, "
            f"found {start_seconds} and {duration_seconds}"
        )
    # One second more than allowed is enough to know that a clip is too long.
    wanted = min(duration_seconds or np.inf, max_seconds + 1.0)
    samples, rate = _decode(source, name, start_seconds, wanted)
    seconds = len(samples) / rate
    if len(samples) == 0:
        raise AudioError(f"{name}: no samples from {start_seconds:g} s on; check the file or start_seconds")
    if seconds < MIN_SECONDS:
        raise AudioError(
            f"{name}: {seconds * 1000:.1f} ms is too short, at least 25 ms are needed; drop the clip"
        )
    if seconds > max_seconds:
        raise AudioError(
            f"{name}: longer than the limit of {max_seconds:g} s; split it, "
            "or pass start_seconds and duration_seconds, or a higher max_seconds"
        )
    if not np.abs(samples).max() <= MAX_LEVEL:  # also where the largest is NaN
        raise AudioError(_wild(samples, rate, name))
    if rate != sampling_rate:
        samples = _resample(samples, rate, sampling_rate, name)
    return np.ascontiguousarray(samples.mean(axis=1), dtype=np.float32)


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
    name = _describe(source)
    if not isinstance(source, tuple):
        source = _open_source(source, name)
        soundfile = _soundfile()
        if soundfile is not None:
            # Decode below what is not a format of libsndfile, or has no length in its header.
            with suppress(soundfile.SoundFileError, TypeError):
                info = soundfile.info(source)
                if info.frames < _UNKNOWN_FRAMES:
                    return float(info.frames / info.samplerate)
    samples, rate = _decode(source, name, 0.0, np.inf)
    return len(samples) / rate


def _describe(source: AudioSource) -> str:
    """Name the source in an error message, on one short line."""
    if isinstance(source, str) and source.startswith("data:"):
        return f"audio {source[:24]}..."
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, tuple):
        return "audio array"
    if isinstance(source, bytes):
        return f"audio of {len(source)} bytes"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name else "audio file object"


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


def _decode(source: AudioSource, name: str, start: float, wanted: float) -> _Decoded:
    """Return samples [S, channels] from `start` on, at most `wanted` seconds of them, and their rate."""
    if isinstance(source, tuple):
        return _from_array(source, name, start, wanted)
    file = _open_source(source, name)
    soundfile = _soundfile()
    if soundfile is None:
        return _from_wave(file, name, start, wanted)
    try:
        opened = soundfile.SoundFile(file)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: a headerless format, by its suffix
        return _from_ffmpeg(file, name, start, wanted, reason=_reason(error))
    with opened:
        if opened.frames >= _UNKNOWN_FRAMES:
            return _from_ffmpeg(file, name, start, wanted, reason="no length in the header")
        if opened.format == "OGG" and (cut := cut_page(file)) is not None:
            raise AudioError(
                f"{name}: damaged, its last page is cut off after {cut[1]} of {cut[0]} bytes; fetch it again"
            )
        return _from_soundfile(opened, name, start, wanted)


def _open_source(source: str | Path | bytes | BinaryIO, name: str) -> str | BinaryIO:
    """Return a checked path, or a file object that stands at its beginning and can be seeked."""
    if isinstance(source, str) and source.startswith("data:"):
        source = _data_uri(source, name)
    if isinstance(source, str | Path):
        return _checked_path(source)
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    if not isinstance(file.read(0), bytes):
        raise AudioError(f"{name}: expected a file opened in binary mode, found text; open it with 'rb'")
    file = file if file.seekable() else io.BytesIO(file.read())
    if file.seek(0, io.SEEK_END) == 0:
        raise AudioError(f"{name}: empty, no bytes to read")
    file.seek(0)
    return file


def _checked_path(path: str | Path) -> str:
    if str(path).startswith(("http://", "https://")):
        raise AudioError(f"{path}: remote audio is not fetched; download it and give the local path")
    try:
        if not Path(path).exists():
            raise AudioError(f"{path}: no such file; check the path")
        if not Path(path).is_file():
            raise AudioError(f"{path}: expected an audio file, found a directory or device; give one file")
        with open(path, "rb") as file:
            if not file.read(1):
                raise AudioError(f"{path}: empty file (0 bytes); fetch it again")
    except (OSError, ValueError) as error:
        if isinstance(error, AudioError):
            raise
        raise AudioError(
            f"{str(path)[:200]!r}: cannot be opened ({getattr(error, 'strerror', error)})"
        ) from error
    return str(path)


def _data_uri(uri: str, name: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise AudioError(f"{name}: expected data:audio/...;base64,... , found no comma")
    if not header.endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(unquote_to_bytes(body), validate=True)
    except binascii.Error as error:
        raise AudioError(f"{name}: the base64 of this data URI is damaged ({error})") from error


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


def _from_ffmpeg(file: str | BinaryIO, name: str, start: float, wanted: float, reason: str) -> _Decoded:
    """Decode through an ffmpeg process that can read its standard input and nothing else."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(
            f"{name}: not readable as audio ({reason}); convert it to WAV or FLAC, or install ffmpeg"
        )
    limit = [] if wanted == np.inf else ["-t", f"{start + wanted:.6f}"]
    alone = ["-v", "error", "-xerror", "-protocol_whitelist", "pipe", "-i", "pipe:0", "-vn"]
    if isinstance(file, str):
        data = Path(file).read_bytes()
    else:
        file.seek(0)
        data = file.read()
    # AU is the one container with a header that needs no length and floats that need no scaling.
    done = subprocess.run(
        [program, *alone, *limit, "-c:a", "pcm_f32be", "-f", "au", "pipe:1"],
        input=data,
        capture_output=True,
        check=False,
    )
    if done.returncode != 0 or len(done.stdout) < 24:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no output"]
        raise AudioError(
            f"{name}: not readable as audio ({reason}; ffmpeg: {said[0]}); convert it to WAV or FLAC"
        )
    offset, _, _, rate, channels = struct.unpack(">5I", done.stdout[4:24])
    samples = np.frombuffer(done.stdout[offset:], ">f4").astype(np.float32).reshape(-1, channels)
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
