"""Interval analysis of a jaxpr: every equation once, loops until nothing new can happen."""

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np

from .. import _jax
from . import _intervals_arrays as arrays
from . import _intervals_elementwise as simple
from . import _intervals_sums as sums
from ._diagnose_sites import RULES as CUSTOM
from ._diagnose_sites import Place, Site, number_of
from ._intervals import (
    ULPS,
    Bounds,
    Value,
    absent,
    anything,
    constant,
    contains,
    format_of,
    join,
    moved,
    rounded,
    value,
    widened,
)
from ._intervals_facts import elementwise, name_of, noise, reduced, refine, renamed, select
from ._intervals_ops import by_contract
from ._replay import CALLS

# So many iterations are followed one by one; after that the bounds of all later ones are sought.
UNROLLED = 64


class Birth(NamedTuple):
    """An operation that may make a NaN or inf from finite operands.

    Attributes:
      eqn: the equation.
      places: the equations around it.
      operands: what its operands may be.
      result: what its result may be.
      kind: "unknown" if certify has no rule for it, "constant" if it only shows an infinity that
        someone wrote, else "arithmetic".
    """

    eqn: Any
    places: tuple[Place, ...]
    operands: tuple[Value, ...]
    result: Value | None
    kind: str


class Analysis:
    """What is known of the variables of a program, and where it may go wrong.

    Attributes:
      births: the operations that may make a non-finite value, by number.
      operands: for each equation of the user's program what its operands were, as last seen.
    """

    def __init__(self, sites: Sequence[Site]):
        self.sites = sites
        self.births: list[Birth] = []
        self.operands: dict[int, tuple[Value, ...]] = {}
        self._known: dict[tuple[int, ...], int] = {}
        self._subs: dict[int, tuple[Any, Any]] = {}

    def run(
        self, closed: Any, args: Sequence[Value], places: tuple[Place, ...] = ()
    ) -> list[Value]:
        """Return what the outputs may be for these inputs."""
        env: dict[Any, Value] = {}
        for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            env[v] = constant(c, getattr(v.aval, "dtype", np.dtype(np.int32)))
        env.update(zip(closed.jaxpr.invars, args, strict=True))

        def read(v):
            if isinstance(v, _jax.Literal):
                return constant(v.val, getattr(v.aval, "dtype", None))
            return env[v]

        with np.errstate(all="ignore"):
            for eqn in closed.jaxpr.eqns:
                ins = tuple(map(read, eqn.invars))
                own = number_of(eqn)
                if own is not None and self.sites[own].eqn.primitive is eqn.primitive:
                    self.operands.setdefault(own, ins)
                env.update(zip(eqn.outvars, self._apply(eqn, ins, places), strict=True))
        return list(map(read, closed.jaxpr.outvars))

    def _apply(self, eqn, ins, places) -> list[Value]:
        name = eqn.primitive.name
        inside = (*places, Place(eqn, None, (0, 0)))
        if name == "custom_jvp_call" and (rule := simple.NAMED.get(_jax.library_name(eqn) or "")):
            aval = eqn.outvars[0].aval
            out = rounded(rule(eqn, *ins), format_of(aval.dtype))
            return [self._judged(eqn, ins, value(out, aval.shape, aval.dtype), places)]
        if name in CALLS:
            ((closed,),) = self._subjaxprs(eqn).values()
            outs = self.run(closed, ins, inside)
            return by_contract(eqn, ins, outs) if name in CUSTOM else outs
        if name == "cond":
            return self._cond(eqn, ins, inside)
        if name == "scan":
            return self._scan(eqn, ins, inside)
        if name == "while":
            return self._while(eqn, ins, inside)
        return [self._judged(eqn, ins, out, places) for out in self._plain(eqn, ins, places)]

    def _plain(self, eqn, ins, places) -> list[Value]:
        """The results of an equation that holds no jaxpr."""
        name = name_of(eqn)
        avals = [v.aval for v in eqn.outvars]
        if any(format_of(v.dtype).kind == "other" for v in ins):
            return self._unknown(eqn, ins, places)
        if name == "select_n":
            out, shown = select(ins[0], ins[1:])
            out.births = frozenset().union(*(v.births for v in shown if not v.finite))
            return [out]
        if name == "empty2":
            return [absent(avals[0].shape, avals[0].dtype)]
        if name in ("apart", "optimization_barrier"):
            return [renamed(x) for x in ins]
        if name in simple.RULES:
            if name in simple.IDENTITIES:
                return [renamed(x) for x in ins]
            return [elementwise(eqn, ins)]
        if name in arrays.MOVES:
            bounds, axes = arrays.MOVES[name](eqn, *ins)
            facts = {"noise": ins[0].noise} if axes is None else moved(ins[0], axes)
            facts["absent"] = ins[0].absent
            return [value(bounds, avals[0].shape, avals[0].dtype, **facts)]
        rule = arrays.RULES.get(name) or sums.RULES.get(name)
        if rule is not None and (found := rule(eqn, *ins)) is not None:
            outs = []
            for b, aval in zip(found, avals, strict=True):
                f = format_of(aval.dtype)
                if f.kind != "float" or name in sums.ROUNDING:
                    b = rounded(b, f, ULPS + 256)
                else:
                    b = rounded(b, f, 0)
                out = value(b, aval.shape, aval.dtype)
                out.noise = noise(name, ins, out) if ins else 0.0
                outs.append(out)
            if name.startswith("reduce_") and len(outs) == 1 and "axes" in eqn.params:
                outs = [reduced(eqn, ins[0], outs[0])]
            return outs
        return self._unknown(eqn, ins, places)

    def _unknown(self, eqn, ins, places) -> list[Value]:
        outs = []
        for v in eqn.outvars:
            shape, dtype = getattr(v.aval, "shape", ()), getattr(v.aval, "dtype", np.dtype("int32"))
            births = frozenset()
            if format_of(dtype).kind in ("float", "other"):
                births = frozenset([self._birth(eqn, ins, None, places, "unknown")])
            outs.append(anything(shape, dtype, births))
        return outs

    def _judged(self, eqn, ins, out: Value, places) -> Value:
        """Say which operations are at fault if a result may be non-finite."""
        if out.finite:
            out.births = frozenset()
            return out
        if out.births:
            return out
        bad = [v for v in ins if not v.finite]
        births = frozenset().union(*(v.births for v in bad))
        constants = all(self.births[b].kind == "constant" for b in births)
        fresh_nan = out.may_be_nan and not any(v.may_be_nan for v in ins)
        if not bad or (constants and fresh_nan):
            births = frozenset([self._birth(eqn, ins, out, places, "arithmetic")])
        elif not births:
            births = frozenset([self._birth(eqn, ins, out, places, "constant")])
        out.births = births
        return out

    def _birth(self, eqn, ins, out, places, kind) -> int:
        key = (*(id(p.eqn) for p in places), id(eqn), len(kind))
        if key not in self._known:
            self._known[key] = len(self.births)
            self.births.append(Birth(eqn, places, tuple(ins), out, kind))
        return self._known[key]

    def _subjaxprs(self, eqn):
        # The equation is kept beside, so that its id is not used twice.
        if id(eqn) not in self._subs:
            self._subs[id(eqn)] = eqn, _jax.subjaxprs(eqn)
        return self._subs[id(eqn)][1]

    # --- control flow ---

    def _cond(self, eqn, ins, inside):
        branches = self._subjaxprs(eqn)["branches"]
        index, *args = ins
        first, last = (int(np.clip(v, 0, len(branches) - 1)) for v in (index.low, index.high))
        facts = index.test[::-1] if len(branches) == 2 else [()] * len(branches)
        found = [
            self.run(branches[k], refine(args, facts[k]), inside) for k in range(first, last + 1)
        ]
        outs = found[0]
        for other in found[1:]:
            outs = [join(a, b) for a, b in zip(outs, other, strict=True)]
        return outs

    def _scan(self, eqn, ins, inside):
        ((body,),) = self._subjaxprs(eqn).values()
        n_consts, n_carry = _jax.scan_split(eqn)
        consts, carry = list(ins[:n_consts]), list(ins[n_consts : n_consts + n_carry])
        xs, length = ins[n_consts + n_carry :], eqn.params["length"]
        uniform = all(x.lo.shape[0] == 1 for x in xs)
        rows: list[list[Value]] = []
        steady = False
        for t in range(min(length, UNROLLED)):
            at = length - 1 - t if eqn.params["reverse"] else t
            outs = self.run(body, [*consts, *carry, *(_row(x, at) for x in xs)], inside)
            new = outs[:n_carry]
            rows.append(outs[n_carry:])
            steady = uniform and all(map(contains, carry, new))
            carry = new
            if steady:
                break
        if len(rows) < length and not steady:
            wide = [_row(x, None) for x in xs]
            while True:
                outs = self.run(body, [*consts, *carry, *wide], inside)
                if all(map(contains, carry, outs[:n_carry])):
                    break
                carry = list(map(widened, carry, outs[:n_carry]))
            rows.append(outs[n_carry:])
        stacked = []
        for v, column in zip(eqn.outvars[n_carry:], zip(*rows, strict=True), strict=False):
            stacked.append(_stack(column, length, eqn.params["reverse"], v.aval))
        if not rows:
            stacked = [anything(v.aval.shape, v.aval.dtype) for v in eqn.outvars[n_carry:]]
        return [*carry, *stacked]

    def _while(self, eqn, ins, inside):
        subs, p = self._subjaxprs(eqn), eqn.params
        (cond,), (body,) = subs["cond_jaxpr"], subs["body_jaxpr"]
        n, m = p["cond_nconsts"], p["body_nconsts"]
        cond_consts, consts, state = list(ins[:n]), list(ins[n : n + m]), list(ins[n + m :])
        left: list[Value] | None = None
        count = 0
        while True:
            (test,) = self.run(cond, [*cond_consts, *state], inside)
            if test.low < 1:
                left = state if left is None else list(map(join, left, state))
            if test.high < 1:
                return left or state
            new = self.run(body, [*consts, *state], inside)
            if all(map(contains, state, new)):
                # Every later state is within this one.
                return list(map(join, left, state)) if left is not None else state
            count += 1
            state = new if count < UNROLLED else list(map(widened, state, new))


