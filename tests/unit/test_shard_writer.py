"""Packing clips into archives: bytes, rows and splits as they were, all of it or nothing."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from almosaic.data.check import check_data
from almosaic.data.shards import ShardClips
from almosaic.data.sources import ShardsData, open_clips
from almosaic.errors import AlmosaicError
from data_prep import shards

ROOT = Path(__file__).resolve().parents[2]
RATE = 16_000


def clip(path, value=1, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * RATE), value / 100), RATE)
    return path


@pytest.fixture
def manifest(tmp_path):
    """Seven training clips, three of dev and one without a split."""
    rows = []
    for value in range(1, 12):
        name = f"raw/{value}.{'FLAC' if value % 2 else 'wav'}"
        clip(tmp_path / name, value)
        split = "train" if value < 8 else "dev" if value < 11 else None
        rows.append({"id": f"a.{value}/x", "audio": name, "split": split, "labels": [str(value)]})
    rows[0] |= {"fold": 3, "captions": ["ein Hund"], "group": "animals", "duration_seconds": 0.1}
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_bytes_and_rows_come_back_and_every_split_has_its_archives(manifest, tmp_path):
    written = shards.prepare(manifest, tmp_path / "out", 3)
    names = ["clips-000000", "dev-000000", "train-000000", "train-000001", "train-000002"]
    assert [path.stem for path in written] == names
    train = open_clips(ShardsData(shards=str(tmp_path / "out/train-*.tar")))
    assert train.blocks == [3, 3, 1]
    order = [int(train.row(index)["labels"][0]) for index in range(7)]
    assert sorted(order) == list(range(1, 8)) and order != sorted(order)
    for index, value in enumerate(order):
        source = next((tmp_path / "raw").glob(f"{value}.*"))
        assert train.stored(index).read() == source.read_bytes()
    row = train.row(order.index(1))
    assert row == {
        "id": "a.1/x", "split": "train", "fold": "3", "labels": ["1"], "captions": ["ein Hund"],
        "duration_seconds": 0.1, "group": "animals",
    }  # fmt: skip
    assert train.name(order.index(1)).endswith(".tar: a_1/x.flac")
    assert check_data(str(tmp_path / "out/*.tar")) == (11, [])


def test_the_order_follows_the_seed_alone(manifest, tmp_path):
    first, again = (shards.prepare(manifest, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    other = shards.prepare(manifest, tmp_path / "c", seed=1)
    assert other[-1].read_bytes() != first[-1].read_bytes()


def test_a_folder_is_packed_by_its_paths(tmp_path):
    for name in ("dog/a.b.wav", "cat/a.wav"):
        clip(tmp_path / "raw" / name)
    (path,) = shards.prepare(tmp_path / "raw", tmp_path / "out")
    clips = ShardClips([path])
    assert {clips.row(index)["id"] for index in range(2)} == {"dog/a.b.wav", "cat/a.wav"}
    with tarfile.open(path) as archive:
        assert sorted(archive.getnames()) == [
            "cat/a_wav.json", "cat/a_wav.wav", "dog/a_b_wav.json", "dog/a_b_wav.wav",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("clip_id", "key"),
    [
        ("clip-1", "clip-1"),
        ("a/b.wav", "a/b_wav"),
        ("../../etc/x", "__/__/etc/x"),
        ("/abs//x/", "abs/x"),
        (".hidden", "_hidden"),
        ("/", "_"),
    ],
)
def test_keys_stay_inside_the_archive_and_have_no_dots(clip_id, key):
    assert shards.key_of(clip_id) == key


def test_bad_clips_are_named_and_nothing_is_left_unless_they_are_to_be_skipped(manifest, tmp_path, capsys):
    (tmp_path / "raw/2.wav").unlink()
    (tmp_path / "raw/4.wav").write_bytes(b"no sound")
    (tmp_path / "raw/6.wav").rename(tmp_path / "raw/6.bin")
    manifest.write_text(manifest.read_text().replace("raw/6.wav", "raw/6.bin"))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(AlmosaicError, match="3 of 11 clips cannot be packed"):
        shards.prepare(manifest, tmp_path / "out")
    assert [
        line.count(name) for line, name in zip(bad_lines(capsys), ("2.wav", "4.wav", "6.bin"), strict=True)
    ]
    assert sorted(tmp_path.iterdir()) == before
    shards.prepare(manifest, tmp_path / "out", skip_bad=True)
    assert check_data(str(tmp_path / "out/*.tar")) == (8, [])


def bad_lines(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("bad clip: ")]


def test_a_failure_on_the_way_leaves_nothing_and_old_work_is_kept(manifest, tmp_path, monkeypatch):
    def full(path, clips):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(shards, "write_shard", full)
        with pytest.raises(AlmosaicError, match=r"out: cannot be written \(No space left on device\)"):
            shards.prepare(manifest, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before
    (path, *_) = shards.prepare(manifest, tmp_path / "out")
    kept = path.read_bytes()
    with pytest.raises(AlmosaicError, match="expected an empty or a new folder"):
        shards.prepare(manifest, tmp_path / "out")
    assert path.read_bytes() == kept


def test_one_key_for_two_ids_and_no_clips_in_a_shard_are_refused(manifest, tmp_path):
    manifest.write_text(manifest.read_text().replace('"a.2/x"', '"a_1/x"'))
    with pytest.raises(AlmosaicError, match=r"'a\.1/x' and 'a_1/x' give one key"):
        shards.prepare(manifest, tmp_path / "out")
    with pytest.raises(AlmosaicError, match="of 1 or more, found 0"):
        shards.prepare(manifest, tmp_path / "out", 0)


def test_the_script_says_what_it_wrote_or_what_is_wrong(manifest, tmp_path):
    command = [sys.executable, "-m", "data_prep.shards", str(manifest), str(tmp_path / "out")]
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    done = subprocess.run([*command, "--clips-per-shard", "4"], **options)
    assert done.returncode == 0 and done.stdout == f"{tmp_path / 'out'}: 4 archives, 0.1 MiB\n"
    done = subprocess.run(command, **options)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
