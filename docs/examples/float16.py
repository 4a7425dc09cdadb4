"""float16 training: the scale of the loss is found, so that small gradients do not underflow.

Run: pip install robustops && python float16.py
"""

import jax
import jax.numpy as jnp
import optax

from robustops import losses, optim, safe_mean

half = jnp.float16
key = jax.random.key(0)
x = jax.random.normal(key, (256, 8), half)
y = (x @ jnp.linspace(-1.0, 1.0, 8, dtype=half) > 0).astype(half)
params = {"w": jnp.zeros(8, half), "b": jnp.zeros((), half)}

# The scale is outside, the guard inside; moments and updates are float32, so Adam's eps holds.
tx = optim.dynamic_loss_scale(optim.guard(optax.adam(5e-2)))
state = tx.init(params)


def loss(params):
    """Cross-entropy in float16; sums of float16 accumulate in float32."""
    return safe_mean(losses.sigmoid_binary_cross_entropy(x @ params["w"] + params["b"], y))


@jax.jit
def step(params, state):
    """The loss is scaled, the gradient unscaled in float32; an overflow halves the scale."""
    scale = optim.health(state).scale
    grads = jax.grad(lambda params: loss(params).astype(jnp.float32) * scale)(params)
    return optim.guarded_apply(tx, grads, state, params)


before = loss(params)
for _ in range(100):
    params, state = step(params, state)
after, health = loss(params), optim.health(state)
print(f"loss {before:.2f} -> {after:.2f} in {after.dtype}, scale {health.scale:g}")
print(f"{health.skipped} of {health.steps} steps refused while the scale was found")
assert params["w"].dtype == half
assert after < 0.3 * before
