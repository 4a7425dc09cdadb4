"""Losses as functions of one element or of one row of logits, with their mpmath references.

Each is an `Op` record, so the suites treat it as they treat an op. `of(losses)` makes the function
from a module with optax's names: from `robustops.losses`, and from `optax.losses` where it has it.
Where a loss has labels, they are an optional argument after the others: the accuracy suite leaves
them out and gets the first class, the speed suite passes arrays, as a training step does.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustops import losses
from robustops.testing import OPS, Op

inf = math.inf
REAL = ((-inf, inf),)

LOSSES: dict[str, Op] = {}
"""Our losses by the name of the case."""
OF: dict[str, Callable[[Any], Callable]] = {}
"""What makes the function of a case from a module of losses."""
LABELS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {}
"""What draws labels for an array of logits or probabilities, where a case takes them."""


def loss(
    name: str,
    of: Callable[[Any], Callable],
    *,
    naive: Callable,
    reference: Callable,
    domain=REAL,
    ulps=(4, 8),
    conditioning: Callable | None = None,
    labels: Callable[[np.random.Generator, np.ndarray], np.ndarray] | None = None,
) -> None:
    """Enter a case; its name is that of the loss, with arguments behind it where it needs them."""
    if labels is not None:
        LABELS[name] = labels
    fn = of(losses)
    fn.__name__ = name
    OF[name] = of
    LOSSES[name] = Op(
        fn,
        naive=naive,
        reference=reference,
        domain=domain,
        edges=(),
        ulps=ulps,
        hint="",
        conditioning=conditioning,
    )


def cases() -> dict[str, Op]:
    """What the suites measure: losses and ops; of one that is both, log_cosh, the op's record."""
    return {**LOSSES, **OPS}


def _yes(x, z=None):
    """The labels, 1 where none are given."""
    return jnp.ones_like(x) if z is None else z


def _first(x, z=None):
    """The class indices, 0 where none are given."""
    return jnp.zeros(x.shape[:-1], jnp.int32) if z is None else z


def _first_hot(x, z=None):
    """The target distributions, all in class 0 where none are given."""
    return jax.nn.one_hot(_first(x), x.shape[-1], dtype=x.dtype) if z is None else z


def _binary(rng, x):
    return rng.integers(0, 2, x.shape).astype(x.dtype)


def _classes(rng, x):
    return rng.integers(0, x.shape[-1], x.shape[:-1]).astype(np.int32)


def _one_hot(rng, x):
    return (np.arange(x.shape[-1]) == _classes(rng, x)[..., None]).astype(x.dtype)


def _naive_cross_entropy(x, z=None, axis=-1):
    p = jnp.exp(x) / jnp.sum(jnp.exp(x), axis, keepdims=True)
    return -jnp.log(jnp.take_along_axis(p, _first(x, z)[..., None], axis)[..., 0])


def _naive_soft(x, z=None, axis=-1):
    p = jnp.exp(x) / jnp.sum(jnp.exp(x), axis, keepdims=True)
    return -jnp.sum(_first_hot(x, z) * jnp.log(p), axis)


def _truth_of_first(mp, x):
    return mp.log1p(mp.fsum(mp.exp(v - x[0]) for v in x[1:]))


loss(
    "sigmoid_binary_cross_entropy",
    lambda of: lambda x, z=None: of.sigmoid_binary_cross_entropy(x, _yes(x, z)),
    naive=lambda x, z=None: (
        -_yes(x, z) * jnp.log(1 / (1 + jnp.exp(-x)))
        - (1 - _yes(x, z)) * jnp.log(1 - 1 / (1 + jnp.exp(-x)))
    ),
    reference=lambda mp, x: mp.log1p(mp.exp(-x)),
    labels=_binary,
)
loss(
    "softmax_cross_entropy_with_integer_labels",
    lambda of: (
        lambda x, z=None, axis=-1: of.softmax_cross_entropy_with_integer_labels(x, _first(x, z))
    ),
    naive=_naive_cross_entropy,
    reference=_truth_of_first,
    labels=_classes,
)
loss(
    "softmax_cross_entropy",
    lambda of: lambda x, z=None, axis=-1: of.softmax_cross_entropy(x, _first_hot(x, z)),
    naive=_naive_soft,
    reference=_truth_of_first,
    labels=_one_hot,
)


def _leading(m):
    """Logits of four classes of which the first leads by m."""
    return jnp.stack([m, jnp.zeros_like(m), jnp.zeros_like(m) - 0.5, jnp.zeros_like(m) - 1], -1)


