"""Tar archives of clips: every writer's layout, reading by position, and one line for what cannot be used."""

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
from torch.utils.data import DataLoader

from almosaic.data.clips import FileClips
from almosaic.data.collate import WaveformCollator
from almosaic.data.datasets import PretrainDataset
from almosaic.data.shards import BUFFER_BYTES, ShardClips
from almosaic.errors import AlmosaicError, AudioError

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def audio(number, seconds=0.2, format="FLAC", **options):
    """A clip whose samples are all about number / 100."""
    file = io.BytesIO()
    samples = np.full(round(seconds * RATE), number / 100, np.float32)
    soundfile.write(file, samples, RATE, format=format, **options)
    return file.getvalue()


def member(name, data):
    found = tarfile.TarInfo(name)
    found.size = len(data)
    return found, io.BytesIO(data)


def pack(path, files, format=tarfile.PAX_FORMAT):
    """Write an archive of name -> bytes; other values are whole members."""
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                archive.addfile(*member(name, data))
    return path


def heard(clips):
    """The number in each clip."""
    return [round(float(clips.waveform(index, 0).mean()) * 100) for index in range(len(clips))]


LONG = "x" * 150


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_folders_and_long_names(tmp_path, format):
    folder = tarfile.TarInfo("./a/b")
    folder.type = tarfile.DIRTYPE
    names = ["./a/b/one.flac", f"a/{LONG[:60]}/{LONG[:60]}.WAV", "two.ogg"]
    if format != tarfile.USTAR_FORMAT:
        names += [f"{LONG}/{LONG}.mp3", "über/Geräusch.flac"]
    formats = {".WAV": "WAV", ".ogg": "OGG", ".mp3": "MP3"}
    files = {"./a/b": folder} | {
        name: audio(number, format=formats.get(name[-4:], "FLAC")) for number, name in enumerate(names, 1)
    }
    clips = ShardClips([pack(tmp_path / "s.tar", files, format)])
    assert heard(clips) == list(range(1, len(names) + 1))
    assert clips.name(0) == f"{tmp_path / 's.tar'}: a/b/one.flac"
    assert clips.row(len(names) - 1)["id"] == names[-1].rpartition(".")[0]


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar here")
@pytest.mark.parametrize("format", ["ustar", "gnu", "posix"])
def test_archives_of_the_tar_command(tmp_path, format):
    (tmp_path / "in/deep").mkdir(parents=True)
    for number, name in enumerate(["1.flac", "2.wav", "deep/3.flac"], 1):
        (tmp_path / "in" / name).write_bytes(audio(number, format=name[-4:].strip(".").upper()))
    command = ["tar", f"--format={format}", "--sort=name", "-C", str(tmp_path / "in"), "-cf"]
    subprocess.run([*command, str(tmp_path / "s.tar"), "."], check=True)
    assert heard(ShardClips([tmp_path / "s.tar"])) == [1, 2, 3]


