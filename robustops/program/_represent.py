"""Forms of a variable that have not lost what its value has lost, computed on demand.

`Representations` follows the equations behind a `Node` back to its logarithm, its root, its
distance from 1, or a product, and returns None where there is no better form than the value.
Nothing is computed that no rule asks for.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .._numerics import smallest, widen
from ..ops import safe_div, safe_exp, safe_norm
from ._differences import log_near_one
from ._represent_beside import complement
from ._represent_log import along, log_affine, segments
from ._represent_logspace import Log, plain_log
from ._represent_nodes import STRUCTURAL, Node, affine, factors, moved, nonnegative, same


class Representations:
    """The representations of the nodes of one trace, each computed once."""

    def __init__(self):
        self._known: dict[tuple[Callable, Any], Any] = {}
        self.repaired = False
        """Whether the values mode has changed an equation of the trace."""

    def _once(self, rule: Callable, *key):
        if (rule, *key) not in self._known:
            self._known[rule, *key] = rule(self, *key)
        return self._known[rule, *key]

    def inside(self, n: Node) -> Node:
        """Return the node of the same variable inside the jit or custom rule it came from."""
        return self._once(_inside, n)

    def resolved(self, n: Node) -> Node:
        """Return the node of the same variable that has its own equation, if any."""
        while n.body is not None:
            n = self.inside(n)
        return n

    def log(self, n: Node) -> Log | None:
        """Return log|n| where that is better than the log of n's value."""
        return self._once(log_affine, 0.0, 1.0, n)

    def log_beside_one(self, n: Node, sign: int) -> Log | None:
        """Return log|1 + sign * n| where that is better than the log of its value."""
        return self._once(log_affine, 1.0, float(sign), n)

    def log_affine(self, offset: float, slope: float, n: Node) -> Log | None:
        """Return log|offset + slope * n| where that is better than the log of its value."""
        return self._once(log_affine, offset, slope, n)

    def complement(self, n: Node) -> jax.Array | None:
        """Return 1 - n with the digits that the subtraction loses, or None."""
        return self._once(complement, n)

    def root(self, n: Node) -> jax.Array | None:
        """Return sqrt(n) formed without n, which may over- or underflow, or None."""
        return self._once(_root, n)

    def product(self, n: Node):
        """Return exp(n) as a product, and where a factor of it is 0, for n made of logarithms."""
        return self._once(_product, n)

    def plain(self, n: Node) -> jax.Array:
        """Return the value of `n` with nothing repaired."""
        return self._once(_plain, n)

    def extended(self, n: Node) -> jax.Array | None:
        """Return `n` with the infinities of true poles such as 1 / 0, or None if it has none."""
        return self._once(_extended, n)

    def any_log(self, n: Node) -> Log:
        """Return log|n|, from its value if there is nothing better."""
        if (known := self.log(n)) is not None:
            return known
        plain, near = plain_log(0.0, 1.0, n), log_near_one(n)
        return (
            plain
            if near is None
            else plain._replace(value=jnp.where(near[1], near[0], plain.value))
        )


def _inside(rep, n):
    assert n.body is not None
    return n.body()


def _plain(rep, n):
    if n.body is not None:
        return rep.plain(rep.inside(n))
    values = list(map(rep.plain, n.inputs))
    if all(v is i.value for v, i in zip(values, n.inputs, strict=True)):
        return n.raw
    return _jax.bind(n.eqn, *values)[n.index]


# What the value of a pole is replaced by, told from what a better form of it gives.
POLES = {
    "div": lambda n: n.value == 0,
    **dict.fromkeys(
        ("log", "log1p", "log2", "log10"),
        lambda n: n.value <= 0.999 * math.log(smallest(n.inputs[0].aval.dtype)),
    ),
}
# Through what an infinity passes, or becomes finite again.
PASSING = STRUCTURAL | frozenset(
    "add add_any sub mul div neg abs max min clamp exp exp2 expm1 tanh logistic atan erf erfc sqrt "
    "rsqrt square integer_pow select_n reduce_sum reduce_max reduce_min "
    "log log1p log2 log10".split()
)


