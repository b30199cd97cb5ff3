"""A classifier's training batches: mixtures and their labels, masks, windows, draws of each clip alone."""

import numpy as np
import pytest
import torch

from almosaic.data.clips import BadClips
from almosaic.data.labelled import Targets
from almosaic.data.manifest import ManifestRow
from almosaic.encoder import AudioMosaicConfig
from almosaic.features import AudioMosaicFeatureExtractor, log_mel_fbank
from almosaic.training.labelled_batches import LabelledBatches, first_window
from tests.unit.training.finetune_runs import finetune_settings

LABELS = ("a", "b", "c")
FRAMES = 64


def batches(tmp_path, drop_path=0.0, **changes):
    rows = [ManifestRow(str(i), "", tmp_path, labels=(LABELS[i % 3],)) for i in range(12)]
    return LabelledBatches(
        finetune_settings(tmp_path, **changes),
        AudioMosaicFeatureExtractor(window_frames=FRAMES, mean=-8.0, std=4.0),
        Targets(rows, LABELS),
        None,
        BadClips(12),
        AudioMosaicConfig(num_hidden_layers=3, drop_path_rate=drop_path),
        seed=3,
        stage="stage",
    )


def clips(count=6, samples=8000):
    noise = torch.from_numpy(np.random.default_rng(1).standard_normal((count, samples)).astype(np.float32))
    return {
        "clip_index": torch.arange(count),
        "waveforms": 0.1 * noise,
        "lengths": torch.full((count,), samples),
        "bad_clips": [],
    }


def with_partners(batch, rows, partners):
    noise = np.random.default_rng(2).standard_normal((len(rows), 6000)).astype(np.float32)
    return {
        **batch,
        "mixed_rows": torch.tensor(rows),
        "partner_index": torch.tensor(partners),
        "partner_waveforms": 0.1 * torch.from_numpy(noise),
        "partner_lengths": torch.full((len(rows),), 6000),
    }


def test_plain_batches_are_what_the_front_end_makes(tmp_path):
    maker, batch = batches(tmp_path), clips()
    made = maker(batch, 0, 0.0)
    features, mask, _ = maker.extractor.featurize(batch["waveforms"], batch["lengths"])
    torch.testing.assert_close(made["input_features"], features)
    assert torch.equal(made["input_features_mask"], mask)
    assert made["labels"].tolist() == [0, 1, 2, 0, 1, 2] and not {"ids_keep", "path_noise"} & made.keys()


def test_a_mixture_has_both_labels_in_the_shares_of_its_sound(tmp_path):
    maker = batches(tmp_path, loss="bce", mixup={})
    batch = with_partners(clips(), [1, 4], [2, 7])
    made, plain = maker(batch, 0, 0.0), maker(clips(), 0, 0.0)
    assert made["labels"].sum(1).tolist() == pytest.approx([1.0] * 6)
    assert torch.equal(made["labels"][[0, 2, 3, 5]], plain["labels"][[0, 2, 3, 5]])
    share = made["labels"][1, 1].item()
    assert 0.1 < share < 0.9 and made["labels"][1, 2].item() == pytest.approx(1 - share)
    assert made["labels"][4].tolist() == [0.0, 1.0, 0.0], "both clips have label b"
    first, second = batch["waveforms"][1], torch.zeros(8000)
    second[:6000] = batch["partner_waveforms"][0] - batch["partner_waveforms"][0].mean()
    mixed = share * (first - first.mean()) + (1 - share) * second
    expected, _ = first_window(*log_mel_fbank(mixed[None], [8000]), FRAMES)
    found = made["input_features"][1] * 8.0 - 8.0
    torch.testing.assert_close(found[:48], expected[0, :48], atol=1e-3, rtol=1e-4)


def test_shares_are_beta_10_10_and_depend_on_clip_and_epoch(tmp_path):
    maker = batches(tmp_path, loss="bce", mixup={})
    batch = clips(1, 800)

    def share(clip, epoch):
        one = {**batch, "clip_index": torch.tensor([clip])}
        other = (clip + 1) % 12
        return maker(with_partners(one, [0], [other]), epoch, 0.0)["labels"][0, clip % 3].item()

    shares = np.array([share(clip, epoch) for clip in range(12) for epoch in range(25)])
    assert abs(shares.mean() - 0.5) < 0.03 and abs(shares.std() - (1 / 84) ** 0.5) < 0.02
    assert share(3, 4) == share(3, 4) != share(3, 5)


def test_every_change_depends_on_the_clip_alone(tmp_path):
    changes = {
        "augment": [{"name": "roll_gain"}, {"name": "log_gain"}],
        "spec_augment": {"frequency_bins": 48, "time_frames": 32},
        "feature_noise": {},
        "token_mask": {"time_ratio": 0.5, "frequency_ratio": 0.25},
    }
    maker, batch = batches(tmp_path, drop_path=0.1, **changes), clips()
    together = maker(batch, 2, 0.0)
    part = {name: value[2:4] for name, value in batch.items() if name != "bad_clips"}
    alone = maker({**part, "bad_clips": []}, 2, 0.0)
    torch.testing.assert_close(together["input_features"][2:4], alone["input_features"], atol=2e-5, rtol=1e-5)
    assert torch.equal(together["ids_keep"][2:4], alone["ids_keep"])
    assert together["ids_keep"].shape == (6, 2 * 6)
    assert torch.equal(together["path_noise"][2:4], alone["path_noise"])
    assert together["path_noise"].shape == (6, 3, 2)
    later = maker(batch, 3, 0.0)
    assert not torch.equal(together["ids_keep"], later["ids_keep"])
    assert not torch.equal(together["input_features"], later["input_features"])


def test_a_masked_band_is_zero_before_it_is_normalised(tmp_path):
    made = batches(tmp_path, spec_augment={"frequency_bins": 100, "time_frames": 0})(clips(), 0, 0.0)
    masked = (made["input_features"] == 8.0 / 8.0).all(dim=1).sum(1)
    assert masked.max() > 10, "0.0 becomes -mean / (2 std)"


def test_a_window_is_cut_or_padded():
    log_mel = torch.ones(2, 5, 3)
    short, frames = first_window(log_mel, torch.tensor([5, 3]), 8)
    assert short.shape == (2, 8, 3) and short[:, 5:].abs().sum() == 0 and frames.tolist() == [5, 3]
    cut, frames = first_window(log_mel, torch.tensor([5, 3]), 4)
    assert cut.shape == (2, 4, 3) and frames.tolist() == [4, 3]
