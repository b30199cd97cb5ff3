"""A file is whole or not there."""

import pytest

from almosaic.errors import AlmosaicError
from almosaic.files import write_whole


def test_text_arrives_whole_in_a_new_folder(tmp_path):
    path = write_whole(tmp_path / "a" / "b.txt", "eins\r\nzwei\n")
    assert path.read_bytes() == b"eins\r\nzwei\n"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = write_whole(tmp_path / "a.txt", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(AlmosaicError, match=r"a\.txt: cannot be written \(No space left on device\)"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
