"""Textbook functions in float64: what float32 results are compared with, input by input.

Each is written anew, not with the op, so that the two cannot share a mistake; its accuracy, and
that of its derivative by automatic differentiation, is measured against mpmath before it is used.
Where the naive form of an op's record is good enough in float64 the op needs no line here.
"""

import math
from collections.abc import Callable

import jax.numpy as jnp

LOG2_HIGH = 45426 / 65536
"""The leading 16 bits of log 2; a float32 number of like size less it is exact in float64."""
LOG2_LOW = 1.4286068203094172e-06


def _softplus(x):
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-abs(x)))


def _sigmoid(x):
    e = jnp.exp(-abs(x))
    return jnp.where(x < 0, e, 1) / (1 + e)


def _log_cosh(x):
    small = abs(x) < 0.02
    s = jnp.where(small, x, 0) ** 2
    series = s / 2 - s**2 / 12 + s**3 / 45 - 17 * s**4 / 2520
    far = abs(x) + jnp.log1p(jnp.exp(-2 * abs(x))) - math.log(2)
    return jnp.where(small, series, far)


def _logit(x):
    middle = abs(x - 0.5) < 0.25
    near = 2 * jnp.arctanh(jnp.where(middle, 2 * x - 1, 0))
    return jnp.where(middle, near, jnp.log(x) - jnp.log1p(-x))


def _log1mexp(x):
    small = x < 0.7
    near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1)))
    return jnp.where(small, near, jnp.log1p(-jnp.exp(-jnp.where(small, 1, x))))


def _softplus_inverse(x):
    # log(e^x - 1) = log1p(2 (e^(x - log 2) - 1)), which cancels nowhere near x = log 2.
    middle = abs(x - 0.7) < 0.2
    near = jnp.log1p(2 * jnp.expm1(jnp.where(middle, (x - LOG2_HIGH) - LOG2_LOW, 0)))
    return jnp.where(middle, near, x + _log1mexp(x))


def _expm1(x):
    # jax takes the derivative of expm1 as expm1(x) + 1, which loses exp(x) below -16.
    low = x < -1
    return jnp.where(low, jnp.exp(x) - 1, jnp.expm1(jnp.where(low, 0, x)))


FLOAT64: dict[str, Callable] = {
    "safe_expm1": _expm1,
    "sigmoid": _sigmoid,
    "log_sigmoid": lambda x: -_softplus(-x),
    "softplus": _softplus,
    "log_cosh": _log_cosh,
    "safe_logit": _logit,
    "log1mexp": _log1mexp,
    "softplus_inverse": _softplus_inverse,
}
