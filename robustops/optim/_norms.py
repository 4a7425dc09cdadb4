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

    def factors(self, limit: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Two numbers whose product scales the norm down to `limit`; 1 where it is no larger."""
        # Two, because scale * limit / scaled in one number can underflow to 0.
        exceeds, tiny = self.exceeds(limit), jnp.finfo(self.scaled.dtype).tiny
        return (
            jnp.where(exceeds, self.scale, 1),
            jnp.where(exceeds, limit / jnp.maximum(self.scaled, tiny), 1),
        )

    def shrink(self, x: jax.Array, limit: jax.Array) -> jax.Array:
        """`x` scaled down to norm `limit`; bit-identical where it is smaller or not finite."""
        return jnp.where(self.exceeds(limit), times(x, *self.factors(limit)), x)


def times(x: jax.Array, *factors: jax.Array) -> jax.Array:
    """`x` times each factor in turn, in float32 or wider, as its own dtype."""
    wide = jnp.promote_types(_wide(x.dtype), factors[0].dtype)
    return functools.reduce(jnp.multiply, factors, x.astype(wide)).astype(x.dtype)


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


# Sums of squares of float32 that are no larger can be added up, too; else numbers are scaled
# down first. NaN is not "large": it stays. The same for float64.
_LARGE = {"float32": (1e30, 2.0**-80), "float64": (1e280, 2.0**-600)}


def _square(x: jax.Array, dtype: Any, scale: float | None = None) -> jax.Array:
    if jnp.iscomplexobj(x):
        return _square(x.real, dtype, scale) + _square(x.imag, dtype, scale)
    x = x.astype(dtype)
    if scale is not None:
        # A number that XLA does not see, or it would make x x scale^2 of (x scale) (x scale). With
        # a minimum in its place XLA for GPU writes the squares of a matrix to memory.
        x = x * lax.optimization_barrier(jnp.asarray(scale, dtype))
    return x * x


def unit_norms(leaves: Sequence[jax.Array], axes: Callable[[Sequence[int]], Axes]) -> list[Norm]:
    """Norm of every unit of every floating leaf, with kept dimensions, in one pass."""
    if not leaves:
        return []

    def sums(scaled: bool = False) -> list[jax.Array]:
        return [
            jnp.sum(
                _square(x, d, _LARGE[d.name][1] if scaled else None), axes(x.shape), keepdims=True
            )
            for x, d in zip(leaves, dtypes, strict=True)
        ]

    dtypes = [jnp.finfo(_wide(x.dtype)).dtype for x in leaves]
    plain = sums()
    large = [s > _LARGE[d.name][0] for s, d in zip(plain, dtypes, strict=True)]
    pick = lambda other: [jnp.where(*row) for row in zip(large, other, plain, strict=True)]

    def on_demand() -> list[jax.Array]:
        needed = functools.reduce(jnp.logical_or, [b.any() for b in large])
        return lax.cond(needed, lambda: pick(sums(scaled=True)), lambda: plain)

    chosen = by_platform(on_demand, lambda: pick(sums(scaled=True)), plain)
    scales = [
        jnp.where(b, _LARGE[d.name][1], 1).astype(d) for b, d in zip(large, dtypes, strict=True)
    ]
    return [Norm(jnp.sqrt(s), c) for s, c in zip(chosen, scales, strict=True)]


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


def tree_norm(leaves: Sequence[jax.Array]) -> Norm:
    """Global norm of all floating leaves, a scalar, in one pass; 0 of none."""
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *(x.dtype for x in leaves))).dtype
    limit, small = _LARGE[dtype.name]
    squares = lambda scale=None: [_square(x, dtype, scale) for x in leaves]
    one, small = jnp.ones((), dtype), jnp.asarray(small, dtype)

    def on_demand() -> tuple[jax.Array, jax.Array]:
        plain = sum_folded(squares(), dtype)
        large = plain > limit
        rescued = lambda: sum_folded(squares(_LARGE[dtype.name][1]), dtype)
        # The scale is not a result of the cond: a constant would not vary over shards as sums do.
        return lax.cond(large, rescued, lambda: plain), jnp.where(large, small, one)

    def at_once() -> tuple[jax.Array, jax.Array]:
        # Two sums of one pass.
        plain, scaled = sum_each(squares(), dtype), sum_each(squares(_LARGE[dtype.name][1]), dtype)
        large = plain > limit
        return jnp.where(large, scaled, plain), jnp.where(large, small, one)

    square, scale = by_platform(on_demand, at_once, leaves)
    return Norm(jnp.sqrt(square), scale)


def sum_squares(leaves: Sequence[jax.Array]) -> jax.Array:
    """Sum of squares of all floating leaves in float32 or wider, which may overflow to inf."""
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *(x.dtype for x in leaves))).dtype
    squares = [_square(x, dtype) for x in leaves]
    folded, each = (functools.partial(form, squares, dtype) for form in (sum_folded, sum_each))
    return by_platform(folded, each, leaves)


def by_platform(cpu: Callable[[], Any], default: Callable[[], Any], inputs: Sequence[Any]) -> Any:
    """The result of one of two forms; eager code takes `default`, which has no branches."""
    if any(isinstance(x, Tracer) for x in inputs):
        return lax.platform_dependent(cpu=cpu, default=default)
    return default()


def sum_each(terms: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Sum of all elements of all terms."""
    return sum((jnp.sum(t) for t in terms), jnp.zeros((), dtype))


def sum_folded(terms: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """The same in the form that is best on CPU: terms of one shape are added up first.

    XLA for CPU runs a sum of products as one scalar loop, elementwise sums on all cores and SIMD
    lanes: 60 leaves of 5M elements took 0.1 of an Adam step in place of 0.2. Four terms share a
    kernel; more take longer to compile than they save.
    """
    shapes: dict[tuple[int, ...], list[jax.Array]] = {}
    for t in terms:
        shapes.setdefault(t.shape, []).append(t)
    total = jnp.zeros((), dtype)
    for group in shapes.values():
        for i in range(1, len(group), 3):
            group[0] = lax.optimization_barrier(sum(group[i : i + 3], group[0]))
        total += jnp.sum(lax.optimization_barrier(group[0]))
    return total


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
