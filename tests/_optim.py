"""What the optimizer tests share: small trees, planted faults, compiled forms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from robustops import optim

FAULTS = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf, "1e30": 1e30, "3e38": 3e38, "6e4": 6e4}

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def make_params(dtype=jnp.float32):
    w = jnp.linspace(-1, 1, 12).reshape(4, 3).astype(dtype)
    return {"w": w, "b": jnp.zeros((3,), dtype).at[0].set(-0.0)}


def make_grads(dtype=jnp.float32, scale=0.1):
    keys = jax.random.split(jax.random.key(0))
    draw = lambda k, s: (scale * jax.random.normal(k, s)).astype(dtype)
    return {"w": draw(keys[0], (4, 3)), "b": draw(keys[1], (3,))}


def plant(grads, value, leaf="w"):
    bad = grads[leaf].reshape(-1).at[1].set(value).reshape(grads[leaf].shape)
    return {**grads, leaf: bad}


def bits(tree: Any):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def assert_finite(tree):
    for x in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(x, np.float64)).all()


def norm_of(tree):
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.linalg.norm(np.concatenate(leaves))


def adam(dtype: Any = jnp.float32) -> Any:
    return optax.adam(0.01, eps=1e-4 if dtype == jnp.float16 else 1e-8)


def stepper(tx: Any) -> Any:
    """One step of `tx`, for the chex variants to compile or not."""

    def step(grads, state, params, **extra):
        updates, state = tx.update(grads, state, params, **extra)
        return optax.apply_updates(params, updates), state

    return step


WRAPPERS: dict[str, Any] = {
    "skip": optim.skip_nonfinite,
    "guard": optim.guard,
    "guard_all": lambda inner: optim.guard(inner, clipping=0.1, max_relative_update=0.5),
}
