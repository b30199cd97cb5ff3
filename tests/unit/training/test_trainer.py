"""The trainer: epochs reach the data, only finite steps are taken, checkpoints are whole, Ctrl-C is clean."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from almosaic.errors import AlmosaicError
from almosaic.training.callbacks import Interrupted

sys.path.insert(0, str(Path(__file__).parent))
from toy import ToyRows, collate, losses, toy_trainer


def weights(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("workers", [0, 1])
def test_each_epoch_reaches_the_data_and_every_row_comes_once(tmp_path, workers):
    seen = []
    toy_trainer(tmp_path, seen, steps=12, workers=workers).run(False)
    assert [epoch for epoch, _, _ in seen] == [0] * 5 + [1] * 5 + [2] * 2
    assert all(set(of_rows) == {epoch} for epoch, of_rows, _ in seen)
    first = [clip for _, _, clips in seen[:5] for clip in clips]
    assert sorted(first) == list(range(20))
    assert first != [clip for _, _, clips in seen[5:10] for clip in clips]


def test_an_incomplete_batch_is_kept_or_dropped_as_asked(tmp_path):
    kept, dropped = [], []
    toy_trainer(tmp_path / "a", kept, rows=10, steps=3).run(False)
    toy_trainer(tmp_path / "b", dropped, rows=10, steps=3, drop_last=True).run(False)
    assert [len(clips) for _, _, clips in kept] == [4, 4, 2]
    assert [len(clips) for _, _, clips in dropped] == [4, 4, 4]
    assert [epoch for epoch, _, _ in dropped] == [0, 0, 1]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_progress_is_the_share_of_steps_taken_before_and_the_same_after_a_resume(tmp_path, accumulation):
    def told(folder, resume):
        trainer, found = toy_trainer(folder, steps=8, save_steps=6, accumulation=accumulation), []
        inner = trainer.prepare
        trainer.prepare = lambda *given: found.append(given[2]) or inner(*given)
        trainer.run(resume)
        return found

    whole = [step / 8 for step in range(8) for _ in range(accumulation)]
    assert told(tmp_path, False) == whole
    (tmp_path / "checkpoint-8").rename(tmp_path / "tmp-checkpoint-8")
    assert told(tmp_path, True) == whole[6 * accumulation :]


def test_prepare_runs_without_gradients_and_outside_autocast(tmp_path):
    trainer = toy_trainer(tmp_path, precision="bf16", steps=1)
    states = []
    inner = trainer.prepare

    def prepare(batch, epoch, progress):
        states.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return {**inner(batch, epoch, progress), "metrics": {"share": torch.tensor(0.25)}}

    trainer.prepare = prepare
    trainer.run(False)
    assert states == [(False, False)]
    assert trainer.state.log_history[0]["share"] == 0.25


def test_metrics_of_the_model_are_averaged_into_the_log(tmp_path):
    fine = toy_trainer(tmp_path / "a", steps=4)
    fine.run(False)
    coarse = toy_trainer(tmp_path / "b", steps=4, log_steps=4)
    coarse.run(False)
    each = [entry["mean_error"] for entry in fine.state.log_history if "mean_error" in entry]
    assert coarse.state.log_history[0]["mean_error"] == pytest.approx(sum(each) / 4, abs=1e-6)


@pytest.mark.parametrize("where", ["x", "target"])
def test_non_finite_training_stops_before_the_step(tmp_path, where):
    def spoiled(rows):
        batch = collate(rows)
        if 7 in batch["clip_index"]:
            batch[where][0] = float("nan")
        return batch

    seen = []
    trainer = toy_trainer(tmp_path, seen, collator=spoiled)
    step = next(
        number
        for number, clips in enumerate(torch.tensor(list(iter(trainer.order))).view(5, 4).tolist(), start=1)
        if 7 in clips
    )
    taken = []
    trainer.create_optimizer().register_step_post_hook(lambda *_: taken.append(1))
    trainer.create_optimizer = lambda model=None: trainer.optimizer
    with pytest.raises(AlmosaicError, match=rf"non-finite|bad gradient.* at step {step};") as caught:
        trainer.run(False)
    assert "\n" not in str(caught.value)
    assert len(taken) == step - 1
    assert all(torch.isfinite(value).all() for value in trainer.model.state_dict().values())


def test_the_last_two_checkpoints_are_kept_and_nothing_is_pickled_but_tensors(tmp_path):
    toy_trainer(tmp_path, steps=10, save_steps=3).run(False)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-10",
        "checkpoint-9",
        "rows.json",
        "training_log.json",
    ]
    files = {path.name for path in (tmp_path / "checkpoint-9").iterdir()}
    assert "training_args.bin" not in files and "model.safetensors" in files
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "checkpoint-9" / name, weights_only=True)


def test_resume_ignores_what_is_not_whole(tmp_path):
    whole = toy_trainer(tmp_path / "a", steps=8)
    whole.run(False)
    part = toy_trainer(tmp_path / "b", steps=8, save_steps=5)
    part.run(False)
    (tmp_path / "b/checkpoint-8").rename(tmp_path / "b/tmp-checkpoint-8")
    (tmp_path / "b/checkpoint-99").mkdir()
    resumed = toy_trainer(tmp_path / "b", steps=8)
    inner, steps = resumed.prepare, []
    resumed.prepare = lambda batch, epoch, progress: steps.append(epoch) or inner(batch, epoch, progress)
    resumed.run(True)
    assert len(steps) == 3, "it goes on from checkpoint-5"
    assert losses(resumed) == losses(whole)


def test_data_of_another_size_is_not_resumed(tmp_path):
    toy_trainer(tmp_path, steps=4).run(False)
    with pytest.raises(AlmosaicError, match="began with 20 clips or rows, the data now has 19"):
        toy_trainer(tmp_path, rows=19, steps=8).run(True)
    toy_trainer(tmp_path, rows=19, steps=4).run(False)
    assert json.loads((tmp_path / "rows.json").read_text()) == {"rows": 19}


def test_resuming_a_finished_stage_changes_nothing(tmp_path):
    done = toy_trainer(tmp_path, steps=7)
    done.run(False)
    again = toy_trainer(tmp_path, steps=7)
    again.run(True)
    assert again.state.global_step == 0
    for name, value in weights(done).items():
        assert torch.equal(value, again.model.state_dict()[name])


def interrupting(trainer, at, times=1):
    """Send Ctrl-C to this process in the middle of step `at`."""
    inner, calls = trainer.prepare, []

    def prepare(batch, epoch, progress):
        calls.append(1)
        if len(calls) == at:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
                while not trainer.stop.asked:  # the system makes one of two signals that are both waiting
                    time.sleep(1e-3)
        return inner(batch, epoch, progress)

    trainer.prepare = prepare


def test_ctrl_c_saves_stops_and_resumes_to_the_same_losses(tmp_path, caplog):
    whole = toy_trainer(tmp_path / "a")
    whole.run(False)
    stopped = toy_trainer(tmp_path / "b")
    interrupting(stopped, at=7)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=r"stopped at step 7 of 12; .*--resume"):
        stopped.run(False)
    assert signal.getsignal(signal.SIGINT) is before
    assert "again to stop at once" in caplog.text
    assert (tmp_path / "b/checkpoint-7").is_dir()
    resumed = toy_trainer(tmp_path / "b")
    resumed.run(True)
    assert losses(resumed) == losses(whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    trainer = toy_trainer(tmp_path)
    interrupting(trainer, at=3, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(False)
    assert not (tmp_path / "checkpoint-3").exists()


def test_ctrl_c_in_the_last_step_keeps_it_and_starts_nothing_else(tmp_path):
    """The next stage would otherwise run on, deaf to a key that was answered already."""
    whole = toy_trainer(tmp_path / "a", steps=3)
    whole.run(False)
    stopped = toy_trainer(tmp_path / "b", steps=3)
    interrupting(stopped, at=3)
    with pytest.raises(Interrupted, match=r"stopped at step 3 of 3; .*--resume"):
        stopped.run(False)
    resumed = toy_trainer(tmp_path / "b", steps=3)
    resumed.run(True)
    lines = json.loads((tmp_path / "b/training_log.json").read_text())
    assert {line["step"]: line["loss"] for line in lines if "loss" in line} == losses(whole)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name].cpu(), tensor.cpu()), name


def test_a_full_disk_is_one_line_and_leaves_the_last_whole_checkpoint(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path, save_steps=4)
    real = torch.save

    def save(content, file, *args, **kwargs):
        if "checkpoint-8" in str(file):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(content, file, *args, **kwargs)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        AlmosaicError, match=r"cannot write .*checkpoint-8: no space left on device; free"
    ) as caught:
        trainer.run(False)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.glob("*check*")] == ["checkpoint-4"]


def test_rows_are_the_same_whatever_the_order_they_are_read_in():
    rows = ToyRows()
    rows.set_epoch(3)
    assert torch.equal(rows[4]["x"], (rows[9], rows[4])[1]["x"])


def test_an_error_in_a_worker_is_one_line_too(tmp_path):
    def failing(rows):
        raise AlmosaicError("clip 3: expected a clip, found none; mend it")

    for workers in (0, 1):
        with pytest.raises(AlmosaicError) as caught:
            toy_trainer(tmp_path, collator=failing, workers=workers).run(False)
        assert str(caught.value) == "clip 3: expected a clip, found none; mend it"


def test_a_gradient_that_is_not_finite_stops_before_the_step_although_the_loss_is(tmp_path):
    trainer = toy_trainer(tmp_path, save_steps=2)
    weight, calls = trainer.model.head.weight, []
    weight.register_hook(lambda gradient: gradient * (float("inf") if len(calls) == 4 else 1.0))
    inner, before = trainer.prepare, []

    def prepare(batch, epoch, progress):
        calls.append(1)
        before[:] = [weights(trainer)]
        return inner(batch, epoch, progress)

    trainer.prepare = prepare
    expected = (
        r"found loss 0\.\d+ and the first bad gradient in head\.weight at step 4; the step was not taken"
    )
    with pytest.raises(AlmosaicError, match=expected):
        trainer.run(False)
    assert all(torch.equal(value, before[0][name]) for name, value in weights(trainer).items())
    assert [path.name for path in tmp_path.glob("*check*")] == ["checkpoint-2"]


def test_a_line_is_logged_before_each_checkpoint_so_that_no_average_spans_one(tmp_path):
    whole = toy_trainer(tmp_path / "a", steps=11, log_steps=4, save_steps=6)
    whole.run(False)
    assert list(losses(whole)) == [4, 6, 8, 11]
    part = toy_trainer(tmp_path / "b", steps=11, log_steps=4, save_steps=6)
    (tmp_path / "a/checkpoint-6").rename(tmp_path / "b/checkpoint-6")
    part.run(True)
    assert losses(part) == losses(whole)
