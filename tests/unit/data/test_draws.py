"""Stateless draws: the same on every machine, uniform, and independent across keys, clips and columns."""

import numpy as np
import pytest

from almosaic.data.draws import generator, key, uniforms

GOLDEN_KEY = 6874562122026033345
GOLDEN_UNIFORMS = [
    [0.8036562204360962, 0.2648860216140747, 0.06155365705490112],
    [0.3493163585662842, 0.7174699902534485, 0.21542948484420776],
    [0.7599374055862427, 0.03082674741744995, 0.023960649967193604],
]
GOLDEN_INTEGERS = [608321412037, 524645146169]


def test_known_values_do_not_move():
    # Written down once: a change here would change every training run in progress.
    assert key("pretrain", 3, 17) == GOLDEN_KEY
    np.testing.assert_array_equal(uniforms(("pretrain", 3), [0, 1, 2**40], 3), np.float32(GOLDEN_UNIFORMS))
    assert generator("scene", 5).integers(0, 2**40, 2).tolist() == GOLDEN_INTEGERS


def test_parts_are_kept_apart():
    keys = [key(), key(1), key("1"), key(1, 1), key(11), key("a", "b"), key("ab"), key("a", "", "b"), key(-1)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= value < 2**63 for value in keys)
    assert key(np.int64(5)) == key(5)
    with pytest.raises(TypeError):
        key(0.5)


def test_a_row_depends_on_its_clip_alone():
    clips = np.arange(1000)
    everything = uniforms(("seed", 1), clips, 8)
    np.testing.assert_array_equal(uniforms(("seed", 1), clips[::-1], 8), everything[::-1])
    np.testing.assert_array_equal(uniforms(("seed", 1), [137, 137, 5], 8), everything[[137, 137, 5]])
    np.testing.assert_array_equal(uniforms(("seed", 1), clips, 3), everything[:, :3])
    assert everything.dtype == np.float32 and everything.shape == (1000, 8)


def test_other_parts_give_other_draws():
    draws = np.stack(
        [uniforms(("seed", epoch, view), range(500), 4) for epoch in range(3) for view in range(2)]
    )
    correlation = np.corrcoef(draws.reshape(6, -1))
    assert np.abs(correlation - np.eye(6)).max() < 0.1
    assert len(np.unique(uniforms(("x",), range(500), 4))) > 1990


def test_uniform_in_every_column_and_row():
    draws = uniforms(("chi", 2), range(20_000), 10)
    assert draws.min() >= 0.0 and draws.max() < 1.0
    for values in [*draws.T, draws[:2000].ravel()]:
        counts, _ = np.histogram(values, bins=50, range=(0, 1))
        expected = values.size / 50
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert 20 < chi_square < 100  # 49 degrees of freedom: 49 +- 10
    assert abs(draws.mean() - 0.5) < 3e-3 and abs(draws.var() - 1 / 12) < 1e-3


def test_neighbouring_clips_and_columns_are_uncorrelated():
    draws = uniforms((0,), range(20_000), 6)
    assert np.abs(np.corrcoef(draws.T) - np.eye(6)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    assert abs(np.corrcoef(draws[:, 0], np.arange(20_000))[0, 1]) < 0.03
