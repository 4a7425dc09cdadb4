"""Numbers held by their logarithms: log|v| in float32 or wider, with the sign of v beside it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .._numerics import smallest, widen
from ._represent_nodes import nonnegative

# log of a 0 that is no exp(-inf): finite, so that sums of it stay finite and log(0) is told from a
# masked -inf. No logarithm that a formula gives is near it.
LOG_ZERO = -1e30
LN2 = math.log(2)


class Log(NamedTuple):
    """log|v| of a variable v.

    Attributes:
      value: The logarithm, -inf where v was made from exp(-inf), about `LOG_ZERO` at other zeros.
      negative: Where v < 0; None if nowhere.
      cancels: Whether v itself was formed by a subtraction that may lose its digits.
      floored: Whether the program keeps v away from 0 (an epsilon, a clip): its result, where
        finite, is then what was asked for.
    """

    value: jax.Array
    negative: Any = None
    cancels: bool = False
    floored: bool = False


def log1mexp(x):
    """log(1 - exp(-x)) for x >= 0, `LOG_ZERO` at 0."""
    zero = x <= 0
    x = jnp.where(zero, 1.0, x)
    small = jnp.log(-jnp.expm1(-jnp.minimum(x, LN2)))
    large = jnp.log1p(-jnp.exp(-jnp.maximum(x, LN2)))
    return jnp.where(zero, LOG_ZERO, jnp.where(x < LN2, small, large))


def minus(a, b, signed=False):
    """a - b for logarithms: a zero over anything stays zero.

    What is over a zero is as large as can be; over a `signed` one, of terms that cancel, it is 0.
    """
    zero = a <= LOG_ZERO / 2
    pole = zero if not signed else zero | ((b <= LOG_ZERO / 2) & (b > -jnp.inf))
    return jnp.where(zero, a, jnp.where(pole, LOG_ZERO, a - jnp.where(pole, 0, b)))


def raised(v, y):
    """y v for a logarithm v; that of a zero, or of a pole, is not moved: it stands for any.

    A large product less the maximum of such products is rounded once, and leaves 1e22 instead of 0.
    """
    any_size = (abs(v) > -LOG_ZERO / 2) & jnp.isfinite(v)
    return jnp.where(any_size, jnp.sign(y) * v, y * v)


def logsubexp(a, b):
    """log|exp(a) - exp(b)|."""
    top = jnp.maximum(a, b)
    gap = abs(a - jnp.where(a == b, a, b))
    return jnp.where(top <= LOG_ZERO / 2, top, top + log1mexp(gap))


def log_erfc(x):
    """log(erfc(x)), by way of the normal distribution's tail."""
    return jax.scipy.special.log_ndtr(-math.sqrt(2) * x) + LN2


def leaf_log(v):
    """log|v| of a value of which nothing else is known, with its sign."""
    v = widen(v)
    zero = abs(v) < smallest(v.dtype)
    log = jnp.where(zero, LOG_ZERO, jnp.log(jnp.where(zero, 1, abs(v))))
    return log


def xor(a, b):
    return b if a is None else a if b is None else a ^ b


def joined(value, *parts, negative=None, **flags):
    """A Log made of others: it cancels, is floored if one of them is."""
    merged = {f: any(getattr(p, f) for p in parts) for f in ("cancels", "floored")}
    return Log(value, negative, **(merged | flags))


def plain_log(offset, slope, n):
    """log|offset + slope * n| from the value of `n`."""
    if n.scalar is not None:
        c = offset + slope * n.scalar
        log = math.log(abs(c)) if c else -math.inf
        value = jnp.full(n.aval.shape, log, widen(n.value).dtype)
        return Log(value, jnp.full(n.aval.shape, True) if c < 0 else None)
    v = offset + slope * widen(n.value)
    known = nonnegative(n) and offset >= 0 and slope > 0
    return Log(leaf_log(v), None if known else v < 0)


def flipped(value, negative):
    return jnp.full(value.shape, True) if negative is None else ~negative
