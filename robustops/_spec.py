"""The op record, and the one helper that gives a function its total derivative.

An op is a plain documented function. Its facts stand above it, once:

    @op(naive=jnp.log, reference=lambda mp, x: mp.log(x), domain=[(0, inf)], ...)
    def safe_log(x, /): ...

and the function that does the work carries its local partial derivatives beside it:

    @total(lambda out, x: reciprocal(x))
    def _safe_log(x): ...

Tests and docs read `OPS`; nothing about an op is written twice.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ._apart import apart
from ._numerics import held
from ._zmul import zmul


@dataclasses.dataclass(frozen=True)
class Op:
    """What is known of one op: facts only, no test directives."""

    fn: Callable
    naive: Callable
    """The form people write; same arguments."""
    reference: Callable
    """`reference(mp, *numbers)` in mpmath, inside the domain; a reduction gets a list."""
    domain: Sequence[tuple[float, float]]
    """For each array argument the open interval in which `ulps` is claimed."""
    edges: Sequence[tuple[tuple[Any, ...], Any, Any]]
    """(arguments, value, derivatives) at the points that define the op. An entry may be a function
    of `finfo`; derivatives of None are not defined there."""
    ulps: tuple[float, float]
    """Largest error claimed inside the domain, in ulps: (value, first derivative)."""
    hint: str = ""
    """The remedy that `diagnose` prints."""
    replaces: str | None = None
    """The jax primitive or function that this op stands in for."""
    cost: str = ""
    """Where the op cannot be as cheap as the naive form: the floor, and why."""
    conditioning: Callable | None = None
    """Where the result can be much smaller than what it is formed from:
    `conditioning(mp, *numbers)` gives the magnitudes (of the value, of the derivatives) to which
    `ulps` then refers."""

    @property
    def name(self) -> str:
        """The public name."""
        return self.fn.__name__

    @property
    def reduces(self) -> bool:
        """Whether the op works on slices along an axis rather than on single elements."""
        return "axis" in inspect.signature(self.fn).parameters


_OPS: dict[str, Op] = {}
OPS: Mapping[str, Op] = MappingProxyType(_OPS)
"""Every op by name, read-only."""


def op(**facts: Any) -> Callable[[Callable], Callable]:
    """Enter the decorated function into `OPS` with the facts of `Op`, and return it unchanged."""

    def register(fn: Callable) -> Callable:
        if fn.__name__ in _OPS:
            raise ValueError(f"op: {fn.__name__} is registered twice.")
        _OPS[fn.__name__] = Op(fn, **facts)
        return fn

    return register


_RULES: dict[Callable, Callable] = {}


def rule_of(fn: Callable) -> Callable:
    """Return what gives the tangent of what `total` made: rule(out, arrays, tangents, **static)."""
    return _RULES[fn]


def total(*partials: Callable, jvp: Callable | None = None) -> Callable[[Callable], Callable]:
    """Give `value(*arrays, **static)` a derivative that is total, and jit it.

    Args:
      *partials: for each array the local derivative, `partial(out, *arrays, **static)`. It must be
        finite where the arrays are, and total itself, so that the second derivative is finite too.
      jvp: instead of partials, `jvp(out, arrays, tangents, **static)`, linear in the tangents;
        a tangent that is symbolically zero comes as None. For reductions.

    The tangent is the sum of `zmul(partial, tangent)` over the tangents that are not symbolically
    zero: jax would otherwise instantiate zeros, and 0 * inf = NaN.
    """

    def rule_of_partials(out, arrays, tangents, **static):
        # Apart from the value: see `_apart`.
        arrays = [apart(a) for a in arrays]
        terms = [
            zmul(held(partial(out, *arrays, **static), out.dtype), jnp.broadcast_to(t, out.shape))
            for partial, t in zip(partials, tangents, strict=True)
            if t is not None
        ]
        return functools.reduce(jnp.add, terms)

    def decorate(value: Callable) -> Callable:
        rule = jvp or rule_of_partials

        @functools.cache
        def build(static: tuple[tuple[str, Any], ...]) -> Callable:
            options = dict(static)

            def f(*arrays):
                return value(*arrays, **options)

            # The name that a jaxpr shows: jit[name=safe_log].
            f.__name__ = f.__qualname__ = value.__name__.lstrip("_")
            g = jax.custom_jvp(f)

            def jvp_of_g(arrays, tangents):
                out = g(*arrays)
                given = [None if isinstance(t, SymbolicZero) else t for t in tangents]
                if all(t is None for t in given):
                    return out, jnp.zeros_like(out)
                return out, rule(out, arrays, given, **options)

            g.defjvp(jvp_of_g, symbolic_zeros=True)
            return jax.jit(g)

        @functools.wraps(value)
        def call(*arrays, **static):
            return build(tuple(sorted(static.items())))(*arrays)

        _RULES[call] = rule
        return call

    return decorate
