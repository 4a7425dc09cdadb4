"""Reductions: axes, masks, nothing to reduce, dtypes, extreme magnitudes; and norms of trees."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import robustops as ro
from robustops.ops._reduce import count_of
from robustops.testing import check_zero_absorbs, ulp_distance

inf = math.inf
nan = math.nan
f32 = lambda v: jnp.asarray(v, jnp.float32)
TOP = float(jnp.finfo(jnp.float32).max)


def cosine(x, y, **options):
    norms = np.sqrt(np.sum(x * x, **options) * np.sum(y * y, **options))
    return np.sum(x * y, **options) / norms


ONE = [
    (ro.safe_var, np.var),
    (ro.logmeanexp, lambda v, **o: np.log(np.mean(np.exp(v), **o))),
]
TWO = [
    (ro.cosine_similarity, cosine),
    (ro.pairwise_distance, lambda x, y, **o: np.sqrt(np.sum((x - y) ** 2, **o))),
]


@pytest.mark.parametrize(
    ("axis", "keepdims"), [(None, True), (0, False), (-1, True), ((0, 2), False), ((1, -1), True)]
)
def test_axes(axis, keepdims):
    x, y = np.random.default_rng(0).normal(size=(2, 2, 3, 4)).astype(np.float32)
    for args, cases in (((x,), ONE), ((x, y[:1, :, :1]), TWO)):
        for ours, theirs in cases:
            full = np.broadcast_arrays(*args)
            want = theirs(*full, axis=axis, keepdims=keepdims)
            got = ours(*args, axis=axis, keepdims=keepdims)
            assert got.shape == np.shape(want)
            np.testing.assert_allclose(got, want, rtol=5e-6, atol=1e-6)


def test_where_equals_dropping():
    x, y = f32([1.0, 2.0, nan, 4.0, inf]), f32([3.0, -1.0, 1.0, nan, 2.0])
    mask = np.asarray([True, True, False, False, False])
    for fn, args in [(fn, (x,)) for fn, _ in ONE] + [(fn, (x, y)) for fn, _ in TWO]:
        kept = [a[mask] for a in args]
        masked = lambda *a, fn=fn: fn(*a, where=mask)
        np.testing.assert_allclose(masked(*args), fn(*kept), rtol=1e-6)
        every = tuple(range(len(args)))
        slopes, want = (jax.jit(jax.grad(f, every))(*a) for f, a in ((masked, args), (fn, kept)))
        for slope, right in zip(slopes, want, strict=True):
            np.testing.assert_allclose(slope[mask], right, rtol=1e-6, atol=1e-7)
            assert not np.any(slope[~mask])
        check_zero_absorbs(masked, *args)


def test_more_elements_than_an_int32_counts():
    """2^31 under a mask: the count is 2147516416 and not -2147450880."""
    row = jnp.ones(32768, bool)
    shape = 65537, 32768

    @jax.jit
    def count(row):
        mask = jnp.broadcast_to(row, shape)
        return count_of(jnp.broadcast_to(jnp.zeros((), jnp.float32), shape), mask, (0, 1))

    assert count(row) == np.float32(65537 * 32768)


def test_nothing_to_reduce():
    x, none = f32([1.0, 2.0]), jnp.zeros(2, bool)
    for fn, args, want in (
        (ro.safe_var, (x,), 0),
        (ro.cosine_similarity, (x, x), 0),
        (ro.pairwise_distance, (x, x + 1), 0),
        (ro.logmeanexp, (x,), -TOP),
    ):
        assert fn(*args, where=none) == want
        assert fn(*(jnp.zeros(0) for _ in args)) == want
        assert not np.any(jax.grad(lambda v, fn=fn, a=args: fn(v, *a[1:], where=none))(x))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_zero_size(shape):
    """Reduced along each axis a zero-size array gives what its shape says, without a NaN."""
    x = jnp.zeros(shape)
    for axis in (0, 1, (0, 1)):
        for fn in (
            ro.safe_mean, ro.safe_var, ro.safe_std, ro.safe_norm, ro.logsumexp, ro.logmeanexp,
            lambda v, axis: ro.cosine_similarity(v, v, axis=axis),
            lambda v, axis: ro.pairwise_distance(v, v, axis=axis),
        ):  # fmt: skip
            y = fn(x, axis=axis)
            assert y.shape == np.sum(x, axis=axis).shape
            assert np.isfinite(y).all()
        for fn in (ro.softmax, ro.log_softmax, ro.safe_normalize):
            assert fn(x, axis=axis).shape == shape


def test_scalars_reduce_over_no_axes():
    for fn, want in [(ro.safe_var, 0), (ro.logmeanexp, 2), (ro.global_norm, 2)]:
        assert fn(2.0) == want
    for fn, want in [(ro.softmax, 1), (ro.log_softmax, 0), (ro.safe_normalize, 1)]:
        assert fn(2.0, axis=None) == want
    assert ro.cosine_similarity(2.0, -3.0, axis=None) == -1
    assert ro.pairwise_distance(2.0, -3.0, axis=None) == 5


def test_several_axes_of_a_softmax_are_one():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    for ours, theirs in [
        (ro.softmax, scipy.special.softmax),
        (ro.log_softmax, scipy.special.log_softmax),
    ]:
        np.testing.assert_allclose(ours(x, axis=(0, 2)), theirs(x, axis=(0, 2)), rtol=2e-6)


def test_result_dtype():
    half = jnp.asarray([300.0, 400.0], jnp.float16)
    assert ro.safe_var(half) == 2500
    assert ro.safe_var(half * 100, dtype=jnp.float32) == 25_000_000
    assert ro.safe_var(half * 100) == 65504
    assert ro.pairwise_distance(half, -half) == 1000
    assert ro.pairwise_distance(half * 100, -half * 100, dtype=jnp.float32) == 100_000
    assert ro.cosine_similarity(half, half[::-1], dtype=jnp.float32).dtype == jnp.float32
    many = jnp.ones(70_000, jnp.float16)
    assert ro.logsumexp(many) == jnp.float16(1 + math.log(70_000))
    assert ro.logmeanexp(many) == 1
    assert ro.safe_var(many) == 0
    assert ro.global_norm([many]) == jnp.float16(math.sqrt(70_000))
    assert ro.safe_var(f32([1e20, 0.0]), dtype=jnp.float16) == 65504


def test_variance_of_a_large_mean():
    offset = f32([-1, 0, 1, 2])
    value, slope = jax.value_and_grad(ro.safe_var)(f32(1e6) + offset)
    assert ulp_distance(value, 1.25) <= 4
    assert np.max(ulp_distance(slope, (np.asarray(offset) - 0.5) / 2)) <= 8
    np.testing.assert_allclose(jax.hessian(ro.safe_var)(offset), np.eye(4) / 2 - 1 / 8, rtol=1e-6)
    assert ro.safe_var(f32([1, 2]), ddof=1) == 0.5
    assert ro.safe_var(f32([1.0]), ddof=1) == 0


@pytest.mark.parametrize("fn", [ro.safe_var, ro.safe_std])
def test_spread_below_the_mean(fn):
    """The mean's rounding is a matter from a mean of some four deviations on."""
    x = np.random.default_rng(0).normal(size=(200, 4)) + np.linspace(0, 60, 200)[:, None]
    x = x.astype(np.float32)
    slope = jax.lax.map(jax.grad(fn), jnp.asarray(x))  # one by one: rows share the decision
    wide = x.astype(np.float64) - x.mean(1, keepdims=True, dtype=np.float64)
    if fn is ro.safe_std:
        wide /= 2 * wide.std(1, keepdims=True)
    truth = wide / 2
    # An error that is small beside the largest slope of the row.
    off = abs(np.asarray(slope, np.float64) - truth) / abs(truth).max(1, keepdims=True)
    assert off.max() <= 4 * 2.0**-23


