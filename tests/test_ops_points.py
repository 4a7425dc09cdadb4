"""Hand-picked points of the ops: literature values, options, and what once went wrong."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.special

import robustops as ro
from robustops.testing import check_total, check_zero_absorbs, edge_cases, ulp_distance

inf = math.inf
f32 = lambda v: jnp.asarray(v, jnp.float32)
TOP = float(jnp.finfo(jnp.float32).max)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        # Abramowitz and Stegun, tables 4.2, 4.4 and 6.1 or their constants.
        (lambda: ro.safe_log(f32(2)), 0.69314718055994530942),
        (lambda: ro.safe_exp(f32(1)), 2.71828182845904523536),
        (lambda: ro.safe_log1p(f32(1)), 0.69314718055994530942),
        (lambda: ro.safe_sqrt(f32(2)), 1.41421356237309504880),
        (lambda: ro.safe_rsqrt(f32(2)), 0.70710678118654752440),
        (lambda: ro.safe_pow(f32(2), f32(0.5)), 1.41421356237309504880),
        (lambda: ro.sigmoid(f32(1)), 0.73105857863000487926),
        (lambda: ro.logsumexp(f32([0, 0, 0])), 1.09861228866810969140),
        (lambda: ro.safe_norm(f32([1, 1, 1])), 1.73205080756887729353),
        (lambda: ro.xlogy(f32(2), f32(3)), 2.19722457733621938280),
        (lambda: ro.safe_std(f32([1, 2, 3, 4])), 1.11803398874989484820),
    ],
)
def test_known_values(got, want):
    assert ulp_distance(got(), want) <= 2


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1.5e38])
def test_norms_of_extreme_vectors(scale):
    x = f32([scale, scale])
    assert ulp_distance(ro.safe_norm(x), math.sqrt(2) * float(x[0])) <= 4
    np.testing.assert_allclose(jax.grad(ro.safe_norm)(x), [math.sqrt(0.5)] * 2, rtol=1e-6)
    np.testing.assert_allclose(ro.safe_normalize(x), [math.sqrt(0.5)] * 2, rtol=1e-6)


def test_the_largest_numbers_are_no_zeros():
    """Scaling by 2^127 would go through a subnormal reciprocal, which XLA flushes."""
    assert ro.safe_norm(f32([3e38, 0])) == f32(3e38)
    assert np.array_equal(ro.safe_normalize(f32([3e38, 0])), [1, 0])
    assert ro.safe_std(f32([2e38, -2e38])) == f32(2e38)
    for n in (7, 14, 15, 126):
        assert ro.safe_mean(jnp.full((n,), TOP)) == TOP


def test_std_of_a_large_mean():
    x = f32(1e6) + f32([-1, 0, 1, 2])
    assert ulp_distance(ro.safe_std(x), math.sqrt(1.25)) <= 4
    want = (np.asarray(x, np.float64) - 1e6 - 0.5) / (4 * math.sqrt(1.25))
    np.testing.assert_allclose(jax.grad(ro.safe_std)(x), want, rtol=1e-6)
    assert ro.safe_std(f32([1, 2]), ddof=1) == f32(math.sqrt(0.5))
    assert ro.safe_std(f32([1.0]), ddof=1) == 0


def test_derivatives_at_tiny_denominators():
    """x / y^2 at y = 1e-25 is finite, though y^2 underflows."""
    slope = jax.grad(ro.safe_div, 1)(f32(1e-25), f32(1e-25))
    assert ulp_distance(slope, -1 / float(f32(1e-25))) <= 8
    assert ulp_distance(jax.grad(ro.sigmoid)(f32(20)), 2.0611536139418493e-09) <= 8


def test_squared_norm_is_smooth_at_zero():
    assert not np.any(jax.grad(lambda x: ro.safe_norm(x) ** 2)(jnp.zeros(3)))


def test_floor_and_extension():
    log = lambda x: ro.safe_log(x, floor=0.5, extend="linear")
    x = f32([-1.0, 0.25, 0.5, 2.0])
    np.testing.assert_allclose(
        log(x), [math.log(0.5) - 3, math.log(0.5) - 0.5, math.log(0.5), math.log(2)], rtol=1e-6
    )
    assert np.array_equal(jax.vmap(jax.grad(log))(x), [2, 2, 2, 0.5])
    flat = lambda x: ro.safe_log(x, floor=0.5)
    assert np.array_equal(jax.vmap(jax.grad(flat))(x), [0, 0, 2, 0.5])
    for fn in (ro.safe_log, ro.safe_log1p, ro.safe_sqrt, ro.safe_rsqrt):
        for options in ({"extend": "linear"}, {"floor": 0.25}, {"floor": 0.25, "extend": "linear"}):
            check_total(lambda v, fn=fn, o=options: fn(v, **o), edge_cases(jnp.float32))


def test_fill():
    assert ro.safe_div(f32(1), f32(0), fill=7) == 7
    assert ro.safe_div(f32(1), f32(2), fill=7) == 0.5
    check_total(
        lambda x, y: ro.safe_div(x, y, fill=7.0), *np.meshgrid(*[edge_cases("float32")] * 2)
    )


@pytest.mark.parametrize("axis", [None, 0, -1, (0, 2), (1, -1), (0, 1, 2)])
@pytest.mark.parametrize("keepdims", [False, True])
def test_axes(axis, keepdims):
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    cases = [
        (ro.safe_mean, np.mean), (ro.safe_std, np.std),
        (ro.safe_norm, lambda v, **o: np.sqrt(np.sum(v * v, **o))),
        (ro.logsumexp, scipy.special.logsumexp),
    ]  # fmt: skip
    for ours, theirs in cases:
        want = theirs(x, axis=axis, keepdims=keepdims)
        got = ours(x, axis=axis, keepdims=keepdims)
        assert got.shape == np.shape(want)
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)
    for ours, theirs in [(ro.softmax, jax.nn.softmax), (ro.log_softmax, jax.nn.log_softmax)]:
        np.testing.assert_allclose(ours(x, axis=axis), theirs(x, axis=axis), rtol=5e-6)


def test_where_equals_dropping():
    x = f32([1.0, 2.0, jnp.nan, 4.0, inf])
    mask = jnp.asarray([True, True, False, True, False])
    kept = x[np.asarray(mask)]
    for fn in (ro.safe_mean, ro.safe_std, ro.safe_norm, ro.logsumexp):
        np.testing.assert_allclose(fn(x, where=mask), fn(kept), rtol=1e-6)
        slope = jax.grad(lambda v, fn=fn: fn(v, where=mask))(x)
        np.testing.assert_allclose(slope[np.asarray(mask)], jax.grad(fn)(kept), rtol=1e-6)
        assert not np.any(slope[np.asarray(~mask)])
        check_zero_absorbs(lambda v, fn=fn: fn(v, where=mask), x)
    for fn in (ro.softmax, ro.safe_normalize):
        np.testing.assert_allclose(fn(x, where=mask)[np.asarray(mask)], fn(kept), rtol=1e-6)
        assert not np.any(fn(x, where=mask)[np.asarray(~mask)])


def test_nothing_to_reduce():
    x, none = f32([1.0, 2.0]), jnp.zeros(2, bool)
    for fn in (ro.safe_mean, ro.safe_std, ro.safe_norm):
        assert fn(x, where=none) == 0
        assert fn(jnp.zeros((0,))) == 0
        assert not np.any(jax.grad(lambda v, fn=fn: fn(v, where=none))(x))
    assert ro.logsumexp(x, where=none) == -TOP
    assert ro.logsumexp(jnp.zeros((0,))) == -TOP
    assert np.array_equal(ro.log_softmax(x, where=none), [-TOP, -TOP])
    assert np.array_equal(ro.softmax(x, where=none), [0, 0])
    for fn in (ro.softmax, ro.log_softmax, ro.logsumexp):
        slope = jax.jacrev(lambda v, fn=fn: fn(v, where=none))(x)
        assert not np.any(slope)


def test_scalars_reduce_over_no_axes():
    for fn, want in [(ro.safe_mean, 2), (ro.safe_norm, 2), (ro.safe_std, 0), (ro.logsumexp, 2)]:
        assert fn(2.0) == want


def test_result_dtype():
    half = jnp.asarray([300.0, 400.0], jnp.float16)
    assert ro.safe_norm(half) == 500
    assert ro.safe_norm(half).dtype == jnp.float16
    assert ro.safe_mean(half, dtype=jnp.float32).dtype == jnp.float32
    wide = f32([1e6, -1e6, 1.0])
    np.testing.assert_allclose(ro.safe_mean(wide, dtype=jnp.float16), 1 / 3, rtol=1e-3)
    assert ro.safe_std(wide, dtype=jnp.float16) == 65504
    ones = jnp.zeros(100_000, jnp.float16)
    assert ro.safe_mean(ones + 1) == 1
    tangent = jax.jvp(ro.log_softmax, (ones,), (ones + 1,))[1]
    assert abs(tangent).max() < 1e-6  # weights rounded to float16 would not sum to 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [3.0, 4.0]), ([1.0, 2.0], [-3.0, 1.0]), ([1e-9, 0.0], [1.0, -1.0]),
        ([1e-4, 0.0], [1.0, -1.0]), ([1.0, 2.0], [0.0, 1.0]), ([1000.0, 2.0], [-3e37, 1.0]),
        ([1.0, 2.0], [1e-30, 1e-30]), ([-inf, 2.0], [1.0, 1.0]), ([1.0, 2.0], [jnp.nan, 1.0]),
        ([-inf, -inf], [1.0, 2.0]), ([0.0, -60.0], [1e-10, 1.0]),
    ],
)  # fmt: skip
def test_logsumexp_with_factors(a, b):
    a, b = f32(a), f32(b)
    value, sign = ro.logsumexp(a, b=b, return_sign=True)
    terms = [mpmath.mpf(float(w)) * mpmath.exp(float(v)) for v, w in zip(a, b, strict=True)]
    total = mpmath.fsum(terms)
    np.testing.assert_array_equal(ro.logsumexp(a, b=b), jnp.nan if sign < 0 else value)
    if mpmath.isnan(total) or total == 0:
        assert np.isnan(value) if mpmath.isnan(total) else value == -inf
        return
    assert sign == float(mpmath.sign(total))
    # What cancels in the sum is lost in the logarithm's absolute precision, unless factors cancel.
    lost = 1 if b.sum() == 0 else float(mpmath.fsum(abs(t) for t in terms) / abs(total))
    want = float(mpmath.log(abs(total)))
    np.testing.assert_allclose(value, want, rtol=3e-7, atol=2e-7 * lost)
    slopes = jax.grad(lambda *v: ro.logsumexp(v[0], b=v[1], return_sign=True)[0], (0, 1))(a, b)
    for k in (0, 1):
        np.testing.assert_allclose(slopes[0][k], float(terms[k] / total), rtol=1e-5, atol=1e-30)
        by_factor = mpmath.exp(float(a[k])) / total
        np.testing.assert_allclose(slopes[1][k], min(float(by_factor), TOP), rtol=1e-5, atol=1e-38)


def test_where_masks_the_gradient_whatever_is_masked():
    x = f32([0.0, -1.0, jnp.nan, inf, -inf, 2.0])
    for fn in (ro.safe_log, ro.safe_log1p, ro.safe_sqrt, ro.safe_rsqrt, ro.safe_exp, ro.sigmoid):
        slope = jax.grad(lambda v, fn=fn: jnp.where(v == 2, fn(v), 0).sum())(x)
        assert not np.any(slope[:5])
        assert slope[5] != 0


def test_second_derivative_of_sigmoid_near_zero():
    got = jax.grad(jax.grad(ro.sigmoid))(f32(-1e-19))
    np.testing.assert_allclose(got, 1e-19 / 8, rtol=1e-6)


def test_numpy_and_python_input():
    assert ro.safe_log(np.float32(1)) == 0
    assert ro.safe_div(1, 4) == 0.25
    assert ro.safe_pow(jnp.arange(3), 2).dtype == jnp.float32
    assert ro.safe_mean([1, 2]) == 1.5


def test_explicitly_sharded_arguments():
    mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.sharding.set_mesh(mesh):
        x = jax.device_put(jnp.arange(1.0, 9.0), jax.sharding.PartitionSpec("i"))
        y = jnp.full((8,), 2.0)
        for fn in (ro.safe_pow, ro.safe_div, ro.xlogy):
            gradient = jax.grad(lambda a, b, fn=fn: fn(a, b).sum(), (0, 1))
            slope, want = jax.jit(gradient)(x, y), gradient(np.arange(1.0, 9.0), y)
            jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-5), slope, want)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ro.safe_norm(x, axis=3), ValueError, "got axis=3 for an array of 2 dimensions"),
        (lambda x: ro.softmax(x, axis=(0, 0)), ValueError, "names an axis twice"),
        (lambda x: ro.safe_mean(x, axis="a"), TypeError, "axis must be an int"),
        (lambda x: ro.safe_mean(x, where=x), TypeError, "where must be boolean, got float32"),
        (lambda x: ro.safe_std(x, where=jnp.ones(5, bool)), ValueError, "does not broadcast"),
        (lambda x: ro.safe_std(x, ddof=1.5), TypeError, "ddof must be an int, got 1.5"),
        (lambda x: ro.safe_norm(x, dtype=int), TypeError, "must be a real floating dtype"),
        (lambda x: ro.safe_div(x, jnp.ones(4)), ValueError, r"safe_div: the shapes \(2, 3\) and"),
        (lambda x: ro.safe_div(x, x, fill=inf), ValueError, "fill must be finite"),
        (lambda x: ro.safe_div(x, x, fill=x), TypeError, "fill must be a Python number"),
        (lambda x: ro.safe_log(x, floor=0.0), ValueError, "floor must be finite and at least"),
        (lambda x: ro.safe_log(x, floor=inf), ValueError, "floor must be finite and at least"),
        (lambda x: ro.safe_log(x, floor=x), TypeError, "floor must be a Python number"),
        (lambda x: ro.safe_sqrt(x, extend="lin"), ValueError, "extend must be 'constant' or"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)))
    with pytest.raises(error, match=message):
        jax.jit(call)(jnp.ones((2, 3)))
