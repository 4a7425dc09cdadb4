"""The limit of 0 / 0 where both are smooth functions of one variable, as sin(x) / x at 0."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ._represent_nodes import Node, resolved

CURVED = frozenset(
    "sin cos tan sinh cosh tanh exp exp2 expm1 log1p log asin acos atan asinh acosh atanh "
    "logistic erf".split()
)
# Element by element, all of them.
SMOOTH = CURVED | frozenset(
    "mul div add add_any sub neg integer_pow square pow broadcast_in_dim reshape squeeze "
    "expand_dims convert_element_type copy".split()
)
ORDER, SIZE = 3, 32


def limit(x: Node, y: Node) -> jax.Array | None:
    """Return what x / y tends to where both are 0, not finite where that is not known; or None.

    By l'Hopital's rule in the nearest variable that `y` is a function of, and `x` too: zeros of up
    to third order. Quotients of products alone are left out: of a mask m, x m / m stays 0.
    """
    if not (_may_vanish(x) and _may_vanish(y)):
        return None
    of_x = {id(n) for n in _behind(x)}
    for t in _behind(y):
        if id(t) in of_x and t.floating:
            break
    else:
        return None
    paths: dict[int, list[Node]] = {}
    curved = any(map(_is_curved, (*_path(x, t, paths), *_path(y, t, paths))))
    if not curved or not all(map(_is_smooth, _behind(y, t))):
        return None

    def both(at):
        return _value(x, t, at, {}), _value(y, t, at, {})

    found, more = jnp.full(x.aval.shape, jnp.nan, x.aval.dtype), True
    for order in range(1, ORDER + 1):
        both = _derivative(both)
        # Of f / g with zeros of order k the derivative is that of the limit over k + 1.
        held = lax.stop_gradient(t.value)
        f, g = both(held + (t.value - held) / (order + 1))
        found = jnp.where(more & (g != 0), f / jnp.where(g == 0, 1, g), found)
        more &= (f == 0) & (g == 0)
    return found


def _may_vanish(n: Node) -> bool:
    return n.scalar is None and n.bounds[0] <= 0 <= n.bounds[1]


def _derivative(fn):
    return lambda at: jax.jvp(fn, (at,), (jnp.ones_like(at),))[1]


def _behind(n: Node, end: Node | None = None) -> Iterator[Node]:
    """Yield `n` and what it is a smooth function of, the nearest first, down to `end`."""
    seen, todo = set(), [resolved(n)]
    while todo and len(seen) < SIZE:
        n = todo.pop(0)
        if n.known or n is end or id(n) in seen:
            continue
        seen.add(id(n))
        yield n
        if _is_smooth(n):
            todo += map(resolved, n.inputs)


def _path(n: Node, t: Node, paths: dict[int, list[Node]]) -> list[Node]:
    """Return the functions through which `n` depends on `t`."""
    n = resolved(n)
    if n is t:
        return [n]
    if id(n) not in paths:
        paths[id(n)] = []
        if _is_smooth(n) and not n.known:
            inner = [p for i in n.inputs for p in _path(i, t, paths)]
            paths[id(n)] = [n, *inner] if inner else []
    return paths[id(n)]


def _is_smooth(n: Node) -> bool:
    return n.name in SMOOTH


def _is_curved(n: Node) -> bool:
    return n.name in CURVED or (n.name == "pow" and n.inputs[1].scalar is None)


def _value(n: Node, t: Node, at: jax.Array, found: dict[int, jax.Array]) -> jax.Array:
    """Return the value that `n` has where `t` is `at`."""
    n = resolved(n)
    if n is t:
        return at
    if n.known or not _is_smooth(n):
        return n.value
    if id(n) not in found:
        values = [_value(i, t, at, found) for i in n.inputs]
        found[id(n)] = _jax.bind(n.eqn, *values)[n.index]
    return found[id(n)]
