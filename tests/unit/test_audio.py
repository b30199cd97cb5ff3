"""Loading audio: every source and format, the quality of resampling, and one line for what cannot be used."""

import base64
import io
import stat
import sys
import wave
import zipfile
from pathlib import Path

import numpy as np
import pytest

from almosaic.audio import MAX_SECONDS, audio_duration, load_audio
from almosaic.errors import AudioError

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def tone(rate=RATE, seconds=1.0, hertz=440.0, amplitude=0.5):
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def encoded(samples, rate=RATE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **({"format": "WAV"} | options))
    return file.getvalue()


def level_db(samples):
    return 20 * np.log10(np.sqrt(np.mean(np.square(samples, dtype=np.float64))) + 1e-12)


FORMATS = {
    "wav": ({"format": "WAV"}, RATE, 1e-4),
    "wav24": ({"format": "WAV", "subtype": "PCM_24"}, RATE, 1e-6),
    "wavfloat": ({"format": "WAV", "subtype": "FLOAT"}, RATE, 0),
    "flac": ({"format": "FLAC"}, RATE, 1e-4),
    "vorbis": ({"format": "OGG", "subtype": "VORBIS"}, RATE, 0.05),
    "opus": ({"format": "OGG", "subtype": "OPUS"}, RATE, 0.05),
    "mp3": ({"format": "MP3"}, RATE, 0.05),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats(tmp_path, name):
    options, rate, tolerance = FORMATS[name]
    expected = tone(rate)
    path = tmp_path / "clip.bin"
    path.write_bytes(encoded(expected, rate, **options))
    waveform = load_audio(path)
    assert waveform.dtype == np.float32 and waveform.ndim == 1
    assert abs(len(waveform) - RATE) <= 1200  # MP3 pads whole frames
    np.testing.assert_allclose(waveform[2000:14_000], expected[2000:14_000], atol=tolerance, rtol=0)
    assert audio_duration(path) == pytest.approx(1.0, abs=0.08)


def test_every_kind_of_source_gives_the_same(tmp_path):
    data = encoded(tone(22_050, 0.5), 22_050)
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    uri = "data:audio/wav;base64," + base64.b64encode(data).decode()
    expected = load_audio(path)
    assert len(expected) == 8000
    with open(path, "rb") as file:
        sources = [str(path), data, file, io.BytesIO(data), uri, soundfile.read(path, dtype="float32")]
        for source in sources:
            np.testing.assert_array_equal(load_audio(source), expected)
    for source in (path, data, uri, soundfile.read(path)):
        assert audio_duration(source) == 0.5


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_channels_are_averaged_whichever_axis_they_are(channels):
    samples = np.stack([tone(44_100, 0.3, 300 + 100 * index) for index in range(channels)])
    expected = load_audio((samples.mean(0), 44_100))
    for layout in (samples, samples.T):
        np.testing.assert_allclose(load_audio((layout, 44_100)), expected, atol=1e-5)
    np.testing.assert_allclose(load_audio(encoded(samples.T, 44_100)), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", "int8", "float64"])
def test_integer_arrays_are_scaled(dtype):
    signal = tone()
    whole = np.dtype(dtype).kind in "iu"
    half = 2.0 ** (np.dtype(dtype).itemsize * 8 - 1) if whole else 1.0
    stored = (signal * half + (half if dtype == "uint8" else 0)).astype(dtype)
    np.testing.assert_allclose(load_audio((stored, RATE)), signal, atol=1.01 / half if whole else 1e-7)


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050, 8000])
def test_resampling_is_flat_to_7_khz(rate):
    edge = min(7000, 0.875 * rate / 2)
    for hertz in [50, 1000, 3000, 3400, edge * 0.75, edge]:
        resampled = load_audio((tone(rate, 1.0, hertz), rate))
        assert len(resampled) == RATE
        inside = slice(2000, -2000)
        time = np.arange(RATE)[inside] / RATE
        wave_pair = np.stack([np.sin(2 * np.pi * hertz * time), np.cos(2 * np.pi * hertz * time)], 1)
        fitted = np.linalg.lstsq(wave_pair, resampled[inside].astype(np.float64), rcond=None)[0]
        assert abs(20 * np.log10(np.hypot(*fitted) / 0.5)) <= 0.1
        assert level_db(resampled[inside] - wave_pair @ fitted) - level_db(resampled[inside]) <= -80
        assert abs(np.arctan2(fitted[1], fitted[0])) < 0.01  # no delay


