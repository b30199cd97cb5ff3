"""Cached features equal fresh ones, are made once for all, and suffice for probes over all blocks."""

import json

import numpy as np
import pytest
import torch
from helpers_tiny import WINDOW_FRAMES, tiny_encoder, waveform
from torch import nn

from almosaic import layer_features as module
from almosaic.encoder import AudioMosaicConfig
from almosaic.encoder.readouts import AttentiveReadout, WeightedSumReadout
from almosaic.errors import AlmosaicError
from almosaic.evaluation.readouts import Attentive, WeightedSum
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.inference import embed
from almosaic.layer_features import EncoderReader, HandReader, layer_features
from almosaic.pooling import token_weights, window_weights

EXTRACTOR = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES)
SECONDS = (0.5, 2.2, 0.1, 1.3)  # 1, 4, 1 and 3 windows, none of them full at its end


class Clips:
    """Four clips of different lengths; counts what is read."""

    def __init__(self, name="a"):
        self.name, self.read = name, 0

    def __len__(self):
        return len(SECONDS)

    def waveform(self, index, epoch):
        self.read += 1
        return waveform(SECONDS[index], index)

    def fingerprint(self):
        return self.name


def encoder(seed=1, **changes):
    return tiny_encoder(seed, final_norm="layernorm", drop_path_rate=0.5, **changes)


@pytest.mark.parametrize("pooling", ["mean", "mean_valid", "cls"])
def test_cached_features_are_those_that_embed_gives(tmp_path, monkeypatch, pooling):
    monkeypatch.setattr(module, "WINDOWS", 3)  # batches that cut through clips
    tower, clips = encoder(), Clips()
    found = layer_features({"a": EncoderReader(tower, EXTRACTOR, pooling)}, clips, tmp_path)["a"]
    assert found.means.shape == found.normed.shape == (4, 3, 32) and found.means.dtype == np.float32
    sources = [(clips.waveform(index, 0), 16_000) for index in range(4)]
    for layer in (0, 1, None):
        expected = [v for _, v in embed(tower, sources, layer, 2, EXTRACTOR, pooling=pooling)]
        np.testing.assert_allclose(found.at(layer), np.stack(expected), atol=2e-5)
    assert not np.allclose(found.at(None), found.at(1), atol=1e-2)


def test_the_front_ends_own_limits_hold(tmp_path):
    """Readers whose front ends cut clips to other lengths, or have other filters, do not share a spectrum."""
    limits = {"min_samples": 9000, "max_samples": 20_000, "long_clips": "centre"}
    limited = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES, **limits)
    slaney = AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES, front_end="slaney")
    extractors = {"free": EXTRACTOR, "limited": limited, "slaney": slaney}
    readers = {name: EncoderReader(encoder(), extractor) for name, extractor in extractors.items()}
    clips = Clips()
    found = layer_features(readers, clips, tmp_path)
    sources = [(clips.waveform(index, 0), 16_000) for index in range(4)]
    for name, extractor in extractors.items():
        expected = np.stack([v for _, v in embed(encoder(), sources, None, 2, extractor, pooling="mean")])
        np.testing.assert_allclose(found[name].at(None), expected, atol=2e-5)


def test_long_clips_count_windows_by_their_real_frames():
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0], mask[1, :2], mask[2, :5] = True, True, True
    assert window_weights(mask, torch.tensor([2, 1])).tolist() == pytest.approx([0.8, 0.2, 1.0])


def test_token_weights_of_each_pooling():
    grid = EXTRACTOR.window_frames // 16
    mask = torch.arange(WINDOW_FRAMES)[None] < 17  # two of four columns of patches
    shape = tiny_encoder().config.grid
    assert token_weights("mean", mask, shape).unique().tolist() == pytest.approx([1 / (1 + 8 * grid)])
    valid = token_weights("mean_valid", mask, shape)[0]
    assert valid[: 1 + 16].tolist() == pytest.approx([1 / 17] * 17) and not valid[17:].any()
    assert token_weights("cls", mask, shape)[0].tolist() == [1.0] + [0.0] * 8 * grid
    with pytest.raises(AlmosaicError, match="expected pooling mean, mean_valid, cls, found 'max'"):
        token_weights("max", mask, shape)


def randomised(readout):
    """Random weights everywhere, so that nothing is left out unnoticed."""
    for parameter in readout.parameters():
        nn.init.normal_(parameter, std=0.5)
    return readout.eval()


