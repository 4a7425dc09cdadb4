"""`floor=` and `extend=`: how an op goes on outside its domain.

Inside [low, high] it is its formula; beyond an end it is a constant, or the tangent line there.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .._apart import constants
from .._numerics import cast, clip, largest, nan_of, narrow, saturated, widen


def options(
    name: str,
    x: jax.Array,
    floor: float | None,
    extend: str,
    least: float,
    most: float | None = None,
) -> dict:
    """Check `floor` and `extend`, and return them as static options of the private function.

    The floor becomes a number of the dtype of `x`, so that value and slope agree on it. None is
    `least`, the smallest that is allowed; `most` is the largest, by default that of the dtype.
    """
    if extend not in ("constant", "linear"):
        raise ValueError(f"{name}: extend must be 'constant' or 'linear', got {extend!r}.")
    if floor is None:
        floor = least
    try:
        floor = float(floor)
    except (TypeError, jax.errors.ConcretizationTypeError):
        raise TypeError(
            f"{name}: floor must be a Python number, fixed at trace time, got {floor!r}; "
            "for a bound that varies use jnp.maximum(x, bound)."
        ) from None
    if not least <= floor <= largest(x.dtype):
        raise ValueError(
            f"{name}: floor must be finite and at least {least:g}, the boundary in {x.dtype}, "
            f"got {floor}."
        )
    if most is not None and floor > most:
        raise ValueError(f"{name}: floor must be at most {most:g}, got {floor}.")
    return {"floor": float(jnp.dtype(x.dtype).type(floor)), "linear": extend == "linear"}


def bounded(
    x: jax.Array,
    low: float,
    high: float | None,
    linear: bool,
    value: Callable[[jax.Array], jax.Array],
    slope: Callable[[float], float],
) -> jax.Array:
    """`value(x)` from `low` to `high`; beyond a constant, or the line of the slope at the end."""
    wide = widen(x)
    if high is None:
        (least,) = constants(wide, low)
        y = value(jnp.maximum(wide, least + nan_of(wide)))
    else:
        y = value(clip(wide, low, high))
    return extended(y, x, low, high, linear, slope)


def extended(
    y: jax.Array,
    x: jax.Array,
    low: float,
    high: float | None,
    linear: bool,
    slope: Callable[[float], float],
) -> jax.Array:
    """`y`, constant beyond `low` and `high`, in the dtype of `x`, with the lines if linear."""
    if not linear:
        return cast(y, x.dtype)
    big = largest(x.dtype)
    for pick, end in ((jnp.minimum, low), (jnp.maximum, high)):
        if end is not None:
            steepness = max(-big, min(big, slope(end)))
            factor, here, there = constants(y, steepness, end, end)
            y = y + factor * (pick(widen(x), here) - there)
    return narrow(y, x.dtype, x)


def bounded_slope(
    out: jax.Array,
    x: jax.Array,
    low: float,
    high: float | None,
    linear: bool,
    slope: Callable[[jax.Array], jax.Array],
) -> Any:
    """The derivative of `bounded`; `slope` is a total function of an array."""
    if linear:
        return jnp.where(saturated(out), 0, slope(jnp.clip(x, low, high)))
    # Not `low <= x <= high`: a NaN must reach `slope`.
    outside = x < low if high is None else (x < low) | (x > high)
    return jnp.where(outside, 0, slope(x))
