"""Half a download, a file without a length, samples that are no sound: an error, never a shorter clip."""

import io

import numpy as np
import pytest

from almosaic.audio import audio_duration, decoded_seconds, load_audio
from almosaic.errors import AudioError
from almosaic.truncation import cut_page

soundfile = pytest.importorskip("soundfile")
RATE = 16_000
NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 2 * RATE).astype(np.float32)


def encoded(samples=NOISE, **options):
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, **options)
    return file.getvalue()


CONTAINERS = {
    "wav": {"format": "WAV"},
    "wav adpcm": {"format": "WAV", "subtype": "IMA_ADPCM"},
    "rf64": {"format": "RF64"},
    "w64": {"format": "W64"},
    "aiff": {"format": "AIFF"},
    "au": {"format": "AU"},
    "svx": {"format": "SVX"},
    "flac": {"format": "FLAC"},
    "vorbis": {"format": "OGG", "subtype": "VORBIS"},
    "opus": {"format": "OGG", "subtype": "OPUS"},
    "mp3": {"format": "MP3"},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_whole_file_is_read_and_a_cut_one_is_not(name, monkeypatch):
    monkeypatch.setenv("PATH", "")  # without ffmpeg
    data = encoded(**CONTAINERS[name])
    assert len(load_audio(data)) >= 2 * RATE
    for share in (0.2, 0.5, 0.75, 0.9):
        with pytest.raises(AudioError, match=r"damaged|not readable") as caught:
            load_audio(data[: int(len(data) * share)])
        assert "\n" not in str(caught.value)


def test_a_cut_is_noticed_in_a_stretch_that_is_whole(tmp_path):
    for name in ("au", "vorbis"):
        data = encoded(**CONTAINERS[name])
        path = tmp_path / name
        path.write_bytes(data[: int(len(data) * 0.9)])
        with pytest.raises(AudioError, match=f"{name}: damaged.*fetch it again"):
            load_audio(path, start_seconds=0.25, duration_seconds=0.5)


def test_every_place_within_an_ogg_page_counts_as_cut_and_the_borders_do_not():
    data = encoded(NOISE[:RATE], **CONTAINERS["vorbis"])
    borders = {place for place in range(len(data)) if data[place : place + 5] == b"OggS\0"} | {len(data)}
    whole = {length for length in range(100, len(data) + 1) if cut_page(io.BytesIO(data[:length])) is None}
    assert whole == {border for border in borders if border >= 100}


def test_a_tag_behind_an_ogg_file_is_no_cut():
    data = encoded(**CONTAINERS["vorbis"])
    assert len(load_audio(data + b"TAG" + bytes(125))) == 2 * RATE


def streamed_flac():
    """FLAC as written to a pipe: its header gives 0 samples, which stands for any number."""
    data = bytearray(encoded(format="FLAC"))
    sizes = int.from_bytes(data[18:26], "big")
    data[18:26] = (sizes & ~(2**36 - 1)).to_bytes(8, "big")
    return bytes(data)


def test_a_flac_without_a_length_is_left_to_ffmpeg(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for read in (load_audio, audio_duration):
        with pytest.raises(AudioError, match=r"no length in the header.*install ffmpeg"):
            read(streamed_flac())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_samples_that_are_no_sound_are_counted_and_located(tmp_path, value):
    samples = NOISE.copy()
    samples[[8000, 9000, 9001]] = value
    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(samples, format="WAV", subtype="FLOAT"))
    with pytest.raises(AudioError, match=r"clip\.wav: expected .* 3 of 32000 NaN, .* the first 0\.500 s"):
        load_audio(path)
    assert len(load_audio(path, start_seconds=1.0)) == RATE


def test_one_bad_channel_is_enough(tmp_path):
    samples = np.stack([NOISE, NOISE], axis=1)
    samples[5, 1] = np.nan
    with pytest.raises(AudioError, match="1 of 32000"):
        load_audio((samples, RATE))


class Counted(io.BytesIO):
    """A file that counts the bytes that were read of it."""

    count = 0

    def readinto(self, buffer):
        found = super().readinto(buffer)
        self.count += found
        return found

    def read(self, size=-1):
        found = super().read(size)
        self.count += len(found)
        return found


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_of_a_long_recording_only_the_stretch_is_read(name):
    """Ten minutes; one second of them is a 600th, and finding it takes a few blocks more."""
    noise = np.random.default_rng(1).uniform(-0.5, 0.5, 600 * 8000).astype(np.float32)
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", 8000, 1, **CONTAINERS[name]) as opened:
        for start in range(0, len(noise), 80_000):
            opened.write(noise[start : start + 80_000])
    counted = Counted(file.getvalue())
    assert audio_duration(counted) == pytest.approx(600, abs=0.1)
    cut = load_audio(counted, sampling_rate=8000, start_seconds=345.5, duration_seconds=1.0)
    assert len(cut) == 8000
    assert counted.count < len(file.getvalue()) // 50
    np.testing.assert_allclose(cut, noise[345 * 8000 + 4000 :][:8000], atol=1e-4)


def test_a_clip_of_any_length_is_checked_to_its_end():
    samples = np.zeros(700 * 1000, np.float32)
    samples[-10] = np.nan
    assert decoded_seconds((np.zeros(700 * 1000), 1000)) == 700.0
    assert decoded_seconds((np.zeros(900 * 1000 + 1), 1000)) == pytest.approx(900.0, abs=0.01)
    with pytest.raises(AudioError, match="1 of 400000 NaN"):
        decoded_seconds((samples, 1000))
    with pytest.raises(AudioError, match="too short"):
        decoded_seconds((np.zeros(5), 1000))
