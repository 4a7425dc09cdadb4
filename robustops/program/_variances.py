"""E[x y] - E[x] E[y] without its cancellation, for means of any weights over axes or segments."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import _jax
from .._numerics import widen
from ._represent_nodes import STRUCTURAL, Node, affine, factors, same, underneath


class _Mean(NamedTuple):
    """`steps`, outermost first, of the sum `total` of the product of `terms`."""

    steps: list[tuple[Node, int]]
    total: Node
    terms: list[Node]


def variance(n: Node) -> tuple[jax.Array, jax.Array] | None:
    """Return the value of n = E[x y] - E[x] E[y] and where that is what `n` is; None if nowhere.

    It is E[(x - E x) (y - E y)], all three means being of the same sums up to a factor.
    """
    first, (offset, _, base) = _mean(n.inputs[0]), affine(n.inputs[1])
    means = factors(underneath(base))
    if first is None or offset or means is None:
        return None
    one = _mean(means[0])
    other = one if means[0] is means[1] else _mean(means[1])
    if one is None or other is None or not (_alike(first, one) and _alike(first, other)):
        return None
    found = _split(first.terms, one.terms, other.terms)
    if found is None:
        return None
    x, y, weights = found
    shape = first.total.inputs[_summed(first.total)].aval.shape
    value = lambda m: jnp.broadcast_to(widen(m.value), shape)
    weight = math.prod(map(value, weights), start=jnp.ones(shape, widen(x.value).dtype))
    total, back = jax.vjp(lambda v: _bind(first.total, v), weight)
    total = jnp.where(total == 0, 1, total)
    centers = [_bind(first.total, weight * value(m)) / total for m in (x, y)]
    about = [value(m) - back(c)[0] for m, c in zip((x, y), centers, strict=True)]
    spread = _applied(first.steps, _bind(first.total, weight * about[0] * about[1]))
    subtracted = _applied(first.steps, total * centers[0] * centers[1])
    b = widen(n.inputs[1].value)
    return spread, abs(subtracted - b) <= 1e-4 * abs(b)


def _mean(n: Node) -> _Mean | None:
    """Follow `n` back through scaling and shapes to a sum, over axes or segments."""
    steps = []
    while n.name not in ("reduce_sum", "scatter-add"):
        if n.name in STRUCTURAL and n.name != "split":
            at = 0
        elif n.name == "div":
            at = 0
        elif n.name == "mul" and any(i.scalar is not None for i in n.inputs):
            at = int(n.inputs[0].scalar is not None)
        else:
            return None
        steps.append((n, at))
        n = n.inputs[at]
    if n.name == "scatter-add" and n.inputs[0].scalar != 0:
        return None
    return _Mean(steps, n, _multiplied(n.inputs[_summed(n)]))


def _summed(total: Node) -> int:
    return 0 if total.name == "reduce_sum" else 2


def _multiplied(n: Node) -> list[Node]:
    while n.name in ("broadcast_in_dim", "convert_element_type") and n.floating:
        inner = n.inputs[0]
        if inner.aval.shape != n.aval.shape or not inner.floating:
            break
        n = inner
    pair = factors(n)
    return [n] if pair is None else [t for i in pair for t in _multiplied(i)]


def _alike(a: _Mean, b: _Mean) -> bool:
    x, y = a.total, b.total
    others = zip(x.inputs[1:2], y.inputs[1:2], strict=True)
    return x.name == y.name and (
        x.inputs[_summed(x)].aval.shape == y.inputs[_summed(y)].aval.shape
        and x.eqn.params == y.eqn.params
        and all(same(i, j) for i, j in others)
    )


def _split(product, one, other):
    """Return x, y and the weights where the terms are w x y, w x and w y."""
    rest = _without(product, one)
    if rest is None or len(rest) != 1:
        return None
    (y,) = rest
    weights = _without(other, [y])
    if weights is None:
        return None
    x = _without(one, weights)
    return None if x is None or len(x) != 1 else (x[0], y, weights)


def _without(terms, some):
    """Return the terms without `some`, or None if these are not among them."""
    left = list(terms)
    for s in some:
        at = next((i for i, t in enumerate(left) if same(t, s)), None)
        if at is None:
            return None
        del left[at]
    return left


def _bind(total, operand):
    values = [i.value for i in total.inputs]
    at = _summed(total)
    if at:
        values[0] = jnp.zeros(total.aval.shape, operand.dtype)
    values[at] = operand
    return _jax.bind(total.eqn, *values)[0]


def _applied(steps, value):
    for n, at in reversed(steps):
        if n.name == "convert_element_type":
            continue
        values = [i.value if i.floating is False else widen(i.value) for i in n.inputs]
        values[at] = value
        value = _jax.bind(n.eqn, *values)[n.index]
    return value
