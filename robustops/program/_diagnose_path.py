"""The way of a value through the user's program: where an equation stands, and what led to it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from .. import _jax
from ._diagnose_sites import LOOPS, RULES, Place, Site, chain, number_of
from ._replay import Replay, is_float, read, spread
from ._replay_rules import Mask, Rules, as_numpy

_LONGEST = 40
# Beyond these every element is every other's cause.
_MIXING = frozenset({"dot_general", "conv_general_dilated"})
# Functions that reach these values only in the limit.
_LIMITS = {
    "logistic": (0, 1),
    "tanh": (-1, 1),
    "erf": (-1, 1),
    "erfc": (0, 2),
    "exp": (0,),
    "exp2": (0,),
}


class Scope(NamedTuple):
    """A jaxpr, the values of its variables, and the equation whose inside it is."""

    closed: Any
    values: dict[Any, Any]
    place: Place | None


class Cause(NamedTuple):
    """An equation on the way to a birth."""

    eqn: Any
    places: tuple[Place, ...]
    note: str


def scopes(
    replay: Replay,
    closed: Any,
    args: Sequence[Any],
    sites: Sequence[Site],
    numbers: list[int],
    iterations: Sequence[int],
) -> list[Scope]:
    """Open the user's program down to the last of `numbers`, a chain of equations.

    `iterations` says which iteration of each loop; where it is too short, the last one.
    """
    found = [Scope(closed, replay.record(closed, args), None)]
    remaining = list(iterations)
    for n in numbers[:-1]:
        closed, values, _ = found[-1]
        i, eqn = next((i, e) for i, e in enumerate(closed.jaxpr.eqns) if number_of(e) == n)
        ins = [read(values, v) for v in eqn.invars]
        name, step = eqn.primitive.name, None
        if name in LOOPS:
            loop = (replay.scan if name == "scan" else replay.loop)(eqn, ins)
            step = remaining.pop(0) if remaining else max(loop.steps)
            inside, ins = loop.body, [*loop.consts, *loop.carry(step), *loop.slices(step)]
        elif (entered := replay.entered(eqn, ins)) is not None:
            inside, ins = entered[0], [ins[k] for k in entered[1]]
        else:
            break
        found.append(Scope(inside, replay.record(inside, ins), Place(eqn, step, (i, 0))))
    return found


def causes(
    replay: Replay, rules: Rules, around: list[Scope], eqn: Any, sources: Sequence[Mask]
) -> list[Cause]:
    """Return what the marked elements of the operands of `eqn` were computed from, nearest first.

    The walk leaves calls, but no loop, and enters calls and branches.
    """
    found: list[Cause] = []

    def walk(closed, values, needs, places):
        for i, e in reversed(list(enumerate(closed.jaxpr.eqns))):
            marked = [needs.pop(v, None) for v in e.outvars]
            if len(found) >= _LONGEST or all(m is None for m in marked):
                continue
            ins, outs = [read(values, v) for v in e.invars], [values[v] for v in e.outvars]
            filled = [
                np.zeros(o.shape, bool) if m is None else m
                for m, o in zip(marked, outs, strict=True)
            ]
            name = e.primitive.name
            if (entered := replay.entered(e, ins)) is not None:
                inside, at = entered
                inner: dict[Any, np.ndarray] = {}
                for v, m in zip(inside.jaxpr.outvars, marked, strict=True):
                    _need(inner, v, m)
                place = Place(e, None, (i, 0))
                recorded = replay.record(inside, [ins[k] for k in at])
                walk(inside, recorded, inner, (*places, place))
                before = spread([inner.get(v) for v in inside.jaxpr.invars], at, len(ins))
            elif name in LOOPS or name in _MIXING:
                continue
            else:
                found.append(Cause(e, places, note(e, ins, outs, filled)))
                before = rules.sources(e, ins, outs, filled)
                if name == "reduce_sum":
                    # A summand of 0 does not explain a sum that is not 0.
                    total = np.expand_dims(as_numpy(outs[0]), e.params["axes"])
                    before = [before[0] & ((as_numpy(ins[0]) != 0) | (total == 0))]
            for v, m in zip(e.invars, before, strict=True):
                _need(needs, v, m)

    invars: Sequence[Any] = eqn.invars
    masks: Sequence[Mask] = sources
    for depth in range(len(around) - 1, -1, -1):
        closed, values, place = around[depth]
        needs: dict[Any, np.ndarray] = {}
        for v, m in zip(invars, masks, strict=True):
            _need(needs, v, m)
        walk(closed, values, needs, tuple(s.place for s in around[1 : depth + 1]))
        if place is None or place.iteration is not None:
            break
        invars = place.eqn.invars
        entered = replay.entered(place.eqn, [read(around[depth - 1].values, v) for v in invars])
        assert entered is not None
        masks = spread([needs.get(v) for v in closed.jaxpr.invars], entered[1], len(invars))
    return found


def note(eqn: Any, ins: Sequence[Any], outs: Sequence[Any], masks: Sequence[np.ndarray]) -> str:
    """Say in words where a marked element of the result has lost all of its precision, or ""."""
    name = eqn.primitive.name
    if name == "reduce_sum" and is_float(outs[0]):
        return _lost_in_sum(eqn, as_numpy(ins[0]), as_numpy(outs[0]), masks[0])
    if not masks[0].any() or not is_float(outs[0]) or not all(is_float(x) for x in ins):
        return ""
    shape = masks[0].shape
    if not all(x.shape in (shape, ()) for x in ins):
        return ""
    out = as_numpy(outs[0])[masks[0]]
    given = [np.broadcast_to(as_numpy(x), shape)[masks[0]] for x in ins]
    finite = np.all([np.isfinite(g) for g in given], axis=0)
    show = lambda x: f"{float(x):.6g}"
    if name in _LIMITS and (at := _first(finite & np.isin(out, _LIMITS[name]))) is not None:
        verb = "underflowed" if name.startswith("exp") else "was rounded"
        return f"{name}({show(given[0][at])}) {verb} to {show(out[at])}"
    if name in ("add", "sub") and len(given) == 2:
        a, b = given[0], given[1] if name == "add" else -given[1]
        for kept, lost in ((a, b), (b, a)):
            if (at := _first(finite & (out == kept) & (lost != 0))) is not None:
                sign = "+" if name == "add" else "-"
                return (
                    f"{show(given[0][at])} {sign} {show(given[1][at])} is {show(out[at])}: "
                    f"{show(abs(lost[at]))} was lost to rounding"
                )
    if name in ("mul", "div", "square", "integer_pow"):
        small = finite & (out == 0) & (given[0] != 0)
        small &= (given[1] != 0) if name == "mul" else True
        if (at := _first(small)) is not None:
            values = ", ".join(show(g[at]) for g in given)
            return f"{name}({values}) underflowed to 0"
    if name == "convert_element_type":
        narrower = jnp.finfo(outs[0].dtype).bits < jnp.finfo(ins[0].dtype).bits
        if narrower and (at := _first(finite & (out != given[0]))) is not None:
            return f"{show(given[0][at])} was rounded to {show(out[at])} in {outs[0].dtype}"
    return ""


def _lost_in_sum(eqn, terms, total, mask) -> str:
    axes = eqn.params["axes"]
    size = np.abs(terms)
    largest = size.max(axes, keepdims=True, initial=0)
    others = np.where(size < largest, size, 0).max(axes, initial=0)
    lost = mask & (np.abs(total) == largest.reshape(total.shape)) & (others > 0)
    if (at := _first(lost)) is None:
        return ""
    return (
        f"the sum is its largest term, {total.flat[at]:.6g}: "
        f"terms up to {others.flat[at]:.6g} were lost to rounding"
    )


def frame_of(eqn: Any, places: Sequence[Place], sites: Sequence[Site]) -> _jax.Frame | None:
    """Return the user's place of `eqn`, or that of the nearest equation around it that has one."""
    for e in (eqn, *(p.eqn for p in reversed(places))):
        own = number_of(e)
        candidates = [e] if own is None or sites[own].eqn.primitive.name in RULES else []
        if own is not None:
            candidates += [sites[n].eqn for n in reversed(chain(list(sites), own))]
        for candidate in candidates:
            if (place := _jax.frame(candidate)) is not None:
                return place
    return None


def _first(mask: np.ndarray) -> int | None:
    found = np.flatnonzero(mask)
    return int(found[0]) if found.size else None


def _need(needs, v, mask):
    if mask is not None and mask.any() and not isinstance(v, _jax.Literal):
        needs[v] = needs[v] | mask if v in needs else mask