def test_spread_beyond_the_range():
    """inf is not hidden, though its distance from the mean is no number."""
    for fn in (ro.safe_var, ro.safe_std):
        assert fn(f32([inf, inf])) == inf
        assert fn(f32([inf, -inf, 0])) == inf
        assert np.isnan(fn(f32([inf, nan])))
    assert ro.safe_var(f32([1e-25, -1e-25])) == 0  # 1e-50
    assert ro.safe_var(f32([3e38, -3e38])) == TOP


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_of_extreme_vectors(scale):
    x, y = f32([3, 4]) * f32(scale), f32([4, 3]) / f32(scale)
    value, slopes = jax.value_and_grad(ro.cosine_similarity, (0, 1))(x, y)
    assert ulp_distance(value, 0.96) <= 4
    want = np.asarray([0.224, -0.168]) / 5
    np.testing.assert_allclose(slopes[0], want / scale, rtol=2e-6)
    np.testing.assert_allclose(slopes[1], want[::-1] * scale, rtol=2e-6)


def test_cosine_is_bounded_and_exact():
    x = f32(np.random.default_rng(0).normal(size=(500, 3)))
    assert np.all(abs(ro.cosine_similarity(x, x * 3)) <= 1)
    assert ro.cosine_similarity(f32([1, 2]), f32([2, -1])) == 0
    slope = jax.jacrev(ro.cosine_similarity)(jnp.zeros(3), f32([1, 2, 3]))
    assert not slope.any()


def test_distance_matrix():
    """The gradient of the diagonal is 0, not 0 / 0."""
    x = f32(np.random.default_rng(0).normal(size=(4, 3)))
    distances = lambda x: ro.pairwise_distance(x[:, None], x[None, :])
    gradient = jax.grad(lambda x: distances(x).sum())(x)
    apart = np.asarray(x)[:, None] - np.asarray(x)
    want = 2 * np.sum(
        apart / (np.linalg.norm(apart, axis=-1, keepdims=True) + np.eye(4)[..., None]), 1
    )
    np.testing.assert_allclose(gradient, want, rtol=2e-5, atol=1e-6)
    assert not np.diagonal(distances(x)).any()


