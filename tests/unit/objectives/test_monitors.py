"""Intrinsic dimension and effective rank: against slow definitions, known dimensions and stored figures."""

import math

import numpy as np
import pytest
import torch

from almosaic.objectives.monitors import effective_rank, intrinsic_dimensions, representation_metrics


def features(rows, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32))


def slow_dimension(points, reference, row, neighbours):
    distances = sorted(float(np.linalg.norm(points[row] - other)) for other in reference)[1:]
    mean = sum(distances[: neighbours - 1]) / (neighbours - 1)
    return mean / (distances[neighbours - 1] - mean)


@pytest.mark.parametrize("neighbours", [2, 5, 18])
def test_dimension_against_the_definition(neighbours):
    reference = features(20, 6) + 40.0  # far from the origin, where a plain product loses digits
    found = intrinsic_dimensions(reference[:7], reference, neighbours)
    exact = reference.double().numpy()
    expected = [slow_dimension(exact, exact, row, neighbours) for row in range(7)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_many_rows_far_from_the_origin_keep_their_dimension():
    near = intrinsic_dimensions(features(64, 12), features(64, 12), 20)
    far = intrinsic_dimensions(features(64, 12) + 50.0, features(64, 12) + 50.0, 20)
    torch.testing.assert_close(far, near, rtol=1e-3, atol=0)


@pytest.mark.parametrize("dimension", [1, 2, 4])
def test_a_flat_piece_of_space_has_its_own_dimension(dimension):
    inside = torch.from_numpy(np.random.default_rng(1).uniform(size=(1000, dimension)).astype(np.float32))
    bent = inside @ torch.linalg.qr(features(30, dimension)).Q.T
    found = intrinsic_dimensions(bent, bent, 20).median().item()
    assert found == pytest.approx(dimension, rel=0.2)


def test_effective_rank_against_the_singular_values():
    for rows, width in ((9, 30), (30, 9)):
        points = features(rows, width) * torch.linspace(0.1, 3, width) + 5.0
        values = np.linalg.svd((points - points.mean(0)).double().numpy(), compute_uv=False)
        shares = values[values > 1e-9] / values.sum()
        assert effective_rank(points).item() == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))


def test_effective_rank_of_known_shapes():
    axes = torch.cat([torch.eye(5), -torch.eye(5)])  # five directions of equal length
    assert effective_rank(axes @ torch.linalg.qr(features(40, 5)).Q.T).item() == pytest.approx(5.0, rel=1e-5)
    assert effective_rank(features(12, 1) @ features(1, 8) + 3.0).item() == pytest.approx(1.0, abs=1e-3)
    assert effective_rank(3.0 * axes).item() == pytest.approx(5.0)


def test_a_collapsed_representation_is_one_point():
    found = representation_metrics(torch.full((8, 6), 0.3), 32)
    assert {name: value.item() for name, value in found.items()} == {
        "effective_rank": pytest.approx(1.0),
        "lid_mean": 0.0,
        "lid_var": 0.0,
    }


def test_metrics_of_a_batch():
    points = features(16, 6).requires_grad_()
    found = representation_metrics(points, 32)
    assert not any(value.requires_grad for value in found.values())
    assert all(value.shape == () and value.dtype == torch.float32 for value in found.values())
    dimensions = intrinsic_dimensions(points.detach(), points.detach(), 14)  # all but two
    assert found["lid_mean"].item() == pytest.approx(dimensions.mean().item())
    assert found["lid_var"].item() == pytest.approx(dimensions.var().item())
    assert representation_metrics(points, 5)["lid_mean"] != found["lid_mean"]
    assert set(representation_metrics(points, None)) == {"effective_rank"}


def test_low_precision_features_are_measured_in_full():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = representation_metrics(features(16, 6), 5)
    assert inside == representation_metrics(features(16, 6), 5)
    assert representation_metrics(features(16, 6).bfloat16(), 5)["lid_mean"].dtype == torch.float32


def test_a_feature_that_is_not_finite_gives_no_number_and_no_crash():
    for bad in (math.nan, math.inf):
        points = features(16, 6)
        points[3, 2] = bad
        assert representation_metrics(points, 5)["effective_rank"].isnan()


@pytest.mark.parametrize("rows, measured", [(3, set()), (4, {"lid_mean", "lid_var"})])
def test_very_few_rows_have_no_dimension(rows, measured):
    metrics = representation_metrics(features(rows, 6), 32)
    assert set(metrics) == {"effective_rank"} | measured
    assert all(value.isfinite() for value in metrics.values())
