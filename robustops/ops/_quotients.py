"""Quotients: safe_div, safe_reciprocal."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import cast, flush, largest, narrow, promote, saturated, smallest, widen
from .._spec import op, total
from ._families import ratio, reciprocal

inf = math.inf
nan = math.nan


def _checked_fill(name, dtype, fill):
    try:
        fill = float(fill)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(
            f"{name}: fill must be a Python number, got {fill!r}; "
            f"for an array use jnp.where(y == 0, fill, {name}(...))."
        ) from None
    if not abs(fill) <= largest(dtype):
        raise ValueError(f"{name}: fill must be finite in {dtype}, got {fill}.")
    return fill


@total(
    lambda out, x, y, *, fill: jnp.where(saturated(out), 0, reciprocal(y)),
    lambda out, x, y, *, fill: jnp.where(saturated(out), 0, ratio(x, y, c=-1.0, k=2)),
)
def _safe_div(x, y, *, fill):
    # XLA flushes a subnormal float32 in the quotient, but not always in a comparison with 0. (In
    # float16, computed with as float32, it is a number.)
    y = flush(widen(y))
    zero = y == 0
    q = widen(x) / jnp.where(zero, 1, y)
    q = jnp.where(jnp.isinf(x), cast(q, x.dtype), narrow(q, x.dtype))
    return jnp.where(zero & ~jnp.isnan(x), fill, q)


def _slope_of_reciprocal(out, x, *, fill):
    # The reciprocal of a subnormal float16 number saturates.
    return reciprocal(jnp.where(abs(x) < 1 / largest(x.dtype), 0, x), c=-1.0, k=2)


@total(_slope_of_reciprocal)
def _safe_reciprocal(x, *, fill):
    z = widen(x)
    scale, one, two, three, four = constants(z, 1 / smallest(z.dtype), 1, 1, 1, 1)
    # 0 for a normal number, else inf.
    pole = one / jnp.floor(jnp.minimum(abs(z) * scale, two)) - three
    q = four / (z + pole)
    if fill:
        q = jnp.where(abs(z) < smallest(z.dtype), fill, q)
    return q if q.dtype == x.dtype else narrow(q, x.dtype)


@op(
    naive=jnp.divide,
    reference=lambda mp, x, y: x / y,
    domain=[(-inf, inf), (-inf, inf)],
    edges=[
        ((1.0, 2.0), 0.5, (0.5, -0.25)),
        ((1.0, 0.0), 0.0, (0.0, 0.0)),
        ((0.0, 0.0), 0.0, (0.0, 0.0)),
        ((1.0, -0.0), 0.0, (0.0, 0.0)),
        ((1.0, inf), 0.0, (0.0, 0.0)),
        ((inf, 2.0), inf, None),
        ((nan, 0.0), nan, None),
        ((1.0, nan), nan, (nan, nan)),
    ],
    ulps=(2, 8),
    replaces="div",
    hint="division by a value that can be 0: use robustops.safe_div, which gives `fill` there.",
)
def safe_div(x: ArrayLike, y: ArrayLike, /, *, fill: float = 0.0) -> jax.Array:
    """Quotient that gives `fill` where the denominator is 0, and saturates instead of overflowing.

    x / y; `fill` with zero derivatives where y = 0, whatever the sign of that zero. Derivatives are
    right where they are representable, for y = 1e-25 too, since x / y^2 is formed by two divisions.

    Edges: 0 / 0 and 1 / 0 give `fill`; an overflow gives the largest finite number with derivative
    0; x / inf gives 0; NaN gives NaN.

    Args:
      x: numerator, real array.
      y: denominator, real array; the shapes broadcast.
      fill: Python number, the value at the pole.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast, or a `fill` that is not finite.
      TypeError: complex input, or a `fill` that is no Python number.
    """
    x, y = promote("safe_div", x, y)
    return _safe_div(x, y, fill=_checked_fill("safe_div", x.dtype, fill))


@op(
    naive=jnp.reciprocal,
    reference=lambda mp, x: 1 / x,
    domain=[(-inf, inf)],
    edges=[
        ((2.0,), 0.5, -0.25),
        ((0.0,), 0.0, 0.0),
        ((-0.0,), 0.0, 0.0),
        ((inf,), 0.0, 0.0),
        ((-inf,), -0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(2, 8),
    replaces="reciprocal",
    hint="the reciprocal of a value that can be 0: use robustops.safe_reciprocal, which gives "
    "`fill` there.",
)
def safe_reciprocal(x: ArrayLike, /, *, fill: float = 0.0) -> jax.Array:
    """Reciprocal 1 / x that gives `fill` where x is 0, and saturates instead of overflowing.

    1 / x; `fill` with derivative 0 where x = 0, whatever the sign of that zero. Subnormal input
    counts as 0 (in float16 it is a number, whose reciprocal saturates).

    Edges: 0 gives `fill`; inf gives 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      fill: Python number, the value at the pole.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: a `fill` that is not finite.
      TypeError: complex `x`, or a `fill` that is no Python number.
    """
    (x,) = promote("safe_reciprocal", x)
    return _safe_reciprocal(x, fill=_checked_fill("safe_reciprocal", x.dtype, fill))
