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
    "by hand, gradient": (False, None),
    "by hand, clip, gradient": (False, "norm"),
    "by hand, AGC, gradient": (False, "units"),
    "by hand": (True, None),
    "by hand, clip": (True, "norm"),
    "by hand, AGC": (True, "units"),
}
"""Whether the step is judged as well as its gradient, and what is clipped."""


def by_hand(name: str, together: bool) -> Callable[..., Any]:
    """A step ``(params, state, grads) -> (params, state)``, applied in the branch or after it."""
    judged, clipped = FLOORS[name]
    tx = adam()

    def step(params: Any, state: Any, grads: Any) -> Any:
        factors = None
        if clipped == "units":
            factors = _by_unit(grads, params)
        elif clipped:
            squares = _total([g * g for g in jax.tree.leaves(grads)])
            factors = jax.tree.map(lambda g: _factor(1.0, squares), grads)

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


def _factor(limit: Any, squares: Any) -> Any:
    return jnp.minimum(1, limit / jnp.maximum(jnp.sqrt(squares), 1e-12))


def _by_unit(grads: Any, params: Any) -> Any:
    squares = lambda x: jnp.sum(x * x, 0 if x.ndim == 2 else None, keepdims=True)
    units = jax.tree.map(squares, grads)
    whole = _factor(1.0, sum(jnp.sum(s) for s in jax.tree.leaves(units)))
    limit = lambda p: 0.01 * jnp.maximum(jnp.sqrt(squares(p)), EPS)
    return jax.tree.map(lambda s, p: jnp.minimum(whole, _factor(limit(p), s)), units, params)
