"""A run in a process of its own, to be killed: `training_child.py DIRECTORY PAUSE EPOCHS`."""

import hashlib
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from robustops import losses
from robustops.train import Checkpoints, fit


class Net(nnx.Module):
    """Everything that a checkpoint must bring back: dropout keys, BatchNorm statistics."""

    def __init__(self, rngs):
        # A bias would have a gradient of rounding errors only, which Adam makes large.
        self.inner = nnx.Linear(8, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.drop = nnx.Dropout(0.3, rngs=rngs)
        self.outer = nnx.Linear(16, 4, rngs=rngs)

    def __call__(self, x):
        return self.outer(self.drop(nnx.relu(self.norm(self.inner(x)))))


def rows():
    """70 rows in batches of 16: five steps an epoch, of which one or two are refused."""
    rng = np.random.default_rng(7)
    x = rng.normal(size=(70, 8)).astype(np.float32)
    y = x[:, :4].argmax(axis=1)
    x[13, 2] = np.nan
    return x, y


def digest(model, history):
    """All variables and counters of a finished run, as one string."""
    leaves = jax.tree.leaves(nnx.state(model)) + jax.tree.leaves(history.opt_state)
    bits = [jax.random.key_data(x) if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key) else x
            for x in leaves]  # fmt: skip
    told = hashlib.sha256()
    for array in [*bits, history.loss, history.grad_norm, history.skipped, history.clipped,
                  history.validation_loss]:  # fmt: skip
        told.update(np.asarray(array).tobytes())
    return told.hexdigest()


def train(directory, pause=0.0, epochs=12):
    """Runs to the end, from wherever the directory says; a pause after each epoch to be killed in.

    Each epoch is told on stdout.
    """

    def tell(epoch):
        print("epoch", epoch.number, flush=True)
        time.sleep(pause)

    x, y = rows()
    model = Net(nnx.Rngs(0))
    schedule = optax.cosine_decay_schedule(1e-2, 100)
    history = fit(
        model,
        optax.adam(schedule),
        (x, y),
        losses.softmax_cross_entropy_with_integer_labels,
        epochs=epochs,
        batch_size=16,
        validation=(x[:10], y[:10]),
        nonfinite="keep",
        progress=False,
        callbacks=[tell],
        metrics=[directory / "metrics.csv", directory / "metrics.jsonl"],
        checkpoints=Checkpoints(directory / "checkpoints", every_steps=3),
    )
    return model, history


if __name__ == "__main__":
    warnings.simplefilter("error")
    print("begin", flush=True)
    print(digest(*train(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))), flush=True)