def test_constant_vectors():
    """XLA may square a constant before it is scaled, where it can."""
    x, y = f32([3e38, -3e38]), f32([1e-30, 2e-30])
    for fn in (ro.cosine_similarity, ro.pairwise_distance):
        assert jax.jit(lambda fn=fn: fn(x, y))() == fn(x, y)
        assert jax.jit(lambda v, fn=fn: fn(v, x))(y) == fn(y, x)
    for fn in (ro.safe_norm, ro.safe_std, ro.safe_var, ro.global_norm):
        assert jax.jit(lambda fn=fn: fn(x))() == fn(x)


TREE = {"w": f32([[3.0, 0.0], [0.0, 4.0]]), "b": (f32([12.0]), None)}


def test_norm_of_a_tree():
    value, slope = jax.value_and_grad(ro.global_norm)(TREE)
    assert value == optax.tree.norm(TREE) == 13
    jax.tree.map(lambda s, x: np.testing.assert_allclose(s, x / 13, rtol=1e-6), slope, TREE)
    along = jax.jvp(ro.global_norm, (TREE,), (TREE,))[1]
    assert ulp_distance(along, 13) <= 8
    many = jax.vmap(ro.global_norm)(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), TREE))
    assert np.array_equal(many, [13, 26])


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norm_of_an_extreme_tree(scale):
    tree = jax.tree.map(lambda x: x * f32(scale), TREE)
    value, slope = jax.value_and_grad(ro.global_norm)(tree)
    assert ulp_distance(value, 13 * scale) <= 4
    jax.tree.map(lambda s, x: np.testing.assert_allclose(s, x / 13, rtol=1e-6), slope, TREE)


def test_edges_of_the_norm_of_a_tree():
    zeros = jax.tree.map(jnp.zeros_like, TREE)
    value, slope = jax.value_and_grad(ro.global_norm)(zeros)
    assert value == 0
    assert not any(s.any() for s in jax.tree.leaves(slope))
    assert ro.global_norm({}) == ro.global_norm(None) == ro.global_norm([jnp.zeros((0, 3))]) == 0
    assert ro.global_norm([f32([3e38]), f32([3e38])]) == TOP
    assert ro.global_norm([f32([inf]), f32([3e38])]) == inf
    assert np.isnan(ro.global_norm([f32([nan]), f32([inf])]))
    assert ro.global_norm([np.asarray([3, 4]), 12.0]) == 13
    half = [jnp.asarray([30000.0], jnp.float16), jnp.asarray([40000.0], jnp.float16)]
    assert ro.global_norm(half) == 50000
    assert ro.global_norm([half[0], f32([40000.0])]).dtype == jnp.float32
    with pytest.raises(TypeError, match="global_norm: complex input is not supported"):
        ro.global_norm([jnp.ones(2, jnp.complex64)])
    check_zero_absorbs(lambda x, y: ro.global_norm([x, y]), f32([nan, 1]), f32([inf, 2]))
    # At a zero leaf beside another one the norm is smooth: Hessian I / ||other||.
    hessian = jax.hessian(lambda x: ro.global_norm([x, f32([0.0, 2.0])]))(jnp.zeros(2))
    np.testing.assert_allclose(hessian, np.eye(2) / 2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_norm_of_a_tree_is_total(dtype):
    edges = [0.0, 1.0, *(float(getattr(jnp.finfo(dtype), k)) for k in ("tiny", "max", "eps"))]
    x, y = (jnp.asarray(a.ravel(), dtype) for a in np.meshgrid(edges, edges))
    norm = lambda a, b: ro.global_norm({"a": a, "b": [b]})
    value, slopes = jax.vmap(jax.value_and_grad(norm, (0, 1)))(x, y)
    second = jax.vmap(jax.jacfwd(jax.jacrev(norm, (0, 1)), (0, 1)))(x, y)
    for leaf in jax.tree.leaves((value, slopes, second)):
        assert leaf.dtype == dtype
        assert np.isfinite(np.asarray(leaf, np.float32)).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: ro.safe_var(x, ddof=0.5), TypeError, r"safe_var: ddof must be an int, got 0\.5"),
        (lambda x: ro.safe_var(x, dtype=int), TypeError, "must be a real floating dtype"),
        (lambda x: ro.logmeanexp(x, axis=5), ValueError, "logmeanexp: got axis=5"),
        (lambda x: ro.cosine_similarity(x, jnp.ones(4)), ValueError, "do not broadcast"),
        (lambda x: ro.cosine_similarity(x, x, where=x), TypeError, "where must be boolean"),
        (lambda x: ro.pairwise_distance(x, x, axis=2), ValueError, "pairwise_distance: got axis=2"),
        (lambda x: ro.pairwise_distance(x, 1j), TypeError, "complex input is not supported"),
        (lambda x: ro.cosine_similarity(1.0, 2.0), ValueError, "use axis=None"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(jnp.ones((2, 3)))
