"""Scalers fitted to parts: as to the whole, whatever the parts, and for a million rows."""

import functools
from typing import Any

import jax
import numpy as np
import pytest

from robustops.train import MinMaxScaler, RobustScaler, StandardScaler

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(300, 4)) * [1e-30, 1, 1e3, 1e30] + [0, 1e6, 0, 1e30]).astype(np.float32)
each = pytest.mark.parametrize("scaler", [StandardScaler(), MinMaxScaler()], ids=lambda s: type(s))


def in_parts(scaler, x, size):
    parts = [x[i : i + size] for i in range(0, len(x), size)]
    return functools.reduce(type(scaler).partial_fit, parts, scaler)


def test_a_million_rows_of_mean_1e6():
    """float32 in parts of 1,000: mean and deviation as float64 finds them, to 1e-6."""
    x = (1e6 + RNG.normal(size=(1_000_000, 2)) * [1, 10]).astype(np.float32)
    found = in_parts(StandardScaler(), x, 10_000)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found.center, wide.mean(0), rtol=1e-7)
    np.testing.assert_allclose(found.scale, wide.std(0), rtol=1e-6)
    z = np.asarray(found.transform(x[:1000]), np.float64)
    np.testing.assert_allclose(z, (wide[:1000] - wide.mean(0)) / wide.std(0), atol=1e-5)


@each
@pytest.mark.parametrize("size", [1, 7, 150, 300])
def test_parts_are_as_the_whole(scaler, size):
    """Features of 1e-30 beside 1e30: rows one by one give what all together give."""
    found, whole = in_parts(scaler, X, size), scaler.fit(X)
    np.testing.assert_allclose(found.center, whole.center, rtol=1e-6, atol=1e-33)
    np.testing.assert_allclose(found.scale, whole.scale, rtol=5e-6)
    np.testing.assert_allclose(found.transform(X), whole.transform(X), rtol=1e-4, atol=1e-5)


@each
def test_missing_cells_constants_and_empty_features(scaler):
    """NaN and inf are left out; a part without a finite cell, and one that ends a constant, too."""
    x = X.copy()
    x[::3, 1] = np.nan
    x[:100, 2] = np.inf
    x[:, 0] = 7
    x[:, 3] = np.nan
    found, whole = in_parts(scaler, x, 50), scaler.fit(x)
    np.testing.assert_allclose(found.center, whole.center, rtol=1e-6)
    np.testing.assert_allclose(found.scale, whole.scale, rtol=5e-6)
    assert found.scale[0] == found.scale[3] == 1
    assert found.center[0] == 7
    later = found.partial_fit(np.full((300, 4), 9, np.float32))
    assert later.scale[0] > 0
    assert (scaler.low if isinstance(scaler, MinMaxScaler) else 0) == float(
        found.transform(np.full((1, 4), 7, np.float32))[0, 0]
    )


@each
@pytest.mark.parametrize("size", [1, 7])
def test_time_stamps_keep_their_seconds(scaler, size):
    """float64 and integers of the host, of which float32 tells only every 128th from another."""
    seconds = 1_700_000_000 + RNG.integers(0, 300, size=(60, 2)) * [1, 1000]
    for x in (seconds.astype(np.float64), seconds):
        found, whole = in_parts(scaler, x, size), scaler.fit(x)
        np.testing.assert_allclose(found.scale, whole.scale, rtol=1e-6)
        np.testing.assert_allclose(found.transform(x), whole.transform(x), atol=1e-5)
    mixed = found.partial_fit(np.full((1, 2), 1.7e9, np.float32))
    x = np.concatenate([seconds, np.full((1, 2), 1.7e9)])
    np.testing.assert_allclose(mixed.transform(x), scaler.fit(x).transform(x), atol=1e-5)
    constant = in_parts(scaler, np.full((4, 1), 1_700_000_001), 1)
    assert constant.scale[0] == 1
    assert constant.transform(np.full((1, 1), 1_700_000_001)) == 0
    rounded = jax.jit(lambda s, x: s.partial_fit(x))(found, x.astype(np.float32))
    assert np.isfinite(rounded.scale).all()


def test_a_fitted_stream_is_a_pytree():
    """It goes through jit, and goes on from a copy of its leaves."""
    half = StandardScaler().partial_fit(X[:150])
    leaves, tree = jax.tree.flatten(half)
    again = tree.unflatten([np.asarray(leaf) for leaf in leaves])
    a, b = again.partial_fit(X[150:]), half.partial_fit(X[150:])
    np.testing.assert_array_equal(a.scale, b.scale)
    np.testing.assert_array_equal(jax.jit(lambda s, x: s.transform(x))(b, X), b.transform(X))


def test_errors():
    with pytest.raises(ValueError, match="comes from fit, which keeps no counts; begin with"):
        StandardScaler().fit(X).partial_fit(X)
    with pytest.raises(ValueError, match="the parts so far have 4 features, this one has 3"):
        MinMaxScaler().partial_fit(X).partial_fit(X[:, :3])
    with pytest.raises(ValueError, match=r"partial_fit: x must have axes \[rows, features\]"):
        StandardScaler().partial_fit(X[:, 0])
    robust: Any = RobustScaler()
    assert not hasattr(robust, "partial_fit")
