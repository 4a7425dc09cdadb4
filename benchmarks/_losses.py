"""Losses as functions of one element or of one row of logits, with their mpmath references.

Each is an `Op` record, so the suites treat it as they treat an op. `of(losses)` makes the function
from a module with optax's names: from `robustops.losses`, and from `optax.losses` where it has it.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robustops import losses
from robustops.testing import OPS, Op

inf = math.inf
REAL = ((-inf, inf),)

LOSSES: dict[str, Op] = {}
"""Our losses by the name of the case."""
OF: dict[str, Callable[[Any], Callable]] = {}
"""What makes the function of a case from a module of losses."""


def loss(
    name: str,
    of: Callable[[Any], Callable],
    *,
    naive: Callable,
    reference: Callable,
    domain=REAL,
    ulps=(4, 8),
) -> None:
    """Enter a case; its name is that of the loss, with arguments behind it where it needs them."""
    fn = of(losses)
    fn.__name__ = name
    OF[name] = of
    LOSSES[name] = Op(
        fn, naive=naive, reference=reference, domain=domain, edges=(), ulps=ulps, hint=""
    )


def cases() -> dict[str, Op]:
    """What the suites measure: losses and ops; of one that is both, log_cosh, the op's record."""
    return {**LOSSES, **OPS}


def _first(x):
    """The label of every row is class 0."""
    return jnp.zeros(x.shape[:-1], jnp.int32)


loss(
    "sigmoid_binary_cross_entropy",
    lambda of: lambda x: of.sigmoid_binary_cross_entropy(x, jnp.ones_like(x)),
    naive=lambda x: -jnp.log(1 / (1 + jnp.exp(-x))),
    reference=lambda mp, x: mp.log1p(mp.exp(-x)),
)
loss(
    "softmax_cross_entropy_with_integer_labels",
    lambda of: lambda x, axis=-1: of.softmax_cross_entropy_with_integer_labels(x, _first(x)),
    naive=lambda x, axis=-1: -jnp.log(jnp.exp(x[..., 0]) / jnp.sum(jnp.exp(x), axis)),
    reference=lambda mp, x: mp.log1p(mp.fsum(mp.exp(v - x[0]) for v in x[1:])),
)
loss(
    "softmax_cross_entropy",
    lambda of: (
        lambda x, axis=-1: of.softmax_cross_entropy(
            x, jax.nn.one_hot(_first(x), x.shape[-1], dtype=x.dtype)
        )
    ),
    naive=lambda x, axis=-1: -jnp.log(jnp.exp(x[..., 0]) / jnp.sum(jnp.exp(x), axis)),
    reference=lambda mp, x: mp.log1p(mp.fsum(mp.exp(v - x[0]) for v in x[1:])),
)
for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
    loss(
        f"sigmoid_focal_loss(gamma={gamma:g})",
        lambda of, g=gamma: lambda x: of.sigmoid_focal_loss(x, jnp.ones_like(x), gamma=g),
        naive=lambda x, g=gamma: (
            -((1 - 1 / (1 + jnp.exp(-x))) ** g) * jnp.log(1 / (1 + jnp.exp(-x)))
        ),
        reference=lambda mp, x, g=gamma: (1 / (1 + mp.exp(x))) ** g * mp.log1p(mp.exp(-x)),
        ulps=(16, 16),
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
