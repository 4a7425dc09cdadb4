"""Reading the counters of the guards, wherever in an optimizer state they are."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from robustops.optim._clip import ClipByGlobalNormState
from robustops.optim._guard import GuardState, SkipNonfiniteState
from robustops.optim._learned import ClipByPercentileState, ClipByZscoreState
from robustops.optim._rollback import RollbackState
from robustops.optim._scale import DynamicLossScaleState

Tree = TypeVar("Tree")


class StuckError(RuntimeError):
    """A guard refuses step after step: the same steps would be refused forever."""


class Health(NamedTuple):
    """What the guards in an optimizer state have counted; all scalars."""

    steps: jax.Array
    """Updates asked for, refused ones included."""
    skipped: jax.Array
    """Updates refused."""
    consecutive_skipped: jax.Array
    """Updates refused in a row, up to the last one; 0 after a step that was taken."""
    clipped: jax.Array
    """Updates taken with a gradient that was scaled down."""
    last_norm: jax.Array
    """Global norm of the last gradient before clipping; NaN where nothing measures it."""
    stuck: jax.Array
    """Whether `max_consecutive` updates in a row were refused, up to the last one, or another
    return of `rollback` was due after `max_rollbacks`."""
    scale: jax.Array
    """What `dynamic_loss_scale` wants the next loss multiplied by; 1 without it."""
    rollbacks: jax.Array
    """Returns of `rollback` to its snapshot."""


_HALF = (
    " The optimizer's state is float16, in which an eps below 3e-8, Adam's 1e-8 too, is 0: give it"
    " eps=1e-4, or use dynamic_loss_scale, which keeps the state in float32."
)
_REFUSE = (SkipNonfiniteState, GuardState)
_CLIP = (GuardState, ClipByGlobalNormState, ClipByZscoreState, ClipByPercentileState)
_STATES = (*_REFUSE, *_CLIP, DynamicLossScaleState, RollbackState)


def health(opt_state: Any) -> Health:
    """Counters and last norm of the guards in an optimizer state.

    Finds the states of this module's transformations at any depth of `chain`, `multi_transform`,
    `masked`, `inject_hyperparams`, `MultiSteps` or `flax.nnx.Optimizer`. With several of one kind
    (`multi_transform`, or one in another) `skipped`, `clipped` and `rollbacks` are added up, the
    scale is the smallest, the others are the largest.

    Args:
        opt_state: an optimizer state, or an object with an `opt_state` such as `nnx.Optimizer`.

    Returns:
        A `Health`, which may be returned from jit.

    Raises:
        ValueError: no transformation that refuses steps (`guard`, `skip_nonfinite`,
            `dynamic_loss_scale`, `rollback`) is in there.
    """
    found = list(_find(getattr(opt_state, "opt_state", opt_state)))

    def read(
        kind: Any, field: str, join: Callable[..., Any], default: Any, dtype: Any = jnp.int32
    ) -> jax.Array:
        # A field is an array, or a flax variable: a node with the array as its one leaf.
        values = [jax.tree.leaves(getattr(s, field))[0] for s in found if isinstance(s, kind)]
        # No operation makes the default: if that is NaN, jax_debug_nans would raise.
        return join(jnp.stack(values)) if values else jax.device_put(jnp.dtype(dtype).type(default))

    if not any(isinstance(s, _REFUSE) for s in found):
        raise ValueError(
            "health: no state of robustops.optim.guard or skip_nonfinite in this optimizer state;"
            " wrap the optimizer, as in guard(optax.adam(1e-3)), and pass the state from its init"
        )
    total = functools.partial(jnp.sum, dtype=jnp.int32)
    return Health(
        steps=read(_REFUSE, "steps", jnp.max, 0),
        skipped=read(_REFUSE, "skipped", total, 0),
        consecutive_skipped=read(_REFUSE, "consecutive_skipped", jnp.max, 0),
        clipped=read(_CLIP, "clipped", total, 0),
        last_norm=read(_CLIP, "last_norm", jnp.max, jnp.nan, jnp.float32),
        stuck=read((*_REFUSE, RollbackState), "stuck", jnp.any, False, jnp.bool_),
        scale=read(DynamicLossScaleState, "scale", jnp.min, 1, jnp.float32),
        rollbacks=read(RollbackState, "rollbacks", total, 0),
    )


def raise_if_stuck(opt_state: Any) -> None:
    """Raises if a guard has given up hope: outside jit, once an epoch or every hundred steps.

    Args:
        opt_state: as for `health`.

    Raises:
        StuckError: `health(opt_state).stuck`. It says what happened, since which update, and what
            to try.
        TypeError: the state is traced.
        ValueError: as for `health`.
    """
    now = health(opt_state)
    if isinstance(now.stuck, Tracer):
        raise TypeError(
            "raise_if_stuck: the state is traced; call it outside jit, with the state that the"
            " jitted step returned"
        )
    if now.stuck:
        account = _account(Health(*(x.item() for x in jax.device_get(now))))
        leaves = jax.tree.leaves(getattr(opt_state, "opt_state", opt_state))
        half = any(jnp.result_type(x) == jnp.float16 for x in leaves)
        raise StuckError(account + (_HALF if half else ""))


def unless_refused(opt_state: Any, new: Tree, old: Tree) -> Tree:
    """`new`, or `old` if the last update was refused: for what the optimizer does not hold.

    Such as BatchNorm statistics, which the batch of a refused step has spoilt::

        stats = unless_refused(opt_state, new_stats, stats)

    With flax.nnx `undo_if_refused` does this in place.

    Args:
        opt_state: after the update; as for `health`.
        new: pytree of arrays.
        old: the same, from before the step.

    Returns:
        One of the two, chosen on the device.
    """
    refused = health(opt_state).consecutive_skipped > 0
    return jax.tree.map(lambda n, o: jnp.where(refused, o, n), new, old)


def undo_if_refused(model: Any, optimizer: Any) -> Callable[[], None]:
    """Puts back what a refused step of flax.nnx has changed beside the parameters.

    That is the step count of the optimizer, BatchNorm statistics, dropout keys and all else in the
    model that the optimizer does not train. Two lines in the step, jitted or not::

        undo = undo_if_refused(model, optimizer)
        ...  # loss, gradients, optimizer.update(model, grads)
        undo()

    Args:
        model: the `nnx.Module`, before the forward pass.
        optimizer: its `nnx.Optimizer`, around a guard.

    Returns:
        What to call after `optimizer.update`; it changes nothing if the step was taken.

    Raises:
        ValueError: as for `health`.
    """
    from flax import nnx  # Here, so that the guards need optax only.

    nodes = model, optimizer.step
    rest = lambda: nnx.as_pure(nnx.state(nodes, nnx.Not(optimizer.wrt)))
    health(optimizer)  # without a guard inside, say so before the step
    kept = rest()

    def undo() -> None:
        nnx.update(nodes, unless_refused(optimizer, rest(), kept))

    return undo


def _account(now: Health) -> str:
    if now.consecutive_skipped == 0:
        return (
            f"rollback has returned to its snapshot {now.rollbacks} times, and the value has blown"
            f" up again by update {now.steps}. Lower the learning rate, let rate_decay=0.5 lower it"
            " at each return, or cap the step: guard(inner, max_relative_update=0.02)."
        )
    first = now.steps - now.consecutive_skipped + 1
    text = (
        f"the last {now.consecutive_skipped} updates were refused, from update {first} to"
        f" {now.steps} ({now.skipped} refused in all); the parameters are those before update"
        f" {first}. "
    )
    if now.last_norm == now.last_norm and now.last_norm != float("inf"):
        return text + (
            f"The last gradient was finite, of norm {now.last_norm:.3g}: the step overflows in the"
            " optimizer or in the parameters. Lower the learning rate, clip the gradient, or cap"
            " the step: guard(inner, max_relative_update=0.02)."
        )
    return text + (
        "A NaN or inf is in the gradient, or appears in the step. Look at the batch and the loss at"
        " these parameters: robustops.diagnose finds the operation that makes the first one."
    )


def _find(tree: Any) -> Iterator[Any]:
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, _STATES)):
        if isinstance(node, _STATES):
            yield node
            yield from _find(getattr(node, "inner_state", ()))
