"""The full-size key lists of the released code, through conversion and our models, both ways."""

import pytest
import torch
from released import CLASSES, meta, needs_oracle, weights

from almosaic.encoder.conversion import from_released, to_released
from almosaic.errors import AlmosaicError

pytestmark = needs_oracle
PROBES = {"layer_probe": ("layer", 10), "weighted_sum_probe": ("weighted_sum", None)}
PROBES["attentive_probe"] = ("attentive", None)


def empty(described):
    """Tensors without content, of the listed shapes and types."""
    return {
        key: torch.empty(entry["shape"], dtype=getattr(torch, entry["dtype"]), device="meta")
        for key, entry in described.items()
    }


def listed(kind):
    """Tensors of a kind of checkpoint, its parameters, and those that train."""
    described = meta("keys_vitb16_pretrain" if kind == "pretraining" else "keys_vitb16_classifier")
    keys, parameters = empty(described["keys"]), described["n_params"]
    if kind == "ltu":
        norm = {f"norm.{name}": torch.empty(768, device="meta") for name in ("weight", "bias")}
        encoder = {key: value for key, value in keys.items() if not key.startswith(("fc_norm.", "head."))}
        return encoder | norm, 85_651_200, 85_651_200
    if kind in PROBES:
        described = meta("keys_vitb16_other_heads")[kind]
        added = described["keys_not_in_classifier"].items()
        keys |= {key: torch.empty(shape, device="meta") for key, shape in added}
        assert len(keys) == described["n_keys"]
    return keys, described["n_params"], described.get("n_trainable", parameters)


@pytest.mark.parametrize("kind", ["pretraining", "classifier", "ltu", *PROBES])
def test_full_size_checkpoints_in_and_out(kind):
    released, parameters, trainable = listed(kind)
    layer = PROBES.get(kind, (None, None))[1]
    config, converted = from_released(released, readout_layer=layer)
    assert (config.num_hidden_layers, config.num_attention_heads, config.window_frames) == (12, 12, 1024)
    assert config.readout == PROBES.get(kind, ("pooled", None))[0]
    with torch.device("meta"):
        model = CLASSES[config.architectures[0]](config)
    if kind in PROBES:
        model.encoder.requires_grad_(False)
    buffers = 128 if kind == "pretraining" else 0  # the last bias is none of our parameters: it stays 0
    assert model.num_parameters() == parameters - buffers
    assert model.num_parameters(only_trainable=True) == trainable
    own = model.state_dict()
    assert {key: (v.shape, v.dtype) for key, v in own.items()} == {
        key: (v.shape, v.dtype) for key, v in converted.items()
    }
    back = to_released(config, own)
    assert {key: v.shape for key, v in back.items()} == {key: v.shape for key, v in released.items()}
    assert len(released) == {"pretraining": 166, "ltu": 154}.get(kind, len(released))


def test_aasist_is_refused_by_name():
    with pytest.raises(AlmosaicError, match=r"AASIST checkpoint \(.*not supported"):
        from_released(weights("tiny_aasist"), "envsdd", num_attention_heads=2)
