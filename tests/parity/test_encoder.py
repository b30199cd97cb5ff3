"""Encoder tokens and pooled features of the released code, and the keys of its full-size models."""

import pytest
import torch
from released import CLASSES, arrays, close, meta, model, needs_oracle

from almosaic.encoder import AudioMosaicConfig

pytestmark = needs_oracle


@pytest.fixture(scope="module")
def stored():
    return arrays("tiny_pretrain_io")


def test_eval_tokens_and_pooled_features(stored):
    encoder = model("tiny_pretrain").encoder
    found = encoder(stored["x0"], output_hidden_states=True)
    close(found.last_hidden_state, stored["eval_toks"], atol=2e-5, rtol=1e-5)
    close(found.pooler_output, stored["eval_f"], atol=2e-5, rtol=1e-5)
    close(found.pooler_output, stored["eval_get_features"], atol=2e-5, rtol=1e-5)
    layer_means = torch.stack([layer.mean(1) for layer in found.hidden_states[1:]], dim=1)
    close(layer_means, stored["eval_layer_token_means"], atol=2e-5, rtol=1e-5)


def test_patch_embedding_and_block_input(stored):
    encoder = model("tiny_pretrain").encoder
    close(encoder.patch_embed(stored["x0"][:1]), stored["eval_patch_embed_sample0"], atol=2e-5, rtol=1e-5)
    first = encoder(stored["x0"][:1], output_hidden_states=True).hidden_states[0]
    close(first, stored["eval_tokens_after_norm_pre"], atol=2e-5, rtol=1e-5)


def test_cls_pooling(stored):
    found = model("tiny_pretrain", pooling="cls").encoder(stored["x0"]).pooler_output
    close(found, stored["eval_cls_pool_f"], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("branch, view", [("time", "x0"), ("freq", "x1"), ("unstructured", "x0")])
def test_masked_tokens_in_the_drawn_order(stored, branch, view):
    encoder = model("tiny_pretrain").encoder.train()
    found = encoder(stored[view], ids_keep=stored[f"train_{branch}_ids_keep"])
    close(found.last_hidden_state, stored[f"train_{branch}_toks"], atol=2e-5)
    close(found.pooler_output, stored[f"train_{branch}_f"], atol=2e-5)


@pytest.mark.parametrize(
    "name, listing, prefixes",
    [
        ("AudioMosaicForPreTraining", "keys_vitb16_pretrain", ("encoder.", "objective.")),
        ("AudioMosaicForAudioClassification", "keys_vitb16_classifier", ("encoder.",)),
    ],
)
def test_every_key_of_the_full_size_models(name, listing, prefixes):
    listed = meta(listing)
    classes = listed["keys"]["head.weight"]["shape"][0] if "head.weight" in listed["keys"] else 2
    with torch.device("meta"):
        full = CLASSES[name](AudioMosaicConfig.from_preset("base", num_labels=classes))
    found = {}
    for key, value in full.state_dict().items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        found[key.removeprefix(prefix)] = {
            "shape": list(value.shape),
            "dtype": str(value.dtype).removeprefix("torch."),
        }
    assert found == listed["keys"]
    assert full.num_parameters(only_trainable=True) == listed.get("n_trainable", listed["n_params"])
