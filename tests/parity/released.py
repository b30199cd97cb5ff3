"""Where the outputs of the released AudioMosaic code lie, and its tiny models under our classes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from almosaic.encoder import AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.conversion import from_released
from almosaic.objectives.pretraining import AudioMosaicForPreTraining

ORACLE = (
    Path(os.environ.get("ALMOSAIC_ORACLE", Path(__file__).parents[3] / "shared" / "oracle")) / "audiomosaic"
)
needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason=f"no oracle at {ORACLE}; set ALMOSAIC_ORACLE")
CLASSES = {
    "AudioMosaicModel": AudioMosaicModel,
    "AudioMosaicForPreTraining": AudioMosaicForPreTraining,
    "AudioMosaicForAudioClassification": AudioMosaicForAudioClassification,
}


def arrays(name):
    """Stored arrays as tensors: float32 or int64, spectrograms without their channel axis."""
    stored = np.load(ORACLE / f"{name}.npz")
    found = {}
    for key in stored.files:
        value = torch.from_numpy(np.asarray(stored[key]))
        found[key] = value.float() if value.is_floating_point() else value.long()
    return {key: value[:, 0] if key in ("x", "x0", "x1") else value for key, value in found.items()}


def meta(name):
    return json.loads((ORACLE / f"{name}.json").read_text())


def weights(name, prefix=""):
    """The tensors of a file, or those below a prefix in it."""
    stored = load_file(ORACLE / f"{name}.safetensors")
    return {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}


def model(name, **config_overrides):
    """The stored weights in our class, through `from_released`, in eval mode."""
    return model_of_weights(weights(name), meta(f"{name}_meta")["config"]["num_heads"], **config_overrides)


def model_of_weights(released, heads, readout_layer=None, **config_overrides):
    """A published state dict in our class, in eval mode."""
    config, converted = from_released(released, num_attention_heads=heads, readout_layer=readout_layer)
    for key, value in config_overrides.items():
        setattr(config, key, value)
    built = CLASSES[config.architectures[0]](config)
    built.load_state_dict(converted)
    return built.eval()


def close(found, expected, atol, rtol=0.0):
    torch.testing.assert_close(found.detach(), expected, atol=atol, rtol=rtol)
