"""What a recipe's data may be: a folder, a manifest, archives, and one line where nothing is there."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from almosaic.curriculum import ManifestData as MovedManifestData
from almosaic.curriculum import PretrainData, as_curriculum
from almosaic.data.clips import JoinedClips
from almosaic.data.shards import ShardClips
from almosaic.data.short_clips import JoinedShortClips
from almosaic.data.sources import (
    FolderData,
    ManifestData,
    ShardsData,
    audio_below,
    open_clips,
    shard_paths,
)
from almosaic.errors import AlmosaicError
from almosaic.run_folder import RunFolder
from almosaic.stages import Sounds, pretraining_clips

soundfile = pytest.importorskip("soundfile")
RATE = 16_000


def clip(path, value, seconds=0.1):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(round(seconds * RATE), value / 100), RATE)
    return path


def archive(path, values):
    with tarfile.open(path, "w") as tar:
        for value in values:
            file = io.BytesIO()
            soundfile.write(file, np.full(1600, value / 100), RATE, format="WAV")
            member = tarfile.TarInfo(f"{value}.wav")
            member.size = len(file.getvalue())
            tar.addfile(member, io.BytesIO(file.getvalue()))
    return path


def heard(source):
    return [round(float(source.waveform(index, 0).mean()) * 100) for index in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    """Audio 1 to 5 in order of the paths, among other files."""
    root = tmp_path / "clips"
    names = ["A.wav", "b/c/1.FLAC", "b/c/2.ogg", "b/z.wav", "über.mp3"]
    for value, name in enumerate(names, 1):
        clip(root / name, value)
    (root / "notes.txt").write_text("none")
    clip(root / ".trash/old.wav", 9)
    clip(root / "b/._z.wav", 9)
    return root


def test_a_folder_gives_its_audio_in_order(folder):
    assert heard(open_clips(FolderData(folder=folder))) == [1, 2, 3, 4, 5]
    assert heard(open_clips(FolderData(folder=folder, suffixes=("FLAC", ".ogg")))) == [2, 3]
    assert len(open_clips(FolderData(folder=folder), 0.05).waveform(0, 0)) == 800


def test_links_are_followed_once(folder, tmp_path):
    clip(tmp_path / "elsewhere/x.wav", 6)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b/around").symlink_to(folder)
    (folder / "c.wav").symlink_to(tmp_path / "elsewhere/x.wav")
    assert heard(open_clips(FolderData(folder=folder))) == [1, 2, 3, 4, 6, 6, 5]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "found no files"),
        (["a.txt", "b.txt", "c"], "found 2 .txt, 1 no suffix"),
        (["0.tar"], "found 1 .tar; archives are given as {name: shards, shards: FOLDER/*.tar}"),
        ([".hidden.wav"], "found no files"),
    ],
)
def test_a_folder_without_audio_says_what_was_looked_for(tmp_path, files, words):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(AlmosaicError) as caught:
        audio_below(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: expected audio files (.aac .aif .aiff .flac") and words in message
    assert "\n" not in message


def test_what_is_no_folder_or_cannot_be_read_is_named(tmp_path):
    for path in (tmp_path / "none", clip(tmp_path / "a.wav", 1)):
        with pytest.raises(AlmosaicError, match="expected a folder of audio files, found none"):
            audio_below(path)
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    (tmp_path / "locked").mkdir(mode=0)
    with pytest.raises(AlmosaicError, match="locked: cannot be read"):
        audio_below(tmp_path)


def manifest(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_chosen_by_split_and_fold_and_none_is_an_error(tmp_path):
    rows = []
    for value, (split, fold) in enumerate([("train", 1), ("dev", 1), ("train", 2), (None, None)], 1):
        clip(tmp_path / f"{value}.wav", value)
        rows.append({"id": str(value), "audio": f"{value}.wav", "split": split, "fold": fold})
    path = manifest(tmp_path / "m.jsonl", *rows)
    chosen = [{}, {"splits": ("train",)}, {"folds": ("1",)}, {"splits": ("train", "dev"), "folds": ("2",)}]
    found = [heard(open_clips(ManifestData(manifest=path, **choice))) for choice in chosen]
    assert found == [[1, 2, 3, 4], [1, 3], [1, 2], [3]]
    with pytest.raises(AlmosaicError, match=r"split tests and fold of any name; found the splits None, dev,"):
        open_clips(ManifestData(manifest=path, splits=("tests",)))
    assert MovedManifestData is ManifestData


def test_archives_are_found_by_path_and_pattern_each_once(tmp_path):
    for name, values in {"train-1": [3], "train-0": [1, 2], "dev-0": [4], "odd[1]": [5]}.items():
        archive(tmp_path / f"{name}.tar", values)
    pattern = str(tmp_path / "train-*.tar")
    source = open_clips(ShardsData(shards=pattern))
    assert isinstance(source, ShardClips) and heard(source) == [1, 2, 3] and source.blocks == [2, 1]
    both = (str(tmp_path / "odd[1].tar"), str(tmp_path / "train-1.tar"), pattern)
    assert heard(open_clips(ShardsData(shards=both))) == [5, 3, 1, 2]
    many = [tmp_path / f"many-{number * 7 % 20:02}.tar" for number in range(20)]
    for path in many:
        path.touch()
    assert shard_paths(str(tmp_path / "many-*.tar")) == sorted(many)
    for bad in (str(tmp_path / "test-*.tar"), str(tmp_path / "none.tar"), str(tmp_path)):
        with pytest.raises(AlmosaicError, match="expected tar archives, found no file of that name"):
            shard_paths(bad)


def test_a_recipe_mixes_folders_manifests_and_archives(folder, tmp_path):
    rows = manifest(tmp_path / "clips/m.jsonl", {"id": "a", "audio": "A.wav", "split": "train"})
    tree = {
        "task": "pretrain",
        "name": "x",
        "output": str(tmp_path / "run"),
        "crop_seconds": 0.05,
        "data": [
            {"name": "folder", "folder": str(folder)},
            {"name": "manifest", "manifest": str(rows), "splits": ["train"]},
            {"name": "shards", "shards": str(archive(tmp_path / "0.tar", [6, 7]))},
            {"name": "shards", "shards": [str(archive(tmp_path / "1.tar", [8]))]},
        ],
    }
    recipe = as_curriculum(tree, lambda place: "recipe")
    run = RunFolder(recipe)
    source = pretraining_clips(run, recipe.stages[0], Sounds(run))
    assert heard(source) == [1, 2, 3, 4, 5, 1, 6, 7, 8]
    assert len(source.waveform(0, 0)) == 800
    assert source.blocks == [2, 2, 1, 1, 2, 1] and sum(source.blocks) == len(source)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "folder"},
        {"name": "folder", "folder": "x", "pattern": "*"},
        {"name": "shards", "shards": []},
        {"name": "tar", "shards": "x"},
    ],
)
def test_wrong_settings_are_refused(data):
    with pytest.raises(ValidationError):
        TypeAdapter(PretrainData).validate_python(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"name": "tar"}, "data.0.name is 'tar'; expected one of scenes, sounds, folder, manifest, shards"),
        (
            {"name": "folder", "folder": "x", "suffix": []},
            "unknown key data.0.suffix; did you mean suffixes?",
        ),
        (
            {"name": "manifest", "manifest": "x", "split": "a"},
            "unknown key data.0.split; did you mean splits?",
        ),
        ({"name": "shards"}, "data.0.shards is missing"),
        ({"name": "shards", "shards": []}, "data.0.shards is []: value should have at least 1 item"),
    ],
)
def test_a_mistake_in_a_recipe_names_the_key_and_nothing_else(data, words):
    with pytest.raises(AlmosaicError) as caught:
        as_curriculum({"task": "pretrain", "name": "x", "data": [data]}, lambda place: "recipe")
    assert words in str(caught.value) and "more)" not in str(caught.value)


class Constants:
    """Clip i is a tenth of a second of the number i."""

    def __init__(self, clips, blocks=None):
        self.clips = clips
        if blocks:
            self.blocks = blocks

    def __len__(self):
        return self.clips

    def waveform(self, index, epoch):
        return np.full(1600, index, np.float32)

    def fingerprint(self):
        return str(self.clips)


def test_blocks_of_joined_sources_cover_every_clip():
    assert JoinedClips([Constants(5), Constants(3)]).blocks is None
    joined = JoinedClips([Constants(7), Constants(6, [4, 2]), Constants(2)])
    assert joined.blocks == [3, 3, 1, 4, 2, 2]


def test_a_short_clip_is_filled_up_from_its_own_block():
    clips = JoinedShortClips(Constants(30, [10, 5, 15]), 1.0, 2.0, 0)
    for index, block in {3: range(10), 12: range(10, 15), 29: range(15, 30)}.items():
        first, *others = clips.waveform(index, 0)[::1600].astype(int).tolist()
        assert first == index and set(others) <= set(block) - {index} and len(set(others)) > 1
