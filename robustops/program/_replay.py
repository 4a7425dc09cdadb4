"""Running a jaxpr with every intermediate value in hand.

Each equation's results pass an `optimization_barrier`, so that XLA computes what the equations say
and nothing cleverer: a rounding to bfloat16 stays, log(exp(x)) is not x. Loops are not unrolled:
their carried values are stored, and the inside of one iteration is computed when asked for.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import _jax

# Their one sub-jaxpr is a function of exactly their operands.
CALLS = frozenset(
    """
    jit pjit closed_call core_call eval_jaxpr remat remat2 checkpoint custom_jvp_call
    custom_vjp_call
    """.split()
)
# A copy of their body may not stand in for it: the derivative is in other parameters.
_RULES = frozenset({"custom_jvp_call", "custom_vjp_call"})
_ISOLATED = frozenset({"scan", "while", "cond"}) | CALLS - _RULES


class Loop(NamedTuple):
    """A loop that was run: its body, constants, and per iteration the carried values and slices."""

    body: Any
    consts: list[Any]
    steps: list[int]
    """Index of each iteration in the order of execution; a reversed scan counts down."""
    carry: Callable[[int], list[Any]]
    slices: Callable[[int], list[Any]]


class Replay:
    """Runs jaxprs and remembers what it compiled for them.

    Args:
      isolate: put the barriers between equations; without, XLA may fuse and simplify, as it does
        in the user's own jitted step.
    """

    def __init__(self, isolate: bool = True):
        self.isolate = isolate
        # Keyed by id; the objects are kept in the values, so that no id is used twice.
        self._memo: dict[tuple[str, int], tuple[Any, Any]] = {}

    def _once(self, kind: str, key: Any, make: Callable[[], Any]) -> Any:
        found = self._memo.get((kind, id(key)))
        if found is None:
            found = self._memo[kind, id(key)] = key, make()
        return found[1]

    def run(self, closed: Any, args: Sequence[Any]) -> list[Any]:
        """Return the outputs of `closed`."""
        make = lambda: jax.jit(_function(self._isolated(closed)))
        return list(self._once("run", closed, make)(*args))

    def record(self, closed: Any, args: Sequence[Any]) -> dict[Any, Any]:
        """Return the value of every variable of `closed`."""

        def everything(*args):
            results = []

            def keep(eqn, *values):
                outs = self._apply(eqn, *values)
                results.extend(outs)
                return outs

            _jax.evaluate(closed, args, keep)
            return results

        make = lambda: jax.jit(_function(_jax.retrace(everything, closed)))
        results = self._once("record", closed, make)(*args)
        made = [v for eqn in closed.jaxpr.eqns for v in eqn.outvars]
        values = dict(zip(made, results, strict=True))
        values |= dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
        values |= dict(zip(closed.jaxpr.invars, args, strict=True))
        return values

    def subjaxprs(self, eqn: Any) -> dict[str, tuple[Any, ...]]:
        """Return the closed sub-jaxprs of `eqn`, the same objects each time."""
        return self._once("sub", eqn, lambda: _jax.subjaxprs(eqn))

    def called(self, eqn: Any) -> Any:
        """Return the one sub-jaxpr of a call."""
        ((sub,),) = self.subjaxprs(eqn).values()
        return sub

    def entered(self, eqn: Any, ins: Sequence[Any]) -> tuple[Any, list[int]] | None:
        """Return the jaxpr that `eqn` runs on some of its operands, and on which; None if none.

        That of a call, the branch that a cond took, the solver of a linear solve.
        """
        name = eqn.primitive.name
        if name == "cond":
            return self.subjaxprs(eqn)["branches"][int(ins[0])], list(range(1, len(ins)))
        if name == "custom_linear_solve":
            sizes = eqn.params["const_lengths"]
            start = sizes.matvec + sizes.vecmat
            given = range(start + sizes.solve + sizes.transpose_solve, len(ins))
            solve = self.subjaxprs(eqn)["jaxprs"][eqn.params["jaxprs"]._fields.index("solve")]
            return solve, [*range(start, start + sizes.solve), *given]
        return (self.called(eqn), list(range(len(ins)))) if name in CALLS else None

    def _isolated(self, closed: Any) -> Any:
        if not self.isolate:
            return closed
        flat = lambda *args: _jax.evaluate(closed, args, self._apply)
        return self._once("isolated", closed, lambda: _jax.retrace(flat, closed))

    def _apply(self, eqn: Any, *values: Any) -> list[Any]:
        if not self.isolate:
            return _jax.bind(eqn, *values)
        if eqn.primitive.name in _ISOLATED:
            new: dict[str, Sequence[Any]] = {}
            for name, subs in self.subjaxprs(eqn).items():
                new[name] = [self._isolated(sub) for sub in subs]
            return _jax.bind(_jax.with_subjaxprs(eqn, new), *values)
        outs = _jax.bind(eqn, *values)
        floats = [i for i, out in enumerate(outs) if is_float(out)]
        held = lax.optimization_barrier([outs[i] for i in floats])
        for i, out in zip(floats, held, strict=True):
            outs[i] = out
        return outs

    def scan(self, eqn: Any, args: Sequence[Any]) -> Loop:
        """Run a scan again for its carried values."""
        body = self.called(eqn)
        n_consts, n_carry = _jax.scan_split(eqn)
        length, reverse = eqn.params["length"], eqn.params["reverse"]
        consts, init = args[:n_consts], args[n_consts : n_consts + n_carry]
        xs = args[n_consts + n_carry :]

        def carries(consts, init, xs):
            def step(carry, x):
                outs = _function(self._isolated(body))(*consts, *carry, *x)
                return outs[:n_carry], carry

            return lax.scan(step, init, xs, length, reverse=reverse)[1]

        stacked = self._once("carries", eqn, lambda: jax.jit(carries))(
            list(consts), list(init), list(xs)
        )
        steps = list(range(length))[:: -1 if reverse else 1]
        return Loop(body, list(consts), steps, _rows(stacked), _rows(xs))

    def loop(self, eqn: Any, args: Sequence[Any]) -> Loop:
        """Run a while loop again: once to count its iterations, once for its carried values."""
        subs, p = self.subjaxprs(eqn), eqn.params
        (cond,), (body,) = subs["cond_jaxpr"], subs["body_jaxpr"]
        cond_consts = list(args[: p["cond_nconsts"]])
        consts = list(args[p["cond_nconsts"] : p["cond_nconsts"] + p["body_nconsts"]])
        init = list(args[p["cond_nconsts"] + p["body_nconsts"] :])
        test = _function(self._isolated(cond))
        step = _function(self._isolated(body))

        @jax.jit
        def count(cond_consts, consts, init):
            return lax.while_loop(
                lambda c: test(*cond_consts, *c[1])[0],
                lambda c: (c[0] + 1, step(*consts, *c[1])),
                (0, init),
            )[0]

        def carries(consts, init, length):
            return lax.scan(lambda c, _: (step(*consts, *c), c), init, length=length)[1]

        n = int(count(cond_consts, consts, init))
        stacked = jax.jit(carries, static_argnums=2)(consts, init, n)
        return Loop(body, consts, list(range(n)), _rows(stacked), _rows([]))


def spread(found: Sequence[Any], at: Sequence[int], length: int) -> list[Any]:
    """Return a list of `length` with `found` at the places `at`, None elsewhere."""
    whole = [None] * length
    for k, x in zip(at, found, strict=True):
        whole[k] = x
    return whole


def _rows(arrays: Sequence[Any]) -> Callable[[int], list[Any]]:
    # In numpy, where taking a row costs no dispatch; random keys have no numpy form.
    plain = [a if jnp.issubdtype(a.dtype, jax.dtypes.extended) else np.asarray(a) for a in arrays]
    return lambda i: [a[i] for a in plain]


def _function(closed: Any) -> Callable:
    return lambda *args: _jax.evaluate(closed, args)


def read(values: dict[Any, Any], atom: Any) -> Any:
    """Return the value of a variable or literal, always an array."""
    if isinstance(atom, _jax.Literal):
        return np.asarray(atom.val, jnp.result_type(atom.aval))
    return values[atom]


def is_float(value: Any) -> bool:
    """Tell whether `value` can be NaN."""
    return jnp.issubdtype(value.dtype, jnp.inexact)
