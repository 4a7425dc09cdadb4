"""Gates written by hand around this one Adam: what the least guard costs.

They refuse what the guards refuse and do nothing else: no counters, no learned threshold, no sums
that overflow is kept out of, no other optimizer.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ._arms import EPS, adam

FLOORS = {
    "by hand, gradient": (False, False),
    "by hand": (True, False),
    "by hand, AGC": (True, True),
}
"""Whether the step is judged as well as its gradient, and whether units are clipped."""


def by_hand(name: str, together: bool) -> Callable[..., Any]:
    """A step ``(params, state, grads) -> (params, state)``, applied in the branch or after it."""
    judged, clipped = FLOORS[name]
    tx = adam()

    def step(params: Any, state: Any, grads: Any) -> Any:
        factors = jax.tree.map(_factor, grads, params) if clipped else None

        def made() -> Any:
            scaled = grads if factors is None else jax.tree.map(operator.mul, grads, factors)
            return tx.update(scaled, state, params)

        if judged:
            updates, new = made()
            parts = zip(*map(jax.tree.leaves, (updates, new[0].mu, new[0].nu)), strict=True)
            bad = _total([u * 0 + m * 0 + v * 0 for u, m, v in parts])
        else:
            bad = _total([g * g for g in jax.tree.leaves(grads)]) * 0

        def take() -> Any:
            updates, new = made()
            return (optax.apply_updates(params, updates) if together else updates), new

        def leave() -> Any:
            kept = params if together else jax.tree.map(lambda p: jnp.full_like(p, -0.0), params)
            return kept, state

        result, state = _either(bad == 0, take, leave)
        return (result if together else optax.apply_updates(params, result)), state

    return step


def _either(ok: jax.Array, take: Callable[[], Any], leave: Callable[[], Any]) -> Any:
    select = lambda: jax.tree.map(functools.partial(jnp.where, ok), take(), leave())
    return lax.platform_dependent(cpu=lambda: lax.cond(ok, take, leave), default=select)


def _total(terms: list[jax.Array]) -> jax.Array:
    # Four leaves of a shape at a time: XLA for CPU sums products in one scalar loop.
    shapes: dict[tuple[int, ...], list[jax.Array]] = {}
    for term in terms:
        shapes.setdefault(term.shape, []).append(term)
    sums = []
    for alike in shapes.values():
        groups = [functools.reduce(operator.add, alike[i : i + 4]) for i in range(0, len(alike), 4)]
        sums.append(jnp.sum(functools.reduce(operator.add, lax.optimization_barrier(groups))))
    return functools.reduce(operator.add, sums)


def _factor(g: jax.Array, p: jax.Array) -> jax.Array:
    norm = lambda x: jnp.sqrt(jnp.sum(x * x, 0 if x.ndim == 2 else None, keepdims=True))
    most = 0.01 * jnp.maximum(norm(p), EPS)
    return jnp.minimum(1, most / jnp.maximum(norm(g), 1e-12))
