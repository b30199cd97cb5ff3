"""Stored features equal fresh ones, survive bad clips, and are never used for anything else."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError, AudioError
from almosaic.feature_cache import FeatureCache
from almosaic.features import AudioMosaicFeatureExtractor, frames_of

BAD = 2


class Clips:
    """Noise of various lengths; clip 2 cannot be read. Counts what is read."""

    def __init__(self, clips=5, name="a"):
        self.clips, self.name, self.read = clips, name, 0

    def __len__(self):
        return self.clips

    def waveform(self, index, epoch):
        self.read += 1
        if index == BAD:
            raise AudioError("clip 2: damaged; fetch it again")
        rng = np.random.default_rng(index)
        return rng.standard_normal(8000 + 9000 * index).astype(np.float32) * 0.1

    def fingerprint(self):
        return f"{self.name}{self.clips}"


@pytest.fixture(scope="module")
def extractor():
    return AudioMosaicFeatureExtractor(window_frames=64)


def front_end(**fields):
    return AudioMosaicFeatureExtractor(window_frames=64, **fields)


def make_tower(seed=0):
    torch.manual_seed(seed)
    config = AudioMosaicConfig.from_preset("tiny", hidden_size=24, num_hidden_layers=2, window_frames=64)
    config.drop_path_rate = 0.5
    return AudioMosaicModel(config).eval()


@pytest.fixture(scope="module")
def tower():
    return make_tower()


def build(tower, extractor, source, folder, **more):
    return FeatureCache.build(
        tower, extractor, source, len(source), folder, batch_size=2, progress=False, **more
    )


@pytest.mark.parametrize("layer", [None, 0])
def test_stored_tokens_are_the_encoders_own(tower, extractor, tmp_path, layer):
    source = Clips()
    cache = build(tower, extractor, source, tmp_path, layer=layer)
    for index in (0, 1, 3, 4):
        waveform = source.waveform(index, 0)
        features = extractor([waveform])["input_features"]
        with torch.no_grad():
            output = tower(features, output_hidden_states=True)
        hidden = output.last_hidden_state if layer is None else output.hidden_states[1]
        expected = hidden[:, 1:].unflatten(1, (4, 8)).half().numpy()
        assert cache[index].shape == expected.shape and cache[index].dtype == np.float16
        np.testing.assert_allclose(cache[index], expected, atol=2e-3)
        assert cache.frames(index) == frames_of(len(waveform))


def test_bad_clips_are_noted_and_hold_nothing(tower, extractor, tmp_path):
    cache = build(tower, extractor, Clips(), tmp_path)
    assert len(cache) == 5 and cache.frames(BAD) == 0 and len(cache[BAD]) == 0
    assert cache.bad == {BAD: "clip 2: damaged; fetch it again"}


def test_it_is_made_once(tower, extractor, tmp_path):
    source = Clips()
    first = build(tower, extractor, source, tmp_path)
    assert source.read == 5
    again = build(make_tower(), extractor, Clips(), tmp_path)
    assert again.folder == first.folder and source.read == 5
    assert len(list(tmp_path.iterdir())) == 1


def test_another_encoder_front_end_layer_or_clip_set_has_another_cache(tower, extractor, tmp_path):
    folders = {
        build(tower, extractor, Clips(), tmp_path).folder,
        build(make_tower(seed=1), extractor, Clips(), tmp_path).folder,
        build(tower, AudioMosaicFeatureExtractor(window_frames=64, mean=0.0), Clips(), tmp_path).folder,
        build(tower, extractor, Clips(), tmp_path, layer=1).folder,
        build(tower, extractor, Clips(name="b"), tmp_path).folder,
        FeatureCache.build(tower, extractor, Clips(), 4, tmp_path, progress=False).folder,
        build(tower, front_end(front_end="slaney"), Clips(), tmp_path).folder,
        build(tower, front_end(zeros_in="normalised"), Clips(), tmp_path).folder,
    }
    assert len(folders) == 8


@pytest.mark.parametrize("damage", ["key", "tokens", "header"])
def test_a_foreign_or_damaged_cache_is_made_again(tower, extractor, tmp_path, damage):
    cache = build(tower, extractor, Clips(), tmp_path)
    expected = np.array(cache[4])
    header = cache.folder / "header.json"
    if damage == "key":
        header.write_text(json.dumps({**json.loads(header.read_text()), "key": "0" * 64}))
    elif damage == "tokens":
        np.save(cache.folder / "tokens.npy", np.zeros((1, 4, 8, 24), np.float16))
    else:
        header.write_text('{"key": ')
    source = Clips()
    again = build(tower, extractor, source, tmp_path)
    assert source.read == 5
    np.testing.assert_array_equal(again[4], expected)


def test_nothing_is_left_when_it_fails(tower, extractor, tmp_path, monkeypatch):
    class Broken(Clips):
        def waveform(self, index, epoch):
            if index == 3:
                raise KeyboardInterrupt
            return super().waveform(index, epoch)

    with pytest.raises(KeyboardInterrupt):
        build(tower, extractor, Broken(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_towers_mode_is_left_as_found_and_drop_path_is_off(extractor, tmp_path):
    training = make_tower().train()
    trained = build(training, extractor, Clips(), tmp_path / "a")
    assert training.training
    np.testing.assert_array_equal(trained[4], build(make_tower(), extractor, Clips(), tmp_path / "b")[4])


def test_a_count_that_the_source_does_not_have_is_refused(tower, extractor, tmp_path):
    with pytest.raises(AlmosaicError, match="1 to 5 clips, found count 6"):
        FeatureCache.build(tower, extractor, Clips(), 6, tmp_path)


def test_the_file_is_an_ordinary_numpy_array(tower, extractor, tmp_path):
    cache = build(tower, extractor, Clips(), tmp_path)
    tokens = np.load(cache.folder / "tokens.npy")
    assert tokens.dtype == np.float16 and tokens.shape[1:] == (4, 8, 24)
    assert sys.getsizeof(tokens) > 0 and Path(cache.folder).name.startswith("features-")