@pytest.mark.parametrize(("name", "heads"), [("weighted_sum", 1), ("attentive", 1), ("attentive", 4)])
def test_probes_on_cached_features_equal_those_on_tokens(tmp_path, name, heads):
    tower, clips = encoder(), Clips()
    found = layer_features({"a": EncoderReader(tower, EXTRACTOR)}, clips, tmp_path)["a"]
    config = AudioMosaicConfig(**{**tower.config.to_dict(), "readout": name, "readout_heads": heads})
    on_tokens = randomised(AttentiveReadout(config) if name == "attentive" else WeightedSumReadout(config))
    with torch.no_grad():
        features = EXTRACTOR([waveform(SECONDS[0], 0)])["input_features"]
        expected = on_tokens(tower(features, output_hidden_states=True), lambda tokens: tokens.mean(dim=1))
        if name == "attentive":
            cached = Attentive(3, 32, heads)
            cached.query.copy_(on_tokens.attn_query[0, :, 0])
            cached.key.copy_(on_tokens.attn_key.weight)
            cached.value.copy_(on_tokens.attn_value.weight)
            cached.scale.copy_(torch.stack([norm.weight for norm in on_tokens.layer_norms]))
            cached.shift.copy_(torch.stack([norm.bias for norm in on_tokens.layer_norms]))
            entries = found.normed
        else:
            cached, entries = WeightedSum(3), found.means
            cached.layer_weights.copy_(on_tokens.layer_weights)
        torch.testing.assert_close(
            cached(torch.from_numpy(np.array(entries[:1]))), expected, atol=2e-5, rtol=1e-4
        )


def test_one_pass_serves_all_encoders_and_later_runs_need_none(tmp_path):
    clips, progress = Clips(), []
    readers = {"a": EncoderReader(encoder(1), EXTRACTOR), "hand": HandReader()}
    readers["b"] = EncoderReader(
        encoder(2), AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES, mean=0.0)
    )
    first = layer_features(readers, clips, tmp_path, lambda *done: progress.append(done))
    assert clips.read == 4 and progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert not np.allclose(first["a"].means, first["b"].means)
    again = layer_features({"a": EncoderReader(encoder(1), EXTRACTOR)}, clips, tmp_path)
    assert clips.read == 4 and again["a"].folder == first["a"].folder
    layer_features({**readers, "c": EncoderReader(encoder(3), EXTRACTOR)}, clips, tmp_path)
    assert clips.read == 8 and len(list(tmp_path.iterdir())) == 4


def test_anything_that_changes_the_features_changes_the_key():
    clips, mean = Clips(), AudioMosaicFeatureExtractor(window_frames=WINDOW_FRAMES, mean=0.0)
    keys = {
        EncoderReader(encoder(1), EXTRACTOR).key(clips),
        EncoderReader(encoder(2), EXTRACTOR).key(clips),
        EncoderReader(encoder(1), mean).key(clips),
        EncoderReader(encoder(1), EXTRACTOR, "cls").key(clips),
        EncoderReader(encoder(1, num_attention_heads=4), EXTRACTOR).key(clips),
        EncoderReader(encoder(1, layer_norm_eps=1e-3), EXTRACTOR).key(clips),
        EncoderReader(encoder(1), EXTRACTOR).key(Clips("b")),
        HandReader().key(clips),
        HandReader().key(Clips("b")),
    }
    assert len(keys) == 9
    assert EncoderReader(encoder(1), EXTRACTOR).key(clips) in keys


@pytest.mark.parametrize("damage", ["key", "array", "header"])
def test_a_foreign_or_damaged_cache_is_made_again(tmp_path, damage):
    readers = {"a": EncoderReader(encoder(), EXTRACTOR)}
    first = layer_features(readers, Clips(), tmp_path)["a"]
    expected, header = np.array(first.means), first.folder / "header.json"
    if damage == "key":
        header.write_text(json.dumps({**json.loads(header.read_text()), "key": "0" * 64}))
    elif damage == "array":
        np.save(first.folder / "normed.npy", np.zeros((4, 3, 8), np.float32))
    else:
        header.write_text('{"key": ')
    clips = Clips()
    np.testing.assert_array_equal(layer_features(readers, clips, tmp_path)["a"].means, expected)
    assert clips.read == 4


def test_the_mode_is_left_as_found_and_drop_path_is_off(tmp_path):
    training = encoder().train()
    found = layer_features({"a": EncoderReader(training, EXTRACTOR)}, Clips(), tmp_path / "a")["a"]
    assert training.training
    other = layer_features({"a": EncoderReader(encoder(), EXTRACTOR)}, Clips(), tmp_path / "b")["a"]
    np.testing.assert_array_equal(found.means, other.means)


def test_an_encoder_that_gives_nan_is_refused_and_leaves_nothing(tmp_path):
    broken = encoder()
    broken.blocks[0].mlp.fc1.bias.data[0] = float("nan")
    with pytest.raises(AlmosaicError, match="a: expected finite features, found 4 of 4 clips"):
        layer_features({"a": EncoderReader(broken, EXTRACTOR)}, Clips(), tmp_path)
    assert list(tmp_path.iterdir()) == []