@pytest.mark.parametrize("rate", [44_100, 48_000, 22_050])
def test_a_sweep_above_8_khz_leaves_no_alias(rate):
    seconds = 2.0
    time = np.arange(round(rate * seconds)) / rate
    low, high = 8000.0, rate / 2 - 1.0
    sweep = np.sin(2 * np.pi * (low * time + (high - low) / (2 * seconds) * time**2)) * np.hanning(len(time))
    assert level_db(load_audio((sweep, rate))) - level_db(sweep) <= -80


def test_cuts_are_seeked_exactly(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE).astype(np.float32)
    for name in ("wav", "flac"):
        path = tmp_path / f"clip.{name}"
        soundfile.write(path, noise, RATE)
        whole = load_audio(path)
        cut = load_audio(path, start_seconds=0.7, duration_seconds=1.1)
        np.testing.assert_array_equal(cut, whole[11_200 : 11_200 + 17_600])
        np.testing.assert_array_equal(load_audio(path, start_seconds=2.5), whole[40_000:])
        assert len(load_audio(path, start_seconds=2.5, duration_seconds=2.0)) == 8000
    array = load_audio((noise, RATE), start_seconds=0.7, duration_seconds=1.1)
    np.testing.assert_array_equal(array, noise[11_200:28_800])


def test_a_cut_of_an_mp3_is_where_it_says():
    clicks = np.zeros(4 * 44_100, np.float32)
    clicks[::44_100] = 0.9
    data = encoded(clicks, 44_100, format="MP3")
    cut = load_audio(data, start_seconds=1.5, duration_seconds=1.0)
    assert len(cut) == RATE
    assert abs(int(np.abs(cut).argmax()) - 8000) <= 32


def test_the_limit_counts_the_cut_and_nothing_is_truncated(tmp_path):
    path = tmp_path / "long.flac"
    soundfile.write(path, np.zeros(round((MAX_SECONDS + 0.5) * 8000), np.int16), 8000)
    with pytest.raises(AudioError, match=r"300.5 s, longer than the limit of 300 s"):
        load_audio(path)
    with pytest.raises(AudioError, match=r"audio array: at least 301.0 s, longer than the limit of 300 s"):
        load_audio((np.zeros(302 * 8000, np.float32), 8000))
    assert len(load_audio(path, duration_seconds=2.0, start_seconds=250)) == 2 * RATE
    assert len(load_audio(path, max_seconds=400)) == round((MAX_SECONDS + 0.5) * RATE)
    with pytest.raises(AudioError, match="longer than the limit of 1 s"):
        load_audio(path, duration_seconds=1.5, max_seconds=1.0)
    assert len(load_audio((tone(seconds=1.0), RATE), max_seconds=1.0)) == RATE


def test_25_ms_is_enough_and_less_is_not():
    assert len(load_audio((tone()[:400], RATE))) == 400
    assert len(load_audio((tone(44_100)[:1103], 44_100))) == 400
    for samples, rate in [(399, RATE), (1102, 44_100)]:
        with pytest.raises(AudioError, match="too short"):
            load_audio((tone(rate)[:samples], rate))


def zero_rate_wav():
    data = bytearray(encoded(tone(seconds=0.1)))
    data[24:28] = bytes(4)
    return bytes(data)


def zip_bytes():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.txt", "hello " * 2000)
    return file.getvalue()


