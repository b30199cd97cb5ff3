"""Classifier logits of the released code, with and without token masking."""

import pytest
import torch
from released import arrays, close, meta, model, needs_oracle

from almosaic.masking import PatchGrid, time_frequency_mask_from_scores

pytestmark = needs_oracle


@pytest.mark.parametrize("name", ["tiny_classifier", "tiny_classifier_esc"])
def test_eval_logits(name):
    stored, classifier = arrays(f"{name}_io"), model(name)
    encoded = classifier.encoder(stored["x"])
    close(encoded.last_hidden_state, stored["eval_tokens"], atol=2e-5, rtol=1e-5)
    close(encoded.pooler_output, stored["eval_pooled"], atol=2e-5, rtol=1e-5)
    close(classifier.fc_norm(encoded.pooler_output), stored["eval_fc_normed"], atol=2e-5, rtol=1e-5)
    close(classifier(stored["x"]).logits, stored["eval_avg_logits"], atol=2e-5, rtol=1e-5)
    by_cls = model(name, pooling="cls")
    close(by_cls(stored["x"]).logits, stored["eval_cls_logits"], atol=2e-5, rtol=1e-5)


def test_token_masking_in_training():
    """Fine-tuning masks cut true time rows, then bands; only the order of tokens differs from ours."""
    stored, classifier = arrays("tiny_classifier_esc_io"), model("tiny_classifier_esc").train()
    settings, grid = meta("tiny_classifier_esc_meta")["train_mask"], PatchGrid(32, 8)
    mask = time_frequency_mask_from_scores(
        grid,
        stored["train_mask_noise_t"],
        stored["train_mask_noise_f"],
        settings["mask_t_prob"],
        settings["mask_f_prob"],
    )
    rows, bands = stored["train_mask_keep_t"], stored["train_mask_keep_f"]
    assert mask.ids_keep.shape[1] == settings["keep_t"] * settings["keep_f"]
    expected = (rows[:, :, None] * grid.freq + bands[:, None, :]).flatten(1).sort(1).values
    assert torch.equal(mask.ids_keep, expected)
    close(classifier(stored["x"], ids_keep=mask.ids_keep).logits, stored["train_mask_logits"], atol=2e-5)
