"""What guard and flight recorder cost: `fit` beside a bare optax loop, epoch by epoch.

`python -m benchmarks.train_step`: the convolutional classifier on digits. The callback of `fit`
runs an epoch of each other arm, so all arms are interleaved. The first rounds, which compile, are
left out.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from robustops import losses, optim
from robustops.models import ConvClassifier
from robustops.train import Batches, FlightRecorder, StandardScaler, fit, load_digits
from robustops.train._step import TrainState, copy_variables, train_step

LOSS = losses.softmax_cross_entropy_with_integer_labels
BARE, STEP = "bare optax step", "guarded step alone"
FITS = {"fit, no recorder": False, "fit, guard and recorder": True}


def bare_step(graphdef: Any, tx: optax.GradientTransformation) -> Callable:
    """Loss, gradient, update, as everybody writes it; with BatchNorm's statistics."""

    def step(state, inputs, targets):
        params, rest, opt_state = state

        def mean_loss(params):
            model = nnx.merge(graphdef, params, copy_variables(rest))
            value = LOSS(model(inputs), targets).mean()
            return value, nnx.split(model, nnx.Param, ...)[2]

        (value, rest), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return TrainState(optax.apply_updates(params, updates), rest, opt_state), value

    return step


def measure(epochs: int, hidden: tuple[int, ...], batch_size: int) -> dict[str, np.ndarray]:
    """Seconds a step by arm, one entry an epoch."""
    data = load_digits(image=True).scaled(StandardScaler(), shared=True).train
    model = ConvClassifier(hidden=hidden, rngs=nnx.Rngs(0))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    guarded = optim.guard(optax.adam(1e-3))
    arms: dict[str, Any] = {}
    for name, tx in ((BARE, optax.adam(1e-3)), (STEP, guarded)):
        state = jax.tree.map(jax.numpy.copy, TrainState(params, rest, tx.init(params)))
        if name == STEP:
            step = train_step(graphdef, tx, LOSS, state.opt_state)
        else:
            step = bare_step(graphdef, tx)
        compiled = jax.jit(step, donate_argnums=0)
        arms[name] = [compiled, state, Batches(tuple(data), batch_size, backend="numpy")]
    seconds: dict[str, list[float]] = {name: [] for name in (*arms, *FITS)}

    def run(name: str) -> None:
        step, state, batches = arms[name]
        told = None
        begin = time.perf_counter()
        for inputs, targets in batches:
            state, *told = step(state, inputs, targets)
        jax.block_until_ready((state, told))
        seconds[name].append((time.perf_counter() - begin) / len(batches))
        arms[name][1] = state

    with tempfile.TemporaryDirectory() as directory:
        for name, recorded in FITS.items():
            recorder = FlightRecorder(Path(directory)) if recorded else None
            began = [time.perf_counter()]

            def between(epoch: Any, name: str = name, began: list[float] = began) -> None:
                steps = -(-len(data.inputs) // batch_size)
                seconds[name].append((time.perf_counter() - began[0]) / steps)
                # What comes first after an epoch of `fit` is not always the same.
                for other in list(arms) if len(seconds[name]) % 2 else reversed(arms):
                    run(other)
                began[0] = time.perf_counter()

            fit(
                nnx.clone(model),
                guarded,
                data,
                LOSS,
                epochs=epochs,
                batch_size=batch_size,
                progress=False,
                recorder=recorder,
                callbacks=[between],
            )
    # The first epoch of each compiles. The bare arms ran beside both kinds of fit.
    return {name: np.array(spent) for name, spent in seconds.items()}


def ratios(seconds: dict[str, np.ndarray], epochs: int) -> dict[str, np.ndarray]:
    """Of each arm to the bare step of the same round, without the first epoch of each run."""
    bare, found = seconds[BARE], {}
    for name, spent in seconds.items():
        if name in FITS:
            start = list(FITS).index(name) * epochs
            # The epoch of fit lies between two bare ones; the later one is its round.
            found[name] = (spent / bare[start : start + epochs])[2:]
        elif name != BARE:
            found[name] = (spent / bare)[2:]
    return found


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=20, help="rounds of each kind (20)")
    options.add_argument("--hidden", type=int, nargs="+", default=[32, 64], help="channels (32 64)")
    options.add_argument("--batch-size", type=int, default=64, help="(64)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = options.parse_args()
    seconds = measure(given.epochs, tuple(given.hidden), given.batch_size)
    found = ratios(seconds, given.epochs)
    print(f"{jax.devices()[0].device_kind}; channels {given.hidden}, batches of {given.batch_size}")
    print(f"{BARE:<32}{1e3 * np.median(seconds[BARE]):8.3f} ms")
    rows = []
    for name, ratio in found.items():
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        print(f"{name:<32}{middle:8.3f} x   ({low:.3f} to {high:.3f}, {len(ratio)} rounds)")
        rows.append({"arm": name, "ratio": middle, "low": low, "high": high, "rounds": len(ratio)})
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
