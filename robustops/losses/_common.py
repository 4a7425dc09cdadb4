"""What the losses share: checked input, errors, class axes, and sums that saturate."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

from .._apart import constants
from .._numerics import (
    broadcast_mask,
    cast,
    clip,
    held,
    infinite_with,
    largest,
    nan_of,
    narrow,
    normalize_axes,
    promote,
    widen,
)
from .._spec import rule_of, total
from .._zmul import zmul
from ..ops._reduce import keep, sum_of
from ..ops._similarity import difference

inf = math.inf
Axis = int | Sequence[int] | None


def floating(name: str, **arrays: ArrayLike) -> list[jax.Array]:
    """Return the named arrays, which must be real and floating, as optax asks of predictions."""
    checked = []
    for role, value in arrays.items():
        array = jnp.asarray(value)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            promote(name, array)  # complex input has its own message
            raise TypeError(
                f"{name}: {role} must be floating, got {array.dtype}; convert with "
                "x.astype(jnp.float32)."
            )
        checked.append(array)
    return checked


def positive(name: str, option: str, value: Any) -> Any:
    """Check a number or array; a traced one cannot be looked at, and is taken as it is."""
    if not isinstance(value, Tracer) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name}: {option} must be > 0, got {value}.")
    return value


def errors_of(
    name: str, predictions: ArrayLike, targets: ArrayLike | None, *, broadcast: bool = False
) -> jax.Array:
    """Return predictions - targets, saturated; the shapes must be equal or, if asked, broadcast."""
    arrays = compared(name, predictions, targets, broadcast=broadcast)
    return difference(*arrays) if len(arrays) == 2 else arrays[0]


def compared(
    name: str, predictions: ArrayLike, targets: ArrayLike | None, *, broadcast: bool = False
) -> list[jax.Array]:
    """Return predictions and, if given, targets, checked as `errors_of` says."""
    (p,) = floating(name, predictions=predictions)
    if targets is None:
        return [p]
    p, t = promote(name, p, targets)
    if p.shape != t.shape and not broadcast:
        raise ValueError(
            f"{name}: predictions have shape {p.shape} and targets {t.shape}, which would "
            "broadcast example against example; make them equal, with targets[:, None] or "
            "predictions[:, 0]."
        )
    return [p, t]


def error(p, t):
    """`difference` for values: without a select, see `clip`."""
    y, (most,) = widen(p) - widen(t), constants(widen(p), largest(p.dtype))
    end = jnp.maximum(jnp.maximum(abs(widen(p)), abs(widen(t))), most)
    return cast(clip(y, -end, end), p.dtype)


def of_error(fn: Callable) -> Callable:
    """Make a loss of an error, fn(e, *rest), one of predictions and targets: loss([p, t], *rest).

    Without targets it is `fn`. With them the derivative forms the error again: shared with the
    value, XLA for CPU would write it to memory.
    """

    def rule(out, arrays, tangents, **static):
        (p, t, *rest), (dp, dt, *along) = arrays, tangents
        e = difference(p, t)
        de = None if dp is None else jnp.broadcast_to(dp, e.shape)
        if dt is not None:
            de = -jnp.broadcast_to(dt, e.shape) if de is None else de - dt
        return rule_of(fn)(out, [e, *rest], [de, *along], **static)

    @total(jvp=rule)
    @functools.wraps(fn)
    def of_two(p, t, *rest, **static):
        return fn(error(p, t), *rest, **static)

    def loss(arrays, *rest, **static):
        return (of_two if len(arrays) == 2 else fn)(*arrays, *rest, **static)

    return loss


# The gradient of a square stays 2 c e where the square itself saturates: descent must come back.
@total(lambda out, e, *, c: 2 * c * widen(e))
def square(e, *, c):
    """c e^2, saturated."""
    z = widen(e)
    factor, most = constants(z, c, largest(e.dtype))
    y = z * z if c == 1 else factor * z * z
    return cast(jnp.minimum(y, jnp.maximum(abs(z), most)) + nan_of(e), e.dtype)


@total(lambda out, x, y: y, lambda out, x, y: x)
def product(x, y):
    """x y, saturated; 0 where either is 0."""
    dtype = jnp.result_type(x, y)
    z = jnp.where((x == 0) & ~jnp.isnan(y), 0, widen(x) * widen(y))
    z = jnp.where((y == 0) & ~jnp.isnan(x), 0, z)
    return narrow(z, dtype, x, y)


@total(jvp=lambda out, arrays, tangents, *, dtype: tangents[0].astype(dtype))
def narrowed(x, *, dtype):
    """x in `dtype`, saturated, with the derivative kept."""
    most = largest(dtype)
    return cast(infinite_with(clip(x, -most, most), x), dtype)


def misses(p: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return 1 - p for a softmax p, from the other weights where one holds more than half."""
    return jnp.where(p > 0.5, sum_of(jnp.where(p > 0.5, 0, p), axes), 1 - p)


