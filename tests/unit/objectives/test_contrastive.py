"""NT-Xent against an explicit loop and its closed form, and the objective around it."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from almosaic.encoder import AudioMosaicConfig, AudioMosaicModel
from almosaic.errors import AlmosaicError
from almosaic.masking import PatchMask, random_mask, time_mask
from almosaic.objectives import build_objective, objective_settings
from almosaic.objectives.contrastive import ContrastiveObjective, ContrastiveSettings, NTXent
from almosaic.objectives.monitors import representation_metrics


def slow_ntxent(z, temperature):
    """The formula, one anchor and one candidate at a time: loss and top-1 accuracy."""
    unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
    losses, hits = [], []
    for view in (0, 1):
        for i in range(z.shape[1]):
            scores = {}
            for other in (0, 1):
                for j in range(z.shape[1]):
                    if (other, j) != (view, i):
                        scores[other, j] = float(unit[view, i] @ unit[other, j]) / temperature
            positive = (1 - view, i)
            losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[positive])
            hits.append(max(scores, key=scores.get) == positive)
    return np.mean(losses), np.mean(hits)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("clips", [2, 7])
def test_against_the_explicit_loop(clips, temperature):
    z = np.random.default_rng(clips).normal(size=(2, clips, 5))
    z[1] += 0.8 * z[0]
    loss, metrics = NTXent(temperature)(torch.from_numpy(z))
    expected, accuracy = slow_ntxent(z, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert metrics["contrastive_accuracy"].item() == pytest.approx(accuracy)


@pytest.mark.parametrize("clips", [1, 2, 16])
def test_equal_vectors_cannot_be_told_apart(clips):
    loss, _ = NTXent(0.1)(torch.ones(2, clips, 4))
    assert loss.item() == pytest.approx(math.log(2 * clips - 1), abs=1e-5)


def test_the_loss_ignores_length_and_order_of_clips():
    z = torch.randn(2, 6, 8)
    loss = NTXent(0.1)(z)[0]
    torch.testing.assert_close(NTXent(0.1)(z * torch.rand(2, 6, 1).add(0.5))[0], loss)
    torch.testing.assert_close(NTXent(0.1)(z[:, torch.randperm(6)])[0], loss)
    torch.testing.assert_close(NTXent(0.1)(z.flip(0))[0], loss)


def test_similarities_stay_in_float32():
    z = torch.randn(2, 8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = NTXent(0.1)(z)[0]
    assert inside.dtype == torch.float32 and torch.equal(inside, NTXent(0.1)(z)[0])
    assert NTXent(0.1)(z.bfloat16())[0].dtype == torch.float32


def test_alignment_and_uniformity():
    z = torch.randn(2, 5, 3)
    metrics = NTXent(0.1)(z)[1]
    unit = torch.nn.functional.normalize(z, dim=-1)
    assert metrics["alignment"].item() == pytest.approx((unit[0] - unit[1]).square().sum(1).mean().item())
    pairs = torch.cat([torch.nn.functional.pdist(view) for view in unit])
    expected = (-2 * pairs.square()).exp().mean().log().item()
    assert metrics["uniformity"].item() == pytest.approx(expected, abs=1e-5)
    assert NTXent(0.1)(torch.ones(2, 5, 3))[1]["uniformity"].item() == pytest.approx(0.0, abs=1e-5)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_learned_temperature():
    z = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    learned = NTXent(learnable=True)
    loss, metrics = learned(z)
    torch.testing.assert_close(loss, NTXent(0.07)(z)[0])
    assert metrics["temperature"].item() == pytest.approx(0.07) and not metrics["temperature"].requires_grad
    loss.backward()
    with torch.no_grad():
        start = learned.log_scale.item()
        sides = []
        for s in (start + 1e-2, start - 1e-2):
            learned.log_scale.fill_(s)
            sides.append(learned(z)[0].item())
    assert learned.log_scale.grad.item() == pytest.approx((sides[0] - sides[1]) / 2e-2, rel=1e-2)


@pytest.mark.parametrize("log_scale, temperature", [(9.0, 0.01), (-3.0, 1.0), (math.log(2.0), 0.5)])
def test_a_learned_temperature_stays_between_its_limits(log_scale, temperature):
    learned, z = NTXent(learnable=True), torch.randn(2, 6, 8)
    with torch.no_grad():
        learned.log_scale.fill_(log_scale)
    loss, metrics = learned(z)
    torch.testing.assert_close(loss, NTXent(temperature)(z)[0])
    assert metrics["temperature"].item() == pytest.approx(temperature)


CONFIG = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "window_frames": 64}


def parts(**overrides):
    config = AudioMosaicConfig(**{**CONFIG, **overrides})
    settings = ContrastiveSettings(projection_hidden=16, projection_size=8)
    return AudioMosaicModel(config).train(), build_objective(settings, config).train()


def views_and_masks(encoder, batch=4):
    grid = encoder.config.grid
    masks = [time_mask(grid, batch, ratio=0.5), random_mask(grid, batch, ratio=0.25)]
    return [torch.randn(batch, 64, 128) for _ in masks], masks


def test_the_objective_is_projection_then_loss():
    encoder, objective = parts()
    assert isinstance(objective, ContrastiveObjective) and objective.views_needed == 2
    views, masks = views_and_masks(encoder)
    found = objective(encoder, views, masks)
    z = torch.stack([objective.project(encoder, view, mask) for view, mask in zip(views, masks, strict=True)])
    assert z.shape == (2, 4, 8)
    torch.testing.assert_close(found.loss, objective.loss(z)[0])
    assert set(found.metrics) == {
        "contrastive_loss",
        "contrastive_accuracy",
        "alignment",
        "uniformity",
        "kept_padding",
        "temperature",
        "effective_rank",
        "lid_mean",
        "lid_var",
    }
    found.loss.backward()
    assert all(p.grad is not None for p in [*encoder.parameters(), *objective.parameters()])


def test_costly_metrics_can_be_left_out():
    encoder, objective = parts()
    given = views_and_masks(encoder)
    full = set(objective(encoder, *given).metrics)
    objective.lid_neighbours = None
    assert full - set(objective(encoder, *given).metrics) == {"lid_mean", "lid_var"}
    objective.measures = False
    assert full - set(objective(encoder, *given).metrics) == {"lid_mean", "lid_var", "effective_rank"}


def test_the_metrics_are_those_of_both_views_pooled():
    encoder, objective = parts()
    views, masks = views_and_masks(encoder)
    pooled = [encoder(v, ids_keep=m.ids_keep).pooler_output for v, m in zip(views, masks, strict=True)]
    expected = representation_metrics(torch.cat(pooled), 32)
    found = objective(encoder, views, masks).metrics
    torch.testing.assert_close({name: found[name] for name in expected}, expected)


def test_each_view_is_normalised_by_itself():
    encoder, objective = parts()
    objective(encoder, *views_and_masks(encoder))
    assert objective.projector[1].num_batches_tracked == 2


def test_kept_padding_is_counted():
    encoder, objective = parts()
    views, (first, second) = views_and_masks(encoder)
    padded = PatchMask(second.ids_keep, second.ids_masked, second.ids_restore, torch.zeros_like(second.valid))
    metrics = objective(encoder, views, [first, padded]).metrics
    assert metrics["kept_padding"].item() == pytest.approx(0.5)


def test_a_final_norm_in_the_encoder_replaces_that_of_the_head():
    encoder, objective = parts(final_norm="layernorm")
    assert isinstance(objective.fc_norm, torch.nn.Identity)
    assert objective(encoder, *views_and_masks(encoder)).loss.isfinite()


def test_refusals():
    encoder, objective = parts()
    views, masks = views_and_masks(encoder)
    with pytest.raises(AlmosaicError, match=r"expected 2 views with 2 masks.*found 1 views and 2 masks"):
        objective(encoder, views[:1], masks)
    with pytest.raises(AlmosaicError, match=r"at least 2 clips .* contrastive, found 1"):
        objective(encoder, *views_and_masks(encoder, batch=1))
    with pytest.raises(ValidationError):
        ContrastiveSettings(temperature=0.0)
    with pytest.raises(ValidationError, match=r"temperature 0.2 has no effect on a learned temperature"):
        ContrastiveSettings(temperature=0.2, learnable_temperature=True)
    with pytest.raises(AlmosaicError, match=r"expected the settings of an objective.*tau"):
        objective_settings({"name": "contrastive", "tau": 0.1})
