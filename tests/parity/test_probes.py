"""Read-outs of the released probes: layer, weighted sum and attention, in the classifier of ours."""

import pytest
from released import arrays, close, meta, model_of_weights, needs_oracle, weights

from almosaic.encoder.conversion import to_released

pytestmark = needs_oracle
PROBES = {
    "weighted_sum": ("weighted_sum", None),
    "layer0": ("layer", 0),
    "layer_last": ("layer", 2),
    "attentive": ("attentive", None),
    "attentive_h4": ("attentive", None),
}


@pytest.mark.parametrize("name", PROBES)
def test_logits_of_every_probe(name):
    stored, described = arrays("tiny_probes_io"), meta("tiny_probes_meta")
    readout, layer = PROBES[name]
    released = weights("tiny_probes", f"{name}.")
    assert len(released) == described[name]["keys"]
    probe = model_of_weights(released, described["config"]["num_heads"], readout_layer=layer)
    assert probe.config.readout == readout
    assert probe.config.readout_heads == described[name]["extra"].get("num_attn_heads", 1)
    close(probe(stored["x"]).logits, stored[f"{name}_logits"], atol=2e-5, rtol=1e-5)
    assert to_released(probe.config, probe.state_dict()).keys() == released.keys()


@pytest.mark.parametrize("name", PROBES)
def test_what_a_frozen_encoder_leaves_trainable(name):
    described = meta("tiny_probes_meta")
    probe = model_of_weights(
        weights("tiny_probes", f"{name}."), described["config"]["num_heads"], readout_layer=PROBES[name][1]
    )
    probe.encoder.requires_grad_(False)
    trainable = {key for key, parameter in probe.named_parameters() if parameter.requires_grad}
    assert {key.removeprefix("readout.") for key in trainable} == set(described[name]["trainable"])
