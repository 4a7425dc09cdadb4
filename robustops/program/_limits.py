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
    origins = _Origins()
    of_x = list(origins.behind(x))
    shared = (t for t in origins.behind(y) if t.floating and any(t is n for n in of_x))
    if (t := next(shared, None)) is None:
        return None
    between_x, between_y = list(origins.behind(x, t)), list(origins.behind(y, t))
    if max(len(between_x), len(between_y)) == SIZE or not all(map(_is_smooth, between_y)):
        return None
    if not any(_is_curved(n) and origins.depends(n, t) for n in (*between_x, *between_y)):
        if not any(_is_shifted(n) and origins.depends(n, t) for n in between_y):
            return None

    def both(at):
        found = {id(t): at}
        return origins.value(x, t, found), origins.value(y, t, found)

    found, more = jnp.full(x.aval.shape, jnp.nan, x.aval.dtype), True
    for order in range(1, ORDER + 1):
        both = _derivative(both)
        # Of f / g with zeros of order k the derivative is that of the limit over k + 1.
        held = lax.stop_gradient(t.value)
        f, g = both(held + (t.value - held) / (order + 1))
        found = jnp.where(more & (g != 0), f / jnp.where(g == 0, 1, g), found)
        more &= (f == 0) & (g == 0)
    return found


class _Origins:
    """What nodes are smooth functions of.

    Each node is resolved once: the inside of a jit has other nodes each time that it is asked for.
    """

    def __init__(self):
        self._resolved: dict[int, tuple[Node, Node]] = {}
        self._depends: dict[tuple[int, int], bool] = {}

    def resolved(self, n: Node) -> Node:
        """Return the node of the same variable inside the jit that it came from."""
        if id(n) not in self._resolved:
            inner = resolved(n)
            # Both are held, so that no other node gets their numbers.
            self._resolved |= {id(n): (n, inner), id(inner): (inner, inner)}
        return self._resolved[id(n)][1]

    def behind(self, n: Node, end: Node | None = None) -> Iterator[Node]:
        """Yield `n` and what it is a function of, nearest first, down to `end`; `SIZE` at most."""
        seen, todo = set(), [n]
        while todo and len(seen) < SIZE:
            n = self.resolved(todo.pop(0))
            if n.known or n is end or id(n) in seen:
                continue
            seen.add(id(n))
            yield n
            if _is_smooth(n):
                todo += n.inputs

    def depends(self, n: Node, t: Node) -> bool:
        """Tell whether `n` is a smooth function of `t`, or is `t`."""
        n = self.resolved(n)
        if n is t or n.known or not _is_smooth(n):
            return n is t
        key = id(n), id(t)
        if key not in self._depends:
            self._depends[key] = any(self.depends(i, t) for i in n.inputs)
        return self._depends[key]

    def value(self, n: Node, t: Node, found: dict[int, jax.Array]) -> jax.Array:
        """Return the value that `n` has where that of `t` is the one in `found`."""
        n = self.resolved(n)
        if id(n) not in found:
            if not self.depends(n, t):
                return n.value
            values = [self.value(i, t, found) for i in n.inputs]
            found[id(n)] = _jax.bind(n.eqn, *values)[n.index]
        return found[id(n)]


def _may_vanish(n: Node) -> bool:
    return n.scalar is None and n.bounds[0] <= 0 <= n.bounds[1]


def _is_smooth(n: Node) -> bool:
    return n.name in SMOOTH


def _is_curved(n: Node) -> bool:
    return n.name in CURVED or (n.name == "pow" and n.inputs[1].scalar is None)


def _is_shifted(n: Node) -> bool:
    """Tell whether a constant is added, as in 1 - x: its zero is not that of a mask."""
    return n.name in ("add", "add_any", "sub") and any(i.scalar for i in n.inputs)


def _derivative(fn):
    return lambda at: jax.jvp(fn, (at,), (jnp.ones_like(at),))[1]
