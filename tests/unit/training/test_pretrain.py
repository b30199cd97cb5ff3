"""The pretraining stage: what it writes, what it draws, and what it refuses."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from almosaic.data.clips import BadClips
from almosaic.encoder import AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.features import AudioMosaicFeatureExtractor, log_mel_fbank
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.training.log_mel_pool import LogMelPool, measure_statistics
from almosaic.training.pretrain import pretrain
from almosaic.training.views import ViewMaker

sys.path.insert(0, str(Path(__file__).parent))
from stages import Tones, losses, pretrain_settings, run_pretrain


def test_a_stage_writes_an_encoder_its_front_end_and_its_heads(tmp_path):
    run_pretrain(tmp_path, measure_statistics=True)
    encoder = AudioMosaicModel.from_pretrained(tmp_path / "model")
    extractor = AudioMosaicFeatureExtractor.from_pretrained(tmp_path / "model")
    whole = AudioMosaicForPreTraining.from_pretrained(tmp_path / "pretraining")
    assert extractor.window_frames == 208 and extractor.mean != AudioMosaicFeatureExtractor().mean
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, whole.encoder.state_dict()[name])
    log = json.loads((tmp_path / "training_log.json").read_text())
    assert {"loss", "contrastive_accuracy", "pad_fraction", "grad_norm"} <= log[0].keys()
    assert 0.1 < log[0]["pad_fraction"] < 0.6


def test_training_lowers_the_loss_and_zero_steps_leave_the_fresh_encoder(tmp_path):
    found = run_pretrain(
        tmp_path / "a", optim={"steps": 60, "batch_size": 16, "learning_rate": 2e-3}, cache=True
    )
    first, last = [np.mean(list(found.values())[part]) for part in (slice(0, 5), slice(-5, None))]
    assert last < first - 0.3
    fresh = pretrain(pretrain_settings(optim={"steps": 0}), source=Tones(), folder=tmp_path / "b", seed=0)
    trained = AudioMosaicModel.from_pretrained(tmp_path / "a/model").state_dict()
    untrained = AudioMosaicModel.from_pretrained(fresh).state_dict()
    weight = next(name for name in trained if name.endswith("qkv.weight"))
    assert not torch.equal(trained[weight], untrained[weight])
    assert untrained[weight].std() == pytest.approx(0.02, rel=0.3)


def test_a_pool_changes_nothing_but_the_rounding_to_half_precision(tmp_path):
    slow = {"learning_rate": 1e-5}  # small differences do not grow
    fresh = run_pretrain(tmp_path / "a", optim=slow)
    pooled = run_pretrain(tmp_path / "b", optim=slow, cache=True)
    assert list(pooled.values()) == pytest.approx(list(fresh.values()), abs=0.02)


def test_seeds_and_stages_draw_differently(tmp_path):
    assert run_pretrain(tmp_path / "a") == run_pretrain(tmp_path / "b")
    assert run_pretrain(tmp_path / "a") != run_pretrain(tmp_path / "c", seed=1)


def make_views(steps=({"name": "log_gain"}, {"name": "gaussian_snr"}), source=None, stage="s"):
    settings = pretrain_settings(augment=list(steps))
    extractor = AudioMosaicFeatureExtractor.from_settings(settings.front_end)
    bad, config = BadClips(16), settings.encoder.build(extractor.window_frames, extractor.num_mel_bins)
    return ViewMaker(settings, extractor, None, bad, config=config, seed=0, stage=stage)


def batch_of(*clips):
    waveforms = [torch.from_numpy(Tones().waveform(clip, 0)) for clip in clips]
    return {
        "bad_clips": [],
        "clip_index": torch.tensor(clips),
        "waveforms": torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        "lengths": torch.tensor([len(waveform) for waveform in waveforms]),
    }


def test_views_of_a_clip_depend_on_epoch_view_and_clip_not_on_its_batch():
    make = make_views()
    together, alone, later = (
        make(batch_of(*clips), epoch, 0.0) for clips, epoch in (((3, 5, 8), 2), ((5,), 2), ((5,), 3))
    )
    for view in (0, 1):
        torch.testing.assert_close(together["views"][view][1], alone["views"][view][0], atol=1e-4, rtol=0)
        assert torch.equal(together["masks"][view].ids_keep[1], alone["masks"][view].ids_keep[0])
        assert not torch.equal(alone["views"][view], later["views"][view])
    assert not torch.allclose(alone["views"][0], alone["views"][1], atol=1e-2)
    assert not torch.equal(alone["masks"][0].ids_keep, later["masks"][0].ids_keep)
    assert make_views(stage="t")(batch_of(5), 2, 0.0)["views"][0].ne(alone["views"][0]).any()


def test_without_augmentation_both_views_are_the_front_ends_windows():
    made = make_views(steps=())(batch_of(3, 5), 0, 0.0)
    extractor = AudioMosaicFeatureExtractor(window_frames=208)
    expected, real, _ = extractor.featurize(batch_of(3, 5)["waveforms"], batch_of(3, 5)["lengths"])
    assert torch.equal(made["views"][0], expected) and torch.equal(made["views"][1], expected)
    grid = (13, 8)
    columns = made["masks"][0].ids_keep // grid[1]
    assert all(len(row.unique()) == 5 for row in columns)
    assert torch.equal(made["masks"][0].valid, real.view(2, 13, 16).any(-1).repeat_interleave(8, 1))


def test_a_clip_longer_than_the_window_is_refused(tmp_path):
    class Long(Tones):
        def waveform(self, index, epoch):
            return np.tile(super().waveform(index, epoch), 3)

    with pytest.raises(AlmosaicError, match=r"frames but a window holds 208; set a lower crop_seconds"):
        run_pretrain(tmp_path, source=Long())


def test_bad_clips_are_skipped_and_named_or_stop_the_run(tmp_path, caplog):
    found = run_pretrain(tmp_path / "a", source=Tones(bad=(3,)), bad_clip_share=0.1)
    assert len(found) == 6
    assert caplog.text.count("skipped clip 3, the next one takes its place") == 1
    for number, workers in enumerate((0, 1)):
        with pytest.raises(AlmosaicError, match=r"[23] of 16 clips cannot be used") as caught:
            run_pretrain(
                tmp_path / f"b{number}",
                source=Tones(bad=(3, 4, 5)),
                bad_clip_share=0.1,
                cache=bool(workers),
                optim={"workers": workers},
            )
        assert "\n" not in str(caught.value)


def test_statistics_are_those_of_the_real_frames():
    source, extractor = Tones(6), AudioMosaicFeatureExtractor()
    values = []
    for index in range(6):
        log_mel, frames = log_mel_fbank(torch.from_numpy(source.waveform(index, 0))[None])
        values.append(log_mel[0, : frames[0]].flatten())
    expected = torch.cat(values).double()
    mean, std = measure_statistics(source, BadClips(6), extractor)
    assert (mean, std) == pytest.approx((expected.mean().item(), expected.std().item()), abs=1e-3)
    pool = LogMelPool.build(source, BadClips(6), extractor)
    pooled = measure_statistics(source, BadClips(6), extractor, pool)
    assert pooled == pytest.approx((mean, std), abs=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cache": True, "augment": [{"name": "polarity"}]}, "augment step polarity works on waveforms"),
        ({"optim": {"accumulation": 2}}, "contrastive accumulation is not batch size"),
        ({"optim": {"batch_size": 32}}, "batch_size 32 is larger than the 16 clips"),
        ({"front_end": {"window_frames": 200}}, "multiples of the patch size 16, found 200"),
        ({"views": [{"mask": {"name": "time", "ratio": 0.5}}]}, "found 1 view"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises((AlmosaicError, ValidationError), match=message):
        run_pretrain(tmp_path, **changes)


def test_losses_are_read_from_the_log(tmp_path):
    found = run_pretrain(tmp_path)
    assert sorted(found) == [1, 2, 3, 4, 5, 6] and losses(tmp_path) == found


@pytest.mark.parametrize("changes", [{}, {"min_seconds": 1.5}], ids=["as they are", "joined"])
def test_a_source_of_shards_is_read_shard_by_shard(tmp_path, changes):
    class Shards(Tones):
        blocks = (2,) * 8

        def waveform(self, index, epoch):
            self.asked.append(index)
            return super().waveform(index, epoch)

    source, Shards.asked = Shards(), []
    run_pretrain(tmp_path, source=source, optim={"steps": 4}, **changes)
    shards = [index // 2 for index in source.asked]
    order = list(dict.fromkeys(shards))
    assert len(order) == 8, "the epoch"
    later = shards[shards.index(order[4]) :]
    assert set(later) == set(order[4:]), "four shards are done before the four others begin"
