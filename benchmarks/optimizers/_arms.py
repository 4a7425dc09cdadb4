"""The optimizers that are compared, all around one Adam."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from robustops import optim

BARE, STACK = "adam", "optax stack"
EPS = 1e-3
"""Adam's, the smallest parameter norm of AGC's too: large enough for float16."""


def adam() -> optax.GradientTransformation:
    """The Adam inside of every arm; its eps is one that float16 can hold."""
    return optax.adam(1e-3, eps=EPS)


def _stack() -> optax.GradientTransformation:
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.adaptive_grad_clip(0.01), adam())
    return optax.apply_if_finite(clipped, max_consecutive_errors=5)


ARMS: dict[str, Callable[[], Any]] = {
    BARE: adam,
    "zero_nans": lambda: optax.chain(optax.zero_nans(), adam()),
    "optax clip_by_global_norm": lambda: optax.chain(optax.clip_by_global_norm(1.0), adam()),
    "apply_if_finite": lambda: optax.apply_if_finite(adam(), max_consecutive_errors=5),
    STACK: _stack,
    "clip_by_global_norm": lambda: optax.chain(optim.clip_by_global_norm(1.0), adam()),
    "clip_by_zscore": lambda: optax.chain(optim.clip_by_zscore(), adam()),
    "clip_by_percentile": lambda: optax.chain(optim.clip_by_percentile(), adam()),
    "skip_nonfinite": lambda: optim.skip_nonfinite(adam()),
    "guard": lambda: optim.guard(adam()),
    "guard, AGC": lambda: optim.guard(adam(), clipping=0.01),
    "skip_nonfinite, gradient": lambda: optim.skip_nonfinite(adam(), judge="gradient"),
    "guard, gradient": lambda: optim.guard(adam(), judge="gradient"),
    "guard, AGC, gradient": lambda: optim.guard(adam(), clipping=0.01, judge="gradient"),
    "dynamic_loss_scale": lambda: optim.dynamic_loss_scale(adam(), initial=1.0),
    "rollback": lambda: optim.rollback(optim.guard(adam())),
}
GUARDS = tuple(name for name in ARMS if name.startswith(("skip_nonfinite", "guard")))
COST = (BARE, "apply_if_finite", STACK, *GUARDS)
"""Those whose cost is measured."""


# Steps take arguments in the order of their results: XLA matches donated buffers by shape alone,
# and copies two arrays a leaf, or four, where they cross (on CPU 31 ms in place of 11 for Adam).


def two_calls(tx: Any) -> Callable[..., Any]:
    """A step through the optax protocol."""

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step


def one_call(tx: Any) -> Callable[..., Any]:
    """A step through `guarded_apply`."""
    return lambda params, state, grads: optim.guarded_apply(tx, grads, state, params)


def _full(width: int) -> jax.Array:
    # With a dtype: `full` of a Python number is weakly typed, which real parameters are not.
    return jnp.full((width, width), 0.1, jnp.float32)


TREES: dict[str, Callable[[], Any]] = {
    "60 leaves, 5M": lambda: [
        {"w": _full(500), "b": jnp.zeros(500), "s": jnp.ones(500)} for _ in range(20)
    ],
    "400 leaves, 1M": lambda: [{"w": _full(70), "b": jnp.zeros(70)} for _ in range(200)],
    "2 leaves, 10K": lambda: [{"w": _full(100), "b": jnp.zeros(100)}],
}
QUICK_TREE = "2 leaves, 10K"


def gradients(params: Any) -> Any:
    """One gradient for a tree, of global norm about 0.1."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))
    size = 0.1 / sum(x.size for x in leaves) ** 0.5
    draws = [size * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return treedef.unflatten(draws)
