"""Clipping that keeps the direction of any finite gradient."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from robustops.optim._checks import check_number, check_params, check_same_leaves
from robustops.optim._norms import (
    Norm,
    float_leaves,
    is_float,
    map_floats,
    plain_norms,
    shrunk,
    tree_norm,
    unit_norms,
    units,
)
from robustops.optim._packing import Packing


class ClipByGlobalNormState(NamedTuple):
    """State of `clip_by_global_norm`."""

    clipped: jax.Array
    """Number of gradients that were scaled down, int32."""
    last_norm: jax.Array
    """Norm of the last gradient before clipping, float32; NaN or inf if it held one."""


def clip_by_global_norm(max_norm: ArrayLike) -> optax.GradientTransformationExtraArgs:
    """Scales a gradient down to a global norm of `max_norm`, whatever its finite size.

    g becomes g min(1, max_norm / ||g||).

    The norm is accumulated in float32 or wider and cannot overflow on the way: gradients of 1e30,
    of 3e38, or of 60000 in float16 keep their direction. A gradient within `max_norm` comes out bit
    for bit as it came in. A gradient with a NaN or inf passes unchanged, so that `skip_nonfinite`
    around this transform refuses it. Leaves that are not floating point pass unchanged.

    Args:
        max_norm: largest global norm, > 0.

    Returns:
        A transformation whose state counts the clipped gradients; see `health`.

    Raises:
        ValueError: `max_norm` is not > 0.

    Reference:
        Pascanu et al., On the difficulty of training recurrent neural networks, 2013.
    """
    check_number("clip_by_global_norm", "max_norm", max_norm)

    def init(params: optax.Params) -> ClipByGlobalNormState:
        del params
        return ClipByGlobalNormState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.float32))

    def update(
        updates: optax.Updates,
        state: ClipByGlobalNormState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ClipByGlobalNormState]:
        del params, extra_args
        norm = tree_norm(float_leaves(updates))
        limit = jnp.asarray(max_norm, norm.scaled.dtype)
        clipped = count_if(norm.exceeds(limit), state.clipped)
        updates = map_floats(lambda g: norm.shrink(g, limit), updates)
        return updates, ClipByGlobalNormState(clipped, as_float32(norm))

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def adaptive_grad_clip(
    clipping: ArrayLike, eps: ArrayLike = 1e-3, axis: int | Sequence[int] | None = None
) -> optax.GradientTransformationExtraArgs:
    """Scales each unit's gradient down to `clipping` times the norm of that unit's parameters.

    The gradient g of a unit with parameters p becomes g min(1, clipping max(||p||, eps) / ||g||).

    A unit is a whole vector or scalar, a column of a matrix (axis 0), axis 0 of a rank 3 parameter,
    axes (0, 1, 2) of rank 4 and (0, 1, 2, 3) of rank 5, as in `optax.adaptive_grad_clip`. Norms
    are accumulated in float32 or wider; that of a gradient cannot overflow on the way, that of
    parameters counts as 1.8e19 at most. A unit of zero gradient stays zero, and a unit with a NaN
    or inf passes unchanged.

    Args:
        clipping: largest ratio of gradient norm to parameter norm, > 0.
        eps: parameter norm that counts where the real one is smaller, >= 0.
        axis: the axes that make up one unit, in place of the rule above.

    Returns:
        A stateless transformation whose `update` needs the parameters.

    Raises:
        ValueError: `clipping` is not > 0, `eps` is negative or, in `update`, the parameters are
            missing or one has more than five dimensions and `axis` is None.

    Reference:
        Brock et al., High-performance large-scale image recognition without normalization, 2021.
    """
    check_number("adaptive_grad_clip", "clipping", clipping)
    check_number("adaptive_grad_clip", "eps", eps, zero=True)

    def update(
        updates: optax.Updates,
        state: optax.EmptyState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del extra_args
        check_params("adaptive_grad_clip", params)
        norms, _, packing = unit_norms(float_leaves(updates), lambda shape: units(shape, axis))
        limits = unit_limits(updates, params, packing, clipping, eps, axis)
        return shrink_units(updates, norms, limits, packing), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)  # pyright: ignore[reportArgumentType]


def unit_limits(
    updates: optax.Updates,
    params: optax.Params | None,
    packing: Packing,
    clipping: ArrayLike,
    eps: ArrayLike,
    axis: int | Sequence[int] | None = None,
) -> list[jax.Array]:
    """`clipping * max(|p_u|, eps)` for each unit of `updates`, packed."""
    norms = plain_norms(params_of(updates, params), lambda shape: units(shape, axis), packing)
    return [jnp.multiply(clipping, jnp.maximum(n, eps)).astype(n.dtype) for n in norms]


def shrink_units(
    tree: Any, norms: Sequence[Norm], limits: Sequence[jax.Array], packing: Packing
) -> Any:
    """`tree` with each unit scaled down to its limit; norms and limits are packed."""
    rows = [(n.exceeds(c), *n.factors(c)) for n, c in zip(norms, limits, strict=True)]
    parts = [packing.unpack([row[k] for row in rows]) for k in range(3)]
    return map_floats(shrunk, tree, *parts)


def params_of(updates: optax.Updates, params: optax.Params | None) -> list[jax.Array]:
    """The parameters that belong to the floating leaves of `updates`, in order."""
    check_same_leaves(updates, params)
    pairs = zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True)
    return [jnp.asarray(p) for u, p in pairs if is_float(u)]


def count_if(happened: jax.Array, counter: jax.Array) -> jax.Array:
    """`counter`, one higher if it `happened`; stays at the largest integer."""
    return jnp.where(happened, optax.safe_increment(counter), counter)


def as_float32(norm: Norm) -> jax.Array:
    """The norm as reported: float32, saturated, NaN or inf as it is."""
    largest = jnp.finfo(jnp.float32).max
    return jnp.where(
        jnp.isfinite(norm.scaled), jnp.minimum(norm.value, largest), norm.scaled
    ).astype(jnp.float32)
