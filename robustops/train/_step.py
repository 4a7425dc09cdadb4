"""One training step, compiled once: loss, gradient, guarded update, one decision for all state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from robustops.ops import safe_mean
from robustops.optim import (
    DynamicLossScaleState,
    GuardState,
    RollbackState,
    SkipNonfiniteState,
    guarded_apply,
    health,
)

_GUARDS = (DynamicLossScaleState, GuardState, RollbackState, SkipNonfiniteState)


class TrainState(NamedTuple):
    """What a step changes; every leaf is an array, and is donated."""

    params: Any
    rest: Any
    """The module's other variables: BatchNorm statistics, random keys and their counts."""
    opt_state: Any


class Metrics(NamedTuple):
    """What a step reports.

    On the device it is one array of these five, which stays there until somebody reads it: five
    scalars cost five transfers.
    """

    loss: Any
    grad_norm: Any
    """Before clipping; NaN if the optimizer measures none."""
    taken: Any
    clipped: Any
    scale: Any
    """What the loss of this step was multiplied by."""


Loss = Callable[[Any, Any], jax.Array]


def objective(graphdef: Any, loss: Loss) -> Callable:
    """The function that a step differentiates, and that `replay` diagnoses.

    `(params, rest, inputs, targets, scale) -> (scale * mean loss, (mean loss, new rest))`, a scale
    of None being none. Outputs of 16 bits are widened first: a mean of float16 losses would carry
    three digits, and the scale may be beyond float16.
    """

    def mean_loss(params, rest, inputs, targets, scale):
        model = nnx.merge(graphdef, params, copy_variables(rest))
        outputs = widen(model(inputs))
        each = jnp.asarray(loss(outputs, targets))
        _check_losses(each, outputs, targets)
        value = safe_mean(each)
        new_rest = nnx.split(model, nnx.Param, ...)[2]
        return value if scale is None else value * scale, (value, new_rest)

    return mean_loss


def _check_losses(each: jax.Array, outputs: Any, targets: Any) -> None:
    if not jnp.issubdtype(each.dtype, jnp.floating):
        raise TypeError(
            f"fit: loss must return floating-point numbers, got {each.dtype}, without a gradient"
        )
    of, to = getattr(outputs, "shape", ()), getattr(targets, "shape", ())
    if (of == (*to, 1) or to == (*of, 1)) and each.size > max(outputs.size, targets.size):
        raise ValueError(
            f"fit: outputs of shape {of} and targets of shape {to} gave losses of shape "
            f"{each.shape}, of each row with every other; reshape one of them"
        )


def read(metrics: Any) -> Metrics:
    """The metrics of a step on the host; waits for the step."""
    return metrics if isinstance(metrics, Metrics) else Metrics(*np.asarray(metrics))


def can_hold(outer: Any) -> bool:
    """Whether a refused step changes nothing of an optimizer state but scalars."""
    return _is_guard(outer) and not any(isinstance(s, RollbackState) for s in _states(outer))


def train_step(graphdef: Any, tx: optax.GradientTransformation, loss: Loss, outer: Any) -> Callable:
    """`step(state, inputs, targets) -> (state, metrics in one array, taken)`, not yet compiled.

    With a fourth argument `go` that is False, the state comes back bit for bit, whatever the batch;
    for an optimizer that `can_hold`.

    Args:
      graphdef: the model in training mode.
      tx: an optimizer that refuses steps.
      loss: of outputs and targets.
      outer: the optimizer's state, of which the outermost type counts.
    """
    mean_loss = objective(graphdef, loss)
    one_call = _is_guard(outer)
    scaled = any(isinstance(s, DynamicLossScaleState) for s in _states(outer))

    def step(state: TrainState, inputs: Any, targets: Any, go: Any = None) -> tuple:
        params, rest, opt_state = state
        before = health(opt_state)
        scale = before.scale if scaled else None
        grads, (value, new_rest) = jax.grad(mean_loss, has_aux=True)(
            params, rest, inputs, targets, scale
        )
        finite = jnp.isfinite(value) & _all_finite(new_rest)
        if go is not None:
            finite = finite & go
        # One decision for everything: what the guard cannot see reaches it through the gradient.
        grads = jax.tree.map(lambda g: jnp.where(finite, g, jnp.nan), grads)
        if one_call:
            params, opt_state = guarded_apply(tx, grads, opt_state, params)
        else:
            updates, opt_state = tx.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
        now = health(opt_state)
        taken = now.skipped == before.skipped
        rest = jax.tree.map(lambda new, old: jnp.where(taken, new, old), new_rest, rest)
        metrics = Metrics(value, now.last_norm, taken, now.clipped > before.clipped, before.scale)
        dtype = jnp.promote_types(value.dtype, jnp.float32)
        packed = jnp.stack([jnp.asarray(m, dtype) for m in metrics])
        if go is not None:  # Refused as it is, a held step differs in counters and scales only.
            kept = lambda new, old: jnp.where(go, new, old) if jnp.ndim(new) == 0 else new
            opt_state = jax.tree.map(kept, opt_state, state.opt_state)
        return TrainState(params, rest, opt_state), packed, taken

    return step


def evaluation(graphdef: Any, loss: Loss) -> Callable:
    """`batch_loss(params, rest, inputs, targets)`, the mean in evaluation mode."""

    def batch_loss(params, rest, inputs, targets):
        outputs = nnx.merge(graphdef, params, copy_variables(rest))(inputs)
        return safe_mean(loss(widen(outputs), targets))

    return batch_loss


def is_guarded(tx: optax.GradientTransformation, params: Any) -> bool:
    """Whether an optimizer can refuse a step."""
    jax.eval_shape(tx.init, params)  # An error of `init` itself is not an answer.
    try:
        jax.eval_shape(lambda params: health(tx.init(params)), params)
    except ValueError:  # The documented answer of `health` where no guard is.
        return False
    return True


def widen(outputs: Any) -> Any:
    """Floating leaves of 16 bits as float32."""

    def leaf(x: Any) -> Any:
        narrow = jnp.issubdtype(x.dtype, jnp.floating) and jnp.finfo(x.dtype).bits < 32
        return x.astype(jnp.float32) if narrow else x

    return jax.tree.map(leaf, outputs)


def copy_variables(state: Any) -> Any:
    """The same arrays in new variables: `nnx.merge` shares the variables it is given."""
    return jax.tree.map(lambda leaf: leaf, state)


def _states(tree: Any) -> list[Any]:
    """The guards in an optimizer state, from the outside in."""
    found = [x for x in jax.tree.leaves(tree, is_leaf=_is_guard) if _is_guard(x)]
    return found + [y for x in found for y in _states(x.inner_state)]


def _is_guard(x: Any) -> bool:
    return isinstance(x, _GUARDS)


def _all_finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.array([jnp.isfinite(x).all() for x in leaves] or [True]).all()