def test_what_lies_beside_a_clip_and_what_is_passed_over(tmp_path):
    files = {
        "__meta__": b"{}",
        "a/1.json": json.dumps({"id": "first", "labels": ["dog"], "captions": ["a dog"]}).encode(),
        "a/1.flac": audio(1),
        "a/1.txt": b"ein Hund bellt\n",
        "a/._1.flac": b"of a Mac",
        ".hidden/3.flac": audio(3),
        "2.take.flac": audio(2),
        "2.json": b'{"labels": ["cat"]}',
        "2.cls": b"7",
        "bare.wav": audio(4, format="WAV"),
    }
    clips = ShardClips([pack(tmp_path / "s.tar", files)])
    assert heard(clips) == [1, 2, 4] and clips.blocks == [3]
    assert clips.row(0) == {"id": "first", "labels": ["dog"], "captions": ["a dog", "ein Hund bellt"]}
    assert clips.row(1) == {"id": "2.take", "labels": ["cat"]}
    assert clips.row(2) == {"id": "bare"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Three archives of 5, 1 and 4 clips; every clip is a ramp of its own, 0.5 to 1.4 s long."""
    folder = tmp_path_factory.mktemp("shards")
    number, paths = 0, []
    for shard, clips in enumerate((5, 1, 4)):
        files = {}
        for _ in range(clips):
            samples = np.linspace(number / 10, number / 10 + 0.09, round((0.5 + number / 10) * RATE))
            file = io.BytesIO()
            soundfile.write(file, samples.astype(np.float32), RATE, format="WAV", subtype="FLOAT")
            files[f"{number:03}.wav"] = file.getvalue()
            number += 1
        paths.append(pack(folder / f"{shard}.tar", files))
    return paths


def test_clips_and_crops_are_those_of_unpacked_files(shards, tmp_path):
    for path in shards:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
    packed, files = (
        ShardClips(shards, 0.25, seed=3),
        FileClips(sorted(tmp_path.glob("*.wav")), 0.25, seed=3),
    )
    assert packed.blocks == [5, 1, 4] and len(packed) == 10
    for index in (9, 0, 5, 4):
        for epoch in (0, 1):
            assert np.array_equal(packed.waveform(index, epoch), files.waveform(index, epoch))
    assert not np.array_equal(packed.waveform(9, 0), packed.waveform(9, 1))


def test_a_member_is_a_file_of_its_own(shards):
    with tarfile.open(shards[0]) as archive:
        expected = archive.extractfile("001.wav").read()
    clips = ShardClips(shards)
    with clips.stored(1) as file:
        assert file.read() == expected and file.read() == b"" and file.tell() == len(expected)
        assert file.seek(-10, os.SEEK_END) == len(expected) - 10 and file.read(99) == expected[-10:]
        assert file.seek(5) == 5 and file.seek(3, os.SEEK_CUR) == 8 and file.read(4) == expected[8:12]


def batches(clips, **options):
    """Waveforms by clip number, as a training loop gets them."""
    rows = PretrainDataset(clips)
    order = [7, 0, 9, 5, 1, 3, 8, 2, 6, 4]
    loader = DataLoader(rows, batch_size=3, sampler=order, collate_fn=WaveformCollator(), **options)
    found = {}
    for batch in loader:
        assert set(batch) == {"bad_clips", "clip_index", "waveforms", "lengths"} and not batch["bad_clips"]
        for clip, waveform, length in zip(
            batch["clip_index"].tolist(), batch["waveforms"], batch["lengths"].tolist(), strict=True
        ):
            found[clip] = waveform[:length].numpy()
    return found


def test_workers_decode_the_same_clips_and_nothing_more(shards):
    clips = ShardClips(shards, 0.25, seed=1)
    clips.waveform(0, 0)  # an archive that is open before workers are forked is shared with them
    alone = batches(clips)
    together = batches(clips, num_workers=2)
    assert list(together) == list(alone)
    assert all(np.array_equal(together[clip], alone[clip]) for clip in alone)
    for index, waveform in alone.items():
        assert np.array_equal(waveform, clips.waveform(index, 0))


def test_a_pickled_source_opens_its_own_files_and_few_stay_open(shards, monkeypatch):
    monkeypatch.setattr("almosaic.data.shards.OPEN_SHARDS", 2)
    clips = ShardClips(shards)
    expected = [clips.waveform(index, 0) for index in range(10)]
    assert len(clips._open) == 2
    copy = pickle.loads(pickle.dumps(clips))
    assert not copy._open and copy.fingerprint() == clips.fingerprint()
    for index in (0, 9, 5, 0):
        assert np.array_equal(copy.waveform(index, 0), expected[index])


def test_a_fingerprint_follows_names_sizes_members_and_crop(shards, tmp_path):
    path = pack(tmp_path / "s.tar", {"a.flac": audio(1)})
    seen = {ShardClips([path]).fingerprint(), ShardClips([path], 1.0).fingerprint()}
    assert ShardClips([path]).fingerprint() in seen
    for files in ({"b.flac": audio(1)}, {"a.flac": audio(1, 0.3)}, {"a.flac": audio(1), "a.txt": b"x"}):
        seen.add(ShardClips([pack(path, files)]).fingerprint())
    seen.add(ShardClips([*shards[:2]]).fingerprint())
    seen.add(ShardClips([*shards[:2][::-1]]).fingerprint())
    assert len(seen) == 7


def test_of_a_long_member_only_the_stretch_is_read(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300 * RATE)
    path = tmp_path / "long.flac"
    soundfile.write(path, noise, RATE)
    clips = ShardClips([pack(tmp_path / "s.tar", {"long.flac": path.read_bytes()})], crop_seconds=1.0)
    read, pread = [], os.pread
    monkeypatch.setattr(os, "pread", lambda *args: (read.append(args[1]), pread(*args))[1])
    waveform = clips.waveform(0, 0)
    assert len(waveform) == RATE and BUFFER_BYTES <= sum(read) < path.stat().st_size / 3
    assert np.array_equal(waveform, FileClips([path], crop_seconds=1.0).waveform(0, 0))


def cut(tmp_path, length):
    path = pack(tmp_path / "whole.tar", {"a.flac": audio(1), "b.flac": audio(2)})
    data = path.read_bytes()
    return data[: length if length > 0 else len(data.rstrip(b"\0")) // 512 * 512 + length]


def link(name, kind):
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, "a.flac"
    return found


BROKEN = {
    "zero bytes": (lambda tmp: b"", "damaged, cut off or no tar archive (empty file)"),
    "text": (lambda tmp: b"404 not found\n" * 100, "no tar archive"),
    "gzip": (lambda tmp: gzip.compress(cut(tmp, 0)), "compressed with gzip"),
    "cut in a header": (lambda tmp: cut(tmp, 100), "cut off"),
    "cut in a clip": (lambda tmp: cut(tmp, 700), "cut off"),
    "cut in a later header": (lambda tmp: cut(tmp, -512 + 100), "cut off"),
    "cut between members": (lambda tmp: cut(tmp, -512), "cut off, the mark at the end"),
    "damaged header": (lambda tmp: cut(tmp, 0)[:-1024] + b"x" * 2048, "damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_archive_is_one_line(tmp_path, name):
    make, words = BROKEN[name]
    path = tmp_path / "s.tar"
    path.write_bytes(make(tmp_path))
    with pytest.raises(AlmosaicError) as caught:
        ShardClips([path])
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and words in message and "\n" not in message


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b"x", "b.json": b"{}"}, "expected audio members (.aac .aif .aiff .flac"),
        ({"a.npy": b"x"}, "found none that could be"),
        ({"a.flac": audio(1), "a.wav": audio(2)}, "member a.wav has the key of a.flac"),
        ({"./a.flac": audio(1), "a.flac": audio(2)}, "member a.flac has the key of itself"),
        ({"a.flac": audio(1), "a.json": b"{}", "./a.json": b"{}"}, "member a.json has the key of itself"),
        ({"a.flac": audio(1), "b.flac": link("b.flac", tarfile.LNKTYPE)}, "b.flac is a link"),
        ({"a.flac": audio(1), "b.flac": link("b.flac", tarfile.SYMTYPE)}, "b.flac is a link"),
    ],
)
def test_an_archive_that_holds_the_wrong_things_is_one_line(tmp_path, files, words):
    with pytest.raises(AlmosaicError) as caught:
        ShardClips([pack(tmp_path / "s.tar", files)])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_shard_that_is_gone_or_bad_members_are_named(tmp_path):
    with pytest.raises(AlmosaicError, match=r"none\.tar: cannot be read: No such file"):
        ShardClips([tmp_path / "none.tar"])
    nan = audio(np.nan, format="WAV", subtype="FLOAT")
    files = {
        "a.flac": audio(1),
        "d/b.wav": nan,
        "c.aiff": audio(3, format="AIFF")[:2000],
        "e.ogg": b"",
        "f.mp3": b"x" * 99,
    }
    path = pack(tmp_path / "s.tar", files)
    for crop in (None, 0.1):
        clips = ShardClips([path], crop)
        assert len(clips.waveform(0, 0)) > 0
        for index, words in {
            1: "d/b.wav: .*NaN",
            2: "c.aiff: damaged",
            3: "e.ogg: empty",
            4: "f.mp3",
        }.items():
            with pytest.raises(AudioError, match=rf"s\.tar: {words}"):
                clips.waveform(index, 0)
    path.unlink()
    with pytest.raises(AudioError, match=r"s\.tar: cannot be opened"):
        ShardClips.waveform(pickle.loads(pickle.dumps(clips)), 0, 0)


@pytest.mark.parametrize("data", [b"[1]", b"{", b"\xff\xfe"])
def test_metadata_that_is_no_object_is_named(tmp_path, data):
    clips = ShardClips([pack(tmp_path / "s.tar", {"a.json": data, "a.flac": audio(1)})])
    with pytest.raises(AudioError, match=r"s\.tar: a\.flac: "):
        clips.row(0)
    assert heard(clips) == [1]
