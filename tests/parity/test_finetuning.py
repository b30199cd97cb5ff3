"""Parity of fine-tuning with the released code: parameter groups of layer decay, schedule, evaluation."""

import json

import numpy as np
import pytest
import torch

from almosaic.encoder import AudioMosaicConfig, AudioMosaicForAudioClassification
from almosaic.evaluation.metrics import (
    equal_error_rate,
    mean_auc,
    mean_average_precision,
    top1_accuracy,
)
from almosaic.training.optim import OptimSettings, parameter_groups, rate_factor
from almosaic.training.selection import classifier_scores
from tests.parity.released import ORACLE, needs_oracle

pytestmark = needs_oracle


def stored(name):
    return json.loads((ORACLE / name).read_text())


@pytest.mark.parametrize("decay", ["0.65", "0.75"])
def test_rate_and_decay_of_every_parameter(decay):
    expected = {
        name: (group["lr_scale"], group["weight_decay"])
        for group in stored("optim_groups.json")["classifier_layer_decay_groups"][decay]
        for name in group["names"]
    }
    with torch.device("meta"):
        model = AudioMosaicForAudioClassification(AudioMosaicConfig(num_labels=527))
    settings = OptimSettings(steps=1, learning_rate=1.0, weight_decay=0.01, layer_decay=float(decay))
    names = {id(parameter): name.removeprefix("encoder.") for name, parameter in model.named_parameters()}
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"])
        for group in parameter_groups(model, settings, {"encoder": "encoder", "head": ""})
        for parameter in group["params"]
    }
    assert found.keys() == expected.keys()
    for name, (scale, weight_decay) in expected.items():
        assert found[name] == (pytest.approx(scale, rel=1e-12), weight_decay), name


def test_schedule_is_the_published_one_half_a_step_of_warm_up_apart():
    """After warm-up the curves agree to 1e-9; before, ours begins one step later than 0."""
    known = stored("optim_groups.json")["lr_schedule_cosine"]["as20k_lr1.25e-4_warm1296_total19440"]
    rate, steps = known["lr"], known["total_steps"]
    settings = OptimSettings(
        steps=steps, warmup=known["warmup_steps"] / steps, min_ratio=known["min_lr"] / rate
    )
    for step, expected in known["points"]:
        found = rate * rate_factor(settings, step, steps)
        assert found == pytest.approx(expected, abs=1e-9 if step >= known["warmup_steps"] else rate / 1296)


def test_evaluation_of_several_labels():
    known = stored("metrics_io.json")["multilabel"]
    logits, targets = np.array(known["logits"]), np.array(known["targets"])
    result, scores = known["result"], 1 / (1 + np.exp(-logits))
    assert mean_average_precision(scores, targets) == pytest.approx(result["mAP"], abs=1e-9)
    assert mean_auc(scores, targets) == pytest.approx(result["mAUC"], abs=1e-9)
    found = classifier_scores(logits, targets, "bce")
    expected = {"map": result["mAP"], "auc": result["mAUC"], "accuracy": result["acc"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_evaluation_of_two_classes():
    known = stored("metrics_io.json")["two_class_eer"]
    logits, targets = np.array(known["logits"]), np.array(known["targets"])
    scores = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[:, 1]
    assert equal_error_rate(scores, targets) == pytest.approx(known["result"]["EER"], abs=1e-9)
    found = classifier_scores(logits, np.eye(2)[targets], "ce")
    assert found["eer"] == pytest.approx(known["result"]["EER"], abs=1e-9)
    assert found["auc"] == pytest.approx(known["result"]["AUC"], abs=1e-9)


def test_evaluation_of_one_label():
    known = stored("metrics_io.json")["single_label"]
    # The reference took its mean in float32.
    assert top1_accuracy(known["logits"], known["targets"]) == pytest.approx(known["result"]["acc"], abs=1e-7)
