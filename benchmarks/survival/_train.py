"""One run: train a model under one arm at one level, and judge it on held-out rows."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from robustops.train import rescale_init

from ._arms import AUDIT_ROWS, Prepared, recipe
from ._scenario import Level, Scenario, skill


class Outcome(NamedTuple):
    """What one run came to."""

    survived: bool
    """Every loss, every parameter after every step, and every held-out output was finite."""
    skill: float
    """Held-out skill above trivial; NaN if an output was not finite."""
    seconds: float


def trainer(scenario: Scenario, optimizer: str, arm: str) -> Callable[..., Outcome]:
    """Returns `run(seed, level, rate, steps)`, compiled once for all levels, rates and seeds."""
    chosen = recipe(scenario, arm)
    make = chosen.model or scenario.model
    usual = scenario.healthy(optimizer).values
    base = scenario.optimizers[optimizer]

    @jax.jit
    def train(leaves, x, y, x_test, batches, rate, values):
        tx = chosen.wrap(base(rate, values))
        merge = lambda params: nnx.merge(graph, params)

        def loss_of(params, inputs, targets):
            return chosen.loss(merge(params)(inputs), targets, values)

        def step(carry, rows):
            params, state, finite = carry
            loss, grads = jax.value_and_grad(loss_of)(params, x[rows], y[rows])
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state, finite & jnp.isfinite(loss) & _all_finite(params)), None

        graph, params = nnx.split(make(nnx.Rngs(0)))
        params = jax.tree.unflatten(jax.tree.structure(params), leaves)
        start = params, tx.init(params), jnp.bool_(True)
        (params, _, finite), _ = jax.lax.scan(step, start, batches)
        return merge(params)(x_test), finite

    def run(seed: int, level: Level, rate: float, steps: int | None = None) -> Outcome:
        begin = time.perf_counter()
        values = level.values
        data = scenario.data(seed, values)
        prepared = chosen.prepare(data)
        model = make(nnx.Rngs(seed))
        if scenario.stress_init and not chosen.reinitialize:
            scenario.stress_init(model, values)
        if chosen.audit:
            rescale_init(model, prepared.x[prepared.rows[:AUDIT_ROWS]])
        leaves = jax.tree.leaves(nnx.split(model)[1])
        if not chosen.lower_rate:
            rate = rate * values.get("rate", 1.0)
        batches = _batches(prepared, seed, steps or scenario.steps, scenario.batch)
        values = {**values, **{name: usual[name] for name in chosen.resets}}
        numbers = {name: np.float32(value) for name, value in values.items()}
        outputs, finite = train(
            leaves,
            prepared.x,
            prepared.y,
            prepared.x_test,
            batches,
            np.float32(min(rate, 3e38)),
            numbers,
        )
        outputs, finite = np.asarray(outputs), bool(finite)
        survived = finite and bool(np.isfinite(outputs).all())
        value = skill(scenario.metric, prepared.restore(outputs), data.y_test)
        return Outcome(survived, value, time.perf_counter() - begin)

    return run


def _batches(prepared: Prepared, seed: int, steps: int, batch: int) -> np.ndarray:
    """Row indices of each step, the same for all arms; rows left out give way to usable ones."""
    order = np.random.default_rng([seed, 3]).integers(0, len(prepared.x), (steps, batch))
    if len(prepared.rows) in (0, len(prepared.x)):
        # Without a usable row there is no step to take.
        return order[: steps * bool(len(prepared.rows))]
    return prepared.rows[order % len(prepared.rows)]


def _all_finite(params: Any) -> jax.Array:
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
