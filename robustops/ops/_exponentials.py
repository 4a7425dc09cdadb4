"""Exponentials: safe_exp, safe_expm1."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import cast, largest, nan_of, promote, widen
from .._spec import op, total

inf = math.inf
nan = math.nan


def _last(dtype):
    """The last number of the working precision whose exponential does not overflow in `dtype`."""
    limit = math.log(largest(dtype))
    number = np.finfo(np.promote_types(dtype, np.float32)).dtype.type
    last = number(limit)
    return float(last if last <= limit else np.nextafter(last, number(0)))


def _itself(out: jax.Array, x: jax.Array) -> jax.Array:
    return _slope_of_exp(x)


@total(_itself)
def _slope_of_exp(x):
    """exp(x), and 0 where it overflows."""
    z = widen(x)
    return cast(jnp.where(z > _last(x.dtype), 0, jnp.exp(z)), x.dtype)


@total(lambda out, x: _slope_of_exp(x))
def _safe_exp(x):
    return _held_by(_exp(widen(x)), x)


def _held_by(y, x):
    """`y` in the dtype of `x`, at most its largest number unless x is infinite."""
    z = widen(x)
    (most,) = constants(z, largest(x.dtype))
    return cast(jnp.minimum(y, jnp.maximum(z, most)) + nan_of(z), x.dtype)


# Errors of XLA for CPU: with jax 0.12 0.9 and 0.7 ulp. With 0.10.2 those of exp are 5.5 ulp in the
# last unit before it overflows, those of expm1 5.7 ulp near 0.
_ACCURATE = jax.__version_info__ >= (0, 12)


def _exp(x):
    if _ACCURATE:
        return jnp.exp(x)
    start, steep = constants(x, math.log(largest(x.dtype)) - 1, 2.0**60)
    nought, end, one, more = constants(x, 0, 1, 1, math.e - 1)
    # 1 in the last unit, else 0.
    last = jnp.minimum(jnp.maximum((x - start) * steep, nought), end)
    return jnp.exp(x - last) * (one + more * last)


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


@total(lambda out, x: _slope_of_exp(x))
def _safe_expm1(x):
    return _held_by(_expm1(widen(x)), x)


def _expm1(x):
    if _ACCURATE:
        return jnp.expm1(x)
    # The series near 0.
    near = jnp.clip(x, -0.5, 0.5)
    p = jnp.ones_like(x)
    for n in range(16 if x.dtype == jnp.float64 else 9, 2, -1):
        p = 1 + near * p * (1 / n)
    return jnp.where(abs(x) < 0.5, near + near * near * 0.5 * p, jnp.expm1(x))


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
