"""What else is known of a variable besides its value: the equation that made it, and its bounds.

A `Node` is a variable of the program. The functions here read the equations behind it, without
computing anything.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _jax
from .._numerics import smallest, widen
from ._represent_bounds import finite, of_dtype, of_equation, union

# Primitives that only move, copy or cast elements of their first operand.
STRUCTURAL = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims transpose slice dynamic_slice gather rev copy "
    "copy_p stop_gradient reduce_precision convert_element_type optimization_barrier "
    "sharding_constraint split".split()
)


class Node:
    """A value of the program, the equation (or known constant) that it came from, its bounds."""

    def __init__(
        self,
        value: Any,
        eqn: Any = None,
        inputs: tuple["Node", ...] = (),
        index: int = 0,
        *,
        aval: Any = None,
        scalar: float | None = None,
        known: bool = False,
        bounds: tuple[float, float] | None = None,
        body: Callable[[], "Node"] | None = None,
        again: Callable | None = None,
        given: jax.Array | None = None,
        carried: Callable[[], jax.Array | None] | None = None,
    ):
        """Make a node.

        Args:
          value: The array; None where only bounds are asked for.
          eqn: The equation, `inputs` its operands, and `index` which of its results this is.
          aval: The type, where it is not that of the value or of the equation's result.
          scalar: The number that every element is, if the program says so.
          known: Whether the value is a constant of the program.
          bounds: Between which numbers the elements lie; default: as the equation tells.
          body: Returns the node of the same variable inside the jit or custom rule it came from.
          again: For a result of a scan or cond, `again(form)` runs it with `form(node)` there.
          given: The logarithm, where it came into a scan beside the value.
          carried: Returns the logarithm, or None, of what a scan has carried to its end.
        """
        self.value = self.raw = value
        if aval is None:
            aval = jax.typeof(value) if eqn is None else eqn.outvars[index].aval
        self.aval = aval
        self.eqn: Any = eqn
        self.name = eqn.primitive.name if eqn is not None else ""
        self.inputs = inputs
        self.index = index
        self.scalar = scalar
        self.body = body
        self.again = again
        self.given = given
        self.carried = carried
        self.opaque = False
        """Whether it comes from control flow, and so is no input although it has no equation."""
        self.told: dict[str, bool] = {}
        """What `_values_rules` asked once."""
        self.known = known or (bool(inputs) and all(i.known for i in inputs))
        self.bounds = bounds or ((scalar, scalar) if scalar is not None else self._bounds())
        if self.name in STRUCTURAL and inputs[0].scalar is not None:
            self.scalar = inputs[0].scalar

    def _bounds(self):
        if self.eqn is None:
            return of_dtype(self.aval.dtype)
        if self.name in STRUCTURAL:
            return self.inputs[0].bounds
        if self.name == "select_n" and len(self.inputs) == 3 and self.floating:
            return chosen(*self.inputs)
        shapes = [i.aval.shape for i in self.inputs]
        bounds = [i.bounds for i in self.inputs]
        low, high = of_equation(self.name, self.eqn.params, shapes, bounds)
        if not self.floating:
            least, most = of_dtype(self.aval.dtype)  # integers wrap around
            return (low, high) if least <= low and high <= most else (least, most)
        if 0 < low < 4 * float(jnp.finfo(self.aval.dtype).eps):
            # XLA computes (1 - p) + 1e-8 as (1 + 1e-8) - p, where the 1 absorbs the epsilon.
            low = (
                low
                if low > 4 * float(jnp.finfo(self.aval.dtype).eps) * abs(affine(self).offset)
                else 0.0
            )
        if (pair := factors(self)) and same(*pair):
            low = max(low, 0.0)
        if self.name == "sub" and (low_or_high := extreme(self)):
            low, high = (low, 0.0) if low_or_high == "reduce_max" else (0.0, high)
        if self.name == "reduce_sum" and at_least_one(self):
            low = 1.0 if finite(self.inputs[0].inputs[0].bounds) else 0.0
        return low, high

    @property
    def operand(self) -> "Node":
        """The first operand; of a node without operands, itself."""
        return self.inputs[0] if self.inputs else self

    @property
    def floating(self) -> bool:
        return jnp.issubdtype(self.aval.dtype, jnp.floating)


class Affine(NamedTuple):
    """v = offset + slope * base, the numbers held exactly as the program wrote them."""

    offset: float
    slope: float
    base: Node


CASTS = ("copy", "copy_p", "stop_gradient", "convert_element_type")


def same(a: Node, b: Node, depth: int = 12) -> bool:
    """Tell whether two nodes hold the same numbers: one variable, or the same equations of it."""
    while a.name in CASTS:
        a = a.inputs[0]
    while b.name in CASTS:
        b = b.inputs[0]
    if a is b:
        return True
    if a.eqn is None or b.eqn is None or a.name != b.name or a.index != b.index or not depth:
        return a.scalar is not None and a.scalar == b.scalar and a.aval.shape == b.aval.shape
    if a.aval.shape != b.aval.shape or a.eqn.params != b.eqn.params:
        return False
    return all(same(i, j, depth - 1) for i, j in zip(a.inputs, b.inputs, strict=True))


def chosen(which: Node, other: Node, case: Node) -> tuple[float, float]:
    """Return the bounds of where(which, case, other): a comparison tells of what it is of."""
    test = resolved(which)
    if test.name not in _jax.NEGATED:
        return union(other.bounds, case.bounds)
    a, b = map(resolved, test.inputs)
    if test.name == "ne" and same(a, b):  # only NaN differs from itself
        return other.bounds
    if (holds := certain(test)) is not None:
        return (case if holds else other).bounds
    parts = [(other, _jax.NEGATED[test.name]), (case, test.name)]
    return union(*(_compared(n, name, a, b) for n, name in parts))


def certain(test: Node) -> bool | None:
    """Tell whether a comparison of constants of the program holds; None if that is not known."""
    x, y = map(resolved, test.inputs)
    if not (x.known and y.known):
        return None
    name, a, b = test.name, x.bounds, y.bounds
    if name in ("lt", "le"):
        name, a, b = MIRRORED[name], b, a
    if name in ("eq", "ne"):
        return (name == "ne") if a[1] < b[0] or b[1] < a[0] else None
    if a[0] > b[1] or (name == "ge" and a[0] == b[1]):
        return True
    return False if a[1] < b[0] or (name == "gt" and a[1] == b[0]) else None


MIRRORED = {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge", "ne": "ne", "eq": "eq"}


def _compared(n: Node, name: str, a: Node, b: Node) -> tuple[float, float]:
    """Return the bounds of `n` where the comparison `name` of `a` and `b` holds."""
    low, high = n.bounds
    for v, limit, how in ((a, b, name), (b, a, MIRRORED[name])):
        c = underneath(limit).scalar
        if c is None or not v.floating or not same(resolved(n), v):
            continue
        # Beyond 0 the least number that XLA does not flush to 0.
        tiny = smallest(v.aval.dtype)
        if how in ("gt", "ge"):
            low = max(low, c or (tiny if how == "gt" else 0.0))
        elif how in ("lt", "le"):
            high = min(high, c or (-tiny if how == "lt" else 0.0))
        elif how == "ne" and c == 0 and low == 0:
            low = tiny
    return (low, high) if low <= high else n.bounds


def resolved(n: Node) -> Node:
    """Return the node of the same variable inside the jit or custom rule it came from, if any."""
    while n.body is not None:
        n = n.body()
    return n


def underneath(n: Node) -> Node:
    """Follow `n` back through broadcasts, reshapes and copies."""
    while n.name in ("broadcast_in_dim", "reshape", "copy", "stop_gradient", "expand_dims"):
        n = n.inputs[0]
    return n


def may_be_small(n: Node) -> bool:
    """Tell whether 1 + n may lose more than two digits of `n`."""
    return n.bounds[0] <= 0.01 and n.bounds[1] >= -0.01


def factors(n: Node) -> tuple[Node, Node] | None:
    """Return the two factors of a product or square, else None."""
    if n.name == "mul":
        return n.inputs[0], n.inputs[1]
    if n.name == "square" or (n.name == "integer_pow" and n.eqn.params["y"] == 2):
        return n.operand, n.operand
    return None


def affine(n: Node) -> Affine:
    """Return `n` as an affine function of a variable; of itself, if nothing else."""
    if not n.floating:
        return Affine(0.0, 1.0, n)
    if n.name == "neg":
        offset, slope, base = affine(n.inputs[0])
        return Affine(-offset, -slope, base)
    if n.name in ("add", "add_any", "sub", "mul", "div"):
        a, b = n.inputs
        if a.scalar is not None and n.name in ("add", "add_any", "mul"):
            a, b = b, a
        c, sign = b.scalar, 1.0
        if c is None and n.name == "sub" and a.scalar is not None:
            a, c, sign = b, a.scalar, -1.0
        elif c is not None and n.name == "sub":
            c = -c
        if c is None or a.scalar is not None or not math.isfinite(c):
            return Affine(0.0, 1.0, n)
        offset, slope, base = affine(a)
        if n.name == "mul" and c:
            return Affine(offset * c, slope * c, base)
        if n.name == "div" and c:
            return Affine(offset / c, slope / c, base)
        if n.name in ("add", "add_any", "sub"):
            return Affine(sign * offset + c, sign * slope, base)
    return Affine(0.0, 1.0, n)


def nonnegative(n: Node) -> bool:
    """Tell whether `n` cannot be negative, whatever the input (NaN aside)."""
    return n.bounds[0] >= 0


def extreme(x: Node) -> str | None:
    """Return "reduce_max" if x = a - max(a), "reduce_min" if a - min(a); None if that is infinite.

    Other elements may be: those of a masked by -inf, all of them too, stay -inf in a - max(a).
    """
    bound = x.inputs[1]
    while bound.name in STRUCTURAL or bound.name in ("select_n", "max"):
        bound = bound.inputs[-1]
    low, high = x.inputs[0].bounds
    end = {"reduce_max": high, "reduce_min": low}.get(bound.name, math.inf)
    return bound.name if math.isfinite(end) and same(bound.inputs[0], x.inputs[0]) else None


def shifted(x: Node) -> bool:
    """Tell whether x = a - max(a), so that exp(x) does not overflow."""
    return x.name == "sub" and extreme(x) == "reduce_max"


def at_least_one(total: Node) -> bool:
    """Tell whether `total` is a sum of exp(a - max(a)) over at least the axes of that maximum.

    Such a sum is at least 1, or 0 if all of a may be masked by -inf.
    """
    e = total.inputs[0]
    if e.name != "exp" or not shifted(e.inputs[0]):
        return False
    top = e.inputs[0].inputs[1]
    while top.name != "reduce_max":
        top = top.inputs[-1]
    return set(top.eqn.params["axes"]) <= set(total.eqn.params["axes"])


def moved(n: Node, *arrays):
    """Apply the structural equation of `n` to the representation of its first operand."""
    if n.name == "convert_element_type":
        return arrays[0].astype(widen(n.value).dtype)
    if n.name == "reduce_precision":
        return arrays[0]
    rest = [i.value for i in n.inputs[len(arrays) :]]
    return _jax.bind(n.eqn, *arrays, *rest)[n.index]
