"""Functions of probability: sigmoid, xlogy."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import cast, narrow, promote, saturated, smallest, widen
from .._spec import op, total
from ._elementwise import safe_log
from ._families import ratio

inf = math.inf
nan = math.nan


# (p q)' = -p q tanh(x / 2): the difference p q^2 - p^2 q loses all digits near 0.
@total(lambda out, x: -out * jnp.tanh(x / 2))
def _slope(x):
    z = widen(x)
    e = jnp.exp(-abs(z))
    return cast(e / ((1 + e) * (1 + e)), x.dtype)


@total(lambda out, x: _slope(x))
def _sigmoid(x):
    # exp(-|x|) <= 1 cannot overflow, and nothing near 1 is subtracted.
    z = widen(x)
    e = jnp.exp(-abs(z))
    return cast(jnp.where(z < 0, e, 1) / (1 + e), x.dtype)


@op(
    naive=lambda x: 1 / (1 + jnp.exp(-x)),
    reference=lambda mp, x: 1 / (1 + mp.exp(-x)),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), 0.5, 0.25),
        ((1e4,), 1.0, 0.0),
        ((-1e4,), 0.0, 0.0),
        ((inf,), 1.0, 0.0),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="logistic",
    hint="1 / (1 + exp(-x)) overflows below -88.7 in float32, and its derivative p (1 - p) is lost "
    "above 17: use robustops.sigmoid, and for losses keep the logit.",
)
def sigmoid(x: ArrayLike, /) -> jax.Array:
    """Logistic function 1 / (1 + exp(-x)), with a derivative that is right in both tails.

    The derivative is sigmoid(x) sigmoid(-x), not p (1 - p), which is 0 from x = 17 in float32 where
    the truth is 4e-8.

    Edges: -inf gives 0, inf gives 1, both with derivative 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`, in [0, 1].

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("sigmoid", x)
    return _sigmoid(x)


@total(
    lambda out, x, y: jnp.where(saturated(out), 0, safe_log(y)),
    lambda out, x, y: jnp.where(saturated(out) | (y < smallest(y.dtype)), 0, ratio(x, y)),
)
def _xlogy(x, y):
    log = jnp.log(jnp.maximum(widen(y), smallest(y.dtype)))
    zero = (x == 0) & ~jnp.isnan(y)
    q = jnp.where(zero, 0, widen(x) * jnp.where(zero, 1, log))
    return jnp.where(jnp.isinf(x) | jnp.isinf(y), cast(q, x.dtype), narrow(q, x.dtype))


@op(
    naive=lambda x, y: x * jnp.log(y),
    reference=lambda mp, x, y: x * mp.log(y),
    domain=[(-inf, inf), (0, inf)],
    edges=[
        ((2.0, 1.0), 0.0, (0.0, 2.0)),
        ((0.0, 0.0), 0.0, (lambda i: math.log(i.tiny), 0.0)),
        ((0.0, -1.0), 0.0, (lambda i: math.log(i.tiny), 0.0)),
        ((1.0, 0.0), lambda i: math.log(i.tiny), (lambda i: math.log(i.tiny), 0.0)),
        ((0.0, inf), 0.0, None),
        ((nan, 1.0), nan, None),
        ((0.0, nan), nan, None),
    ],
    ulps=(4, 8),
    replaces="xlogy",
    hint="x log(y) with y that can reach 0: use robustops.xlogy, which is 0 at x = 0.",
)
def xlogy(x: ArrayLike, y: ArrayLike, /) -> jax.Array:
    """Product x log(y), 0 where x is 0, finite with finite derivatives for every finite input.

    Where y is below the smallest normal number `tiny` of the dtype, log(y) goes on as the constant
    log(tiny), as in `safe_log`; overflow saturates.

    Edges: x = 0 gives 0 for every y but NaN; NaN in either argument gives NaN.

    Args:
      x: real array.
      y: real array; the shapes broadcast. Integers become floats.

    Returns:
      Array of the broadcast shape and promoted dtype.

    Raises:
      ValueError: shapes that do not broadcast.
      TypeError: complex input.
    """
    x, y = promote("xlogy", x, y)
    return _xlogy(x, y)
