"""Pretraining on a folder and archives with a bad clip among them: named, counted, and resumed exactly."""

import io
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from almosaic.data.clips import JoinedClips
from almosaic.data.sources import FolderData, ShardsData, open_clips
from almosaic.errors import AlmosaicError

sys.path.insert(0, str(Path(__file__).parents[1] / "unit/training"))
from stages import Tones, run_pretrain

RATE = 16_000


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Clips 0 to 7 in a folder, 8 to 15 in two archives; clip 12 has a sample that is NaN."""
    root = tmp_path_factory.mktemp("stored")
    (root / "clips").mkdir()
    for index in range(16):
        samples = Tones().waveform(index, 0)
        if index == 12:
            samples[100] = np.nan
        file = io.BytesIO()
        soundfile.write(file, samples, RATE, format="WAV", subtype="FLOAT")
        if index < 8:
            (root / f"clips/{index}.wav").write_bytes(file.getvalue())
            continue
        with tarfile.open(root / f"{index // 12}.tar", "a") as archive:
            member = tarfile.TarInfo(f"{index:02}.wav")
            member.size = len(file.getvalue())
            archive.addfile(member, io.BytesIO(file.getvalue()))
    return root


def source(root):
    folder = open_clips(FolderData(folder=root / "clips"), 1.2, seed=3)
    return JoinedClips([folder, open_clips(ShardsData(shards=str(root / "*.tar")), 1.2, seed=3)])


SETTINGS = {"bad_clip_share": 0.1, "augment": [{"name": "log_gain"}], "min_seconds": 1.1, "crop_seconds": 1.2}


def test_a_bad_clip_is_named_and_a_resumed_run_equals_an_uninterrupted_one(stored, tmp_path, caplog):
    assert source(stored).blocks == [4, 4, 4, 4]
    optim = {"steps": 11, "save_steps": 6}
    whole = run_pretrain(tmp_path / "whole", source(stored), optim=optim, **SETTINGS)
    named = f"skipped clip 12, the next one takes its place: {stored / '1.tar'}: 12.wav: expected samples"
    assert caplog.text.count(named) == 1 and caplog.text.count("skipped clip") == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for entry in (tmp_path / "part").iterdir():
        if entry.name != "checkpoint-6":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    optim["workers"] = 2
    resumed = run_pretrain(tmp_path / "part", source(stored), resume=True, optim=optim, **SETTINGS)
    assert resumed == whole and len(whole) == 11


def test_too_many_bad_clips_stop_the_run_in_one_line(stored, tmp_path):
    with pytest.raises(AlmosaicError, match=r"1 of 16 clips cannot be used, .* 0.05; .*12\.wav") as caught:
        run_pretrain(tmp_path, source(stored), optim={"workers": 1}, **SETTINGS | {"bad_clip_share": 0.05})
    assert "\n" not in str(caught.value)
