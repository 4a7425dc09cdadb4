"""Fault injection: gradients spoilt on purpose, to try what an optimizer does about them."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike


class FaultState(NamedTuple):
    """State of `inject_fault`."""

    step: jax.Array
    """Gradients seen, int32."""
    planted: jax.Array
    """Gradients spoilt (on any replica), int32."""


def inject_fault(
    value: float | None,
    *,
    at: int | Sequence[int] | jax.Array,
    leaf: str = "",
    index: int = 0,
    axis_name: Hashable | None = None,
    replica: int = 0,
) -> Any:
    """Puts `value` into the gradient at chosen steps: an optax transformation for tests of guards.

    Put it before the guard, ``optax.chain(inject_fault(jnp.nan, at=7), guard(optax.adam(1e-3)))``.
    Inside of a guard it would be planted for ever: a refused step leaves its count as it was.

    Args:
        value: what one element becomes in each chosen leaf (NaN, inf, 1e30), in the leaf's dtype.
            None drops the gradient: all of each chosen leaf becomes 0, as from a replica that was
            lost.
        at: number of the gradient, from 0, or several.
        leaf: part of the path of the chosen leaves as `jax.tree_util.keystr` writes it, such as
            ``"['kernel']"``; all leaves contain the empty one. Integer leaves are left alone.
        index: position of the element in the flat leaf; negative from the end.
        axis_name: axis of `shard_map` or `pmap` on which only one `replica` is spoilt.
        replica: its index on that axis.

    Returns:
        An optax transformation with state `FaultState`.

    Raises:
        TypeError: `value` is neither a number nor None.
        ValueError: in `update`, no leaf has `leaf` in its path.
    """
    import optax  # Here, so that the other tools load jax only.

    if value is not None and not isinstance(value, (int, float)):
        raise TypeError(f"inject_fault: value must be a number or None, got {value!r}")
    steps = jnp.atleast_1d(jnp.asarray(at, jnp.int32))

    def init(params: Any) -> FaultState:
        del params
        return FaultState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))

    def update(updates: Any, state: FaultState, params: Any = None, **extra_args: Any) -> Any:
        del params, extra_args
        now = jnp.any(steps == state.step)
        here = now if axis_name is None else now & (lax.axis_index(axis_name) == replica)
        rows, treedef = jax.tree_util.tree_flatten_with_path(updates)
        chosen = [leaf in jax.tree_util.keystr(path) and _holds(x) for path, x in rows]
        if not any(chosen):
            raise ValueError(f"inject_fault: no floating leaf has {leaf!r} in its path")
        leaves = [
            jnp.where(here, _spoil(x, value, index), x) if hit else x
            for (_, x), hit in zip(rows, chosen, strict=True)
        ]
        state = FaultState(state.step + 1, state.planted + now)
        return treedef.unflatten(leaves), state

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def _holds(x: ArrayLike) -> bool:
    """Whether a leaf has an element and can be NaN."""
    return jnp.issubdtype(jnp.result_type(x), jnp.inexact) and math.prod(jnp.shape(x)) > 0


def _spoil(x: jax.Array, value: float | None, index: int) -> jax.Array:
    if value is None:
        return jnp.zeros_like(x)
    flat = jnp.ravel(x)
    hit = jnp.arange(flat.size) == index % flat.size
    return jnp.where(hit, jnp.asarray(value, x.dtype), flat).reshape(x.shape)
