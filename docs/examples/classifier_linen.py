"""A Flax Linen classifier of tumours from unscaled features (from 1e-3 to 4e3), with missing cells.

Run: pip install 'robustops[models]' scikit-learn && python classifier_linen.py
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer

from robustops import losses, optim, safe_mean
from robustops.train import RobustScaler


class Classifier(nn.Module):
    """One hidden layer; returns one logit per example."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.relu(nn.Dense(32)(x)))[..., 0]


data = load_breast_cancer()
rng = np.random.default_rng(0)
order = rng.permutation(len(data.data))
x, y = data.data[order].astype(np.float32), data.target[order].astype(np.float32)
x[rng.random(x.shape) < 0.02] = np.nan
scaler = RobustScaler(max_sigmas=10).fit(x[:400])  # missing cells become the feature's centre
z = scaler.transform(x)

model = Classifier()
params = model.init(jax.random.key(0), z[:1])
tx = optim.guard(optax.adam(1e-2))
state = tx.init(params)


@jax.jit
def step(params, state, z, y):
    """Update and apply in one decision: the new parameters and state, or the old."""
    loss = lambda p: safe_mean(losses.sigmoid_binary_cross_entropy(model.apply(p, z), y))
    return optim.guarded_apply(tx, jax.grad(loss)(params), state, params)


for _ in range(60):
    params, state = step(params, state, z[:400], y[:400])
accuracy = jnp.mean((model.apply(params, z[400:]) > 0) == (y[400:] > 0.5))
print(f"accuracy {accuracy:.2f} on held-out rows, {optim.health(state).skipped} steps refused")
assert accuracy > 0.9
assert optim.health(state).skipped == 0
