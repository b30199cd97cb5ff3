"""Quiet stages: the library's bars and chatter are off inside; our warnings have their own lines."""

import logging

import pytest
from transformers.utils import logging as library_logging

from almosaic.errors import AlmosaicError
from almosaic.training.callbacks import quiet_library, worker_errors_in_one_line


def test_the_library_is_quiet_inside_and_as_found_outside():
    before = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet_library():
        assert library_logging.get_verbosity() == logging.ERROR
        assert not library_logging.is_progress_bar_enabled()
        raise KeyError
    assert (library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()) == before


def test_warnings_are_written_once_whether_or_not_logging_is_set_up(capsys, monkeypatch):
    logger = logging.getLogger("almosaic.anything")
    monkeypatch.setattr(logging.getLogger("almosaic"), "handlers", [])  # the command line's
    monkeypatch.setattr(logging.root, "handlers", [])
    with quiet_library():
        logger.warning("one clip skipped")
    assert capsys.readouterr().err == "one clip skipped\n"
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler()])
    with quiet_library():
        logger.warning("one clip skipped")
    assert capsys.readouterr().err == "one clip skipped\n"
    assert logging.getLogger("almosaic").handlers == []


def test_a_workers_traceback_is_cut_from_an_error_of_ours():
    text = (
        "Caught AudioError in DataLoader worker process 0.\nTraceback:\nalmosaic.AudioError: a.wav: gone: x"
    )
    with pytest.raises(AlmosaicError, match=r"^a\.wav: gone: x$"), worker_errors_in_one_line():
        raise AlmosaicError(text)
    with pytest.raises(AlmosaicError, match=r"^one: line$"), worker_errors_in_one_line():
        raise AlmosaicError("one: line")
