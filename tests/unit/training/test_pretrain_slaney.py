"""Pretraining with another family's front end and encoder: its numbers reach the model and are saved."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from almosaic.data.clips import BadClips
from almosaic.encoder import AudioMosaicModel
from almosaic.encoder.positions import sincos_table
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.loading import load_model
from almosaic.log_mel import log_mel_fbank
from almosaic.masking import PatchGrid
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.released import convert_released, write_released
from almosaic.training.views import ViewMaker

sys.path.insert(0, str(Path(__file__).parent))
from stages import ENCODER, Tones, pretrain_settings, run_pretrain

MATPAC = {
    "front_end": {"preset": "matpac", "window_frames": 208},
    "encoder": ENCODER
    | {"patch_norm": False, "pre_norm": False, "fixed_positions": True, "final_norm": "layernorm"},
}


@pytest.mark.parametrize("cache", [False, True])
def test_a_stage_keeps_front_end_and_fixed_positions(tmp_path, cache):
    run_pretrain(tmp_path, **MATPAC, cache=cache, optim={"steps": 3})
    encoder, extractor = load_model(tmp_path / "model")
    assert (extractor.front_end, extractor.num_mel_bins, extractor.zeros_in) == ("slaney", 80, "normalised")
    assert type(encoder) is AudioMosaicModel and encoder.config.grid == PatchGrid(13, 5)
    whole = AudioMosaicForPreTraining.from_pretrained(tmp_path / "pretraining")
    for model in (encoder, whole.encoder):
        assert torch.equal(model.pos_embed, sincos_table(encoder.config.grid, 24))
    assert encoder(extractor(Tones().waveform(0, 0))["input_features"]).pooler_output.isfinite().all()
    write_released(tmp_path / "model", tmp_path / "matpac.safetensors")
    convert_released(tmp_path / "matpac.safetensors", tmp_path / "again", "matpac", heads=2)
    again = AudioMosaicModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[key], value) for key, value in encoder.state_dict().items())


def test_views_are_what_the_saved_front_end_makes():
    settings = pretrain_settings(augment=[], **MATPAC)
    extractor = AudioMosaicFeatureExtractor.from_settings(settings.front_end)
    config = settings.encoder.build(extractor.window_frames, extractor.num_mel_bins)
    maker = ViewMaker(settings, extractor, None, BadClips(2), config=config, seed=0, stage="s")
    waveforms = [torch.from_numpy(Tones().waveform(clip, 0)) for clip in (0, 3)]
    batch = {
        "bad_clips": [],
        "clip_index": torch.tensor([0, 3]),
        "waveforms": torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
        "lengths": torch.tensor([len(waveform) for waveform in waveforms]),
    }
    view = maker(batch, 0, 0.0)["views"][0]
    assert view.shape == (2, 208, 80)
    for row, clip in zip(view, waveforms, strict=True):
        log_mel, frames = log_mel_fbank(clip[None], num_mel_bins=80, front_end="slaney")
        np.testing.assert_allclose(row[: int(frames)], (log_mel[0] + 7.056) / 4.193, atol=1e-4)
        assert not row[int(frames) :].any()


def test_measured_statistics_are_those_of_the_bank(tmp_path):
    run_pretrain(tmp_path, **MATPAC, measure_statistics=True, optim={"steps": 1})
    extractor = load_model(tmp_path / "model")[1]
    clips = [torch.from_numpy(Tones().waveform(clip, 0))[None] for clip in range(16)]
    values = [log_mel_fbank(clip, num_mel_bins=80, front_end="slaney")[0].flatten() for clip in clips]
    every = torch.cat(values)
    expected = (every.mean().item(), every.std().item())
    assert (extractor.mean, extractor.std) == pytest.approx(expected, rel=1e-3)
