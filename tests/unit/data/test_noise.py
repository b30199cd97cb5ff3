"""Hashed noise is normal, white, and each row's own."""

import numpy as np
import torch
from scipy import stats

from almosaic.data.draws import _mix
from almosaic.data.noise import _mixed, hashed_normal


def test_rows_are_normal_and_white():
    noise = hashed_normal([3, 4, 1 << 62], 50_001, "cpu")
    assert noise.shape == (3, 50_001) and noise.dtype == torch.float32
    for row in noise.double().numpy():
        assert stats.kstest(row, "norm").pvalue > 0.01
        correlations = [np.corrcoef(row[:-lag], row[lag:])[0, 1] for lag in (1, 2, 3, 100)]
        assert np.abs(correlations).max() < 0.015
    assert np.abs(np.corrcoef(noise)[np.triu_indices(3, 1)]).max() < 0.015
    assert np.abs(np.corrcoef(noise[0, :-1:2] ** 2, noise[0, 1::2] ** 2)[0, 1]) < 0.02  # of one pair


def test_a_row_depends_on_its_seed_alone():
    together = hashed_normal([5, 6, 5], 1000, "cpu")
    assert torch.equal(together[0], together[2]) and not torch.equal(together[0], together[1])
    assert torch.equal(hashed_normal([6], 301, "cpu")[0], together[1, :301])


def test_the_hash_is_that_of_the_other_draws():
    words = np.array([1, 2**63 - 1, 12345], dtype=np.uint64)
    with np.errstate(over="ignore"):
        expected = _mix(words)
    found = _mixed(torch.from_numpy(words.astype(np.int64))).numpy().astype(np.uint64)
    np.testing.assert_array_equal(found, expected)
