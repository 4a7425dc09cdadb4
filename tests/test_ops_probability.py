"""Hand-picked points of the ops of probability: literature values, zeros, options."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special

import robustops as ro
from robustops.testing import check_total, edge_cases, ulp_distance

inf = math.inf
f32 = lambda v: jnp.asarray(v, jnp.float32)
TOP = float(jnp.finfo(jnp.float32).max)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        # Abramowitz and Stegun, tables 4.2 and 4.4: log 2, log 3, e, and what follows from them.
        (lambda: ro.log_sigmoid(f32(0)), -0.69314718055994530942),
        (lambda: ro.softplus(f32(1)), 1.31326168751822283405),
        (lambda: ro.softplus_inverse(f32(1)), 0.54132485461291810898),
        (lambda: ro.safe_logit(f32(0.75)), 1.09861228866810969140),
        (lambda: ro.xlog1py(f32(2), f32(1)), 1.38629436111989061883),
        (lambda: ro.entr(f32(0.5)), 0.34657359027997265471),
        (lambda: ro.rel_entr(f32(0.5), f32(0.25)), 0.34657359027997265471),
        (lambda: ro.kl_div(f32(2), f32(1)), 0.38629436111989061883),
        (lambda: ro.log1mexp(f32(1)), -0.45867514538708189102),
        (lambda: ro.logaddexp(f32(1), f32(2)), 2.31326168751822283405),
        (lambda: ro.logsubexp(f32(2), f32(1)), 1.54132485461291810898),
        (lambda: ro.log_cosh(f32(1)), 0.43378083048302718703),
        (lambda: ro.logcumsumexp(f32([0, 0, 0]))[2], 1.09861228866810969140),
        (lambda: ro.logmeanexp(f32([0, 1])), 0.62011450695827752463),
    ],
)
def test_known_values(got, want):
    assert ulp_distance(got(), want) <= 2


LN2 = float(np.float32(math.log(2)))
INVERSE_E = float(np.float32(math.exp(-1)))
# Where the plain formulas lose their digits: next to a zero of the value or of a derivative, and
# where one exponential vanishes beside the other.
HARD = [
    ("log_cosh", lambda x: mpmath.log(mpmath.cosh(x)), [1e-6, 3e-4, 0.999, 1.0, 40.0]),
    ("softplus", lambda x: mpmath.log1p(mpmath.exp(x)), [-80.0, -17.0, 1e-3, 20.0]),
    ("log_sigmoid", lambda x: -mpmath.log1p(mpmath.exp(-x)), [80.0, 17.0, -1e-3, -20.0]),
    ("safe_logit", lambda x: mpmath.log(x / (1 - x)), [0.5 + 2**-24, 0.4999, 1e-30, 1 - 2**-24]),
    (
        "softplus_inverse",
        lambda y: mpmath.log(mpmath.expm1(y)),
        [LN2, LN2 + 2**-24, LN2 - 2**-22, 0.6, 0.5, 0.49, 1.0, 1e-30, 80.0],
    ),
    ("log1mexp", lambda x: mpmath.log(-mpmath.expm1(-x)), [1e-30, 1e-4, 0.49, 0.51, LN2, 80.0]),
    (
        "entr",
        lambda x: -x * mpmath.log(x),
        [INVERSE_E, INVERSE_E + 2**-24, INVERSE_E - 2**-20, 1 - 2**-24, 1e-30],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "reference", "points"), HARD, ids=[row[0] for row in HARD])
def test_right_where_the_formula_loses_its_digits(name, reference, points):
    x = f32(points)
    value, slope = jax.vmap(jax.value_and_grad(getattr(ro, name)))(x)
    with mpmath.workdps(80):
        exact = [mpmath.mpf(float(v)) for v in x]
        assert np.all(ulp_distance(value, [reference(v) for v in exact]) <= 4)
        slopes = [mpmath.diff(reference, v, h=v * mpmath.mpf(10) ** -25) for v in exact]
        assert np.all(ulp_distance(slope, slopes) <= 8)


def pairs(*rows):
    return f32([row[0] for row in rows]), f32([row[1] for row in rows])


HARD_PAIRS = [
    (
        "kl_div",
        lambda x, y: x * mpmath.log(x / y) - x + y,
        pairs((1, 1 + 2**-20), (0.3, 0.3001), (1e-20, 1.1e-20), (3, 1), (1, 3.1), (1e15, 1e-15)),
    ),
    (
        "rel_entr",
        lambda x, y: x * mpmath.log(x / y),
        # The derivative by x is 0 at x = y / e.
        pairs(
            (1, 1 + 2**-20), (0.3, 0.3001), (1e15, 1e-15), (1e-15, 1e15),
            (INVERSE_E, 1), (22.458139, 61.047558), (3e-38, 8.15e-38),
        ),
    ),
    (
        "logaddexp",
        lambda x, y: mpmath.log(mpmath.exp(x) + mpmath.exp(y)),
        pairs((60.3, 0.1), (0.1, 33.7), (1e-30, -70), (1000, 999)),
    ),
    (
        "logsubexp",
        lambda x, y: mpmath.log(abs(mpmath.exp(x) - mpmath.exp(y))),
        pairs((60.3, 0.1), (0.1, 33.7), (-3, -3 + 2**-22), (1e-30, -70), (1000, 999)),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reference", "points"), HARD_PAIRS, ids=[r[0] for r in HARD_PAIRS]
)
def test_pairs_right_where_the_formula_loses_its_digits(name, reference, points):
    fn = getattr(ro, name)
    value, slopes = jax.vmap(jax.value_and_grad(fn, (0, 1)))(*points)
    with mpmath.workdps(80):
        step = mpmath.mpf(10) ** -25
        for i, (x, y) in enumerate(zip(*points, strict=True)):
            x, y = mpmath.mpf(float(x)), mpmath.mpf(float(y))
            assert ulp_distance(value[i], reference(x, y)) <= 4, (x, y)
            by_x = (reference(x * (1 + step), y) - reference(x * (1 - step), y)) / (2 * step * x)
            by_y = (reference(x, y * (1 + step)) - reference(x, y * (1 - step))) / (2 * step * y)
            assert ulp_distance(slopes[0][i], by_x) <= 8, (x, y)
            assert ulp_distance(slopes[1][i], by_y) <= 8, (x, y)


def test_kl_div_is_never_negative():
    x = f32(np.random.default_rng(0).uniform(0, 2, 2000))
    for factor in (1, 1 + 2**-23, 1 - 2**-24, 1.01, 3.9, 0.2):
        assert np.all(ro.kl_div(x, x * factor) >= 0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ro.entr, scipy.special.entr),
        (ro.rel_entr, scipy.special.rel_entr),
        (ro.kl_div, scipy.special.kl_div),
        (ro.xlog1py, scipy.special.xlog1py),
        (ro.safe_logit, scipy.special.logit),
        (ro.logaddexp, np.logaddexp),
        (ro.log_sigmoid, scipy.special.log_expit),
        (ro.softplus, lambda x: np.logaddexp(0, x)),
        (ro.softplus_inverse, lambda y: y + np.log(-np.expm1(-y))),
        (ro.log1mexp, lambda x: np.log(-np.expm1(-x))),
    ],
)
def test_ordinary_input_and_broadcasting(ours, theirs):
    x = np.linspace(0.05, 0.95, 7, dtype=np.float32)[:, None]
    two = getattr(theirs, "nin", 1) == 2
    args = (x, x[:3, 0] + np.float32(0.02)) if two else (x,)
    want = theirs(*(a.astype(np.float64) for a in args))
    np.testing.assert_allclose(ours(*args), want, rtol=1e-6)


def test_what_a_constant_is_folded_to():
    """XLA adds constants up before they meet an argument, if it can."""
    x, one = f32([INVERSE_E, INVERSE_E + 2**-24]), np.float32(1)
    free = jax.jit(jax.vmap(jax.grad(ro.rel_entr), (0, None)))(x, one)
    held = jax.jit(jax.vmap(jax.grad(lambda v: ro.rel_entr(v, one))))(x)
    assert np.array_equal(held, free)
    assert np.max(ulp_distance(jax.vmap(jax.grad(ro.entr))(x), -np.asarray(held, np.float64))) <= 2
    for fn in (ro.logaddexp, ro.logsubexp, ro.kl_div):
        want = fn(f32([60.3, 0.1, 1.0]), f32([0.3, 33.7, 3.0]))
        got = jax.jit(lambda fn=fn: fn(f32([60.3, 0.1, 1.0]), f32([0.3, 33.7, 3.0])))()
        np.testing.assert_allclose(got, want, rtol=3e-7)


def test_zero_probabilities():
    p = f32([0.0, 0.25, 0.75, 0.0])
    q = f32([0.5, 0.0, 0.5, 0.0])
    entropy, slope = jax.value_and_grad(lambda p: ro.entr(p).sum())(p)
    assert ulp_distance(entropy, 0.56233514461880835) <= 2
    np.testing.assert_allclose(slope, [0, math.log(4) - 1, -math.log(0.75) - 1, 0], rtol=1e-6)
    for fn in (ro.rel_entr, ro.kl_div, ro.xlogy):
        value, slopes = jax.value_and_grad(lambda p, q, fn=fn: fn(p, q).sum(), (0, 1))(p, q)
        assert np.isfinite(value)
        assert all(np.isfinite(s).all() for s in slopes)
    # Smooth in a masked distribution too: nothing but exact zeros behind the mask.
    masked = jax.grad(lambda p: jnp.where(p > 0, ro.kl_div(p, q), 0).sum())(p)
    assert not masked[0]
    assert not masked[3]


def test_logit_options():
    x = f32([-1.0, 0.0, 0.05, 0.1, 0.9, 1.0, 3.0])
    flat = lambda v: ro.safe_logit(v, floor=0.1)
    end = math.log(9)
    np.testing.assert_allclose(flat(x), [-end] * 4 + [end] * 3, rtol=3e-7)
    steep = lambda v: ro.safe_logit(v, floor=0.1, extend="linear")
    np.testing.assert_allclose(jax.vmap(jax.grad(steep))(x), [1 / 0.09] * 7, rtol=1e-6)
    np.testing.assert_allclose(
        steep(f32([-0.9, 1.9])), [-end - 1 / 0.09, end + 1 / 0.09], rtol=1e-6
    )
    for options in ({"floor": 0.1}, {"extend": "linear"}, {"floor": 0.1, "extend": "linear"}):
        check_total(lambda v, o=options: ro.safe_logit(v, **o), edge_cases(jnp.float32))
    with pytest.raises(ValueError, match=r"safe_logit: floor must be at most 0\.25, got 0\.6"):
        ro.safe_logit(x, floor=0.6)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_running_logsumexp_along_an_axis(axis, reverse):
    x = f32(np.random.default_rng(0).normal(size=(3, 5)) * 3)
    got = ro.logcumsumexp(x, axis, reverse)
    np.testing.assert_allclose(
        got, jax.lax.cumlogsumexp(x, axis % 2, reverse), rtol=2e-6, atol=1e-6
    )


def test_running_logsumexp_of_a_long_sequence():
    x = np.random.default_rng(0).normal(size=200).astype(np.float32) * 10
    want = np.logaddexp.accumulate(x.astype(np.float64))
    assert np.max(ulp_distance(ro.logcumsumexp(x), want)) <= 4
    weights = np.random.default_rng(1).normal(size=200).astype(np.float32)
    slope = jax.jit(jax.grad(lambda v: (ro.logcumsumexp(v) * weights).sum()))(x)
    # sum over i >= j of w_i exp(x_j - y_i)
    exact = np.cumsum((weights * np.exp(-want))[::-1])[::-1] * np.exp(x.astype(np.float64))
    np.testing.assert_allclose(slope, exact, rtol=3e-6, atol=3e-6)


def test_running_logsumexp_twice_differentiated():
    x = f32([0.3, -1.0, 2.0, 0.5])
    weights = f32([1.0, -2.0, 0.5, 3.0])
    ours = jax.jit(jax.hessian(lambda v: (ro.logcumsumexp(v) * weights).sum()))(x)
    naive = jax.jit(jax.hessian(lambda v: jnp.log(jnp.cumsum(jnp.exp(v))) @ weights))(x)
    np.testing.assert_allclose(ours, naive, atol=3e-6)
    assert ro.logcumsumexp(jnp.zeros((0, 2))).shape == (0, 2)
    assert np.array_equal(ro.logcumsumexp(f32([-inf, 0, inf, 1])), [-inf, 0, inf, inf])


def test_equal_arguments_of_logsubexp():
    x = f32([0.0, 5.0, TOP, -3e-30])
    value, slope = jax.vmap(jax.value_and_grad(ro.logsubexp))(x, x)
    assert np.array_equal(value, [-TOP] * 4)
    assert not slope.any()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ro.logcumsumexp(x, axis=2), ValueError, "got axis=2 for an array of 2 dim"),
        (lambda x: ro.logcumsumexp(x, axis=None), ValueError, r"use x\.ravel\(\)"),
        (lambda x: ro.logcumsumexp(x[0, 0]), ValueError, r"array of shape \(\)"),
        (lambda x: ro.logcumsumexp(x, axis=0.5), TypeError, "axis must be an int"),
        (lambda x: ro.logcumsumexp(x, axis=(0, 1)), ValueError, "axis must be a single axis"),
        (lambda x: ro.kl_div(x, jnp.ones(4)), ValueError, r"kl_div: the shapes \(2, 3\) and"),
        (lambda x: ro.safe_logit(x, extend="no"), ValueError, "extend must be 'constant' or"),
        (lambda x: ro.safe_logit(x, floor=0.0), ValueError, "floor must be finite and at least"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)))
