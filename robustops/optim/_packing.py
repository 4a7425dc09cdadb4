"""Arrays of many leaves in few, so that a few kernels do for all of them."""

import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Axes = tuple[int, ...]


class Packing(NamedTuple):
    """How the units of all leaves lie in a few vectors, so that a few kernels do for them.

    With a kernel for each leaf and operation 400 leaves take twice as long to compile.
    """

    shapes: list[tuple[int, ...]]
    """Of the units of each leaf, with kept dimensions."""
    groups: list[list[int]]
    """Leaves whose units share a vector, alike ones in a row; what is alone keeps its shape."""

    def pack(self, each: Sequence[jax.Array | None]) -> list[jax.Array]:
        """One array for each group, from one for each leaf, or for the first of a row of alike."""
        parts = [[x for i in group if (x := each[i]) is not None] for group in self.groups]
        join = lambda group, xs: (
            jnp.concatenate([x.reshape(-1) for x in xs]) if len(group) > 1 else xs[0]
        )
        return list(map(join, self.groups, parts))

    def unpack(self, packed: Sequence[jax.Array]) -> list[jax.Array]:
        """One array for each leaf, from one for each group."""
        each = {}
        for vector, group in zip(packed, self.groups, strict=True):
            if len(group) == 1:
                each[group[0]] = vector
                continue
            sizes = [math.prod(self.shapes[i]) for i in group]
            # Numbers that XLA does not see, so that it makes one kernel for all leaves of a shape.
            starts = [jnp.int32(n) for n in itertools.accumulate(sizes[:-1], initial=0)]
            for i, *at, size in zip(group, lax.optimization_barrier(starts), sizes, strict=True):
                part = lax.dynamic_slice(vector, at, [size], allow_negative_indices=False)
                each[i] = part.reshape(self.shapes[i])
        return [each[i] for i in range(len(self.shapes))]


def packing_of(leaves: Sequence[jax.Array], axes: Callable[[Sequence[int]], Axes]) -> Packing:
    shapes = []
    for x in leaves:
        own = set(a % x.ndim for a in axes(x.shape))
        shapes.append(tuple(1 if a in own else n for a, n in enumerate(x.shape)))
    groups: dict[Hashable, list[int]] = {}
    for alike in _alike(leaves):
        first = leaves[alike[0]]
        key = real_dtype(first), alike[0] if _is_split(first) else None
        groups[key] = groups.get(key, []) + alike
    return Packing(shapes, list(groups.values()))


def _alike(leaves: Sequence[jax.Array]) -> list[list[int]]:
    """Indices of leaves that can be stacked."""
    kinds: dict[Hashable, list[int]] = {}
    for i, x in enumerate(leaves):
        kinds.setdefault((layout(x), x.dtype, i if _is_split(x) else None), []).append(i)
    return list(kinds.values())


def stacks(leaves: Sequence[jax.Array]) -> list[tuple[list[int], jax.Array]]:
    """Indices of leaves, and these leaves along a new first axis: a kernel for all of one shape.

    At the price of a copy: for what is seldom computed, and compiled all the same.
    """

    def stack(xs: list[jax.Array]) -> jax.Array:
        if len(xs) == 1:
            return xs[0][None]
        # Unlike `jnp.stack` no operation for each leaf.
        joined = jnp.concatenate([x if x.ndim else x.reshape(1) for x in xs])
        return joined.reshape(len(xs), *xs[0].shape)

    return [(alike, stack([leaves[i] for i in alike])) for alike in _alike(leaves)]


def _is_split(x: jax.Array) -> bool:
    """Whether an array is split over an explicit mesh, whose parts cannot be put end to end."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    return sharding is not None and any(part is not None for part in sharding.spec)


def real_dtype(x: jax.Array) -> Any:
    """The dtype of the squares of a leaf."""
    return jnp.finfo(wide_dtype(x.dtype)).dtype


def wide_dtype(dtype: Any) -> Any:
    return jnp.promote_types(dtype, jnp.float32)


def layout(x: Any) -> Hashable:
    """Shape and, on an explicit mesh, sharding: arrays that are added up have them in common."""
    return jnp.shape(x), getattr(jax.typeof(x), "sharding", None)
