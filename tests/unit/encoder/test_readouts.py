"""Read-outs: golden logits, what each one reads, and fields that do not fit."""

import json
from pathlib import Path

import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.encoder.readouts import AttentiveReadout, WeightedSumReadout
from almosaic.errors import AlmosaicError

GOLDEN = Path(__file__).parents[2] / "golden" / "readouts.json"
SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "window_frames": 64}
READOUTS = {
    "pooled": {"readout": "pooled"},
    "layer_0": {"readout": "layer", "readout_layer": 0},
    "layer_2": {"readout": "layer", "readout_layer": 2},
    "weighted_sum": {"readout": "weighted_sum"},
    "attentive": {"readout": "attentive"},
    "attentive_4": {"readout": "attentive", "readout_heads": 4},
    "attentive_norm": {"readout": "attentive", "final_norm": "layernorm"},
}


def classifier(**fields):
    return AudioMosaicForAudioClassification(AudioMosaicConfig(**{**SIZES, "num_labels": 3, **fields})).eval()


def by_arithmetic(model):
    """Weights that no random generator can change; the first block is loud, so that layers differ."""
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if name != "encoder.pos_embed":
                values = torch.arange(parameter.numel(), dtype=torch.float64) * 0.7 + i
                parameter.copy_((values.sin() * 0.3 + (parameter.ndim == 1)).reshape(parameter.shape))
    return model


def spectrogram():
    cells = torch.arange(2 * 64 * 128, dtype=torch.float64)
    return (cells * 0.37).cos().float().reshape(2, 64, 128)


@pytest.mark.parametrize("name", READOUTS)
def test_golden_logits(name):
    """Stored when all read-outs equalled the outputs of the released code."""
    found = by_arithmetic(classifier(**READOUTS[name]))(spectrogram()).logits
    torch.testing.assert_close(
        found, torch.tensor(json.loads(GOLDEN.read_text())[name]), atol=2e-5, rtol=1e-5
    )


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_weighted_sum_and_a_layer_agree_where_one_layer_has_all_the_weight(layer):
    one = by_arithmetic(classifier(readout="layer", readout_layer=layer))
    summed = classifier(readout="weighted_sum")
    summed.load_state_dict(one.state_dict(), strict=False)
    summed.readout.layer_weights.data = torch.full((4,), -100.0)
    summed.readout.layer_weights.data[layer] = 100.0
    torch.testing.assert_close(summed(spectrogram()).logits, one(spectrogram()).logits)


def test_the_last_block_counts_twice_without_a_final_norm():
    model = by_arithmetic(classifier(readout="weighted_sum"))
    model.readout.layer_weights.data.zero_()
    encoded = model.encoder(spectrogram(), output_hidden_states=True)
    means = [tokens.mean(1) for tokens in encoded.hidden_states[1:]]
    expected = (means[0] + means[1] + 2 * means[2]) / 4
    found = model.readout(encoded, model.encoder.pool)
    torch.testing.assert_close(found, expected)


def test_queries_of_zero_attend_to_all_layers_alike():
    model = by_arithmetic(classifier(readout="attentive", readout_heads=4))
    model.readout.attn_query.data.zero_()
    encoded = model.encoder(spectrogram(), output_hidden_states=True)
    layers = (*encoded.hidden_states[1:], encoded.last_hidden_state)
    normed = [norm(tokens).mean(1) for norm, tokens in zip(model.readout.layer_norms, layers, strict=True)]
    expected = model.readout.attn_value(torch.stack(normed).mean(0))
    torch.testing.assert_close(model.readout(encoded, model.encoder.pool), expected)


@pytest.mark.parametrize("name", READOUTS)
def test_masked_tokens_and_pooling_reach_every_readout(name):
    """Only the kept patches count, and padded ones do not where pooling leaves them out."""
    model, features = by_arithmetic(classifier(**READOUTS[name], pooling="mean_valid")), spectrogram()
    kept, mask = torch.tensor([[0, 9, 17], [3, 4, 30]]), torch.ones(2, 64, dtype=torch.bool)
    changed = features.clone()
    changed[0, 32:48] = 0.0  # patches 16 to 23: the first row keeps 17, the second none of them
    before, after = (model(x, ids_keep=kept).logits for x in (features, changed))
    assert torch.equal(before[1], after[1]) and not torch.allclose(before[0], after[0])
    mask[:, 32:] = False
    whole, short = model(features, ids_keep=kept).logits, model(features, kept, mask).logits
    assert not torch.allclose(whole[0], short[0])


@pytest.mark.parametrize("name", READOUTS)
def test_every_parameter_learns_and_survives_saving(name, tmp_path):
    model = classifier(**READOUTS[name], initializer_range=0.2)
    torch.nn.init.normal_(model.head.weight)
    model(spectrogram(), labels=torch.tensor([0, 2])).loss.backward()
    blocks = READOUTS[name].get("readout_layer", 2)
    silent = {key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()}
    # A softmax over layers does not feel a bias that shifts all scores alike, but there is none here.
    assert all(int(key.split(".")[2]) > blocks for key in silent), silent
    model.save_pretrained(tmp_path)
    again = AudioMosaicForAudioClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(spectrogram()).logits, model(spectrogram()).logits)
    _, report = AudioMosaicModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]


def test_fresh_readouts_as_published():
    model = classifier(readout="attentive", hidden_size=96, readout_heads=2)
    query = model.readout.attn_query
    assert isinstance(model.readout, AttentiveReadout) and query.shape == (1, 2, 1, 48)
    assert 0.015 < query.std() < 0.025
    summed = classifier(readout="weighted_sum").readout
    assert isinstance(summed, WeightedSumReadout) and not summed.layer_weights.any()


def test_clips_of_several_windows():
    model, features = by_arithmetic(classifier()), torch.cat([spectrogram(), 0.5 * spectrogram()])
    each = model(features).logits
    found = model(features, audio_windows=torch.tensor([3, 1])).logits
    torch.testing.assert_close(found, torch.stack([each[:3].mean(0), each[3]]))
    mask = torch.ones(4, 64, dtype=torch.bool)
    mask[2, 16:] = False
    found = model(
        features, input_features_mask=mask, audio_windows=torch.tensor([3, 1]), labels=torch.tensor([0, 1])
    )
    weights = torch.tensor([64, 64, 16])[:, None] / 144
    torch.testing.assert_close(found.logits[0], (weights * each[:3]).sum(0))
    assert found.loss.ndim == 0
    with pytest.raises(AlmosaicError, match=r"add up to 4 windows, found \[3, 2\]"):
        model(features, audio_windows=torch.tensor([3, 2]))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"readout": "mean"}, "readout to be one of pooled, layer, weighted_sum, attentive, found 'mean'"),
        ({"readout": "layer"}, "readout_layer from 0 to 2 for readout: layer, found None"),
        ({"readout": "layer", "readout_layer": 3}, "found 3"),
        ({"readout_layer": 1}, "no readout_layer for readout: pooled, found 1"),
        ({"readout": "attentive", "readout_heads": 5}, "divide hidden_size 24, found 5"),
        ({"readout": "attentive", "readout_heads": 0}, "divide hidden_size 24, found 0"),
        ({"num_attention_heads": 0}, "found 24 with 0 heads"),
    ],
)
def test_fields_that_do_not_fit(fields, expected):
    with pytest.raises(AlmosaicError, match=expected):
        AudioMosaicConfig(**{**SIZES, **fields})
