"""What alignment is for: tones meet words, and a sound is then named by texts without any classifier."""

import numpy as np
import torch
import torch.nn.functional as F

from almosaic.encoder import AudioMosaicConfig
from almosaic.features import AudioMosaicFeatureExtractor
from almosaic.masking import random_mask
from almosaic.objectives.clap import ClapSettings
from almosaic.objectives.pretraining import AudioMosaicForPreTraining
from almosaic.objectives.text_encoder import TextEncoderSettings

PITCHES = {"low": 300.0, "middle": 1000.0, "high": 3500.0}
MANNERS = {"steady": 0.0, "pulsing": 12.0}
KINDS = [(pitch, manner) for pitch in PITCHES for manner in MANNERS]
WORDINGS = ("a {} {} tone", "{}, {}: a tone")
SECONDS, RATE = 0.645, 16_000  # 64 frames


def tones(kinds, seed):
    """Windows [n, 64, 128] of tones in noise, each a little off its pitch."""
    rng, time = np.random.default_rng(seed), np.arange(round(SECONDS * RATE)) / RATE
    waves = []
    for pitch, manner in kinds:
        carrier = np.sin(2 * np.pi * PITCHES[pitch] * rng.uniform(0.8, 1.25) * time + rng.uniform(0, 6))
        beat = 1.0 if not MANNERS[manner] else np.sin(np.pi * MANNERS[manner] * time + rng.uniform(0, 6)) > 0
        waves.append(0.2 * carrier * beat + 0.02 * rng.standard_normal(len(time)))
    extractor = AudioMosaicFeatureExtractor(window_frames=64)
    return extractor([wave.astype(np.float32) for wave in waves])["input_features"]


def trained(steps=100, clips=24):
    torch.manual_seed(0)
    text = TextEncoderSettings(width=32, layers=1, heads=2, max_bytes=64)
    objective = ClapSettings(text_encoder=text, projection_hidden=64, projection_size=32)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 64}
    model = AudioMosaicForPreTraining(AudioMosaicConfig(**sizes, objective=objective.model_dump())).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng, found = np.random.default_rng(0), []
    for step in range(steps):
        kinds = [KINDS[i] for i in rng.integers(len(KINDS), size=clips)]
        texts = [
            WORDINGS[i].format(*kind) for i, kind in zip(rng.integers(2, size=clips), kinds, strict=True)
        ]
        generator = torch.Generator().manual_seed(step)
        mask = random_mask(model.config.grid, clips, ratio=0.25, generator=generator)
        output = model([tones(kinds, step)], [mask], texts)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        found.append(output.metrics)
    return model.eval(), found


def test_words_name_tones_that_were_never_heard():
    model, metrics = trained()
    kinds = KINDS * 8
    with torch.no_grad():
        sounds = F.normalize(model.objective.project(model.encoder, tones(kinds, 10_000)), dim=1)
        texts = [WORDINGS[0].format(*kind) for kind in KINDS]
        words = F.normalize(model.objective.embed_texts(texts), dim=1)
    chosen = (sounds @ words.T).argmax(dim=1)
    accuracy = (chosen == torch.arange(6).repeat(8)).float().mean().item()
    assert accuracy > 0.5, accuracy  # chance: one in six
    assert metrics[-1]["clap_loss"] < 0.8 * np.log(24)  # where a collapsed model stays
    assert metrics[-1]["temperature"] != metrics[0]["temperature"]
