"""What only ffmpeg reads: cuts, recordings of phones, and inputs that point at other files."""

import io
import shutil
import struct
import subprocess

import numpy as np
import pytest
import soundfile

from almosaic.audio import audio_duration, load_audio
from almosaic.errors import AudioError
from almosaic.ffmpeg import mp4_seconds

RATE = 16_000
FFMPEG = shutil.which("ffmpeg")
needs_ffmpeg = pytest.mark.skipif(FFMPEG is None, reason="no ffmpeg here")


def noise(seconds):
    return np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)


def converted(samples, *options):
    """Bytes of a clip in another format; a name as the last option = written to that file."""
    wav = io.BytesIO()
    soundfile.write(wav, samples, RATE, format="WAV")
    command = [str(FFMPEG), "-v", "error", "-f", "wav", "-i", "pipe:0", *map(str, options)]
    return subprocess.run(command, input=wav.getvalue(), capture_output=True, check=True).stdout


@needs_ffmpeg
def test_a_cut_of_an_aac_stream():
    waveform = load_audio(
        converted(noise(2.0), "-f", "adts", "pipe:1"), start_seconds=0.5, duration_seconds=1.0
    )
    assert len(waveform) == RATE
    assert waveform.std() == pytest.approx(noise(1.0).std(), rel=0.1)


@needs_ffmpeg
@pytest.mark.parametrize("order", [(), ("-movflags", "+faststart")])
def test_recordings_of_phones_have_their_index_at_either_end(tmp_path, order):
    path = tmp_path / "memo.m4a"
    converted(noise(10.0), "-b:a", "128k", *order, path)
    assert path.stat().st_size > 70_000  # more than a pipe remembers
    with path.open("rb") as file:
        for source in (path, path.read_bytes(), file):
            assert len(load_audio(source)) == pytest.approx(10 * RATE, abs=2048)
            assert audio_duration(source) == pytest.approx(10.0, abs=0.05)
    with pytest.raises(AudioError, match=r"memo.m4a: 10.0 s, longer than the limit of 5 s"):
        load_audio(path, max_seconds=5.0)
    with pytest.raises(AudioError, match="ffmpeg: "):
        load_audio(path.read_bytes()[:50_000])


def test_the_length_of_an_mp4_stands_in_its_header():
    def box(name, body):
        return struct.pack(">I4s", 8 + len(body), name) + body

    start, sound = box(b"ftyp", b"M4A \0\0\0\0"), bytes(1000)
    short = box(b"moov", box(b"mvhd", bytes(4) + struct.pack(">4I", 0, 0, 1000, 10_800_000) + bytes(80)))
    long = box(b"moov", box(b"mvhd", b"\1\0\0\0" + struct.pack(">QQIQ", 0, 0, 1000, 10_800_000) + bytes(80)))
    large = struct.pack(">I4sQ", 1, b"mdat", 16 + len(sound)) + sound
    for data in (start + short, start + box(b"mdat", sound) + short, start + large + long):
        assert mp4_seconds(io.BytesIO(data)) == 10_800.0
    for data in (b"", b"RIFF and so on", start, start + struct.pack(">I4s", 0, b"mdat") + sound + short):
        assert mp4_seconds(io.BytesIO(data)) is None
    assert mp4_seconds(io.BytesIO(start + box(b"moov", bytes(100)))) is None


@needs_ffmpeg
def test_a_file_that_names_other_files_reaches_none(tmp_path):
    secret = tmp_path / "secret.wav"
    soundfile.write(secret, noise(1.0), RATE)
    listed = tmp_path / "list.ffconcat"
    listed.write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    inside = [FFMPEG, "-v", "error", "-i", listed, "-f", "wav", "pipe:1"]
    assert subprocess.run(inside, capture_output=True, check=True).stdout  # what must not happen
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
    for text in (
        f"ffconcat version 1.0\nfile {secret}\n",
        f"ffconcat version 1.0\nfile cache:file:{secret}\n",
        f"ffconcat version 1.0\nfile subfile,,start,0,end,0,,:{secret}\n",
        playlist.format(secret.as_uri()),
        playlist.format("http://127.0.0.1:9/secret.wav"),
    ):
        with pytest.raises(AudioError, match="not readable as audio"):
            load_audio(text.encode())
    with pytest.raises(AudioError, match="not readable as audio"):
        load_audio(listed)
