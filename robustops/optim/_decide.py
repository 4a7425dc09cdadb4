"""The one decision of every guard: take the whole step, or leave everything as it was."""

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.core import Tracer

from robustops.optim._checks import check_same_leaves
from robustops.optim._norms import is_float

AxisName = Hashable | tuple[Hashable, ...] | None
Step = Callable[[], tuple[optax.Updates, optax.OptState]]


def all_shards(ok: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether `ok` holds on every shard along `axis_name`."""
    if axis_name is None:
        return ok
    return lax.psum((~ok).astype(jnp.int32), axis_name) == 0


def decide(
    step: Step,
    ok: jax.Array,
    grads: optax.Updates,
    inner_state: optax.OptState,
    params: optax.Params | None,
    axis_name: AxisName,
) -> tuple[optax.Updates, optax.OptState, jax.Array]:
    """Result of `step()` if nothing in it is newly non-finite, else no step at all.

    Args:
        step: makes the updates and the next inner state; pure, and may be computed twice.
        ok: what is known already, for instance that the norm of the gradient is finite.
        grads: judged as well, leaf by leaf; pass `()` where `ok` says it all.
        inner_state: kept, bit for bit, if the step is refused.
        params: if given, ``params + updates`` must stay finite too.
        axis_name: mapped axes over which all shards must agree.

    Returns:
        updates, inner state, and whether the step was taken.
    """
    taken = step()
    updates, new_state = taken
    finite = [jnp.isfinite(g) for g in jax.tree.leaves(grads) if is_float(g)]
    finite += _stay_finite(inner_state, new_state) + _updates_finite(updates, params)
    size = _leaf_counts(updates)
    ok = all_shards(ok & _all(finite, size), axis_name)
    # -0.0 and not 0.0: x + -0.0 is x for every x, while -0.0 + 0.0 loses its sign.
    zeros = jax.tree.map(lambda u: jnp.full_like(u, -0.0 if is_float(u) else 0), updates)
    refused = (zeros, inner_state)

    def select() -> tuple[optax.Updates, optax.OptState]:
        return jax.tree.map(functools.partial(jnp.where, ok), taken, refused)

    def branch() -> tuple[optax.Updates, optax.OptState]:
        return lax.cond(ok, step, lambda: refused)

    types = [[jax.typeof(x) for x in jax.tree.leaves(tree)] for tree in (taken, refused)]
    if not isinstance(ok, Tracer) or types[0] != types[1]:
        updates, new_state = select()
        return updates, new_state, ok
    # Accelerators fuse the select with the inner update. XLA for CPU copies both trees for it
    # (measured: 4x to 6x a bare Adam step); there `step` is computed once for its verdict only,
    # which stores nothing, and once more, in place, in the branch that is taken (2x).
    updates, new_state = lax.platform_dependent(cpu=branch, default=select)
    return updates, new_state, ok


def _stay_finite(old: Any, new: Any) -> list[jax.Array]:
    """Per element: finite, or not finite before (some states start at inf, as a best loss does)."""
    pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
    return [jnp.isfinite(y) | ~jnp.isfinite(x) for x, y in pairs if is_float(y) and is_float(x)]


def _updates_finite(updates: optax.Updates, params: optax.Params | None) -> list[jax.Array]:
    leaves = [jnp.asarray(u) for u in jax.tree.leaves(updates)]
    if params is None:
        return [jnp.isfinite(u) for u in leaves if is_float(u)]
    check_same_leaves(updates, params)
    pairs = zip(leaves, map(jnp.asarray, jax.tree.leaves(params)), strict=True)
    return [_arrives(u, p) for u, p in pairs if is_float(u) or is_float(p)]


def _arrives(u: jax.Array, p: jax.Array) -> jax.Array:
    """Whether u is finite and so is the parameter it makes, which a wider dtype does not ensure."""
    return jnp.isfinite(u) & (jnp.isfinite((p + u).astype(p.dtype)) | ~jnp.isfinite(p))


def _leaf_counts(tree: Any) -> dict[tuple[int, ...], int]:
    counts: dict[tuple[int, ...], int] = {}
    for x in jax.tree.leaves(tree):
        counts[jnp.shape(x)] = counts.get(jnp.shape(x), 0) + 1
    return counts


def _all(flags: list[jax.Array], counts: dict[tuple[int, ...], int]) -> jax.Array:
    """Whether all flags hold; those of one parameter (update, moments) share one reduction.

    Leaves of one shape come in the order of the parameters, tree after tree, so dealing them out
    in turn puts a parameter's own together. A wrong guess costs time only.
    """
    groups: dict[tuple[tuple[int, ...], int], jax.Array] = {}
    seen: dict[tuple[int, ...], int] = {}
    for f in flags:
        turn = seen.get(f.shape, 0)
        seen[f.shape] = turn + 1
        key = f.shape, turn % counts.get(f.shape, 1)
        groups[key] = groups[key] & f if key in groups else f
    return functools.reduce(jnp.logical_and, [f.all() for f in groups.values()], jnp.bool_(True))
