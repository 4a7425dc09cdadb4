"""Exponentials: safe_exp, safe_expm1."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import clip, largest, narrow, promote, saturated, widen
from .._spec import op, total

inf = math.inf
nan = math.nan


def _slope_of_exp(out, x):
    return jnp.where(saturated(out), 0, _safe_exp(x))


@total(_slope_of_exp)
def _safe_exp(x):
    return narrow(_exp(widen(x)), x.dtype, x)


def _exp(z):
    # XLA's exp is up to 5.5 ulp off in the last unit before it overflows, and 1 ulp below. 2^60
    # makes 1 of what lies above the start of that unit, 0 of the rest, without a select.
    last = clip((z - (math.log(largest(z.dtype)) - 1)) * 2.0**60, 0, 1)
    return jnp.exp(z - last) * (1 + (math.e - 1) * last)


@op(
    naive=jnp.exp,
    reference=lambda mp, x: mp.exp(x),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), 1.0, 1.0),
        ((1e4,), lambda i: float(i.max), 0.0),
        ((-1e4,), 0.0, 0.0),
        ((inf,), inf, None),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="exp",
    hint="exp overflows above 88.7 in float32 (11.1 in float16): use robustops.safe_exp, or stay "
    "in log space with robustops.logsumexp or log_softmax.",
)
def safe_exp(x: ArrayLike, /) -> jax.Array:
    """Exponential that saturates at the largest finite number instead of overflowing.

    exp(x) where that is finite, else the largest finite number with derivative 0.

    Edges: above 88.72 in float32 (11.09 in float16) 3.4e38 (65504); inf gives inf, -inf gives 0;
    NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("safe_exp", x)
    return _safe_exp(x)


@total(_slope_of_exp)
def _safe_expm1(x):
    z = widen(x)
    y = jnp.where(abs(z) < 0.5, _expm1_near_0(z), _exp(z) - 1)
    return jnp.where(x == inf, inf, narrow(y, x.dtype))


def _expm1_near_0(x):
    # The series: XLA's expm1 is up to 5.7 ulp off on CPU with jax 0.10.2.
    x = jnp.clip(x, -0.5, 0.5)
    p = jnp.ones_like(x)
    for n in range(16 if x.dtype == jnp.float64 else 9, 2, -1):
        p = 1 + x * p * (1 / n)
    return x + x * x * 0.5 * p


@op(
    naive=jnp.expm1,
    reference=lambda mp, x: mp.expm1(x),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), 0.0, 1.0),
        ((-0.0,), -0.0, 1.0),
        ((1e4,), lambda i: float(i.max), 0.0),
        ((-1e4,), -1.0, 0.0),
        ((inf,), inf, None),
        ((-inf,), -1.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="expm1",
    hint="expm1 overflows above 88.7 in float32, and its derivative taken as expm1(x) + 1 is lost "
    "below -17: use robustops.safe_expm1.",
    cost="On GPU with gradient 2.5 times the naive form's bytes: the derivative asks where the "
    "value saturated, so XLA writes it and reads it again.",
)
def safe_expm1(x: ArrayLike, /) -> jax.Array:
    """exp(x) - 1 without cancellation near 0, saturated at the largest finite number.

    exp(x) - 1 where that is finite, else the largest finite number with derivative 0. The
    derivative is formed as exp(x), not as expm1(x) + 1, which is 0 from x = -17 in float32 where
    the truth is 4e-8.

    Edges: above 88.72 in float32 (11.09 in float16) 3.4e38 (65504); inf gives inf, -inf gives -1;
    NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("safe_expm1", x)
    return _safe_expm1(x)
