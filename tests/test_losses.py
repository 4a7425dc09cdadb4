"""Losses: optax's values on ordinary input, total on hard input, right to a few ulp on both."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax.losses as peer
import pytest

from robustops import losses, safe_mean
from robustops._spec import Op
from robustops.testing import accuracy, check_total, check_zero_absorbs, edge_cases, ulp_distance

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
OF_ERROR = ["squared_error", "huber_loss", "log_cosh", "geman_mcclure"]
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
    "geman_mcclure": (lambda mp, e: e * e / (e * e + 1), [(-inf, inf)], None),
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


@pytest.mark.parametrize("name", TRUTH)
@each_dtype
def test_total(name, dtype, x64):
    fn, edges = getattr(losses, name), edge_cases(dtype)
    if name in OF_ERROR:
        check_total(fn, edges)
        e = [np.asarray(a).ravel() for a in np.meshgrid(edges, edges)]
        check_total(fn, *e)
        check_zero_absorbs(fn, np.append(edges, np.asarray([inf, -inf, np.nan], dtype)))
        return
    labels = np.asarray([0.0, 1.0, 0.5, jnp.finfo(dtype).eps, 1 - jnp.finfo(dtype).epsneg], dtype)
    if name == "binary_cross_entropy":
        edges = edges[(edges >= -1) & (edges <= 2)]
    args = [a.ravel() for a in np.meshgrid(edges, labels)]
    check_total(fn, *args)
    check_zero_absorbs(fn, *args)


@pytest.mark.parametrize("name", OF_ERROR)
@each_dtype
def test_nan_and_inf_are_not_hidden(name, dtype, x64):
    fn = getattr(losses, name)
    out = np.asarray(fn(jnp.asarray([np.nan, inf, -inf], dtype)), np.float64)
    assert np.isnan(out[0])
    assert np.all(out[1:] == (1.0 if name == "geman_mcclure" else inf))
    assert np.isnan(fn(jnp.asarray([1.0], dtype), jnp.asarray([np.nan], dtype))).all()


@pytest.mark.parametrize("name", ["squared_error", "huber_loss", "log_cosh"])
def test_errors_agree_with_optax(name):
    rng = np.random.default_rng(0)
    p, t = (jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for _ in range(2))
    ours, theirs = getattr(losses, name), getattr(peer, name)
    np.testing.assert_allclose(ours(p, t), theirs(p, t), rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(ours(p), theirs(p), rtol=2e-6, atol=1e-7)
    for k in (0, 1):
        got, want = (jax.grad(lambda *a, f=f: f(*a).sum(), k)(p, t) for f in (ours, theirs))
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
    if name != "squared_error":  # optax broadcasts these two
        np.testing.assert_allclose(ours(p, t[:1]), theirs(p, t[:1]), rtol=2e-6, atol=1e-7)


def test_cross_entropies_agree_with_optax():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(6, 4, 5)), jnp.float32)
    soft = jax.nn.softmax(jnp.asarray(rng.normal(size=(6, 4, 5)), jnp.float32))
    mask = rng.random((6, 4, 5)) < 0.7
    mask[..., 0] = True
    z = jnp.asarray(rng.random((6, 4, 5)), jnp.float32)

    def alike(name, *args, **options):
        ours, theirs = getattr(losses, name), getattr(peer, name)
        np.testing.assert_allclose(ours(*args, **options), theirs(*args, **options), rtol=5e-6)
        got, want = (
            jax.jit(jax.grad(lambda v, f=f: f(v, *args[1:], **options).sum()))(args[0])
            for f in (ours, theirs)
        )
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-7)

    alike("sigmoid_binary_cross_entropy", x, z)
    alike("sigmoid_binary_cross_entropy", x, z[:1])
    for axis in (-1, 1, (1, 2)):
        alike("softmax_cross_entropy", x, soft, axis)
        alike("softmax_cross_entropy", x, soft * mask, axis, where=jnp.asarray(mask))
    alike("softmax_cross_entropy_with_integer_labels", x, jnp.asarray(rng.integers(0, 5, (6, 4))))
    alike(
        "softmax_cross_entropy_with_integer_labels", x, jnp.asarray(rng.integers(0, 4, (6, 5))), 1
    )
    for axes in ((1, 2), (2, 1)):
        labels = jnp.asarray(rng.integers(0, 20, 6))
        alike("softmax_cross_entropy_with_integer_labels", x, labels, axes)


@pytest.mark.parametrize("margin", [1.0, 20.0, 80.0])
def test_confident_cross_entropy(margin):
    """Peers return 0 at margin 20, where the loss is 4.1e-9; the tails are as accurate."""
    x = jnp.asarray([margin, 0.0, -0.5], jnp.float32)
    with mpmath.workdps(50):
        e = [mpmath.exp(mpmath.mpf(float(v)) - margin) for v in x]
        p = [v / mpmath.fsum(e) for v in e]
        value = mpmath.log1p(e[1] + e[2])
        gradient = [-(p[1] + p[2]), p[1], p[2]]
    one_hot = jnp.asarray([1.0, 0.0, 0.0])
    for fn in (
        lambda v: losses.softmax_cross_entropy(v, one_hot),
        lambda v: losses.softmax_cross_entropy_with_integer_labels(v, jnp.asarray(0)),
    ):
        assert ulp_distance(fn(x), value) <= 4
        for mode in (jax.jacrev, jax.jacfwd):
            assert np.all(ulp_distance(mode(fn)(x), gradient) <= 8)


@each_dtype
def test_cross_entropy_of_masked_logits(dtype, x64):
    """-inf logits with zero labels: right value and gradient, both modes; optax gives NaN."""
    x = jnp.asarray([0.0, -inf, 0.0], dtype)
    z = jnp.asarray([0.5, 0.0, 0.5], dtype)
    eps = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(losses.softmax_cross_entropy(x, z), math.log(2), rtol=2 * eps)
    for mode in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(
            mode(losses.softmax_cross_entropy)(x, z), [0, 0, 0], atol=2 * eps
        )
        assert np.isfinite(np.asarray(mode(losses.softmax_cross_entropy, 1)(x, z))).all()
    assert np.isnan(peer.softmax_cross_entropy(x, z))


def test_row_of_only_minus_inf():
    x = jnp.full((3,), -inf)
    z = jnp.asarray([1.0, 0.0, 0.0])
    top = float(jnp.finfo(jnp.float32).max)
    assert losses.softmax_cross_entropy(x, z) == top
    assert losses.softmax_cross_entropy_with_integer_labels(x, jnp.asarray(1)) == top
    assert not np.any(jax.grad(losses.softmax_cross_entropy)(x, z))


@each_dtype
def test_softmax_cross_entropy_is_total(dtype, x64):
    edges = edge_cases(dtype)
    a, b = (v.ravel() for v in np.meshgrid(edges, edges))
    for z in ([1.0, 0.0, 0.0], [0.25, 0.5, 0.25]):
        labels = jnp.asarray(z, dtype)

        def fn(a, b, labels=labels):
            rows = jnp.stack([a, b, jnp.ones_like(a)], -1)
            return losses.softmax_cross_entropy(rows, labels)

        check_total(fn, a, b)


def test_binary_cross_entropy_at_its_ends():
    p = jnp.asarray([0.0, 1.0, 0.0, 1.0])
    z = jnp.asarray([0.0, 1.0, 1.0, 0.0])
    value = losses.binary_cross_entropy(p, z)
    gradient = jax.grad(lambda v: losses.binary_cross_entropy(v, z).sum())(p)
    assert np.array_equal(value[:2], [0, 0])
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()
    assert gradient[2] < -1e37  # wrong at 0: pushed up
    assert gradient[3] > 1e7  # wrong at 1: pushed down


def test_infinite_logit_that_agrees_costs_nothing():
    x, z = jnp.asarray([inf, -inf]), jnp.asarray([1.0, 0.0])
    assert np.array_equal(losses.sigmoid_binary_cross_entropy(x, z), [0, 0])
    assert np.array_equal(
        jax.grad(lambda v: losses.sigmoid_binary_cross_entropy(v, z).sum())(x), [0, 0]
    )
    assert np.all(losses.sigmoid_binary_cross_entropy(x, 1 - z) == inf)


def test_infinite_class_logit():
    x = jnp.asarray([inf, 1.0, 0.0])
    loss = losses.softmax_cross_entropy_with_integer_labels
    one_hot = jnp.asarray([1.0, 0.0, 0.0])
    assert loss(x, jnp.asarray(0)) == losses.softmax_cross_entropy(x, one_hot) == 0
    assert loss(x, jnp.asarray(1)) > 3e38
    for fn, label in ((loss, jnp.asarray(0)), (losses.softmax_cross_entropy, one_hot)):
        assert not np.any(jax.grad(fn)(x, label))
    assert np.isnan(loss(x.at[1].set(jnp.nan), jnp.asarray(0)))


def test_mean_squared_error_does_not_overflow_on_the_way():
    e = jnp.asarray([1e19, 1e19, 1e19, 1e19], jnp.float32)  # the sum of squares is 4e38
    np.testing.assert_allclose(losses.mean_squared_error(e), 1e38, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(losses.mean_squared_error)(e), 5e18, rtol=1e-6)
    half = jnp.asarray([300.0, 0, 0, 0], jnp.float16)  # 300^2 is no float16, its mean is
    assert losses.mean_squared_error(half) == 22500
    assert losses.mean_squared_error(half).dtype == jnp.float16
    tiny = jnp.asarray([1e-19, 2e-19], jnp.float32)
    np.testing.assert_allclose(losses.mean_squared_error(tiny), 2.5e-38, rtol=1e-6)


def test_saturated_squares_still_pull_back():
    e = jnp.asarray([1e20, -3e38], jnp.float32)
    top = float(jnp.finfo(jnp.float32).max)
    assert np.array_equal(losses.squared_error(e), [top, top])
    np.testing.assert_allclose(jax.grad(lambda v: losses.squared_error(v).sum())(e), [2e20, -top])
    assert np.isfinite(jax.grad(losses.mean_squared_error)(e)).all()


def test_means_are_blind_to_masked_nan():
    p = jnp.asarray([1.0, np.nan, 3.0, inf])
    mask = jnp.asarray([True, False, True, False])

    def by_mask(v):
        return safe_mean(losses.squared_error(v), where=mask)

    for fn in (by_mask, lambda v: losses.mean_squared_error(v, where=mask)):
        assert fn(p) == 5
        assert np.array_equal(jax.grad(fn)(p), [1, 0, 3, 0])
    assert losses.mean_squared_error(p, where=~mask | mask) != losses.mean_squared_error(
        p, where=mask
    )
    assert losses.mean_squared_error(jnp.zeros((0,))) == 0
    assert losses.mean_squared_error(p, where=False) == 0


def test_geman_mcclure_scale():
    """The scale decides whether an error still pulls: by 2 / s at best, by (s / e)^3 far away."""
    e = jnp.asarray(100.0)
    pull = [float(jax.grad(losses.geman_mcclure)(e, scale=s)) for s in (3e-4, 100.0)]
    assert 0 < pull[0] < 1e-12
    np.testing.assert_allclose(pull[1], 0.005, rtol=1e-6)
    by_scale = jax.grad(lambda s: losses.geman_mcclure(e, scale=s))(jnp.asarray(50.0))
    np.testing.assert_allclose(by_scale, -2 * 50 * 1e4 / (1e4 + 2500) ** 2, rtol=1e-6)


def test_huber_by_delta():
    d = jnp.asarray(2.0)
    slope = jax.grad(lambda d: losses.huber_loss(jnp.asarray(5.0), delta=d))(d)
    assert slope == 3
    assert losses.huber_loss(jnp.asarray(5.0), delta=2) == 8


@pytest.mark.parametrize("name", ["squared_error", "geman_mcclure", "mean_squared_error"])
def test_unequal_shapes_are_an_error(name):
    with pytest.raises(
        ValueError, match=rf"{name}: predictions have shape \(8, 1\) and targets \(8,\)"
    ):
        getattr(losses, name)(jnp.zeros((8, 1)), jnp.zeros(8))


def test_bad_input():
    x = jnp.zeros((4, 3))
    integer = losses.softmax_cross_entropy_with_integer_labels
    with pytest.raises(ValueError, match="got axis=3 for an array of 2 dimensions"):
        losses.softmax_cross_entropy(x, x, axis=3)
    with pytest.raises(TypeError, match="labels must be integer class indices, got float32"):
        integer(x, jnp.zeros(4))
    with pytest.raises(ValueError, match=r"labels have shape \(5,\)"):
        integer(x, jnp.zeros(5, int))
    with pytest.raises(ValueError, match="have no classes"):
        integer(jnp.zeros((4, 0)), jnp.zeros(4, int))
    with pytest.raises(ValueError, match="have no classes"):
        losses.softmax_cross_entropy(jnp.zeros((4, 0)), jnp.zeros((4, 0)))
    with pytest.raises(ValueError, match="delta must be > 0, got -1"):
        losses.huber_loss(x, delta=-1)
    with pytest.raises(ValueError, match="scale must be > 0, got 0"):
        losses.geman_mcclure(x, scale=0)
    with pytest.raises(TypeError, match="where must be boolean"):
        losses.mean_squared_error(x, where=jnp.ones((4, 3)))
    with pytest.raises(TypeError, match="complex"):
        losses.squared_error(x + 1j)


def test_documented_bad_labels():
    """A class that does not exist gives NaN; a label outside [0, 1] continues the line."""
    x = jnp.zeros((3, 4))
    out = losses.softmax_cross_entropy_with_integer_labels(x, jnp.asarray([-1, 4, 0]))
    assert np.array_equal(np.isnan(out), [True, True, False])
    at = [losses.sigmoid_binary_cross_entropy(2.0, z) for z in (0.0, 1.0, 3.0)]
    np.testing.assert_allclose(at[2], at[0] + 3 * (at[1] - at[0]), rtol=1e-6)


def test_integers_and_empty_batches():
    assert losses.squared_error(jnp.asarray([3])).dtype == jnp.float32
    assert losses.squared_error(jnp.asarray([3]))[0] == 9
    hard = losses.sigmoid_binary_cross_entropy(jnp.asarray([2.0]), jnp.asarray([True]))
    np.testing.assert_allclose(hard, math.log1p(math.exp(-2)), rtol=1e-6)
    assert losses.squared_error(jnp.zeros((0, 3))).shape == (0, 3)
    empty = losses.softmax_cross_entropy_with_integer_labels(jnp.zeros((0, 3)), jnp.zeros(0, int))
    assert empty.shape == (0,)