def _extended(rep, n):
    if not n.floating or n.scalar is not None or n.name == "split":
        return None
    if n.body is not None:
        return rep.extended(rep.inside(n))
    known = [rep.extended(i) for i in n.inputs] if n.name in PASSING else []
    passes = any(v is not None for v in known)
    value = n.value
    if passes:
        values = [i.value if v is None else v for v, i in zip(known, n.inputs, strict=True)]
        (value,) = _jax.bind(n.eqn, *values)
        value = jnp.where(jnp.isnan(value), n.value, value)
    if n.name in POLES and n.raw is not n.value:
        return jnp.where(jnp.isinf(n.raw) & POLES[n.name](n), n.raw, value)
    return value if passes else None


def _root(rep, n):
    if not n.floating:
        return None
    x = n.operand
    if n.scalar is not None:
        return None
    if n.body is not None:
        return rep.root(rep.inside(n))
    if n.name in STRUCTURAL:
        r = rep.root(x)
        return r if r is None else moved(n, r)
    any_root = lambda m: jnp.sqrt(widen(m.value)) if (r := rep.root(m)) is None else r
    match n.name:
        case "exp":
            return safe_exp(0.5 * widen(x.value))
        case "reduce_sum" if nonnegative(x) and (r := rep.root(x)) is not None:
            axes = n.eqn.params["axes"]
            return safe_norm(r, axis=axes) if axes else r
        case "scatter-add" if n.inputs[0].scalar == 0 and nonnegative(n.inputs[2]):
            if (r := rep.root(n.inputs[2])) is None:
                return None
            add, largest, scale = segments(n, r, 0.0)
            scale = jnp.where(scale > 0, scale, 1)
            return jnp.sqrt(add(jnp.square(r / scale))) * largest
        case "add" | "add_any" if all(map(nonnegative, n.inputs)):
            if all(rep.root(i) is None for i in n.inputs):
                return None
            a, b = jnp.broadcast_arrays(*map(any_root, n.inputs))
            return safe_norm(jnp.stack([a, b]), axis=0)
        case "dot_general" if same(*n.inputs):
            (contract, other), (batch, _) = n.eqn.params["dimension_numbers"]
            if contract == other and len(contract) + len(batch) == x.aval.ndim and not batch:
                return safe_norm(widen(x.value), axis=tuple(contract))
        case "select_n" | "max" | "min" | "clamp" if n.name == "select_n" or nonnegative(n):
            which = n.inputs[:1] if n.name == "select_n" else ()
            pieces = n.inputs[len(which) :]
            if all(rep.root(i) is None for i in pieces):
                return None
            return _jax.bind(n.eqn, *[w.value for w in which], *map(any_root, pieces))[0]
        case "mul" | "div" if not same(*n.inputs) and all(map(nonnegative, n.inputs)):
            if all(rep.root(i) is None for i in n.inputs):
                return None
            a, b = map(any_root, n.inputs)
            return a * b if n.name == "mul" else safe_div(a, b)
    if (pair := factors(n)) and same(*pair):
        return signless(widen(pair[0].value))
    return None


def signless(x):
    return jnp.where(x < 0, -x, x)


def _product(rep, n):
    if not n.floating or n.scalar is not None:
        return None
    if n.body is not None:
        return rep.product(rep.inside(n))
    x = n.operand
    match n.name:
        case "log":
            u = widen(x.value)
            return u, u == 0
        case "neg":
            return None
        case "reduce_sum" if (r := rep.product(x)) is not None:
            axes = n.eqn.params["axes"]
            return jnp.prod(r[0], axes), jnp.any(r[1], axes)
        case "cumsum" if (r := rep.product(x)) is not None:
            zero = lax.cummax(r[1].astype(jnp.int32), **along(n)) > 0
            return lax.cumprod(r[0], **along(n)), zero
        case "concatenate" if any(rep.product(i) is not None for i in n.inputs):
            factor = lambda i: (safe_exp(widen(i.value)), jnp.zeros(i.aval.shape, bool))
            parts = [rep.product(i) or factor(i) for i in n.inputs]
            return tuple(_jax.bind(n.eqn, *column)[0] for column in zip(*parts, strict=True))
        case "add" if all(rep.product(i) is not None for i in n.inputs):
            (a, za), (b, zb) = map(rep.product, n.inputs)
            return a * b, za | zb
        case "mul" | "div":
            offset, slope, base = affine(n)
            r = rep.product(base) if offset == 0 and slope > 0 and base is not n else None
            return r and (jnp.power(r[0], slope), r[1])
    if n.name in STRUCTURAL and n.name != "split":
        r = rep.product(x)
        return r and (
            moved(n, r[0]),
            moved(n, r[1])
            if n.name in ("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice")
            else None,
        )
    return None
