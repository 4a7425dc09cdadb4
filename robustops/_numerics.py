"""Promotion, working precision and saturation: what every op does before and after its formula."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from ._apart import constants, copies


def largest(dtype: Any) -> float:
    """Return the largest finite number of `dtype`, as a Python float (so weak types stay weak)."""
    return float(jnp.finfo(dtype).max)


def smallest(dtype: Any) -> float:
    """Return the smallest normal number of `dtype`; XLA flushes what lies below it to zero."""
    return float(jnp.finfo(dtype).tiny)


def promote(name: str, *args: ArrayLike) -> list[jax.Array]:
    """Bring `args` to one real floating dtype as jax.numpy would; integers become floats.

    Weak types stay weak, and strict dtype promotion raises as it does for `jnp.add`. The shapes are
    checked to broadcast, but left as they are.
    """
    arrays = [jnp.asarray(a) for a in args]
    for a in arrays:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            raise TypeError(f"{name}: the input must be real numbers, got a random key.")
        if jnp.issubdtype(a.dtype, jnp.complexfloating):
            raise TypeError(
                f"{name}: complex input is not supported, got {a.dtype}; "
                "pass the real and imaginary parts, or abs(x)."
            )
    try:
        jnp.broadcast_shapes(*(a.shape for a in arrays))
    except ValueError:
        shapes = " and ".join(str(a.shape) for a in arrays)
        raise ValueError(f"{name}: the shapes {shapes} do not broadcast.") from None
    dtype = jnp.result_type(*arrays)
    if not jnp.issubdtype(dtype, jnp.floating):
        dtype = jnp.result_type(float)
    weak = all(a.weak_type for a in arrays)
    # A product with a Python float is what turns a weak integer into a weak float.
    return [cast(a * 1.0 if weak and a.dtype != dtype else a, dtype) for a in arrays]


def widen(x: jax.Array) -> jax.Array:
    """Return float16 and bfloat16 as float32 (XLA fuses the cast), other dtypes as they are."""
    return cast(x, jnp.float32) if jnp.finfo(x.dtype).bits < 32 else x


def cast(y: jax.Array, dtype: Any) -> jax.Array:
    """Return `y` in `dtype`; unlike `astype`, which makes it strong, a weak type stays weak."""
    return y if y.dtype == dtype else y.astype(dtype)


def nan_of(x: jax.Array) -> jax.Array:
    """Return 0, and NaN where `x` is NaN; to be added to what a maximum or minimum made of `x`.

    Where XLA for CPU takes a maximum along in the pass of a sum, that maximum drops a NaN:
    jax.jit(lambda x: jnp.sum(jnp.maximum(x, 0))) is finite for some x with a NaN.
    """
    # For an input array: other signs take that pass 13 to 60 ms for 2^24 numbers, these 1.5 ms.
    (nought,) = constants(x, 0)
    return nought * jnp.sign(x)


def within(y: jax.Array, most: float) -> jax.Array:
    """Return `y` within +-most as `clip` does; a NaN may be lost."""
    low, high = constants(y, -most, most)
    return jnp.minimum(jnp.maximum(y, low), high)


def clip(y: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Return `y` within [low, high]; NaN stays NaN.

    XLA for CPU takes arithmetic along in the one pass of a sum, but a clamp (`jnp.clip`, or a
    minimum of a maximum by constants), a compare or a select becomes an array first.
    """
    low, high = (
        constants(y, end)[0] if isinstance(end, int | float) else end for end in (low, high)
    )
    return jnp.minimum(jnp.maximum(y, low), high) + nan_of(y)


def clip_in_row(y: jax.Array, low: jax.Array | float, high: jax.Array | float) -> jax.Array:
    """Return `clip(y, low, high)`, for y that goes into a reduction and stays in its kernel.

    The sign in `nan_of` would make XLA for GPU split a softmax, so it is left to CPU.
    """
    nan = lax.platform_dependent(y, cpu=nan_of, default=jnp.zeros_like)
    return -jnp.maximum(-jnp.maximum(y, low), -high) + nan


