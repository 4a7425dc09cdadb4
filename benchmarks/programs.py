"""What robustify, check_finite and diagnose cost: `python -m benchmarks.programs`.

A training step (loss, gradient, Adam) of a three-layer network, of a recurrent one of 64 steps and
of a block of causal attention, beside the same step robustified, with values too, and with its loss
and gradient checked. Steps alternate in every round, as do traces; diagnose is timed over one step,
once it has run.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import robustops as ro

TX = optax.adam(1e-3)
Loss = Callable[[Any, jax.Array, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """As people write it, on jax's own functions."""
    log_p = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(log_p, labels[:, None], axis=-1).mean()


def network(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of a three-layer network."""
    for w, b in params[:-1]:
        x = jax.nn.gelu(x @ w + b)
    w, b = params[-1]
    return cross_entropy(x @ w + b, labels)


def recurrent(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of a recurrent network over [time, example, feature]."""
    (wx, b), (wh, _), (wo, bo) = params

    def cell(h, x):
        return jnp.tanh(x @ wx + h @ wh + b), None

    h, _ = jax.lax.scan(cell, jnp.zeros((x.shape[1], wh.shape[0])), x)
    return cross_entropy(h @ wo + bo, labels)


def attention(params: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
    """The loss of a block of causal attention with 4 heads, over [example, time, feature]."""
    (wq, _), (wk, _), (wv, _), (w1, b1), (w2, b2), (wo, bo) = params
    q, k, v = (jnp.reshape(x @ w, (*x.shape[:2], 4, -1)) for w in (wq, wk, wv))
    scores = jnp.einsum("nthf,nshf->nhts", q, k) / q.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
    x = x + jnp.einsum("nhts,nshf->nthf", weights, v).reshape(x.shape)
    x = x + jax.nn.gelu(jax.nn.standardize(x) @ w1 + b1) @ w2 + b2
    return cross_entropy(x.mean(1) @ wo + bo, labels)


def layers(*shapes: tuple[int, int]) -> list[tuple[jax.Array, jax.Array]]:
    """Weights of size 1 / sqrt(inputs), biases of 0."""
    rng = np.random.default_rng(0)
    return [
        (jnp.asarray(rng.normal(size=s) / s[0] ** 0.5, jnp.float32), jnp.zeros(s[1]))
        for s in shapes
    ]


def cases(batch: int = 256) -> dict[str, tuple[Loss, tuple[Any, ...]]]:
    """Each loss with its parameters and one batch."""
    rng = np.random.default_rng(1)
    labels = jnp.asarray(rng.integers(0, 10, batch))
    x = jnp.asarray(rng.normal(size=(batch, 784)), jnp.float32)
    sequence = jnp.asarray(rng.normal(size=(64, batch, 32)), jnp.float32)
    tokens = jnp.asarray(rng.normal(size=(batch // 16, 64, 128)), jnp.float32)
    block = layers(*[(128, 128)] * 3, (128, 512), (512, 128), (128, 10))
    return {
        "network": (network, (layers((784, 512), (512, 512), (512, 10)), x, labels)),
        "recurrent": (recurrent, (layers((32, 128), (128, 128), (128, 10)), sequence, labels)),
        "attention": (attention, (block, tokens, labels[: batch // 16])),
    }


def steps(loss: Loss) -> dict[str, Callable]:
    """The step as it is, and each way to watch over it."""

    def step(loss, checked, params, opt_state, *batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, opt_state = TX.update(grads, opt_state, params)
        told = (value, ro.check_finite((value, grads))) if checked else value
        return optax.apply_updates(params, updates), opt_state, told

    return {
        "as it is": functools.partial(step, loss, False),
        "robustify": functools.partial(step, ro.robustify(loss), False),
        "robustify, values": functools.partial(step, ro.robustify(loss, values=True), False),
        "check_finite": functools.partial(step, loss, True),
    }


def measure(loss: Loss, args: tuple[Any, ...], rounds: int) -> dict[str, dict[str, np.ndarray]]:
    """Seconds to run and to trace by way, one entry a round; and of diagnose over one step."""
    params, *batch = args
    run: dict[str, list[float]] = {name: [] for name in steps(loss)}
    trace: dict[str, list[float]] = {name: [] for name in run}
    compiled = {name: jax.jit(step, donate_argnums=(0, 1)) for name, step in steps(loss).items()}
    states = {name: jax.tree.map(jnp.copy, (params, TX.init(params))) for name in run}
    names = list(run)
    for turn in range(rounds + 2):
        for k in range(len(names)):
            name = names[(k + turn) % len(names)]
            begin = time.perf_counter()
            *state, told = compiled[name](*states[name], *batch)
            jax.block_until_ready((state, told))
            if turn > 1:  # the first compiles
                run[name].append(time.perf_counter() - begin)
            states[name] = tuple(state)
    for turn in range(max(rounds // 20, 5)):
        for k in range(len(names)):
            name = names[(k + turn) % len(names)]
            fresh = lambda *args: loss(*args)  # no trace of it is cached
            begin = time.perf_counter()
            jax.jit(steps(fresh)[name]).trace(params, TX.init(params), *batch)
            trace[name].append(time.perf_counter() - begin)
    diagnosed = []
    for turn in range(4):
        begin = time.perf_counter()
        assert ro.diagnose(loss, *args).ok
        if turn:
            diagnosed.append(time.perf_counter() - begin)
    arrays = lambda of: {name: np.array(spent) for name, spent in of.items()}
    return {"run": arrays(run), "trace": arrays(trace), "diagnose": arrays({"run": diagnosed})}


def ratios(seconds: Mapping[str, dict[str, np.ndarray]]) -> dict[tuple[str, str], np.ndarray]:
    """Of each way to the step as it is, in the same round."""
    found = {
        (what, name): spent / seconds[what]["as it is"]
        for what in ("run", "trace")
        for name, spent in seconds[what].items()
        if name != "as it is"
    }
    step = np.median(seconds["run"]["as it is"])
    return found | {("run", "diagnose"): seconds["diagnose"]["run"] / step}


def main() -> None:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=200, help="steps of each way (200)")
    options.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    given = options.parse_args()
    print(jax.devices()[0].device_kind)
    rows = []
    for case, (loss, args) in cases().items():
        seconds = measure(loss, args, given.rounds)
        print(f"{case}: step {1e3 * np.median(seconds['run']['as it is']):.2f} ms")
        for (what, name), ratio in ratios(seconds).items():
            low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
            print(f"  {what:<6}{name:<20}{middle:8.3f} x   ({low:.3f} to {high:.3f})")
            rows.append(
                {"case": case, "what": what, "way": name, "ratio": middle, "low": low, "high": high}
            )
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
