"""Folders are whole or absent; weights fit exactly or are refused with their names."""

import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from almosaic.errors import AlmosaicError
from almosaic.training.checkpoints import (
    latest_checkpoint,
    load_weights,
    remove_old,
    remove_temporary,
    whole_checkpoints,
    whole_folder,
    write_json,
)


def test_a_folder_appears_only_when_it_is_whole(tmp_path):
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "a").write_text("new")
        assert not (tmp_path / "model").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/a").read_text() == "new"


def test_a_failure_leaves_what_was_there(tmp_path):
    with whole_folder(tmp_path / "model") as temporary:
        (temporary / "a").write_text("old")
    for error in (RuntimeError("boom"), KeyboardInterrupt()):
        with pytest.raises(type(error)), whole_folder(tmp_path / "model") as temporary:
            (temporary / "a").write_text("new")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/a").read_text() == "old"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed"),
    ],
)
def test_a_full_disk_is_told_in_one_line(tmp_path, error):
    with (
        pytest.raises(AlmosaicError, match="no space left on device; free some space"),
        whole_folder(tmp_path / "m"),
    ):
        raise error


def test_json_is_replaced_in_one_step(tmp_path):
    write_json(tmp_path / "log.json", [1])
    write_json(tmp_path / "log.json", [1, 2])
    assert json.loads((tmp_path / "log.json").read_text()) == [1, 2]
    assert len(list(tmp_path.iterdir())) == 1


def test_the_latest_checkpoint_is_the_whole_one_of_the_highest_step(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint-9", "checkpoint-10", "tmp-checkpoint-11", "checkpoint-x"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-12").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


class Tied(nn.Module):
    def __init__(self, width=3):
        super().__init__()
        self.words = nn.Embedding(5, width)
        self.head = nn.Linear(width, 5, bias=False)
        self.head.weight = self.words.weight
        self.frozen = nn.Linear(2, 2)


def write_weights(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file(
        {name.replace("__", "."): value for name, value in tensors.items()}, folder / "model.safetensors"
    )
    return folder


def test_tied_and_never_saved_tensors_may_be_missing(tmp_path):
    model = Tied()
    model._keys_to_ignore_on_save = {"frozen.weight", "frozen.bias"}
    load_weights(model, write_weights(tmp_path, words__weight=torch.full((5, 3), 2.0)))
    assert (model.head.weight == 2.0).all()


def test_anything_else_is_an_error_with_names(tmp_path):
    words = torch.zeros(5, 3)
    with pytest.raises(
        AlmosaicError, match=r"missing frozen\.weight, frozen\.bias, unknown or of another shape none"
    ):
        load_weights(Tied(), write_weights(tmp_path, words__weight=words))
    both = {"frozen__weight": torch.zeros(2, 2), "frozen__bias": torch.zeros(2)}
    with pytest.raises(AlmosaicError, match="missing none, unknown or of another shape extra"):
        load_weights(Tied(), write_weights(tmp_path, words__weight=words, extra=torch.zeros(1), **both))
    with pytest.raises(AlmosaicError, match=r"of another shape words\.weight"):
        load_weights(Tied(width=4), write_weights(tmp_path, words__weight=words, **both))


def test_old_checkpoints_go_at_once_and_what_was_being_written_goes_too(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    (tmp_path / "tmp-checkpoint-4").mkdir()
    with monkeypatch.context() as killed:  # before the first file is deleted
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        remove_old(tmp_path, 2)
    assert {path.name for path in whole_checkpoints(tmp_path)} == {"checkpoint-2", "checkpoint-3"}
    remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-2", "checkpoint-3"}