def _truth_of_margin(mp, m):
    return mp.log1p(mp.fsum(mp.exp(-m - mp.mpf(k) / 2) for k in range(3)))


# A network that is trained has margins such as these. Where exp(-m) is lost beside 1 the loss is 0.
loss(
    "softmax_cross_entropy(margin)",
    lambda of: lambda m: of.softmax_cross_entropy(_leading(m), _first_hot(_leading(m))),
    naive=lambda m: _naive_soft(_leading(m)),
    reference=_truth_of_margin,
    domain=((15, 85),),
)
loss(
    "softmax_cross_entropy_with_integer_labels(margin)",
    lambda of: (
        lambda m: of.softmax_cross_entropy_with_integer_labels(_leading(m), _first(_leading(m)))
    ),
    naive=lambda m: _naive_cross_entropy(_leading(m)),
    reference=_truth_of_margin,
    domain=((15, 85),),
)


def _masked(x):
    """One class more, that cannot be."""
    return jnp.concatenate([x, jnp.full_like(x[..., :1], -inf)], -1)


loss(
    "softmax_cross_entropy(masked logits)",
    lambda of: lambda x, axis=-1: of.softmax_cross_entropy(_masked(x), _first_hot(_masked(x))),
    naive=lambda x, axis=-1: _naive_soft(_masked(x)),
    reference=_truth_of_first,
)


def _naive_focal(x, z, gamma):
    z, p = _yes(x, z), 1 / (1 + jnp.exp(-x))
    hit = z * p + (1 - z) * (1 - p)
    return -((1 - hit) ** gamma) * (z * jnp.log(p) + (1 - z) * jnp.log(1 - p))


for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
    loss(
        f"sigmoid_focal_loss(gamma={gamma:g})",
        lambda of, g=gamma: lambda x, z=None: of.sigmoid_focal_loss(x, _yes(x, z), gamma=g),
        naive=lambda x, z=None, g=gamma: _naive_focal(x, z, g),
        reference=lambda mp, x, g=gamma: (1 / (1 + mp.exp(x))) ** g * mp.log1p(mp.exp(-x)),
        ulps=(16, 16),
        labels=_binary,
    )


def _naive_softmax_focal(x, z=None, axis=-1):
    p = jnp.exp(x) / jnp.sum(jnp.exp(x), axis, keepdims=True)
    return -jnp.sum(_first_hot(x, z) * (1 - p) ** 2 * jnp.log(p), axis)


def _truth_of_softmax_focal(mp, x):
    others = mp.fsum(mp.exp(v - x[0]) for v in x[1:])
    return (others / (1 + others)) ** 2 * mp.log1p(others)