BAD_SOURCES = {
    "missing": ("nowhere.wav", "no such file"),
    "remote": ("https://example.org/a.wav", "remote"),
    "nothing": (b"", "empty"),
    "zip": (zip_bytes(), "not readable"),
    "text": (b"RIFF and so on", "not readable"),
    "html": (b"<!doctype html><p>404</p>" * 50, "not readable"),
    "no samples": (encoded(np.zeros(0, np.float32)), "no samples"),
    "nan": (encoded(np.full(800, np.nan, np.float32), subtype="FLOAT", format="WAV"), "NaN"),
    "infinite": ((np.full(800, np.inf), RATE), "infinite"),
    "zero rate": (zero_rate_wav(), "sampling rate"),
    "zero rate array": ((tone(), 0), "rate"),
    "half rate": ((tone(), 0.5), "rate"),
    "text samples": ((np.array(["a"] * 800), RATE), "numbers"),
    "three axes": ((np.zeros((2, 2, 800)), RATE), "shape"),
    "empty array": ((np.zeros(0), RATE), "no samples"),
    "swapped pair": ((RATE, tone()), "(array, rate)"),
    "a number": (0.25, "found float '0.25'"),
    "nothing at all": (None, "found NoneType"),
    "uri without data": ("data:audio/wav;base64", "comma"),
    "damaged uri": ("data:audio/wav;base64,@@@", "base64"),
    "text file": (io.StringIO("hello"), "binary"),
    "nul in path": ("a\0b.wav", "cannot be opened|no such file"),
    "file address elsewhere": ("file://server/a.wav", "found file://server"),
    "missing file address": ("file:///no%20where/a.wav", "/no where/a.wav: no such file"),
    "file address without sense": ("file://[a.wav", "cannot be opened"),
    "bucket": ("s3://bucket/a.wav?key=secret", "found s3://bucket"),
    "not yet base64": ("data:audio/wav;base64,{{file}}", "base64"),
    "endless path": ("a" * 5000, "cannot be opened|no such file"),
}


@pytest.mark.parametrize("name", BAD_SOURCES)
def test_what_cannot_be_used_is_said_in_one_line(name, monkeypatch):
    monkeypatch.setenv("PATH", "")  # without ffmpeg
    source, words = BAD_SOURCES[name]
    with pytest.raises(AudioError) as caught:
        load_audio(source)
    message = str(caught.value)
    assert any(word in message for word in words.split("|")), message
    assert "\n" not in message and "object at" not in message and len(message) < 330


def test_bad_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(AudioError, match="directory"):
        load_audio(tmp_path)
    (tmp_path / "empty.wav").touch()
    with pytest.raises(AudioError, match="0 bytes"):
        load_audio(tmp_path / "empty.wav")
    for name in ("clip.wav", "clip.mp3", "clip.raw"):
        (tmp_path / name).write_bytes(zip_bytes())
        with pytest.raises(AudioError, match=f"{name}.*not readable"):
            load_audio(tmp_path / name)
        with pytest.raises(AudioError, match=f"{name}.*not readable"):
            audio_duration(tmp_path / name)


@pytest.mark.parametrize("format", ["FLAC", "MP3", "WAV", "AIFF"])
def test_half_a_file_is_not_read_as_a_shorter_clip(format):
    data = encoded(np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE), format=format)
    with pytest.raises(AudioError, match="damaged"):
        load_audio(data[: len(data) // 2])


@pytest.mark.parametrize("start, duration", [(-1.0, None), (0.0, 0.0), (0.0, -2.0), (float("nan"), None)])
def test_impossible_cuts(start, duration):
    with pytest.raises(AudioError, match="start_seconds"):
        load_audio((tone(), RATE), start_seconds=start, duration_seconds=duration)


def test_a_start_beyond_the_end_is_an_error():
    for source in ((tone(), RATE), encoded(tone())):
        with pytest.raises(AudioError, match="start_seconds"):
            load_audio(source, start_seconds=1.5)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32"])
def test_without_soundfile_pcm_wav_is_read(tmp_path, monkeypatch, subtype):
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(np.stack([tone(), tone(hertz=700)], 1), format="WAV", subtype=subtype))
    expected = load_audio(path, start_seconds=0.25, duration_seconds=0.5)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    found = load_audio(path, start_seconds=0.25, duration_seconds=0.5)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert audio_duration(path) == 1.0


def test_without_soundfile_other_formats_are_an_error(tmp_path, monkeypatch):
    data = encoded(tone(), format="FLAC")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(AudioError, match="pip install soundfile"):
        load_audio(data)


def test_without_soxr_other_rates_are_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "soxr", None)
    assert len(load_audio((tone(), RATE))) == RATE
    with pytest.raises(AudioError, match="pip install soxr"):
        load_audio((tone(8000), 8000))


