"""Losses right to a few ulp in value and gradient, against mpmath."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from robustops import losses
from robustops._spec import Op
from robustops.testing import accuracy, ulp_distance

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
inf = math.inf


def _bce(mp, x, z):
    return z * mp.log1p(mp.exp(-x)) + (1 - z) * mp.log1p(mp.exp(x))


def _huber(mp, e):
    return e * e / 2 if abs(e) <= 1 else abs(e) - mp.mpf(1) / 2


# (reference, domain of each argument, magnitude of the gradient where it is a difference)
TRUTH = {
    "squared_error": (lambda mp, e: e * e, [(-inf, inf)], None),
    "huber_loss": (_huber, [(-inf, inf)], None),
    "log_cosh": (lambda mp, e: mp.log(mp.cosh(e)), [(-inf, inf)], None),
    "l2_loss": (lambda mp, e: e * e / 2, [(-inf, inf)], None),
    "log1p_squared_error": (lambda mp, e: mp.log1p(e * e), [(-inf, inf)], None),
    "charbonnier": (lambda mp, e: e * e / (1 + mp.sqrt(1 + e * e)), [(-inf, inf)], None),
    "cauchy": (lambda mp, e: mp.log1p(e * e / 2), [(-inf, inf)], None),
    "geman_mcclure": (lambda mp, e: e * e / (e * e + 1), [(-inf, inf)], None),
    "welsch": (lambda mp, e: -mp.expm1(-e * e / 2), [(-inf, inf)], None),
    "squared_log_error": (
        lambda mp, p, t: (mp.log1p(p) - mp.log1p(t)) ** 2,
        [(-1, inf), (-1, inf)],
        None,
    ),
    "gaussian_nll": (
        lambda mp, m, t, v: (mp.log(v) + (m - t) ** 2 / v) / 2,
        [(-inf, inf), (-inf, inf), (0, inf)],
        # (no float64 holds more than 1e308)
        lambda mp, m, t, v: (
            abs(mp.log(v)) + (m - t) ** 2 / v,
            min((1 + (m - t) ** 2 / v) / v, mp.mpf(10) ** 300),
        ),
    ),
    "poisson_nll": (
        lambda mp, r, t: mp.exp(r) - t * r,
        [(-inf, 80), (0, inf)],
        lambda mp, r, t: (mp.exp(r) + abs(t * r), mp.exp(r) + t),
    ),
    "sigmoid_binary_cross_entropy": (
        _bce,
        [(-inf, inf), (0, 1)],
        lambda mp, x, z: (0, max(1, abs(x))),
    ),
    "binary_cross_entropy": (
        lambda mp, p, z: -z * mp.log(p) - (1 - z) * mp.log1p(-p),
        [(0, 1), (0, 1)],
        lambda mp, p, z: (0, max(abs(mp.log(p)), z / p + (1 - z) / (1 - p))),
    ),
}


@pytest.mark.parametrize("name", TRUTH)
@each_dtype
def test_accuracy(name, dtype, x64):
    """4 ulp in value, 8 in gradient."""
    fn = getattr(losses, name)
    reference, domain, conditioning = TRUTH[name]
    op = Op(fn, fn, reference, domain, (), (4, 8), "", conditioning=conditioning)
    found = accuracy(op, dtype, samples=150, seed=3)
    assert found.samples > 40
    assert found.value <= op.ulps[0], found
    assert found.derivative <= op.ulps[1], found


def _focal(mp, x, gamma):
    """The loss and its slope for a label of 1."""
    p = 1 / (1 + mp.exp(-x))
    q = 1 / (1 + mp.exp(x))
    ce = mp.log1p(mp.exp(-x))
    weight = q**gamma if gamma else mp.mpf(1)
    return weight * ce, -weight * (q + gamma * p * ce)


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal_accuracy(gamma):
    """16 ulp up to the largest float; of two classes the multi-class loss is the same function."""
    top = float(jnp.finfo(jnp.float32).max)
    spread = np.random.default_rng(0).uniform(-30, 30, 200)
    x = np.concatenate([spread, [-top, -1e20, -300, -88, 0, 12, 40, 1e20, top]]).astype(np.float32)
    logits = jnp.stack([jnp.asarray(x), jnp.zeros_like(x)], -1)
    one_hot = jnp.asarray([1.0, 0.0])
    found = [
        jax.vmap(jax.value_and_grad(lambda v: losses.sigmoid_focal_loss(v, 1.0, gamma=gamma)))(x),
        jax.vmap(jax.value_and_grad(lambda v: losses.softmax_focal_loss(v, one_hot, gamma=gamma)))(
            logits
        ),
    ]
    slopes = [found[0][1], found[1][1][:, 0]]
    with mpmath.workdps(60):
        truth = [_focal(mpmath, mpmath.mpf(float(v)), mpmath.mpf(gamma)) for v in x]
    tiny = float(jnp.finfo(jnp.float32).tiny)
    for (value, _), slope in zip(found, slopes, strict=True):
        for k, got in enumerate((value, slope)):
            want = [t[k] for t in truth]
            normal = np.asarray([abs(v) >= tiny for v in want])
            assert np.max(ulp_distance(got, want)[normal]) <= 16
            assert np.all(abs(got)[~normal] <= 2 * tiny)


def test_focal_of_unlikely_label():
    """A label with p = 3e-8: 1 - (1 - p) would put 2e-6 into the slope, 16 ulp."""
    x = jnp.asarray([7.5, -15.0, 18.0, 24.75])
    slope = jax.grad(lambda v: losses.softmax_focal_loss(v, jnp.eye(4)[0]))(x)
    with mpmath.workdps(60):
        s = mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in x)
        p = [mpmath.exp(mpmath.mpf(float(v))) / s for v in x]
        weight = (1 - p[0]) * (1 - p[0] - 2 * p[0] * mpmath.log(p[0]))
        truth = [weight * (v - (k == 0)) for k, v in enumerate(p)]
    assert np.max(ulp_distance(slope, truth)) <= 4


def _general(mp, v, alpha):
    if alpha == -inf:
        return -mp.expm1(-v * v / 2)
    if alpha == 2:
        return v * v / 2
    b = abs(alpha - 2)
    return b / alpha * mp.expm1(alpha / 2 * mp.log1p(v * v / b)) if alpha else mp.log1p(v * v / 2)


@pytest.mark.parametrize("alpha", [-inf, -2.0, -1e-6, 0.0, 1e-6, 0.5, 1.0, 1.999, 2.0, 3.0])
def test_general_robust_loss(alpha):
    """No singularity left at alpha = 0, 2 and -inf; 8 ulp in value and slopes."""
    x = jnp.asarray([1e-18, 1e-4, 0.03, 0.3, 1.0, 2.5, 5.0, 11.0, 1e3, 1e8, 1e17], jnp.float32)
    a = jnp.asarray(alpha, jnp.float32)
    value = losses.general_robust_loss(x, alpha=a)
    slope = jax.vmap(jax.grad(lambda v: losses.general_robust_loss(v, alpha=a)))(x)
    by_alpha = jax.vmap(lambda v: jax.grad(lambda k: losses.general_robust_loss(v, alpha=k))(a))(x)
    by_scale = jax.vmap(
        lambda v: jax.grad(lambda s: losses.general_robust_loss(v, alpha=a, scale=s))(1.0)
    )(x)
    step = mpmath.mpf(10) ** -40
    with mpmath.workdps(150):
        exact = float(a) if math.isinf(alpha) else mpmath.mpf(float(a))
        for k, v in enumerate(mpmath.mpf(float(v)) for v in x):

            def f(v, alpha=exact):
                return _general(mpmath, v, alpha)

            d = (f(v * (1 + step)) - f(v * (1 - step))) / (2 * step * v)
            for got, want in ((value[k], f(v)), (slope[k], d), (by_scale[k], -v * d)):
                if 1e-37 < min(abs(want), abs(d)) and abs(want) < 3e38:
                    assert ulp_distance(got, want) <= 8, (v, got, want)
            if alpha == -inf:
                assert by_alpha[k] == 0
            elif alpha != 2:
                want = (f(v, exact + step) - f(v, exact - step)) / (2 * step)
                # Terms of this size cancel where the error is small.
                terms = mpmath.log1p(v * v / abs(exact - 2)) ** 2
                if abs(want) < 1e38:
                    assert abs(float(by_alpha[k]) - want) <= 2e-4 * abs(want) + 1e-6 * terms
    assert np.isfinite(by_alpha).all()


@pytest.mark.parametrize("alpha", [2, 1.0, 0, -2.0, -inf])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_members_of_the_general_family(alpha, scale):
    """A Python number takes a formula of its own; an array of one number the general one."""
    p, t = jnp.asarray([1e-4, -0.3, 2.5, -11.0, 1e3, 1e8]), jnp.asarray([0.0, 0.1, -1, 1, 0, 0])

    def both(alpha):
        def total(p, t):
            return losses.general_robust_loss(p, t, alpha=alpha, scale=scale).sum()

        value = losses.general_robust_loss(p, t, alpha=alpha, scale=scale)
        return value, jax.grad(total, (0, 1))(p, t)

    ours, general = both(alpha), both(jnp.float32(alpha))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=0), ours, general)
