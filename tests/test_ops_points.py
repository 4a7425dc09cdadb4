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
        (lambda: ro.safe_log2(f32(10)), 3.32192809488736234787),
        (lambda: ro.safe_log10(f32(2)), 0.30102999566398119521),
        (lambda: ro.safe_expm1(f32(1)), 1.71828182845904523536),
        (lambda: ro.safe_reciprocal(f32(3)), 0.33333333333333333333),
        (lambda: ro.safe_cbrt(f32(2)), 1.25992104989487316477),
        (lambda: ro.safe_square(f32(1.5)), 2.25),
        (lambda: ro.safe_arcsin(f32(0.5)), 0.52359877559829887308),
        (lambda: ro.safe_arccos(f32(0.5)), 1.04719755119659774615),
        (lambda: ro.safe_arctanh(f32(0.5)), 0.54930614433405484570),
        (lambda: ro.safe_arccosh(f32(2)), 1.31695789692481670863),
        (lambda: ro.safe_arctan2(f32(1), f32(2)), 0.46364760900080611621),
        (lambda: ro.safe_hypot(f32(1), f32(2)), 2.23606797749978969641),
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


# What underflows, overflows or cancels in the usual form: (function, argument number, arguments).
@pytest.mark.parametrize(
    ("fn", "argnum", "args", "truth"),
    [
        (ro.safe_expm1, 0, (-34,), lambda mp, x: mp.exp(x)),
        (ro.safe_reciprocal, 0, (-3e-19,), lambda mp, x: -1 / x**2),
        (ro.safe_cbrt, 0, (-1.2e-38,), lambda mp, x: 1 / (3 * mp.cbrt(-x) ** 2)),
        (ro.safe_rsqrt, 0, (2.0516678e-26,), lambda mp, x: -1 / (2 * x * mp.sqrt(x))),
        (ro.safe_square, 0, (1e-30,), lambda mp, x: 2 * x),
        (ro.safe_arcsin, 0, (1 - 2**-24,), lambda mp, x: 1 / mp.sqrt(1 - x * x)),
        (ro.safe_arccos, 0, (2**-24 - 1,), lambda mp, x: -1 / mp.sqrt(1 - x * x)),
        (ro.safe_arctanh, 0, (1 - 2**-24,), lambda mp, x: 1 / (1 - x * x)),
        (ro.safe_arccosh, 0, (1 + 2**-23,), lambda mp, x: 1 / mp.sqrt(x * x - 1)),
        (ro.safe_arccosh, 0, (3e37,), lambda mp, x: 1 / mp.sqrt(x * x - 1)),
        (ro.safe_arctan2, 0, (1e-25, 2e-25), lambda mp, y, x: x / (x * x + y * y)),
        (ro.safe_arctan2, 1, (1e-25, 2e-25), lambda mp, y, x: -y / (x * x + y * y)),
        (ro.safe_arctan2, 1, (1e25, 2e25), lambda mp, y, x: -y / (x * x + y * y)),
        (ro.safe_arctan2, 0, (1e-30, -1e-37), lambda mp, y, x: x / (x * x + y * y)),
        (ro.safe_hypot, 0, (1e30, 2e30), lambda mp, x, y: x / mp.hypot(x, y)),
        (ro.safe_hypot, 1, (1e-30, 2e-30), lambda mp, x, y: y / mp.hypot(x, y)),
    ],
)
def test_derivatives_that_underflow_overflow_or_cancel(fn, argnum, args, truth):
    args = tuple(map(f32, args))
    with mpmath.workprec(200):
        want = truth(mpmath, *(mpmath.mpf(float(a)) for a in args))
        assert ulp_distance(jax.grad(fn, argnum)(*args), np.asarray(want, object)) <= 8
        assert ulp_distance(jax.jacfwd(fn, argnum)(*args), np.asarray(want, object)) <= 8


@pytest.mark.parametrize(
    ("fn", "args", "truth"),
    [
        (ro.safe_arccos, (1 - 2**-24,), lambda mp, x: mp.acos(x)),
        (ro.safe_arcsin, (2.3e-38,), lambda mp, x: x),  # jnp.arcsin gives 0 with jax 0.10.2
        (ro.safe_arccosh, (1 + 2**-23,), lambda mp, x: mp.acosh(x)),
        (ro.safe_arccosh, (TOP,), lambda mp, x: mp.acosh(x)),
        (ro.safe_arctanh, (2**-24 - 1,), lambda mp, x: mp.atanh(x)),
        (ro.safe_expm1, (0.0077302684,), lambda mp, x: mp.expm1(x)),  # jnp.expm1 5.3 there
        (ro.safe_expm1, (88.7,), lambda mp, x: mp.expm1(x)),
        (ro.safe_cbrt, (-1.2e-38,), lambda mp, x: -mp.cbrt(-x)),
        (ro.safe_hypot, (1e30, 1e30), lambda mp, x, y: mp.hypot(x, y)),
        (ro.safe_hypot, (1e-30, 1e-30), lambda mp, x, y: mp.hypot(x, y)),
        (ro.safe_arctan2, (1e30, -1e-30), lambda mp, y, x: mp.atan2(y, x)),
    ],
)
def test_values_at_the_ends_of_the_domain(fn, args, truth):
    args = tuple(map(f32, args))
    with mpmath.workprec(200):
        want = truth(mpmath, *(mpmath.mpf(float(a)) for a in args))
        assert ulp_distance(fn(*args), np.asarray(want, object)) <= 4


def test_logarithms_of_powers_of_ten_are_integers():
    assert np.array_equal(ro.safe_log10(f32([1, 10, 100, 1000, 1e6])), [0, 1, 2, 3, 6])


