"""kNN accuracy of an encoder in training: right on known geometry, repeatable, and without a trace."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.evaluation.online import LabelledClip, OnlineKnn, bank_clips, manifest_clips
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.scenes.bank import SyntheticBank, open_bank

FRONT_END = AudioMosaicFeatureExtractor(window_frames=64)


def tone(hertz, seconds=1.0):
    time = np.arange(int(16_000 * seconds)) / 16_000
    return (0.1 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def clips(wrong=0):
    """Low and high tones, sixteen to look among and eight to guess, of which `wrong` have the other label."""
    found = []
    for number in range(24):
        low = number % 2 == 0
        part = "train" if number < 16 else "dev"
        label = "low" if low != (16 <= number < 16 + wrong) else "high"
        hertz = (300 if low else 3000) * 1.02**number
        found.append(LabelledClip(label, part, partial(tone, hertz, 1.0 + 0.1 * (number % 3))))
    return found


def encoder(**changes):
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "window_frames": 64}
    return AudioMosaicModel(AudioMosaicConfig(**(sizes | {"drop_path_rate": 0.5} | changes))).train()


def judge(found, **changes):
    given = {"train": ("train",), "test": ("dev",), "limit": 100, "k": 3, "seed": 0}
    return OnlineKnn(found, **(given | changes))


class MeanSpectrum(torch.nn.Module):
    """An encoder whose vector of a window is the mean over its real frames."""

    device = torch.device("cpu")

    def forward(self, features, input_features_mask):
        assert not self.training and not torch.is_grad_enabled()
        weights = input_features_mask / input_features_mask.sum(dim=1, keepdim=True)
        return SimpleNamespace(pooler_output=torch.einsum("bt,btf->bf", weights, features))


@pytest.mark.parametrize("wrong", [0, 3])
def test_labels_that_sound_alike_are_guessed_and_swapped_ones_are_not(wrong):
    assert judge(clips(wrong))(MeanSpectrum(), FRONT_END) == {"knn_accuracy": pytest.approx(1 - wrong / 8)}


def test_a_look_leaves_no_trace_and_reads_each_clip_once():
    reads = []

    def counted(clip):
        reads.append(1)
        return clip.read()

    look = judge([clip._replace(read=partial(counted, clip)) for clip in clips()])
    model = encoder()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = look(model, FRONT_END)
    assert look(model, FRONT_END) == first and len(reads) == 24
    assert model.training and all(
        torch.equal(weights[name], value) for name, value in model.state_dict().items()
    )
    assert torch.equal(states[0], torch.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_limit_takes_the_labels_in_turn_and_the_seed_chooses_the_clips():
    few = judge(clips(), limit=6)
    assert len(few.clips) == 12 and few.split == 6
    assert [clip.label for clip in few.clips[:6]].count("low") == 3
    chosen = [
        {id(clip.read) for clip in judge(shared, limit=6, seed=seed).clips}
        for shared in [clips()]
        for seed in (0, 0, 1)
    ]
    assert chosen[0] == chosen[1] != chosen[2]


def test_what_cannot_be_judged_is_refused_before_training():
    with pytest.raises(AlmosaicError, match="expected labelled clips of 'test', found none"):
        judge(clips(), test=("test",))
    with pytest.raises(AlmosaicError, match="'train' is in both train and test"):
        judge(clips(), test=("train",))
    new = [clip._replace(label="new") if clip.part == "dev" else clip for clip in clips()]
    with pytest.raises(AlmosaicError, match="neighbours of every label, found none of 'new' among 16 clips"):
        judge(new)


def test_clips_of_banks_and_manifests(tmp_path):
    banks = {part: open_bank(SyntheticBank(clips_per_kind=2), part) for part in ("train", "dev")}
    found = bank_clips(banks)
    assert len(found) == sum(len(bank.clips) for bank in banks.values())
    assert (found[0].read() == banks["train"].waveform(banks["train"].clips[0])).all()
    soundfile.write(tmp_path / "a.wav", tone(440), 16_000)
    rows = [
        {"id": "a", "audio": "a.wav", "split": "train", "fold": "1", "labels": ["low"]},
        {"id": "b", "audio": "a.wav", "split": "test", "fold": "2", "labels": []},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = manifest_clips(tmp_path / "m.jsonl", "fold", ["1"])
    assert (one.label, one.part, len(one.read())) == ("low", "1", 16_000)
    with pytest.raises(AlmosaicError, match=r"one label per clip of .*m\.jsonl, found 0 for 'b'"):
        manifest_clips(tmp_path / "m.jsonl", "split", ["test"])