def narrow(y: jax.Array, dtype: Any, *unless: jax.Array) -> jax.Array:
    """Return `y` in `dtype`, saturated at its largest finite number; NaN stays NaN.

    Where one of `unless`, of a dtype with no larger numbers, is infinite `y` may be so too.
    """
    most = largest(dtype)
    low, high = constants(y, -most, most)
    for x in unless:
        # Not abs(x) for both: what is used twice does not go into the pass of a sum.
        below, above = copies(widen(x), 2)
        low, high = jnp.minimum(-abs(below), low), jnp.maximum(abs(above), high)
    return cast(clip(y, low, high), dtype)


def held(y: jax.Array, dtype: Any, *unless: jax.Array) -> jax.Array:
    """Return `narrow(y, dtype, *unless)` by selects, for what is written to memory in any case."""
    most = largest(dtype)
    z = jnp.where(y > most, most, jnp.where(y < -most, -most, y))
    for x in unless:
        z = jnp.where(abs(x) == jnp.inf, y, z)
    return cast(z, dtype)


def infinite_with(y: jax.Array, x: jax.Array) -> jax.Array:
    """Return the finite `y`, made infinite where `x` is infinite and y not 0.

    For a formula in x held at the largest finite number, so that it has no 0 * inf.
    """
    one, far, most = constants(y, 1, *[largest(y.dtype)] * 2)
    *_, x = copies(widen(x), 3)  # narrow takes two, a derivative one
    # A finite |x| less the largest number is not above 0.
    return y * jnp.minimum(jnp.maximum(abs(x) - far, one), most)


def flush(x: jax.Array) -> jax.Array:
    """Return `x` with subnormal numbers as signed 0: XLA's functions do not agree on them."""
    # Not 0 * x, which is NaN for an infinite x.
    return jnp.where(abs(x) < smallest(x.dtype), 0 * jnp.sign(x), x)


def saturated(y: jax.Array) -> jax.Array:
    """Tell where `y` stands at the largest finite number, so where the op goes on as a constant."""
    return abs(y) == largest(y.dtype)


def normalize_axes(name: str, axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Return `axis` as a sorted tuple of distinct non-negative axes; None means all of them."""
    if axis is None:
        return tuple(range(ndim))
    given = axis if isinstance(axis, Sequence) else (axis,)
    axes = []
    for a in given:
        try:
            a = operator.index(a)
        except TypeError:
            raise TypeError(
                f"{name}: axis must be an int, a tuple of ints or None, got {axis!r}"
            ) from None
        if not -ndim <= a < ndim:
            raise ValueError(
                f"{name}: got axis={axis} for an array of {ndim} dimension{'s' * (ndim != 1)}; "
                f"use an axis from {-ndim} to {ndim - 1}."
                if ndim
                else f"{name}: got axis={axis} for a scalar; use axis=None."
            )
        axes.append(a % ndim)
    if len(set(axes)) != len(axes):
        raise ValueError(f"{name}: axis={axis} names an axis twice.")
    return tuple(sorted(axes))


def broadcast_mask(name: str, where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Return `where` as a boolean array of `shape`, or None."""
    if where is None:
        return None
    mask = jnp.asarray(where)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{name}: where must be boolean, got {mask.dtype}; use `mask != 0`.")
    try:
        return jnp.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(
            f"{name}: where has shape {mask.shape}, which does not broadcast to {shape}."
        ) from None


def power_of_two(x: jax.Array) -> jax.Array:
    """Return a power of two that brings the positive normal `x` below 4; 1 for 0 and NaN.

    Dividing by it is exact, so a sum of squares can be brought to order 1 without rounding. It is
    at most 2^126 in float32: XLA divides by way of the reciprocal, and that of 2^127 is subnormal.
    """
    info = jnp.finfo(x.dtype)
    rounded = lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=0)
    rounded = jnp.clip(rounded, smallest(x.dtype), 2.0**-info.minexp)
    return lax.stop_gradient(jnp.where(x > 0, rounded, 1))
