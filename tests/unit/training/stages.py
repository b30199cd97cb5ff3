"""Stages small enough for tests: clips of two seconds in one window, scenes of three seconds in two."""

import json
from pathlib import Path

import numpy as np

from almosaic.errors import AudioError
from almosaic.scenes.bank import SyntheticBank, open_bank
from almosaic.scenes.scene import SceneSettings
from almosaic.training.alm import AlmStageSettings, train_alm
from almosaic.training.alm_parts import Parts
from almosaic.training.language_model import LanguageModelSettings, train_language_model
from almosaic.training.pretrain import PretrainSettings, pretrain

ENCODER = {"preset": "tiny", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
WINDOW_FRAMES = 208
SCENES = SceneSettings(duration_seconds=3.0, templates=("presence", "half"))


class Tones:
    """Noisy tones of one to two seconds; some cannot be read."""

    def __init__(self, clips=16, bad=()):
        self.clips, self.bad = clips, bad

    def __len__(self):
        return self.clips

    def waveform(self, index, epoch):
        if index in self.bad:
            raise AudioError(f"clip {index}: damaged; fetch it again")
        rng = np.random.default_rng(index)
        time = np.arange(16_000 + 1000 * (index % 12)) / 16_000
        tone = np.sin(2 * np.pi * (200 + 150 * index) * time) * (1 + np.sin(2 * np.pi * (index % 5) * time))
        return (0.1 * tone + 0.01 * rng.standard_normal(len(time))).astype(np.float32)

    def fingerprint(self):
        return f"tones {self.clips} {self.bad}"


def pretrain_settings(**changes):
    """Both views augmented, four clips a step."""
    optim = {"steps": 6, "batch_size": 4, "learning_rate": 1e-3, "log_steps": 1} | changes.pop("optim", {})
    given = {
        "encoder": ENCODER,
        "front_end": {"window_frames": WINDOW_FRAMES},
        "objective": {"name": "contrastive", "projection_hidden": 16, "projection_size": 8},
        "augment": [{"name": "log_gain"}, {"name": "log_noise"}, {"name": "log_roll"}],
        "crop_seconds": 2.0,
        "optim": optim,
    }
    return PretrainSettings.model_validate(given | changes)


def run_pretrain(folder, source=None, resume=False, seed=0, **changes):
    """Losses by step of a pretraining stage."""
    pretrain(pretrain_settings(**changes), source=source or Tones(), folder=folder, seed=seed, resume=resume)
    return losses(folder)


def losses(folder):
    """Logged losses by step."""
    log = json.loads((Path(folder) / "training_log.json").read_text())
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}


def tiny_bank():
    return open_bank(SyntheticBank(clips_per_kind=3), "train")


def make_parts(folder, bank):
    """An untrained encoder and an untrained tiny language model."""
    encoder = pretrain(
        pretrain_settings(optim={"steps": 0}), source=Tones(), folder=folder / "encoder", seed=0
    )
    settings = LanguageModelSettings.model_validate(
        {
            "language_model": {
                "name": "tiny",
                "hidden_size": 32,
                "layers": 1,
                "heads": 2,
                "intermediate_size": 32,
            },
            "data": {"scenes": 12},
            "optim": {"steps": 0},
        }
    )
    llm = train_language_model(settings, bank=bank, scenes=SCENES, folder=folder / "lm", seed=0)
    return Parts(audio_tower=encoder, language_model=llm)


def alm_settings(**changes):
    """Projector alone on eight scenes."""
    optim = {"steps": 6, "batch_size": 4, "learning_rate": 1e-2, "log_steps": 1} | changes.pop("optim", {})
    given = {"data": [{"name": "scenes", "scenes": 12, "captions": 0.3}], "optim": optim}
    given["projector"] = changes.pop("projector", {"name": "mlp", "queries": 4})
    return AlmStageSettings.model_validate(given | changes)


def run_alm(folder, parts, bank, resume=False, seed=0, **changes):
    """Losses by step of an audio-language stage."""
    settings = alm_settings(**changes)
    train_alm(settings, parts=parts, folder=folder, seed=seed, bank=bank, scenes=SCENES, resume=resume)
    return losses(folder)
