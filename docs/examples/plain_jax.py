"""A loop in plain JAX: parameters are a dictionary, and a bad batch is diagnosed on the spot.

Run: pip install robustops && python plain_jax.py
"""

import jax
import jax.numpy as jnp
import optax

import robustops as ro
from robustops import optim


def loss(params, batch):
    """Log-likelihood of a rate model as it is often written: the rate can reach 0."""
    rate = jnp.maximum(batch["x"] @ params["w"] + params["b"], 0.0)
    return jnp.mean(rate - batch["y"] * jnp.log(rate))


tx = optim.guard(optax.adam(1e-2))


@jax.jit
def step(params, state, batch):
    """One step, and whether its loss and gradient are finite."""
    value, grads = jax.value_and_grad(loss)(params, batch)
    new_params, state = optim.guarded_apply(tx, grads, state, params)
    return new_params, state, ro.check_finite((value, grads))


key = jax.random.key(0)
params = {"w": jnp.ones(3), "b": jnp.ones(())}
state = tx.init(params)
for i in range(20):
    x = jax.random.uniform(jax.random.fold_in(key, i), (32, 3))
    if i == 10:
        x = x.at[4].set(-9.0)  # the rate of this row is 0
    batch = {"x": x, "y": jnp.ones(32)}
    params, state, fine = step(params, state, batch)
    if not fine:
        # The step was refused, so these are still the parameters that failed.
        report = ro.diagnose(loss, params, batch)
        print(f"step {i}: {report.origin.primitive} in {report.origin.function}")
        print(report.origin.remedy)

print(f"{optim.health(state).skipped} of {optim.health(state).steps} steps refused")
assert report.origin.primitive == "log"
assert optim.health(state).skipped == 1
assert jnp.isfinite(loss(params, {"x": jnp.ones((1, 3)), "y": jnp.ones(1)}))
