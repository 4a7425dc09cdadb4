"""Logarithms: safe_log, safe_log1p, safe_log2, safe_log10."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import promote, smallest
from .._spec import op, total
from ._families import reciprocal
from ._floors import bounded, bounded_slope, options

inf = math.inf
nan = math.nan
LN2 = math.log(2)
LN10 = math.log(10)


@total(lambda out, x, *, floor, linear: bounded_slope(out, x, floor, None, linear, reciprocal))
def _safe_log(x, *, floor, linear):
    return bounded(x, floor, None, linear, jnp.log, lambda end: 1 / end)


@op(
    naive=jnp.log,
    reference=lambda mp, x: mp.log(x),
    domain=[(0, inf)],
    edges=[
        ((1.0,), 0.0, 1.0),
        ((0.0,), lambda i: math.log(i.tiny), 0.0),
        ((-0.0,), lambda i: math.log(i.tiny), 0.0),
        ((-1.0,), lambda i: math.log(i.tiny), 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), lambda i: math.log(i.tiny), 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log",
    hint="log of a value that can reach 0: use robustops.safe_log, and for a probability "
    "keep its logit and use robustops.log_softmax or a loss from logits.",
)
def safe_log(x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant") -> jax.Array:
    """Natural logarithm, finite with finite derivatives for every finite input.

    log(x) for x >= floor, else log(floor) with derivative 0, or with `extend="linear"` the tangent
    log(floor) + (x - floor) / floor. Subnormal input counts as 0, as XLA treats it.

    Edges: 0 and below give log(floor), about -87.3 in float32; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds the derivative by 1 / floor. Default: the
        smallest normal number of the dtype, 1.2e-38 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` below the smallest normal number, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_log", x)
    return _safe_log(x, **options("safe_log", x, floor, extend, smallest(x.dtype)))


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor, None, linear, lambda v: reciprocal(1 + v)
    )
)
def _safe_log1p(x, *, floor, linear):
    return bounded(x, floor, None, linear, log1p, lambda end: 1 / (1 + end))


def log1p(x: jax.Array) -> jax.Array:
    """Return log(1 + x), as `jnp.log1p` does where that is accurate."""
    if x.dtype != jnp.float64:
        return jnp.log1p(x)
    # In float64 XLA CPU of jax 0.10.2 is 128 ulp off in (-0.414, -0.3), and log(1 + x) 2.1 there.
    return jnp.where(x < -0.3, jnp.log(1 + x), jnp.log1p(x))


@op(
    naive=jnp.log1p,
    reference=lambda mp, x: mp.log1p(x),
    domain=[(-1, inf)],
    edges=[
        ((0.0,), 0.0, 1.0),
        ((-0.0,), -0.0, 1.0),
        ((-1.0,), lambda i: math.log(i.epsneg), 0.0),
        ((-2.0,), lambda i: math.log(i.epsneg), 0.0),
        ((inf,), inf, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log1p",
    hint="log1p of a value that can reach -1: use robustops.safe_log1p; for log(1 - p) of a "
    "probability keep the logit and use robustops.losses.sigmoid_binary_cross_entropy.",
)
def safe_log1p(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Natural logarithm of 1 + x, finite with finite derivatives for every finite input.

    log(1 + x) for x >= floor, else log(1 + floor) with derivative 0, or with `extend="linear"` the
    tangent log(1 + floor) + (x - floor) / (1 + floor).

    Edges: -1 and below give log(1 + floor), about -16.6 in float32; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is. Default: the number next to -1 in the dtype,
        -1 + 2^-24 in float32.
      extend: "constant" or "linear", see above.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` not above -1, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_log1p", x)
    boundary = float(jnp.finfo(x.dtype).epsneg) - 1
    return _safe_log1p(x, **options("safe_log1p", x, floor, extend, boundary))


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor, None, linear, lambda v: reciprocal(v, c=1 / LN2)
    )
)
def _safe_log2(x, *, floor, linear):
    log = lambda v: jnp.log(v) * constants(v, 1 / LN2)[0]
    return bounded(x, floor, None, linear, log, lambda end: 1 / (LN2 * end))


@op(
    naive=jnp.log2,
    reference=lambda mp, x: mp.log(x) / mp.log(2),
    domain=[(0, inf)],
    edges=[
        ((1.0,), 0.0, 1 / LN2),
        ((2.0,), 1.0, 1 / (2 * LN2)),
        ((0.0,), lambda i: math.log2(i.tiny), 0.0),
        ((-1.0,), lambda i: math.log2(i.tiny), 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), lambda i: math.log2(i.tiny), 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log2",
    hint="log2 of a value that can reach 0: use robustops.safe_log2.",
)
def safe_log2(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Logarithm to base 2, finite with finite derivatives for every finite input.

    log2(x) for x >= floor, else log2(floor) with derivative 0, or with `extend="linear"` the
    tangent there. Subnormal input counts as 0, as XLA treats it.

    Edges: 0 and below give log2(floor), about -126 in float32; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds the derivative by 1 / (floor ln 2). Default: the
        smallest normal number of the dtype, 1.2e-38 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` below the smallest normal number, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_log2", x)
    return _safe_log2(x, **options("safe_log2", x, floor, extend, smallest(x.dtype)))


@total(
    lambda out, x, *, floor, linear: bounded_slope(
        out, x, floor, None, linear, lambda v: reciprocal(v, c=1 / LN10)
    )
)
def _safe_log10(x, *, floor, linear):
    log = lambda v: jnp.log(v) * constants(v, 1 / LN10)[0]
    return bounded(x, floor, None, linear, log, lambda end: 1 / (LN10 * end))


@op(
    naive=jnp.log10,
    reference=lambda mp, x: mp.log(x) / mp.log(10),
    domain=[(0, inf)],
    edges=[
        ((1.0,), 0.0, 1 / LN10),
        ((10.0,), 1.0, 1 / (10 * LN10)),
        ((0.0,), lambda i: math.log10(i.tiny), 0.0),
        ((-1.0,), lambda i: math.log10(i.tiny), 0.0),
        ((inf,), inf, 0.0),
        ((-inf,), lambda i: math.log10(i.tiny), 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log10",
    hint="log10 of a value that can reach 0: use robustops.safe_log10.",
)
def safe_log10(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Logarithm to base 10, finite with finite derivatives for every finite input.

    log10(x) for x >= floor, else log10(floor) with derivative 0, or with `extend="linear"` the
    tangent there. Subnormal input counts as 0, as XLA treats it.

    Edges: 0 and below give log10(floor), about -37.9 in float32; inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest input taken as it is; bounds the derivative by 1 / (floor ln 10). Default: the
        smallest normal number of the dtype, 1.2e-38 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` below the smallest normal number, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.
    """
    (x,) = promote("safe_log10", x)
    return _safe_log10(x, **options("safe_log10", x, floor, extend, smallest(x.dtype)))
