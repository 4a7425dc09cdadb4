"""Differences that the program's text gives exactly: of (n + 1) / 2 and n / 2, of k + r and r.

They make good what is lost where functions of two large, close numbers are subtracted.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from .._numerics import widen
from ._represent_nodes import Node, affine, may_be_small, resolved, same

LARGE = 32.0


def log_near_one(n: Node) -> tuple[jax.Array, jax.Array] | None:
    """Return log(n) from how far n is from a constant or 1, and where it is close; or None.

    log(1 + u) is log1p(u), and log(x / y) is log1p((x - y) / y).
    """
    offset, slope, base = affine(n)
    constant = 1.0
    if base is not n and offset >= 2.0**-10 and may_be_small(base):
        constant, u = offset, slope / offset * widen(base.value)
    elif n.name == "div" and (d := difference(*n.inputs)) is not None:
        u = d / widen(n.inputs[1].value)
    else:
        return None
    near = abs(u) < 2.0**-9
    return math.log(constant) + jnp.log1p(jnp.where(near, u, 0)), near


def difference(a: Node, b: Node) -> jax.Array | None:
    """Return a - b if a variable that both are made of drops out of it exactly, else None."""
    (first, one), (second, other) = _linear(a), _linear(b)
    left, dropped = list(first), False
    for v, c in second:
        at = next((i for i, (w, _) in enumerate(left) if same(v, w)), None)
        if at is None:
            left.append((v, -c))
        elif left[at][1] == c:
            dropped |= v.scalar is None
            del left[at]
        else:
            left[at] = (v, left[at][1] - c)
    if not dropped:
        return None
    terms = [c * widen(v.value) for v, c in left]
    return sum(terms, start=jnp.full(a.aval.shape, one - other, widen(a.value).dtype))


def _linear(n: Node, factor: float = 1.0, depth: int = 6) -> tuple[list[tuple[Node, float]], float]:
    """Return the variables of a sum with their factors, and its constant."""
    offset, slope, base = affine(resolved(n))
    constant, factor = factor * offset, factor * slope
    if base.scalar is not None:
        return [], constant + factor * base.scalar
    if base.name not in ("add", "add_any", "sub") or not depth:
        return [(base, factor)], constant
    found = []
    for i, sign in zip(base.inputs, (1.0, -1.0 if base.name == "sub" else 1.0), strict=True):
        terms, more = _linear(i, sign * factor, depth - 1)
        found += terms
        constant += more
    return found, constant


def gamma_quotient(n: Node) -> tuple[jax.Array, jax.Array] | None:
    """Return n = ... + log gamma(a) ... - log gamma(b) without its cancellation, and where.

    By Stirling's series for both, a - b being known from the program's text; so for other pairs.
    """
    x, y = n.inputs
    if y.name == "lgamma" and n.name == "sub":
        terms = [(y, -1.0), *_addends(x)]
    elif n.name in ("add", "add_any") and x.name == "lgamma":
        terms = [(x, 1.0), *_addends(y)]
    else:
        return None
    last = terms[0][0]
    value, sound = jnp.zeros_like(widen(last.value)), None
    while terms:
        t, sign = terms.pop(0)
        pairs = ((i, _gamma_pair(t, u)) for i, (u, s) in enumerate(terms) if s == -sign)
        i, pair = next(((i, p) for i, p in pairs if p is not None), (0, None))
        if pair is not None:
            del terms[i]
            sound = pair[1] if sound is None else sound
        elif sound is None:
            return None
        value += sign * (widen(t.value) if pair is None else pair[0])
    assert sound is not None
    return value, sound & (abs(value) < abs(widen(last.value)) / 256)


def _gamma_pair(t: Node, u: Node) -> tuple[jax.Array, jax.Array] | None:
    """Return log gamma(a) - log gamma(b), and where Stirling's series gave it, or None."""
    if t.name != "lgamma" or u.name != "lgamma":
        return None
    if (d := difference(t.inputs[0], u.inputs[0])) is None:
        return None
    a, b = (widen(v.inputs[0].value) for v in (t, u))
    large = jnp.minimum(a, b) >= LARGE
    a, b, d = (jnp.where(large, v, safe) for v, safe in ((a, 1), (b, 1), (d, 0)))
    quotient = (b - 0.5) * jnp.log1p(d / b) + d * (jnp.log(a) - 1) + _series(a) - _series(b)
    return jnp.where(large, quotient, widen(t.value) - widen(u.value)), large


def _series(z):
    """What Stirling's formula leaves of log gamma(z)."""
    z = 1 / z
    return z * (1 / 12 - z * z / 360)


def _addends(n: Node, sign: float = 1.0, depth: int = 6) -> Iterator[tuple[Node, float]]:
    """Yield the terms of a sum with their signs."""
    if n.name not in ("add", "add_any", "sub") or not depth:
        yield n, sign
        return
    yield from _addends(n.inputs[0], sign, depth - 1)
    yield from _addends(n.inputs[1], -sign if n.name == "sub" else sign, depth - 1)
