"""The values mode where close numbers are subtracted: it forms the difference from the program."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln

import robustops as ro

SEGMENTS = np.array([0, 0, 0, 2, 2])
X = np.array([4096, 4096.015625, 4096.046875, -2000, -2000.125])
Y = np.array([900.125, 900, 900.25, 5000, 5000.5])
W = np.array([0.25, 0, 0.5, 0.125, 2])
per_segment = lambda v: jax.ops.segment_sum(v, SEGMENTS, 3)


def segment_covariance(x, y):
    n = per_segment(jnp.ones(5))
    return per_segment(x * y) / n - per_segment(x) / n * (per_segment(y) / n)


def masked_variance(x, y):
    del y
    m = W[:3] > 0
    n = jnp.sum(m)
    return jnp.sum(x[:3] ** 2 * m) / n - (jnp.sum(x[:3] * m) / n) ** 2


def weighted_covariance_of_columns(x, y):
    x, y = jnp.stack([x[:3], x[:3] + 1], 1), jnp.stack([y[:3], 2 * y[:3]], 1)
    w = W[:3, None]
    mean = lambda v: jnp.sum(w * v, 0) / jnp.sum(w, 0)
    return mean(x * y) - mean(x) * mean(y)


def _centred(w, x, y):
    about = lambda v: v - (w * v).sum() / w.sum()
    return (w * about(x) * about(y)).sum() / w.sum()


def _segments(x, y):
    parts = [_centred(np.ones(len(k)), x[k], y[k]) for k in ([0, 1, 2], [3, 4])]
    return np.array([parts[0], np.nan, parts[1]])


VARIANCES = {
    "segments": (segment_covariance, _segments),
    "mask": (masked_variance, lambda x, y: _centred(W[:3] > 0, x[:3], x[:3])),
    "weighted columns": (
        weighted_covariance_of_columns,
        lambda x, y: _centred(W[:3], x[:3], y[:3]) * np.array([1, 2]),
    ),
}


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_of_any_weights(name):
    fn, exact = VARIANCES[name]
    x, y = (jnp.asarray(v, jnp.float32) for v in (X, Y))
    robust = ro.robustify(fn, values=True)
    want = exact(X, Y)
    known = np.isfinite(want)
    got = np.asarray(jax.jit(robust)(x, y))
    np.testing.assert_allclose(got[known], want[known], rtol=1e-3)
    assert np.isfinite(got).all()
    assert not np.allclose(np.asarray(fn(x, y))[known], want[known], rtol=0.1)
    small = jnp.asarray([1.0, 2, 4, -1, 3], jnp.float32), jnp.asarray([3.0, 1, -2, 0, 5])
    got, plain = (np.asarray(jax.jit(f)(*small)) for f in (robust, fn))
    np.testing.assert_array_equal(got[known], plain[known])


def test_other_differences_of_means_are_left_alone():
    """The means of other weights are no part of a variance."""
    w = np.array([1.0, 2, 3])
    fn = lambda x: jnp.sum(w * x**2) / 6 - (jnp.sum(x) / 3) ** 2
    x = jnp.asarray([4096.0, 4096.5, 4097])
    np.testing.assert_array_equal(jax.jit(ro.robustify(fn, values=True))(x), jax.jit(fn)(x))


# Formula, arguments, value, and derivatives that are asked for (None: not asked).
FORMULAS = {
    "gammas": (lambda r: gammaln(r + 3) - gammaln(4.0) - gammaln(r), (1e6,), 39.6547727, (3e-6,)),
    "gammas, half": (
        lambda v: gammaln((v + 1) / 2) - gammaln(v / 2),
        (1e6,),
        6.5611814,
        (5e-7,),
    ),
    "gammas, two pairs": (
        lambda a, b: gammaln(3 + a) - gammaln(a) + gammaln(2 + b) - gammaln(b),
        (1e6, 2e6),
        70.4638511,
        (3e-6, 1e-6),
    ),
    "log(1 + u) times a large number": (
        lambda v, x: -(v + 1) / 2 * jnp.log(1 + x**2 / v),
        (1e6, 1.0),
        -0.50000025,
        (2.5e-13, -1.0),
    ),
    "log of a quotient near 1": (
        lambda m, r: r * jnp.log(r / (m + r)),
        (4.0, 1e7),
        -3.9999992,
        (-0.9999996, -8e-14),
    ),
    "log(1 + u) / u": (lambda u: jnp.log(1 + u) / u, (1e-9,), 1.0, None),
    "root less 1": (lambda x: jnp.sqrt(1 + x**2) - 1, (1e-3,), 4.99999875e-7, (9.999995e-4,)),
    "arccosh near 1": (lambda u: jnp.arccosh(1 + u), (1e-9,), 4.4721360e-5, (22360.6798,)),
    "arccos of cos": (lambda t: jnp.arccos(jnp.cos(t)), (1e-4,), 1e-4, (1.0,)),
    "some success of three": (
        lambda p: jnp.log(1 - (1 - p) ** 3),
        (1e-9,),
        math.log(3e-9),
        (1e9,),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_digits_that_a_sum_has_lost(name):
    fn, args, value, slopes = FORMULAS[name]
    args = tuple(map(jnp.float32, args))
    robust = jax.jit(ro.robustify(fn, values=True))
    np.testing.assert_allclose(robust(*args), value, rtol=2e-5)
    assert not np.allclose(fn(*args), value, rtol=1e-4, atol=0)
    for k, slope in enumerate(slopes or ()):
        np.testing.assert_allclose(jax.grad(robust, k)(*args), slope, rtol=1e-3, atol=2e-13)


def test_a_float16_sum_that_overflows_before_the_division():
    mean = ro.robustify(lambda x: jnp.sum(x) / x.size, values=True)
    x = jnp.full(100, 1000, jnp.float16)
    value, slope = jax.jit(jax.value_and_grad(mean))(x)
    assert value.dtype == jnp.float16
    assert float(value) == 1000
    np.testing.assert_allclose(slope, 0.01, rtol=1e-3)


@pytest.mark.parametrize("square", [jnp.square, lambda x: x**2, lambda x: x * x])
def test_float16_squares_that_overflow_before_their_mean(square):
    loss = ro.robustify(lambda x: jnp.mean(square(x - 1)), values=True)
    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.asarray([301, 2], jnp.float16))
    assert value.dtype == jnp.float16
    np.testing.assert_allclose(np.float64(value), 45000.5, rtol=1e-3)
    np.testing.assert_allclose(np.float64(slope), [300, 1], rtol=1e-3)