def test_squared_norm_is_smooth_at_zero():
    assert not np.any(jax.grad(lambda x: ro.safe_norm(x) ** 2)(jnp.zeros(3)))


@pytest.mark.parametrize("scale", [0, 1e-38, 1e-20, 1, 1e18])
def test_sum_of_squares_has_the_right_hessian(scale):
    """`safe_norm(x) ** 2` has Hessian 0 at 0; its docstring names this sum."""
    x = scale * f32([1, -2, 2])
    squares = lambda x: ro.safe_square(x).sum()
    assert np.array_equal(jax.grad(squares)(x), 2 * x)
    assert np.array_equal(jax.hessian(squares)(x), 2 * np.eye(3))


GENERATORS = np.asarray(
    [[[0, 0, 0], [0, 0, -1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
     [[0, -1, 0], [1, 0, 0], [0, 0, 0]]], np.float32,
)  # fmt: skip


def rotation(v):
    """Rodrigues' formula I + sinc(t) K + sinc(t/2)^2 K^2 / 2, with t = |v|."""
    angle = ro.safe_norm(v)
    sinc = lambda t: ro.safe_div(jnp.sin(t), t, fill=1)
    k = jnp.tensordot(v, GENERATORS, 1)
    return jnp.eye(3) + sinc(angle) * k + ro.safe_square(sinc(angle / 2)) / 2 * (k @ k)


@pytest.mark.parametrize("scale", [0, 1e-38, 1e-25, 1e-10, 1e-5])
def test_gradient_of_a_rotation_near_the_identity(scale):
    v = scale * f32([1, -2, 2])
    for mode in (jax.jacfwd, jax.jacrev):
        got = mode(rotation)(v)
        np.testing.assert_allclose(got, np.moveaxis(GENERATORS, 0, -1), atol=1e-6 + 4 * scale)


def test_hessian_of_a_rotation_at_the_identity():
    products = np.einsum("iab,jbc->acij", GENERATORS, GENERATORS)
    want = (products + products.swapaxes(2, 3)) / 2
    np.testing.assert_allclose(jax.hessian(rotation)(jnp.zeros(3)), want, atol=1e-7)


def test_rotation_by_a_right_angle():
    quarter = rotation(f32([0, 0, math.pi / 2]))
    np.testing.assert_allclose(quarter, [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-6)


def test_floor_and_extension():
    log = lambda x: ro.safe_log(x, floor=0.5, extend="linear")
    x = f32([-1.0, 0.25, 0.5, 2.0])
    np.testing.assert_allclose(
        log(x), [math.log(0.5) - 3, math.log(0.5) - 0.5, math.log(0.5), math.log(2)], rtol=1e-6
    )
    assert np.array_equal(jax.vmap(jax.grad(log))(x), [2, 2, 2, 0.5])
    flat = lambda x: ro.safe_log(x, floor=0.5)
    assert np.array_equal(jax.vmap(jax.grad(flat))(x), [0, 0, 2, 0.5])


ONE_END = [ro.safe_log, ro.safe_log1p, ro.safe_log2, ro.safe_log10, ro.safe_sqrt, ro.safe_rsqrt]
TWO_ENDS = [ro.safe_arcsin, ro.safe_arccos, ro.safe_arctanh]


@pytest.mark.parametrize("fn", [*ONE_END, *TWO_ENDS, ro.safe_arccosh], ids=lambda fn: fn.__name__)
def test_every_extension_is_one_function(fn, x64):
    """Total in float16 too, a constant or a line beyond the floor, and its own derivative."""
    floor = 1.25 if fn is ro.safe_arccosh else 0.25
    ends = [1 - floor, floor - 1] if fn in TWO_ENDS else [floor]
    for options in ({"extend": "linear"}, {"floor": floor}, {"floor": floor, "extend": "linear"}):
        extended = lambda v, o=options: fn(v, **o)
        check_total(extended, edge_cases(jnp.float32))
        if "floor" not in options:
            check_total(extended, edge_cases(jnp.float16))
            continue
        linear = "extend" in options
        for end, outward in zip(ends, (1, -1) if fn in TWO_ENDS else (-1,), strict=True):
            inside = jax.grad(fn)(end - outward * 1e-12)
            for distance in (0.1, 1.0, 100.0):
                x = end + outward * distance
                rise = float(inside) * outward * distance if linear else 0.0
                np.testing.assert_allclose(extended(x), fn(end) + rise, rtol=1e-9)
                slope = jax.grad(extended)(x)
                np.testing.assert_allclose(slope, inside if linear else 0.0, rtol=1e-9)


def test_fill():
    assert ro.safe_div(f32(1), f32(0), fill=7) == 7
    assert ro.safe_div(f32(1), f32(2), fill=7) == 0.5
    assert ro.safe_reciprocal(f32(-0.0), fill=7) == 7
    assert ro.safe_reciprocal(f32(2), fill=7) == 0.5
    assert jax.grad(lambda x: ro.safe_reciprocal(x, fill=7))(f32(0)) == 0
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
        (lambda x: ro.safe_reciprocal(x, fill=inf), ValueError, "safe_reciprocal: fill must be"),
        (lambda x: ro.safe_arccos(x, floor=1.5), ValueError, "floor must be at most 1, got 1.5"),
        (lambda x: ro.safe_arccosh(x, floor=0.5), ValueError, "must be finite and at least 1"),
        (lambda x: ro.safe_hypot(x, jnp.ones(4)), ValueError, r"safe_hypot: the shapes \(2, 3\)"),
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
