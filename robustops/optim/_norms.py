"""Norms of gradient leaves and of their units that neither overflow nor lose a NaN."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

Axes = tuple[int, ...]
AxisName = Hashable | tuple[Hashable, ...] | None


class Norm(NamedTuple):
    """An L2 norm kept as two factors, because the norm itself may exceed the largest number."""

    scaled: jax.Array
    """Norm of ``scale * x``: finite if and only if x is."""
    scale: jax.Array
    """A power of two: 1, or far below it where the plain sum of squares is near overflow."""

    @property
    def value(self) -> jax.Array:
        """The norm itself, saturated at the largest number of its dtype."""
        value = self.scaled / self.scale
        return jnp.where(
            jnp.isfinite(self.scaled), jnp.minimum(value, jnp.finfo(value.dtype).max), self.scaled
        )

    def exceeds(self, limit: jax.Array) -> jax.Array:
        """Whether a finite norm is larger than `limit`; False where it is not finite."""
        return jnp.isfinite(self.scaled) & (self.scaled > limit * self.scale)

    def shrink(self, x: jax.Array, limit: jax.Array) -> jax.Array:
        """`x` scaled down to norm `limit`; bit-identical where it is smaller or not finite."""
        # Two multiplications: scale * limit / scaled in one number can underflow to 0.
        wide = jnp.promote_types(_wide(x.dtype), self.scaled.dtype)
        shrunk = (x.astype(wide) * self.scale) * (
            limit / jnp.maximum(self.scaled, jnp.finfo(self.scaled.dtype).tiny)
        )
        return jnp.where(self.exceeds(limit), shrunk.astype(x.dtype), x)


def is_float(x: Any) -> bool:
    """Whether a leaf has a floating point or complex dtype, so that it can hold a NaN."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def _wide(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def whole(shape: Sequence[int]) -> Axes:
    """All axes: the unit is the leaf."""
    return tuple(range(len(shape)))


def units(shape: Sequence[int], axis: int | Sequence[int] | None = None) -> Axes:
    """Axes that make up one unit: those of `axis`, else by rank as in Brock et al. (2021)."""
    if axis is not None:
        return (axis,) if isinstance(axis, int) else tuple(axis)
    if sum(n != 1 for n in shape) <= 1:
        return whole(shape)
    if len(shape) > 5:
        raise ValueError(
            f"adaptive_grad_clip: no unit is defined for a parameter of shape {tuple(shape)};"
            " pass axis=, the axes of one unit, or mask the parameter with optax.masked"
        )
    return {2: (0,), 3: (0,), 4: (0, 1, 2), 5: (0, 1, 2, 3)}[len(shape)]


def _sum_squares(x: jax.Array, axes: Axes, scale: jax.Array | None = None) -> jax.Array:
    x = x.astype(_wide(x.dtype))
    if scale is not None:
        x = x * scale
    square = x.real**2 + x.imag**2 if jnp.iscomplexobj(x) else x * x
    return jnp.sum(square, axis=axes, keepdims=True)


def leaf_norms(leaves: Sequence[jax.Array], axes: Callable[[Sequence[int]], Axes]) -> list[Norm]:
    """Norm of every unit of every floating leaf, with kept dimensions, in one pass."""
    reduced = [axes(x.shape) for x in leaves]
    sums = [_sum_squares(x, a) for x, a in zip(leaves, reduced, strict=True)]
    # Far from overflow, so that the sums can be added up as well. NaN is not "large": it stays.
    large = [s > (1e30 if s.dtype == jnp.float32 else 1e280) for s in sums]
    scales = [
        jnp.where(b, 2.0 ** (-80 if s.dtype == jnp.float32 else -600), 1.0).astype(s.dtype)
        for b, s in zip(large, sums, strict=True)
    ]

    def rescale() -> list[jax.Array]:
        return [_sum_squares(*args) for args in zip(leaves, reduced, scales, strict=True)]

    if sums:
        rescue = functools.reduce(jnp.logical_or, [b.any() for b in large])
        if isinstance(rescue, Tracer):
            sums = lax.cond(rescue, rescale, lambda: sums)
        elif rescue:  # an eager cond would be compiled anew at each call
            sums = rescale()
    return [Norm(jnp.sqrt(s), c) for s, c in zip(sums, scales, strict=True)]


def total_norm(norms: Sequence[Norm]) -> Norm:
    """Global norm of all units together, a scalar; 0 for an empty tree."""
    dtype = jnp.result_type(jnp.float32, *(n.scaled.dtype for n in norms))
    scale = functools.reduce(
        jnp.minimum, [n.scale.min().astype(dtype) for n in norms], jnp.ones((), dtype)
    )
    square = jnp.zeros((), dtype)
    for n in norms:
        square += jnp.sum(jnp.square(n.scaled.astype(dtype) * (scale / n.scale.astype(dtype))))
    return Norm(jnp.sqrt(square), scale)


def all_shards(ok: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether `ok` holds on every shard along `axis_name`."""
    if axis_name is None:
        return ok
    return lax.psum((~ok).astype(jnp.int32), axis_name) == 0


def largest(norm: Norm, axis_name: AxisName) -> Norm:
    """The largest norm of all shards, so that they clip by one factor."""
    if axis_name is None:
        return norm
    scale = lax.pmin(norm.scale, axis_name)
    scaled = norm.scaled * (scale / norm.scale)
    # pmax may drop a NaN: it is put back wherever one shard is not finite.
    finite = all_shards(jnp.isfinite(scaled), axis_name)
    return Norm(jnp.where(finite, lax.pmax(scaled, axis_name), jnp.nan), scale)


def map_floats(fn: Callable[..., Any], tree: Any, *values: Sequence[Any]) -> Any:
    """`tree` with ``fn(leaf, *value)`` in place of each floating leaf; other leaves as they are."""
    leaves, treedef = jax.tree.flatten(tree)
    rest = [iter(v) for v in values]
    return treedef.unflatten(
        [fn(jnp.asarray(x), *map(next, rest)) if is_float(x) else x for x in leaves]
    )


def float_leaves(tree: Any) -> list[jax.Array]:
    """The floating leaves of `tree`, in order."""
    return [jnp.asarray(x) for x in jax.tree.leaves(tree) if is_float(x)]
