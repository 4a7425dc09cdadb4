"""Norms of gradient leaves and of their units that neither overflow nor lose a NaN."""

import functools
import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer

from robustops.optim._packing import (
    Axes,
    Packing,
    layout,
    packing_of,
    real_dtype,
    stacks,
    wide_dtype,
)

Sums = tuple[list[jax.Array], list[jax.Array]]
"""Of the squares of the units of each leaf, and of all that have one dtype."""
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
        exceeds = self.exceeds(limit)
        # Selected before the division: an infinite limit would give derivatives of inf 0.
        return (
            jnp.where(exceeds, self.scale, 1),
            jnp.where(exceeds, limit, 1) / jnp.where(exceeds, self.scaled, 1),
        )

    def share(self, limit: jax.Array, of: "Norm", whole: jax.Array) -> jax.Array:
        """What `scaled` is multiplied by to come down to `limit`, or by the share of all if less.

        `whole` is what the `scaled` norm `of` all units is multiplied by; infinite if it may stay.
        """
        mine = limit / jnp.maximum(self.scaled, jnp.finfo(self.scaled.dtype).tiny)
        return jnp.minimum(mine, (whole * (of.scale / self.scale)).astype(mine.dtype))

    def shrunk_by(self, share: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Two numbers that bring a norm down by a `share`, 1 where it is no less; and where not."""
        less = (share * self.scale < 1) & (self.scaled > 0)
        return jnp.where(less, self.scale, 1), jnp.where(less, share, 1), less

    def shrink(self, x: jax.Array, limit: jax.Array) -> jax.Array:
        """`x` scaled down to norm `limit`; bit-identical where it is smaller or not finite."""
        return shrunk(x, self.exceeds(limit), *self.factors(limit))


def shrunk(x: jax.Array, exceeds: jax.Array, *factors: jax.Array) -> jax.Array:
    """`x` times each factor where its norm `exceeds` a limit; else bit-identical."""
    return jnp.where(exceeds, times(x, *factors), x)


def times(x: jax.Array, *factors: jax.Array) -> jax.Array:
    """`x` times each factor in turn, in float32 or wider, as its own dtype."""
    wide = jnp.promote_types(wide_dtype(x.dtype), factors[0].dtype)
    return functools.reduce(jnp.multiply, factors, x.astype(wide)).astype(x.dtype)


def is_float(x: Any) -> bool:
    """Whether a leaf has a floating point or complex dtype, so that it can hold a NaN."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact)


def whole(shape: Sequence[int]) -> Axes:
    """All axes: the unit is the leaf."""
    return tuple(range(len(shape)))


def units(shape: Sequence[int], axis: int | Sequence[int] | None = None) -> Axes:
    """Axes that make up one unit: those of `axis`, else by rank as in Brock et al. (2021)."""
    if axis is not None:
        return tuple(axis) if isinstance(axis, Sequence) else (operator.index(axis),)
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


def _square(x: jax.Array, dtype: Any, scale: jax.Array | None = None) -> jax.Array:
    if jnp.iscomplexobj(x):
        return _square(x.real, dtype, scale) + _square(x.imag, dtype, scale)
    x = x.astype(dtype)
    x = x if scale is None else x * scale
    return x * x


def _small(dtype: Any) -> jax.Array:
    # A number that XLA does not see, or it would make x x scale^2 of (x scale) (x scale). With
    # a minimum in its place XLA for GPU writes the squares of a matrix to memory.
    return lax.optimization_barrier(jnp.asarray(_LARGE[dtype.name][1], dtype))


def unit_norms(
    leaves: Sequence[jax.Array], axes: Callable[[Sequence[int]], Axes]
) -> tuple[list[Norm], Norm, Packing]:
    """Norm of every unit of every floating leaf, packed, and of all, in one pass."""
    packing = packing_of(leaves, axes)
    dtypes = [real_dtype(leaves[group[0]]) for group in packing.groups]
    kinds = list(dict.fromkeys(dtypes))
    small = {d: _small(d) for d in kinds}

    def sums(scaled: bool = False) -> list[jax.Array]:
        scales = [small[real_dtype(x)] for x in leaves] if scaled else None
        return packing.pack(_sum_units(leaves, axes, scales))

    def stacked_sums() -> list[jax.Array]:
        each: list[jax.Array | None] = [None] * len(leaves)
        for alike, x in stacks(leaves):
            own = [a % (x.ndim - 1) + 1 for a in axes(x.shape[1:])]
            s = jnp.sum(_square(x, real_dtype(x), small[real_dtype(x)]), own, keepdims=True)
            each[alike[0]] = s if len(alike) > 1 else jnp.squeeze(s, 0)
        return packing.pack(each)

    def with_totals(squares: list[jax.Array]) -> Sums:
        of = lambda kind: [s.sum() for s, d in zip(squares, dtypes, strict=True) if d == kind]
        return squares, [together(jnp.add, of(kind)) for kind in kinds]

    def large(plain: Sums) -> list[jax.Array]:
        return [s > _LARGE[d.name][0] for s, d in zip(plain[0], dtypes, strict=True)]

    def needed(plain: Sums) -> list[jax.Array]:
        # Not `>`: where one unit is NaN the others must be rescued all the same.
        return [~(t <= _LARGE[d.name][0]) for t, d in zip(plain[1], kinds, strict=True)]

    def rescued(plain: Sums, scaled: list[jax.Array]) -> Sums:
        rows = list(zip(large(plain), scaled, plain[0], dtypes, strict=True))
        alike = [jnp.where(b, s, p * small[d] * small[d]) for b, s, p, d in rows]
        return [jnp.where(b, s, p) for b, s, p, _ in rows], with_totals(alike)[1]

    def on_demand() -> tuple[Sums, Sums]:
        plain = with_totals(lax.optimization_barrier(sums()))
        any_needed = functools.reduce(jnp.logical_or, needed(plain), jnp.bool_(False))
        return plain, lax.cond(any_needed, lambda: rescued(plain, stacked_sums()), lambda: plain)

    def at_once() -> tuple[Sums, Sums]:
        # Two sums of one pass; without the barrier the plain one is formed again for its total.
        first, scaled = lax.optimization_barrier((sums(), sums(True)))
        plain = with_totals(first)
        return plain, rescued(plain, scaled)

    plain, (chosen, totals) = by_platform(on_demand, at_once, leaves)
    norms = [
        Norm(_root(s), jnp.where(b, _LARGE[d.name][1], 1).astype(d))
        for s, b, d in zip(chosen, large(plain), dtypes, strict=True)
    ]
    each = [
        Norm(_root(jnp.where(n, s, p)), jnp.where(n, _LARGE[d.name][1], 1).astype(d))
        for n, s, p, d in zip(needed(plain), totals, plain[1], kinds, strict=True)
    ]
    return norms, _total(each), packing


def _root(square: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0: who differentiates a training step meets zeros."""
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def _total(norms: Sequence[Norm]) -> Norm:
    """The norm of all, in the widest of their dtypes; 0 of none."""
    if len(norms) == 1:
        return norms[0]
    dtype = jnp.result_type(jnp.float32, *(n.scaled.dtype for n in norms))
    cast = [Norm(n.scaled.astype(dtype), n.scale.astype(dtype)) for n in norms]
    scale = functools.reduce(jnp.minimum, [n.scale for n in cast], jnp.ones((), dtype))
    squares = (jnp.square(n.scaled * (scale / n.scale)) for n in cast)
    return Norm(_root(sum(squares, jnp.zeros((), dtype))), scale)


def _sum_units(
    leaves: Sequence[jax.Array],
    axes: Callable[[Sequence[int]], Axes],
    scales: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
    """Sum of squares of every unit of every floating leaf, with kept dimensions."""
    return [
        jnp.sum(_square(x, real_dtype(x), c), axes(x.shape), keepdims=True)
        for x, c in zip(leaves, scales or [None] * len(leaves), strict=True)
    ]


def plain_norms(
    leaves: Sequence[jax.Array], axes: Callable[[Sequence[int]], Axes], packing: Packing
) -> list[jax.Array]:
    """Norm of every unit, packed, at most the root of the largest number.

    For parameters, which clipping is measured by: 1.8e19 in float32.
    """
    most = lambda s: float(jnp.finfo(s.dtype).max) ** 0.5
    sums = packing.pack(_sum_units(leaves, axes))
    return [jnp.minimum(_root(s), most(s)) for s in sums]


def tree_norm(leaves: Sequence[jax.Array]) -> Norm:
    """Global norm of all floating leaves, a scalar, in one pass; 0 of none."""
    dtype = jnp.finfo(jnp.result_type(jnp.float32, *(x.dtype for x in leaves))).dtype
    limit, scale = _LARGE[dtype.name]
    squares = lambda scale=None: [_square(x, dtype, scale) for x in leaves]
    one, small, opaque = jnp.ones((), dtype), jnp.asarray(scale, dtype), _small(dtype)

    def on_demand() -> tuple[jax.Array, jax.Array]:
        plain = sum_folded(squares(), dtype)
        large = plain > limit
        # Leaf is added to leaf first: one sum over all of them takes longer to compile.
        added = lambda x: lax.optimization_barrier(jnp.sum(_square(x, dtype, opaque), 0))
        rescued = lambda: sum_each([added(x) for _, x in stacks(leaves)], dtype)
        # The scale is not a result of the cond: a constant would not vary over shards as sums do.
        return lax.cond(large, rescued, lambda: plain), jnp.where(large, small, one)

    def at_once() -> tuple[jax.Array, jax.Array]:
        # Two sums of one pass.
        plain, scaled = sum_each(squares(), dtype), sum_each(squares(opaque), dtype)
        large = plain > limit
        return jnp.where(large, scaled, plain), jnp.where(large, small, one)

    square, scale = by_platform(on_demand, at_once, leaves)
    return Norm(_root(square), scale)


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


def together(op: Callable[[Any, Any], Any], scalars: Sequence[jax.Array]) -> jax.Array:
    """All scalars combined, sixteen at a time.

    In one chain XLA for CPU fuses all of them into one kernel, and walks through that for each
    operand that it adds: two minutes of compilation for 400 leaves.
    """
    while len(scalars) > 1:
        groups = [scalars[i : i + 16] for i in range(0, len(scalars), 16)]
        scalars = lax.optimization_barrier([functools.reduce(op, group) for group in groups])
    return scalars[0]


def sum_each(terms: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """Sum of all elements of all terms."""
    return sum((jnp.sum(t) for t in terms), jnp.zeros((), dtype))


def sum_folded(terms: Sequence[jax.Array], dtype: Any) -> jax.Array:
    """The same in the form that is best on CPU: terms of one shape are added up first.

    XLA for CPU runs a sum of products as one scalar loop, elementwise sums on all cores and SIMD
    lanes: 60 leaves of 5M elements took 0.1 of an Adam step in place of 0.2. Four terms share a
    kernel; more take longer to compile than they save.
    """
    kinds: dict[Hashable, list[jax.Array]] = {}
    for t in terms:
        kinds.setdefault(layout(t), []).append(t)
    total = jnp.zeros((), dtype)
    for group in kinds.values():
        for i in range(1, len(group), 4):
            group[0] = lax.optimization_barrier(sum(group[i : i + 4], group[0]))
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