def _row(x: Value, i: int | None) -> Value:
    """The i-th row of a stacked array, or what all rows may be."""
    if i is None:
        b = arrays.hull(x, [0])
        b = arrays.each(b, lambda a: a[0])
    else:
        b = arrays.each(x, lambda a: a[0 if a.shape[0] == 1 else i])
    return value(b, x.shape[1:], x.dtype, births=x.births, noise=x.noise)


def _stack(rows: Sequence[Value], length: int, reverse: bool, aval: Any) -> Value:
    births = frozenset().union(*(r.births for r in rows))
    noisy = max(r.noise for r in rows)
    inner = np.broadcast_shapes(*(r.lo.shape for r in rows))
    if len(rows) == length and length * int(np.prod(inner)) <= 2**16:
        ordered = rows[::-1] if reverse else rows
        parts = [[np.broadcast_to(r.bounds[i], inner) for r in ordered] for i in range(3)]
        b = Bounds(*map(np.stack, parts))
    else:
        low = reduce(np.minimum, [r.lo for r in rows])
        high = reduce(np.maximum, [r.hi for r in rows])
        nan = reduce(np.logical_or, [r.nan for r in rows])
        b = Bounds(low[None], high[None], nan[None])
    return value(b, aval.shape, aval.dtype, births=births, noise=noisy)
