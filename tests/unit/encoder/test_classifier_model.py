"""The classifier: losses for both kinds of labels, head initialisation, gradients, saving."""

import pytest
import torch
import torch.nn.functional as F

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification, AudioMosaicModel
from almosaic.errors import AlmosaicError

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "window_frames": 32}


def classifier(**overrides):
    return AudioMosaicForAudioClassification(AudioMosaicConfig(num_labels=5, **SIZES, **overrides))


def test_logits_are_the_head_on_the_normalised_pooled_vector():
    model, features = classifier().eval(), torch.randn(3, 32, 128)
    found = model(features, output_hidden_states=True)
    pooled = model.encoder(features).pooler_output
    torch.testing.assert_close(found.logits, model.head(F.layer_norm(pooled, (24,), eps=1e-6)))
    assert found.loss is None and len(found.hidden_states) == 3
    kept = torch.arange(4).expand(3, -1)
    torch.testing.assert_close(
        model(features, ids_keep=kept).logits,
        model.head(model.fc_norm(model.encoder(features, kept).pooler_output)),
    )


def test_losses():
    model, features = classifier(), torch.randn(3, 32, 128)
    classes, targets = torch.tensor([0, 4, 2]), torch.rand(3, 5)
    logits = model(features).logits
    torch.testing.assert_close(model(features, labels=classes).loss, F.cross_entropy(logits, classes))
    expected = F.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(model(features, labels=targets).loss, expected)
    assert not model.accepts_loss_kwargs
    model(features, labels=targets).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    "problem, shape",
    [("multi_label_classification", (3,)), ("single_label_classification", (3, 5)), (None, (3, 4))],
)
def test_labels_that_do_not_fit(problem, shape):
    with pytest.raises(AlmosaicError, match=r"expected labels \[3.*with 5 classes, found \[3"):
        classifier(problem_type=problem)(torch.zeros(3, 32, 128), labels=torch.zeros(shape))


def test_the_head_starts_near_zero():
    head = AudioMosaicForAudioClassification(AudioMosaicConfig.from_preset("tiny", num_labels=100)).head
    assert 2e-5 < head.weight.std() < 3e-5 and head.bias.eq(0).all()


def test_save_load_and_take_the_encoder_out(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path / "classifier")
    loaded = AudioMosaicForAudioClassification.from_pretrained(tmp_path / "classifier")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    encoder = AudioMosaicModel.from_pretrained(tmp_path / "classifier")
    torch.testing.assert_close(encoder.state_dict(), model.encoder.state_dict(), rtol=0, atol=0)