FAKE_FFMPEG = """#!{python}
import array, struct, sys
sys.stdin.buffer.read()
arguments = sys.argv[1:]
open({log!r}, "w").write(" ".join(arguments))
samples = array.array("f", [index / 8000 for index in range(8000) for _ in range(2)])
samples.byteswap()
sys.stdout.buffer.write(b".snd" + struct.pack(">5I", 24, 0xFFFFFFFF, 6, 8000, 2) + samples.tobytes())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for ffmpeg is a script")
def test_ffmpeg_reads_what_soundfile_cannot_and_sees_only_its_input(tmp_path, monkeypatch):
    log, program = tmp_path / "log", tmp_path / "ffmpeg"
    program.write_text(FAKE_FFMPEG.format(python=sys.executable, log=str(log)))
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", str(tmp_path))
    waveform = load_audio(b"not a sound file of ours", sampling_rate=8000, start_seconds=0.25)
    np.testing.assert_allclose(waveform, np.arange(2000, 8000) / 8000, atol=1e-6)
    arguments = log.read_text()
    assert "-protocol_whitelist pipe,cache -i cache:pipe:0" in arguments and str(tmp_path) not in arguments
    assert audio_duration(b"not a sound file of ours") == 1.0


@pytest.mark.parametrize("format", ["AIFF", "FLAC", "W64", "WAV"])
def test_three_hours_are_refused_before_they_are_decoded(tmp_path, monkeypatch, format):
    path = tmp_path / "hours.bin"
    soundfile.write(path, np.zeros(10_800 * 100, np.int16), 100, format=format)
    monkeypatch.setattr(soundfile.SoundFile, "read", None)
    with pytest.raises(AudioError, match=r"hours.bin: 10800.0 s, longer than the limit of 300 s; split it"):
        load_audio(path)
    with pytest.raises(AudioError, match=r"hours.bin: 800.0 s, longer"):
        load_audio(path, start_seconds=10_000)


def test_the_estimate_in_an_mp3_header_refuses_nothing(monkeypatch):
    data = encoded(tone(seconds=2.0), format="MP3")
    with pytest.raises(AudioError, match=r"at least 2.0 s, longer than the limit of 1 s"):
        load_audio(data, max_seconds=1.0)


def test_file_addresses_are_paths(tmp_path):
    path = tmp_path / "a clip.wav"
    path.write_bytes(encoded(tone()))
    assert " " not in path.as_uri()
    np.testing.assert_array_equal(load_audio(path.as_uri()), load_audio(path))
    np.testing.assert_array_equal(load_audio(f"file://localhost{path}"), load_audio(path))


def test_the_standard_library_writes_what_we_read(tmp_path: Path):
    path = tmp_path / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((tone() * 32767).astype("<i2").tobytes())
    np.testing.assert_allclose(load_audio(path), tone(), atol=1e-4)


def test_a_streamed_wav_without_a_length_is_whole():
    data = bytearray(encoded(tone()))
    for unknown in (b"\xff\xff\xff\xff", b"\x00\xf0\xff\x7f"):
        data[40:44] = unknown
        assert len(load_audio(bytes(data))) == RATE
