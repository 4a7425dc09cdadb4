"""Losses: optax's values on ordinary input, total on hard input, right to a few ulp on both."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax.losses as peer
import pytest

from robustops import losses, safe_mean
from robustops.testing import check_zero_absorbs, edge_cases, ulp_distance

DTYPES = [jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
OF_ERROR = [
    "squared_error", "l2_loss", "huber_loss", "log_cosh", "log1p_squared_error", "charbonnier",
    "cauchy", "geman_mcclure", "welsch",
]  # fmt: skip
BOUNDED = ("geman_mcclure", "welsch")
inf = math.inf


@pytest.mark.parametrize("name", OF_ERROR)
@each_dtype
def test_nan_and_inf_are_not_hidden(name, dtype, x64):
    fn = getattr(losses, name)
    out = np.asarray(fn(jnp.asarray([np.nan, inf, -inf], dtype)), np.float64)
    assert np.isnan(out[0])
    assert np.all(out[1:] == (1.0 if name in BOUNDED else inf))
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
    labels = [jnp.asarray(rng.integers(0, n, shape)) for n, shape in ((5, (6, 4)), (20, 6))]

    def every(module, x):
        integer = module.softmax_cross_entropy_with_integer_labels
        return [
            module.sigmoid_binary_cross_entropy(x, soft[:1]),
            module.softmax_cross_entropy(x, soft, (1, 2)),
            module.softmax_cross_entropy(x, soft * mask, 1, where=jnp.asarray(mask)),
            integer(x, labels[0]),
            integer(x, labels[1], (2, 1)),
            module.sigmoid_focal_loss(x, soft, alpha=0.3, gamma=1.3),
            module.poly_loss_cross_entropy(x, soft * mask, where=jnp.asarray(mask)),
        ]

    def both(module):
        values, pull = jax.vjp(lambda v: every(module, v), x)
        # A different weight for each loss, so that none hides in the sum.
        weights = [jnp.full_like(v, k + 1) for k, v in enumerate(values)]
        return values, pull(weights)

    ours, theirs = (jax.jit(lambda m=m: both(m))() for m in (losses, peer))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), ours, theirs)


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


@pytest.mark.parametrize("loss", [losses.softmax_cross_entropy, losses.softmax_focal_loss])
def test_infinite_logits_that_tie_share(loss):
    """Two logits of inf have a half each, as two of 1e30 have, in value and slope."""
    label = jnp.array([1.0, 0.0, 0.0])
    value, slope = jax.value_and_grad(loss)(jnp.array([jnp.inf, jnp.inf, 0.0]), label)
    want, like = jax.value_and_grad(loss)(jnp.array([1e30, 1e30, 0.0]), label)
    assert value == want > 0
    np.testing.assert_array_equal(slope, like)
    assert slope[0] == -slope[1] != 0


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
    far = jnp.asarray([3e38, 0.0, 0.0, 0.0])  # 2 e overflows, 2 e / n does not
    np.testing.assert_allclose(jax.grad(losses.mean_squared_error)(far)[0], 1.5e38, rtol=1e-6)


def test_squared_log_error_of_a_huge_prediction():
    """1 / (1 + p) is subnormal, the slope is not."""
    slope = jax.jit(jax.grad(losses.squared_log_error))(jnp.float32(1e38), jnp.float32(0.0))
    np.testing.assert_allclose(slope, 2 * np.log(1e38) / 1e38, rtol=1e-5)


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
    with pytest.raises(ValueError, match="there are no classes"):
        integer(jnp.zeros((4, 0)), jnp.zeros(4, int))
    with pytest.raises(ValueError, match="axis must be an int or a tuple of ints, got None"):
        integer(x, jnp.zeros(4, int), axis=None)  # pyright: ignore
    with pytest.raises(ValueError, match="gamma must be >= 0, got -1"):
        losses.sigmoid_focal_loss(x, x, gamma=-1)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        losses.ntxent(x, jnp.zeros(4, int), temperature=0)
    with pytest.raises(ValueError, match=r"embeddings need the shape \[batch, dim\]"):
        losses.ntxent(x, jnp.zeros(5, int))
    with pytest.raises(ValueError, match='reduction must be "mean", "sum" or "none"'):
        losses.dice_loss(x, x, reduction="avg")
    with pytest.raises(ValueError, match=r"the predictions must lie in \[0, 1\]"):
        losses.binary_dice_loss(x + 2, x, apply_sigmoid=False)
    with pytest.raises(ValueError, match="logits need the shape"):
        losses.ctc_loss(x, x, x, x)
    with pytest.raises(ValueError, match="delta must be > 0, got -1"):
        losses.huber_loss(x, delta=-1)
    with pytest.raises(ValueError, match="scale must be > 0, got 0"):
        losses.geman_mcclure(x, scale=0)
    with pytest.raises(TypeError, match="where must be boolean"):
        losses.mean_squared_error(x, where=jnp.ones((4, 3)))
    with pytest.raises(TypeError, match="complex"):
        losses.squared_error(x + 1j)


def test_documented_bad_labels():
    """A class that does not exist gives NaN; a label outside [0, 1] continues the line, or is 1."""
    x = jnp.zeros((3, 4))
    out = losses.softmax_cross_entropy_with_integer_labels(x, jnp.asarray([-1, 4, 0]))
    assert np.array_equal(np.isnan(out), [True, True, False])
    at = [losses.sigmoid_binary_cross_entropy(2.0, z) for z in (0.0, 1.0, 3.0)]
    np.testing.assert_allclose(at[2], at[0] + 3 * (at[1] - at[0]), rtol=1e-6)
    ends, beyond = (losses.sigmoid_focal_loss(x[0], z) for z in (x[0] + 1, x[0] + 3))
    assert np.array_equal(ends, beyond)


def test_integers_and_empty_batches():
    assert losses.squared_error(jnp.asarray([3.0]), jnp.asarray([1]))[0] == 4
    hard = losses.sigmoid_binary_cross_entropy(jnp.asarray([2.0]), jnp.asarray([True]))
    np.testing.assert_allclose(hard, math.log1p(math.exp(-2)), rtol=1e-6)
    assert losses.squared_error(jnp.zeros((0, 3))).shape == (0, 3)
    empty = losses.softmax_cross_entropy_with_integer_labels(jnp.zeros((0, 3)), jnp.zeros(0, int))
    assert empty.shape == (0,)
    # Without classes a sum over them is 0, as in Optax.
    assert np.array_equal(
        losses.softmax_cross_entropy(jnp.zeros((4, 0)), jnp.zeros((4, 0))), [0] * 4
    )


INTEGER = {
    "sigmoid_binary_cross_entropy": 2, "sigmoid_focal_loss": 2, "softmax_cross_entropy": 2,
    "safe_softmax_cross_entropy": 2, "poly_loss_cross_entropy": 2, "kl_divergence": 2,
    "kl_divergence_with_log_targets": 2, "generalized_kl_divergence": 2, "squared_error": 1,
    "l2_loss": 1, "huber_loss": 1, "log_cosh": 1, "cosine_similarity": 2, "cosine_distance": 2,
    "triplet_margin_loss": 3, "ranking_softmax_loss": 2, "ntxent": 2, "smooth_labels": 2,
}  # fmt: skip


@pytest.mark.parametrize("name", INTEGER)
def test_integer_predictions_are_an_error_as_in_optax(name):
    x = jnp.ones((3, 3), int)
    args = (x, x[0]) if name == "ntxent" else (x,) * INTEGER[name]
    with pytest.raises(TypeError):
        getattr(peer, name)(*args)
    with pytest.raises(TypeError, match=rf"{name}: \w+ must be floating, got int32; convert with"):
        getattr(losses, name)(*args)


@pytest.mark.parametrize("name", OF_ERROR)
def test_zero_absorbs(name):
    bad = np.asarray([inf, -inf, np.nan], np.float32)
    check_zero_absorbs(getattr(losses, name), np.append(edge_cases(jnp.float32), bad))


def test_cosine_distance_keeps_its_digits():
    a = jnp.asarray([1e30, 1e30], jnp.float32)
    b = jnp.asarray([1e-30, 1.001e-30], jnp.float32)
    exact = np.asarray(b, np.float64)
    cosine = exact.sum() / math.sqrt(2) / math.hypot(*exact)
    np.testing.assert_allclose(losses.cosine_distance(a, b), 1 - cosine, rtol=1e-3)
    assert losses.cosine_distance(a, 0 * b) == 1
    assert peer.cosine_distance(a, b) != losses.cosine_distance(a, b)


def test_gaussian_kl_near_its_minimum():
    got = losses.gaussian_kl(jnp.zeros(1), jnp.asarray([1e-4]))
    np.testing.assert_allclose(got, 2.5000833e-09, rtol=1e-6)


def test_ctc_ignores_what_is_padded_and_what_cannot_be():
    x = jnp.zeros((2, 4, 3)).at[0, 3].set(jnp.nan).at[1, :, 2].set(-inf)
    frames = jnp.asarray([[0.0, 0, 0, 1], [0, 0, 0, 0]])
    labels, tail = jnp.asarray([[1, 2], [1, 7]]), jnp.asarray([[0.0, 0], [0, 1]])
    value, gradient = jax.value_and_grad(lambda v: losses.ctc_loss(v, frames, labels, tail).sum())(
        x
    )
    # Five of 27 paths of three frames spell 1, 2, and ten of 16 of four spell 1.
    np.testing.assert_allclose(value, -math.log(5 / 27) - math.log(10 / 16), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[0, 3])
    wrong = losses.ctc_loss(x[1:], frames[1:], labels[1:], jnp.zeros((1, 2)))
    assert np.isnan(wrong).all()


def test_gaussian_nll_of_the_largest_variances():
    mean, target, variance = 5.6e26, 0.0, 2.2e38  # twice the variance is no float32
    slope = jax.grad(losses.gaussian_nll, 2)(*map(jnp.float32, (mean, target, variance)))
    np.testing.assert_allclose(slope, (1 - mean**2 / variance) / (2 * variance), rtol=1e-6)


def test_ntxent_without_pairs_is_zero():
    x = jnp.eye(3)
    assert losses.ntxent(x, jnp.arange(3)) == 0
    assert np.isnan(peer.ntxent(x, jnp.arange(3)))


def test_probabilities_of_one_class_are_accepted():
    p, t = jnp.asarray([[0.25, 1.0]]), jnp.asarray([[0.0, 1.0]])
    got = losses.binary_dice_loss(p, t, apply_sigmoid=False)
    np.testing.assert_allclose(got, [0.125 / (1 + 0.125 + 1)], rtol=1e-6)
    with pytest.raises(ValueError, match="valid probability"):
        peer.binary_dice_loss(p, t, apply_sigmoid=False)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("sigmoid_binary_cross_entropy", 0),
        ("sigmoid_focal_loss", 0),
        ("softmax_cross_entropy", 1),
        ("softmax_cross_entropy_with_integer_labels", 0),
    ],
)
def test_a_loss_with_gradient_keeps_few_arrays(name, arrays):
    """Beside the gradient: none of one class, the exponentials of soft labels."""
    x = jnp.zeros((8192, 128))
    labels = jnp.zeros(8192, int) if "integer" in name else x
    loss = getattr(losses, name)
    both = jax.jit(jax.value_and_grad(lambda x, z: jnp.sum(loss(x, z))))
    memory = both.lower(x, labels).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < (arrays + 0.1) * x.nbytes


def test_cross_entropy_of_opposite_overflows():
    """Terms above the largest number, of both signs, with a sum below it."""
    x = jnp.asarray([0.0, 0.0, 0.0, 3e38])
    z = jnp.asarray([-2.0, 1.5, 0.4, 1.1])
    expected = (-2.0 + 1.5 + 0.4) * 3e38
    np.testing.assert_allclose(losses.softmax_cross_entropy(x, z), expected, rtol=1e-6)
    # An infinite cost meets labels as small as they come, and a label 0 absorbs it.
    x = jnp.asarray([0.0, -inf])
    for label, cost in ((1e-37, inf), (0.0, 0.0), (-1e-37, -inf)):
        assert losses.softmax_cross_entropy(x, jnp.asarray([1.0, label])) == cost
