"""What the reductions share: checked axes and masks, sums and counts that keep the axes."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import broadcast_mask, clip_in_row, narrow, normalize_axes, promote

inf = math.inf
Axis = int | Sequence[int] | None


def prepare(name: str, x: ArrayLike, axis: Axis, where: ArrayLike | None, dtype: Any = None):
    """Return the arrays (x, or x and its mask) and the axes of a reduction."""
    (x,) = promote(name, x)
    if dtype is not None:
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"{name}: dtype must be a real floating dtype, got {dtype}.")
        # A wider dtype computes; a narrower one is only for the result, see `finish`.
        if jnp.finfo(dtype).bits > jnp.finfo(x.dtype).bits:
            x = x.astype(dtype)
    mask = broadcast_mask(name, where, x.shape)
    return (x,) if mask is None else (x, mask), normalize_axes(name, axis, x.ndim)


def finish(y: jax.Array, axes: tuple[int, ...], keepdims: bool, dtype: Any) -> jax.Array:
    """Return the result of a reduction in `dtype`, saturated, with or without the axes."""
    if dtype is not None:
        y = jnp.where(jnp.isinf(y), y.astype(dtype), narrow(y, dtype))
    return y if keepdims else jnp.squeeze(y, axes)


def keep(x, mask, fill=0.0):
    """`x` with masked elements replaced, so that nothing they hold is ever computed with."""
    return x if mask is None else jnp.where(mask, x, fill)


def sum_of(x, axis, keepdims=True):
    """`jnp.sum` that keeps the axes."""
    return jnp.sum(x, axis=axis, keepdims=keepdims)


def count_of(x, mask, axis, least=0):
    """How many elements take part in each slice, at least `least`, with kept axes."""
    if mask is None:
        return jnp.asarray(max(math.prod(x.shape[a] for a in axis), least), x.dtype)
    count = mask.astype(jnp.int32)
    if math.prod(x.shape[a] for a in axis) >= 2**31:  # more than an int32 holds
        longest = max(axis, key=lambda a: x.shape[a])
        count = sum_of(count, (longest,)).astype(x.dtype)
    return jnp.maximum(sum_of(count, axis), least).astype(x.dtype)


def max_of(x, axis):
    """The largest element with kept axes, -inf of none."""
    return jnp.max(x, axis=axis, keepdims=True, initial=-inf)


def less(x, m):
    """x - m for x <= m, at least -800, and what rounding took from it; an infinite x counts as m.

    exp(x - m) is exp(d) (1 + lost): without `lost` its error would grow to |x - m| / 2 ulp.
    """
    # Knuth's two-sum. exp is 0 below -800 in every dtype; bounded there, nothing becomes NaN.
    d = clip_in_row(x - m, -800, 0)
    a = jnp.minimum(jnp.maximum(x, m - 800), m)
    v = d - a
    return d, (a - (d - v)) - (m + v)


def pair(arrays) -> tuple[Any, Any]:
    """The array of a reduction and its mask or None."""
    return arrays[0], arrays[1] if len(arrays) == 2 else None
