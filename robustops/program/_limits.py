"""The limit of 0 / 0, of inf - inf, 0 inf and 1^inf of smooth functions of one variable."""

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from ._represent_nodes import Node, resolved

CURVED = frozenset(
    "sin cos tan sinh cosh tanh exp exp2 expm1 log1p log asin acos atan asinh acosh atanh "
    "logistic erf".split()
)
SHAPES = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims convert_element_type copy neg".split()
)
# Element by element, all of them.
SMOOTH = CURVED | SHAPES | frozenset("mul div add add_any sub integer_pow square pow".split())
ORDER, SIZE = 4, 32


def limit(rep, n: Node) -> jax.Array | None:
    """Return what the quotient, sum, product or power `n` tends to where it is undefined, or None.

    That is 0 / 0, inf - inf, 0 inf and 1^inf; the result is not finite where the limit is not
    known. By l'Hopital's rule in the nearest variable that both operands are functions of: zeros
    of up to fourth order. Products alone are left out: of a mask m, x m / m stays 0.
    """
    x, y = n.inputs
    match n.name:
        case "div":
            undefined = _may_vanish(x) and _may_vanish(y)
        case "mul":
            undefined = (_may_vanish(x) and has_pole(y)) or (has_pole(x) and _may_vanish(y))
        case "pow":
            undefined = has_pole(y) and x.bounds[0] <= 1 <= x.bounds[1]
        case _:
            undefined = has_pole(x) and has_pole(y)
    if not undefined:
        return None
    origins = _Origins(rep)
    of_x = list(origins.behind(x))
    shared = (t for t in origins.behind(y) if t.floating and any(t is i for i in of_x))
    if (t := next(shared, None)) is None:
        return None
    between_x, between_y = list(origins.behind(x, t)), list(origins.behind(y, t))
    if max(len(between_x), len(between_y)) == SIZE or not all(map(_is_known, between_y)):
        return None
    if n.name != "pow" and not any(
        (_is_curved(i) or _is_shifted(i)) and origins.depends(i, t)
        for i in (*between_x, *between_y)
    ):
        return None

    def both(at):
        found = {id(t): (at, None)}
        a, b = origins.fraction(x, t, found)
        c, d = origins.fraction(y, t, found)
        if n.name == "pow":
            a, b = jnp.log(_quotient(a, b)), None
        top, bottom = _joined("mul" if n.name == "pow" else n.name, (a, b), (c, d))
        return top, jnp.ones_like(top) if bottom is None else bottom

    held = lax.stop_gradient(t.value)
    tends, more = jnp.full(n.aval.shape, jnp.nan, n.aval.dtype), True
    for order in range(1, ORDER + 1):
        before, both = both, _derivative(both)
        # Of f / g with zeros of order k the derivative is that of the limit over k + 1; where the
        # zero depends on other variables, it moves by k / (k + 1) of what they move it.
        slope = lax.stop_gradient(both(held)[1])
        moves = -before(held)[1] / jnp.where(slope == 0, 1, slope)
        moved = order * (moves - lax.stop_gradient(moves)) / (order + 1)
        at = held + (t.value - held) / (order + 1)
        if moved.shape == held.shape:
            f, g = both(at + moved)
        else:  # `t` is broadcast or reshaped on the way
            slopes = map(lax.stop_gradient, _derivative(both)(held))
            f, g = (v + slope * moved for v, slope in zip(both(at), slopes, strict=True))
        tends = jnp.where(more & (g != 0), f / jnp.where(g == 0, 1, g), tends)
        more &= (f == 0) & (g == 0)
    return jnp.exp(tends) if n.name == "pow" else tends


def has_pole(n: Node) -> bool:
    """Tell whether `n` is infinite where the denominator of a quotient in it is 0."""
    n = resolved(n)
    if "has_pole" not in n.told:
        n.told["has_pole"] = _has_pole(n)
    return n.told["has_pole"]


def _has_pole(n):
    if n.known or not n.floating:
        return False
    if n.name == "div":
        return _may_vanish(n.inputs[1]) or has_pole(n.inputs[0])
    if n.name == "integer_pow" and n.eqn.params["y"] < 0:
        return _may_vanish(n.inputs[0])
    return (n.name in SHAPES or n.name in ("mul", "add", "add_any", "sub", "square")) and any(
        map(has_pole, n.inputs)
    )


def _quotient(a, b):
    return a if b is None else a / b


def _product(a, b):
    return b if a is None else a if b is None else a * b


def _joined(name, first, second):
    """Return the quotient, product or sum of two fractions as a fraction."""
    (a, b), (c, d) = first, second
    if name == "div":
        return _product(a, d), _product(b, c)
    if name == "mul":
        return a * c, _product(b, d)
    left, right = _product(a, d), _product(c, b)
    return (left - right if name == "sub" else left + right), _product(b, d)


class _Origins:
    """What nodes are smooth functions of."""

    def __init__(self, rep):
        # Remembers: the inside of a jit has other nodes each time that it is asked for.
        self.resolved: Callable[[Node], Node] = rep.resolved
        self._depends: dict[tuple[int, int], bool] = {}

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

    def fraction(self, n: Node, t: Node, found: dict) -> tuple:
        """Return the numerator and denominator of `n` (or None for 1) for the `t` in `found`.

        What may divide by zero stays a fraction, so that it takes its part in the limit.
        """
        n = self.resolved(n)
        if id(n) not in found:
            found[id(n)] = self._fraction(n, t, found)
        return found[id(n)]

    def _fraction(self, n, t, found):
        if not self.depends(n, t):
            return n.value, None
        parts = [self.fraction(i, t, found) for i in n.inputs]
        bind = lambda *values: _jax.bind(n.eqn, *values)[n.index]
        (a, b), last = parts[0], parts[-1]
        divides = (n.name == "div" and _may_vanish(n.inputs[1])) or (
            n.name == "integer_pow" and n.eqn.params["y"] < 0 and _may_vanish(n.inputs[0])
        )
        if not divides and all(d is None for _, d in parts):
            return bind(*(p for p, _ in parts)), None
        if n.name in ("div", "mul", "add", "add_any", "sub"):
            return _joined(n.name, (a, b), last)
        if n.name == "integer_pow" and (y := n.eqn.params["y"]) < 0:
            return lax.integer_pow(jnp.ones_like(a) if b is None else b, -y), lax.integer_pow(a, -y)
        if n.name in SHAPES:
            return bind(a), b if n.name == "neg" else bind(b)
        if n.name in ("square", "integer_pow"):
            return bind(a), bind(b)
        return bind(*(_quotient(p, d) for p, d in parts)), None


def _may_vanish(n: Node) -> bool:
    return n.scalar is None and n.bounds[0] <= 0 <= n.bounds[1]


def _is_smooth(n: Node) -> bool:
    return n.name in SMOOTH


def _is_known(n: Node) -> bool:
    """Tell whether what `n` is a function of is known: smooth, or an input of the program."""
    return _is_smooth(n) or (n.eqn is None and not n.opaque)


def _is_curved(n: Node) -> bool:
    return n.name in CURVED or n.name == "pow"


def _is_shifted(n: Node) -> bool:
    """Tell whether a constant is added, as in 1 - x: its zero is not that of a mask."""
    return n.name in ("add", "add_any", "sub") and any(i.scalar for i in n.inputs)


def _derivative(fn):
    return lambda at: jax.jvp(fn, (at,), (jnp.ones_like(at),))[1]