def class_axes(
    name: str, x: jax.Array, axis: Axis, where: ArrayLike | None
) -> tuple[tuple[int, ...], jax.Array | None]:
    """Return the axes of the classes, and `where` with them; it may lack them."""
    axes = normalize_axes(name, axis, x.ndim)
    if where is not None:
        where = jnp.asarray(where)
        if where.ndim != x.ndim and where.ndim == x.ndim - len(axes):
            where = jnp.expand_dims(where, axes)
    return axes, broadcast_mask(name, where, x.shape)


def class_indices(name: str, labels: ArrayLike, shape: tuple[int, ...], classes: int) -> Any:
    """Return labels broadcast to `shape`, with one axis more, and where they name a class."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(
            f"{name}: labels must be integer class indices, got {labels.dtype}; "
            "for one-hot or soft labels use softmax_cross_entropy."
        )
    if classes == 0:
        raise ValueError(f"{name}: there are no classes, so no label can name one.")
    try:
        labels = jnp.broadcast_to(labels, shape)
    except ValueError:
        raise ValueError(
            f"{name}: labels have shape {labels.shape}, but the scores need {shape}: one label "
            "for each row of classes."
        ) from None
    # An int8 label must not be compared with a number of classes that int8 does not hold.
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    inside = (labels >= 0) & (labels < classes)
    return jnp.where(inside, labels, 0)[..., None], inside


def _rule_saturated_sum(out, arrays, tangents, *, axis, dtype):
    return jnp.sum(widen(tangents[0]), axis=axis).astype(out.dtype)


@total(jvp=_rule_saturated_sum)
def _saturated_sum(x, *, axis, dtype):
    z = widen(x)
    n = 2.0 ** math.ceil(math.log2(max(math.prod(x.shape[a] for a in axis), 1)))
    # Two sums in one pass: what could overflow a sum of n is scaled down by n, so that opposite
    # overflows cannot meet as inf - inf.
    limit = largest(z.dtype) / (2 * n)
    part = clip(z, -limit, limit)
    rest = jnp.sum((z - part) / n, axis=axis)
    y = jnp.sum(part, axis=axis) + rest * n
    return jnp.where(jnp.isfinite(rest), narrow(y, dtype), cast(rest, dtype))


def saturated_sum(
    x: jax.Array, axes: tuple[int, ...], mask: jax.Array | None = None, dtype: Any = None
) -> jax.Array:
    """Return the sum over `axes` of what takes part, in `dtype`, saturated; inf stays inf."""
    axes = normalize_axes("sum", axes, x.ndim)
    return _saturated_sum(keep(x, mask), axis=axes, dtype=jnp.dtype(dtype or x.dtype))


def per_example(fn: Callable) -> Callable:
    """Make a total function of two arrays that are reduced over `axis`.

    `fn(x, y, *rest, axis)` gets them in working precision. Its slopes are rounded to their dtype
    before they meet a tangent, and saturate: cast from float32 on the way back, they would overflow
    in float16. `rest` is constant.
    """

    def rule(out, arrays, tangents, *, axis):
        x, y, *rest = arrays
        value, pull = jax.vjp(lambda a, b: fn(a, b, *rest, axis=axis), widen(x), widen(y))
        parts = [
            widen(zmul(narrowed(slope, dtype=t.dtype), t))
            for slope, t in zip(pull(jnp.ones_like(value)), tangents[:2], strict=True)
            if t is not None
        ]
        return jnp.sum(sum(parts[1:], parts[0]), axis=axis).astype(out.dtype)

    @functools.wraps(fn)
    def value(x, y, *rest, axis):
        out = fn(widen(x), widen(y), *rest, axis=axis)
        return jnp.where(jnp.isinf(out), cast(out, x.dtype), narrow(out, x.dtype))

    return total(jvp=rule)(value)


def summed(quick: Callable) -> Callable[[Callable], Callable]:
    """Make the sum over `axis` of a total function of two arrays, `terms(x, y)`.

    Precision and slopes are as for `per_example`.

    `quick(x, y)` are the terms without selects, finite on ordinary input. On CPU a sum takes them
    along in one pass; where that sum is not finite, the terms themselves are added up.
    """

    def decorate(terms: Callable) -> Callable:
        def rule(out, arrays, tangents, *, axis):
            x, y, *mask = arrays
            value, pull = jax.vjp(terms, widen(x), widen(y))
            parts = [
                widen(zmul(held(keep(slope, *mask or [None]), t.dtype), t))
                for slope, t in zip(pull(jnp.ones_like(value)), tangents[:2], strict=True)
                if t is not None
            ]
            return jnp.sum(sum(parts[1:], parts[0]), axis=axis).astype(out.dtype)

        def value(x, y, mask=None, *, axis):
            def safe(*arrays):
                return saturated_sum(terms(*arrays), axis, mask)

            def fast(*arrays):
                y = jnp.sum(keep(quick(*arrays), mask), axis=axis)
                return jax.lax.cond(jnp.all(jnp.isfinite(y)), lambda: y, lambda: safe(*arrays))

            out = jax.lax.platform_dependent(widen(x), widen(y), cpu=fast, default=safe)
            return jnp.where(jnp.isinf(out), cast(out, x.dtype), narrow(out, x.dtype))

        value.__name__ = terms.__name__
        return total(jvp=rule)(value)

    return decorate
