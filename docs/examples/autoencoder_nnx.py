"""A Flax NNX autoencoder on handwritten digits, with a batch that a bad sensor spoilt.

Run: pip install 'robustops[models]' scikit-learn && python autoencoder_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from robustops import losses, optim, safe_mean


class Autoencoder(nnx.Module):
    """64 pixels to a code of 16 and back; the output stays a logit, the loss takes it as one."""

    def __init__(self, rngs):
        self.encoder = nnx.Linear(64, 16, rngs=rngs)
        self.decoder = nnx.Linear(16, 64, rngs=rngs)

    def __call__(self, x):
        return self.decoder(nnx.tanh(self.encoder(x)))


def loss(model, x):
    """Cross-entropy of the pixels; `safe_mean` does not overflow on the way."""
    return safe_mean(losses.sigmoid_binary_cross_entropy(model(x), x))


@nnx.jit
def step(model, optimizer, x):
    """One guarded step; returns the loss before it."""
    value, grads = nnx.value_and_grad(loss)(model, x)
    optimizer.update(model, grads)
    return value


x = jnp.asarray(load_digits().data / 16, jnp.float32)
train, held_out = x[:1536], x[1536:]
model = Autoencoder(nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optim.guard(optax.adam(1e-2)), wrt=nnx.Param)
before = loss(model, held_out)
for epoch in range(5):
    order = jax.random.permutation(jax.random.key(epoch), len(train))
    for i, rows in enumerate(order.reshape(12, 128)):
        batch = train[rows]
        if (epoch, i) == (2, 3):
            batch = batch.at[5, 10].set(jnp.inf)
        step(model, optimizer, batch)
after = loss(model, held_out)
health = optim.health(optimizer)
print(f"held-out loss {before:.3f} -> {after:.3f}, {health.skipped} of {health.steps} refused")
assert after < 0.6 * before
assert health.skipped == 1
