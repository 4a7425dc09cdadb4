"""The check that can stay on in every step."""

from typing import Any

import jax
import jax.numpy as jnp


def check_finite(tree: Any) -> jax.Array:
    """Tell whether no floating array in a pytree has a NaN or inf, as one boolean scalar.

    Each leaf is read once. Inside the jitted step that computed it, that costs next to nothing, so
    it can stay on: return it, and call `diagnose` on the arguments of the step when it is False.

    Args:
      tree: a pytree such as `(loss, grads)`; leaves that are no floating arrays do not count.

    Returns:
      A boolean scalar; True for a tree without floating arrays.
    """
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, float) or hasattr(x, "dtype")]
    flags = [
        jnp.isfinite(x).all() for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
    ]
    return jnp.stack(flags).all() if flags else jnp.bool_(True)