loss(
    "softmax_focal_loss",
    lambda of: lambda x, z=None, axis=-1: of.softmax_focal_loss(x, _first_hot(x, z)),
    naive=_naive_softmax_focal,
    reference=_truth_of_softmax_focal,
    ulps=(8, 12),
    labels=_one_hot,
)
loss(
    "binary_cross_entropy(label=1)",
    lambda of: lambda p: of.binary_cross_entropy(p, jnp.ones_like(p)),
    naive=lambda p: -jnp.log(p),
    reference=lambda mp, p: -mp.log(p),
    domain=((0, 1),),
)
loss(
    "binary_cross_entropy(label=0)",
    lambda of: lambda p: of.binary_cross_entropy(p, jnp.zeros_like(p)),
    naive=lambda p: -jnp.log(1 - p),
    reference=lambda mp, p: -mp.log1p(-p),
    domain=((0, 1),),
)
loss(
    "squared_error",
    lambda of: lambda e: of.squared_error(e),
    naive=lambda e: e**2,
    reference=lambda mp, e: e * e,
)
loss(
    "huber_loss",
    lambda of: lambda e: of.huber_loss(e),
    naive=lambda e: jnp.where(abs(e) <= 1, 0.5 * e**2, abs(e) - 0.5),
    reference=lambda mp, e: e * e / 2 if abs(e) <= 1 else abs(e) - 0.5,
)
loss(
    "log_cosh",
    lambda of: lambda e: of.log_cosh(e),
    naive=lambda e: jnp.log(jnp.cosh(e)),
    reference=lambda mp, e: mp.log(mp.cosh(e)),
)
loss(
    "geman_mcclure",
    lambda of: lambda e: of.geman_mcclure(e),
    naive=lambda e: e**2 / (e**2 + 1),
    reference=lambda mp, e: e * e / (e * e + 1),
)
loss(
    "charbonnier",
    lambda of: lambda e: of.charbonnier(e),
    naive=lambda e: jnp.sqrt(1 + e**2) - 1,
    reference=lambda mp, e: e * e / (mp.sqrt(1 + e * e) + 1),
)
loss(
    "cauchy",
    lambda of: lambda e: of.cauchy(e),
    naive=lambda e: jnp.log(1 + e**2 / 2),
    reference=lambda mp, e: mp.log1p(e * e / 2),
)
loss(
    "welsch",
    lambda of: lambda e: of.welsch(e),
    naive=lambda e: 1 - jnp.exp(-(e**2) / 2),
    reference=lambda mp, e: -mp.expm1(-e * e / 2),
)
loss(
    "gaussian_kl",
    lambda of: lambda m, l, axis=-1: of.gaussian_kl(m, l, axis),
    naive=lambda m, l, axis=-1: 0.5 * jnp.sum(m**2 + jnp.exp(l) - 1 - l, axis),
    reference=lambda mp, m, l: (
        mp.fsum(u * u + mp.expm1(v) - v for u, v in zip(m, l, strict=True)) / 2
    ),
    domain=((-inf, inf), (-inf, inf)),
)
loss(
    "log1p_squared_error",
    lambda of: lambda e: of.log1p_squared_error(e),
    naive=lambda e: jnp.log(1 + e**2),
    reference=lambda mp, e: mp.log1p(e * e),
)
loss(
    "squared_log_error",
    lambda of: lambda p, t: of.squared_log_error(p, t),
    naive=lambda p, t: (jnp.log1p(p) - jnp.log1p(t)) ** 2,
    reference=lambda mp, p, t: (mp.log1p(p) - mp.log1p(t)) ** 2,
    domain=((-1, inf), (-1, inf)),
    ulps=(6, 8),  # a square doubles the error of its root
)


def _general(mp, v, alpha):
    b = abs(mp.mpf(alpha) - 2)
    return b / alpha * mp.expm1(alpha / mp.mpf(2) * mp.log1p(v * v / b))


for alpha in (0.5, -2.0):
    loss(
        f"general_robust_loss(alpha={alpha:g})",
        lambda of, a=alpha: lambda e: of.general_robust_loss(e, alpha=a),
        naive=lambda e, a=alpha: abs(a - 2) / a * ((e**2 / abs(a - 2) + 1) ** (a / 2) - 1),
        reference=lambda mp, e, a=alpha: _general(mp, e, a),
        ulps=(8, 8),
    )
loss(
    "gaussian_nll",
    lambda of: lambda m, t, v: of.gaussian_nll(m, t, v),
    naive=lambda m, t, v: 0.5 * (jnp.log(v) + (m - t) ** 2 / v),
    reference=lambda mp, m, t, v: (mp.log(v) + (m - t) ** 2 / v) / 2,
    domain=((-inf, inf), (-inf, inf), (0, inf)),
    # (no float64 holds more than 1e308)
    conditioning=lambda mp, m, t, v: (
        abs(mp.log(v)) + (m - t) ** 2 / v,
        min((1 + (m - t) ** 2 / v) / v, mp.mpf(10) ** 300),
    ),
)
loss(
    "poisson_nll",
    lambda of: lambda r, t: of.poisson_nll(r, t),
    naive=lambda r, t: jnp.exp(r) - t * r,
    reference=lambda mp, r, t: mp.exp(r) - t * r,
    domain=((-inf, 80), (0, inf)),
    conditioning=lambda mp, r, t: (mp.exp(r) + abs(t * r), mp.exp(r) + t),
)
loss(
    "kl_divergence",
    lambda of: lambda lp, t, axis=-1: of.kl_divergence(lp, t, axis),
    naive=lambda lp, t, axis=-1: jnp.sum(t * (jnp.log(t) - lp), axis),
    reference=lambda mp, lp, t: mp.fsum(v * (mp.log(v) - u) for u, v in zip(lp, t, strict=True)),
    domain=((-inf, 0), (0, 1)),
    conditioning=lambda mp, lp, t: (
        mp.fsum(v * (abs(mp.log(v)) + abs(u)) for u, v in zip(lp, t, strict=True)),
        max(abs(mp.log(v)) + abs(u) + 1 for u, v in zip(lp, t, strict=True)),
    ),
)
