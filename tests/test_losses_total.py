"""Every loss on the stress grid: finite values and gradients, no NaN among second derivatives.

A second derivative may be infinite: by a scale of 1e-38 it is beyond the dtype.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustops as ro
from robustops import losses
from robustops.testing import edge_cases

PUBLIC = {n for n, v in vars(losses).items() if not n.startswith("_") and inspect.isfunction(v)}
# Names that are checked under another one: an alias, and the first result of a tuple.
ALIASES = {"convex_kl_divergence", "ctc_loss_with_forward_probs"}


def _grid(kind: str, dtype) -> np.ndarray:
    info, edges = jnp.finfo(dtype), edge_cases(dtype)
    if kind == "label":
        return np.asarray([0, float(info.eps), 0.5, 1 - float(info.epsneg), 1], dtype)
    if kind == "probability":
        return edges[(edges >= 0) & (edges <= 1)]
    if kind == "positive":
        return edges[edges > 0]
    if kind == "shape":  # alpha of the general loss: its singular points, near them and far away
        near = [s * float(info.eps) + v for v in (0, 2) for s in (-1, 0, 1)]
        return np.asarray([-np.inf, -30, -2, -0.5, *near, 1, 3, 30, np.inf], dtype)
    return edges


def _row(*entries):
    """Entries, Python numbers among them, as the last axis."""
    shape = jnp.broadcast_shapes(*(jnp.shape(e) for e in entries))
    dtype = jnp.result_type(*entries)
    return jnp.stack([jnp.broadcast_to(jnp.asarray(e, dtype), shape) for e in entries], -1)


def _soft(name, **options):
    return lambda a, b, z: getattr(losses, name)(_row(a, b, 1), _row(z, 0.25, 0), **options)


def _hard(name):
    """The label is the third class where z is 1, else the first."""
    return lambda a, b, z: getattr(losses, name)(_row(a, b, 1), jnp.where(z == 1, 2, 0))


def _divergence(name):
    return lambda a, b, t: getattr(losses, name)(_row(a, b, -1), _row(t, 0.25, 0))


def _vectors(name, **options):
    return lambda a, b, c: getattr(losses, name)(_row(a, b, 1), _row(c, 0.5, 0), **options)


def _scaled(name, **options):
    return lambda e, s: getattr(losses, name)(e, scale=s, **options)


def _each(fn):
    """A function of scalars, for losses that look at a whole batch."""
    return lambda *args: jax.vmap(fn)(*args)


def _ntxent(a, b, c):
    rows = jnp.stack([_row(a, b), _row(c, 1), _row(-1, a * 0), _row(0.5, 2 + a * 0)])
    return losses.ntxent(rows.astype(a.dtype), jnp.asarray([0, 0, 1, 1]))


def _dice(name, classes, **options):
    def fn(a, b, z):
        x = _row(a, b, 0.5, -2).reshape(1, -1, classes).astype(a.dtype)
        t = _row(z, 1, 0, 1 - z).reshape(1, -1, classes).astype(a.dtype)
        return jnp.sum(getattr(losses, name)(x, t, **options))

    return _each(fn)


def _ctc(a, b, c):
    x = jnp.stack([_row(a, b, 0), _row(1, c, 0), _row(0.5, -1, a * 0)])[None].astype(a.dtype)
    return losses.ctc_loss(x, jnp.zeros((1, 3)), jnp.asarray([[1, 2]]), jnp.zeros((1, 2)))[0]


EDGE2, EDGE3, WITH_LABEL = ("edge",) * 2, ("edge",) * 3, ("edge", "edge", "label")
ORDER_ONE = {"ctc_loss"}  # a scan: its second derivative takes a minute to compile
# name, or name and a variant -> (function of arrays, grid of each of them)
STRESS = {
    **{
        name: (getattr(losses, name), EDGE2)
        for name in (
            "squared_error", "l2_loss", "huber_loss", "log_cosh", "log1p_squared_error",
            "squared_log_error", "hinge_loss", "perceptron_loss", "poisson_nll",
        )
    },
    **{
        name: (_scaled(name), ("edge", "positive"))
        for name in ("charbonnier", "cauchy", "geman_mcclure", "welsch")
    },
    "huber_loss delta": (lambda e, d: losses.huber_loss(e, delta=d), ("edge", "positive")),
    "mean_squared_error": (
        lambda a, b: losses.mean_squared_error(_row(a, b, 1), axis=-1), EDGE2,
    ),
    "general_robust_loss": (
        lambda e, a: losses.general_robust_loss(e, alpha=a), ("edge", "shape"),
    ),
    "general_robust_loss scale": (
        _scaled("general_robust_loss", alpha=-2.0), ("edge", "positive"),
    ),
    "gaussian_nll": (lambda m, v: losses.gaussian_nll(m, jnp.ones_like(m), v), EDGE2),
    "gaussian_kl": (lambda m, v: losses.gaussian_kl(_row(m, 1), _row(v, 0)), EDGE2),
    "sparsemax_loss": (lambda x, z: losses.sparsemax_loss(x, z == 1), ("edge", "label")),
    "sigmoid_binary_cross_entropy": (losses.sigmoid_binary_cross_entropy, ("edge", "label")),
    "binary_cross_entropy": (losses.binary_cross_entropy, ("probability", "label")),
    **{
        f"sigmoid_focal_loss {gamma}": (
            lambda x, z, gamma=gamma: losses.sigmoid_focal_loss(x, z, gamma=gamma, alpha=0.25),
            ("edge", "label"),
        )
        for gamma in (0, 0.5, 2, 5)
    },
    "softmax_focal_loss": (_soft("softmax_focal_loss", gamma=0.5), WITH_LABEL),
    "softmax_focal_loss 2": (_soft("softmax_focal_loss"), WITH_LABEL),
    "softmax_cross_entropy": (_soft("softmax_cross_entropy"), WITH_LABEL),
    "safe_softmax_cross_entropy": (_soft("safe_softmax_cross_entropy"), WITH_LABEL),
    "poly_loss_cross_entropy": (_soft("poly_loss_cross_entropy"), WITH_LABEL),
    "ranking_softmax_loss": (_soft("ranking_softmax_loss", reduce_fn=None), WITH_LABEL),
    "make_fenchel_young_loss": (
        lambda a, b, z: losses.make_fenchel_young_loss(ro.logsumexp)(
            _row(a, b, 1), _row(z, 0.25, 0)
        ),
        WITH_LABEL,
    ),
    "categorical_cross_entropy": (
        lambda p, z: losses.categorical_cross_entropy(_row(p, 0.5), _row(z, 0.25)),
        ("probability", "label"),
    ),
    "smooth_labels": (
        lambda z, a: losses.smooth_labels(_row(z, 0), a[:, None])[..., 0], ("label", "label"),
    ),
    **{
        name: (_hard(name), WITH_LABEL)
        for name in (
            "softmax_cross_entropy_with_integer_labels", "multiclass_hinge_loss",
            "multiclass_perceptron_loss", "multiclass_sparsemax_loss",
        )
    },
    "kl_divergence": (_divergence("kl_divergence"), ("edge", "edge", "probability")),
    "generalized_kl_divergence": (
        _divergence("generalized_kl_divergence"), ("edge", "edge", "probability"),
    ),
    "kl_divergence_with_log_targets": (_divergence("kl_divergence_with_log_targets"), EDGE3),
    "cosine_similarity": (_vectors("cosine_similarity"), EDGE3),
    "cosine_distance": (_vectors("cosine_distance", epsilon=1e-6), EDGE3),
    "triplet_margin_loss": (
        lambda a, b, c: losses.triplet_margin_loss(_row(a, b), _row(c, 0), _row(b * 0, 1)), EDGE3,
    ),
    "triplet_margin_loss degree": (
        lambda a, b, c: losses.triplet_margin_loss(
            _row(a, b), _row(c, 0), _row(b * 0, 1), norm_degree=3
        ),
        EDGE3,
    ),
    "ntxent": (_each(_ntxent), EDGE3),
    "dice_loss": (_dice("dice_loss", 2, smooth=0.0), WITH_LABEL),
    "multiclass_generalized_dice_loss": (_dice("multiclass_generalized_dice_loss", 2), WITH_LABEL),
    "binary_dice_loss": (_dice("binary_dice_loss", 1), WITH_LABEL),
    "ctc_loss": (_each(_ctc), EDGE3),
}  # fmt: skip


def test_every_loss_is_stressed():
    assert {name.split()[0] for name in STRESS} | ALIASES == PUBLIC


def _cases():
    """float32; `pytest -m slow` has the other dtypes."""
    for name in STRESS:
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64):
            marks = () if dtype == jnp.float32 else pytest.mark.slow
            yield pytest.param(name, dtype, marks=marks, id=f"{name} {dtype.__name__}")


@pytest.mark.parametrize(("name", "dtype"), list(_cases()))
def test_total(name, dtype, x64):
    fn, kinds = STRESS[name]
    points = [a.ravel() for a in np.meshgrid(*(_grid(kind, dtype) for kind in kinds))]
    if len(points[0]) > 4000:
        chosen = np.random.default_rng(0).choice(len(points[0]), 4000, replace=False)
        points = [a[chosen] for a in points]
    args = tuple(jnp.asarray(a) for a in points)
    argnums = range(len(args))

    def gradient(*xs):
        out, pull = jax.vjp(fn, *xs)
        return out, pull(jnp.ones_like(out))

    def unit(i):
        return tuple(jnp.full_like(a, float(k == i)) for k, a in enumerate(args))

    # Tangents are arguments, so one compilation serves them all.
    @jax.jit
    def first(xs, along):
        return gradient(*xs), jax.jvp(fn, xs, along)[1]

    @jax.jit
    def second(xs, along):
        return jax.jvp(lambda *v: gradient(*v)[1], xs, along)[1]

    def bad(test, tree):
        rows = [~test(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
        return [[float(a[row.argmax()]) for a in points] for row in rows if row.any()]

    for i in argnums:
        assert not bad(np.isfinite, first(args, unit(i)))
        if name not in ORDER_ONE:
            assert not bad(lambda v: ~np.isnan(v), second(args, unit(i)))


@pytest.mark.parametrize("name", STRESS)
def test_nan_reaches_a_sum(name):
    """XLA for CPU fuses a loss into a sum with maxima that drop a NaN."""
    fn, kinds = STRESS[name]
    total = jax.jit(lambda *args: jnp.sum(fn(*args)))
    args = [np.full(64, 0.5, np.float32) for _ in kinds]
    for k, kind in enumerate(kinds):
        if kind == "label":
            continue  # made into a class or a comparison by some of the cases
        spoilt = [a.copy() for a in args]
        spoilt[k][5] = np.nan
        assert jnp.isnan(total(*spoilt)), (name, k)
