"""Reading the counters of the guards, wherever in an optimizer state they are."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from robustops.optim._clip import ClipByGlobalNormState
from robustops.optim._guard import GuardState, SkipNonfiniteState


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
    """Whether `max_consecutive` updates in a row were refused, up to the last one."""


_STATES = (SkipNonfiniteState, GuardState, ClipByGlobalNormState)


def health(opt_state: Any) -> Health:
    """Counters and last norm of the guards in an optimizer state.

    Finds the states of `guard`, `skip_nonfinite` and `clip_by_global_norm` at any depth of `chain`,
    `multi_transform`, `masked`, `inject_hyperparams`, `MultiSteps` or `flax.nnx.Optimizer`. With
    several of them (`multi_transform`, or one in another) `skipped` and `clipped` are added up,
    the others are the largest.

    Args:
        opt_state: an optimizer state, or an object with an `opt_state` such as `nnx.Optimizer`.

    Returns:
        A `Health`, which may be returned from jit.

    Raises:
        ValueError: no `guard` or `skip_nonfinite` is in there.
    """
    found = list(_find(getattr(opt_state, "opt_state", opt_state)))
    guards = [s for s in found if not isinstance(s, ClipByGlobalNormState)]
    if not guards:
        raise ValueError(
            "health: no state of robustops.optim.guard or skip_nonfinite in this optimizer state;"
            " wrap the optimizer, as in guard(optax.adam(1e-3)), and pass the state from its init"
        )
    clips = [s for s in found if not isinstance(s, SkipNonfiniteState)]

    def read(states: list[Any], field: str) -> jax.Array:
        # A field is an array, or a flax variable: a node with the array as its one leaf.
        return jnp.stack([jnp.asarray(jax.tree.leaves(getattr(s, field))[0]) for s in states])

    return Health(
        steps=read(guards, "steps").max(),
        skipped=read(guards, "skipped").sum(dtype=jnp.int32),
        consecutive_skipped=read(guards, "consecutive_skipped").max(),
        clipped=read(clips, "clipped").sum(dtype=jnp.int32) if clips else jnp.zeros((), jnp.int32),
        last_norm=read(clips, "last_norm").max() if clips else jnp.full((), jnp.nan, jnp.float32),
        stuck=read(guards, "stuck").any(),
    )


def _find(tree: Any) -> Iterator[Any]:
    for node in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, _STATES)):
        if isinstance(node, _STATES):
            yield node
            if not isinstance(node, ClipByGlobalNormState):
                yield from _find(node.inner_state)
