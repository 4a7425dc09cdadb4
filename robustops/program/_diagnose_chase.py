"""Following bad values back, element by element, from where they arrived to where they were born.

A value counts only if it arrived: what a `where` did not pick, or a `max` passed over, is never
looked at. Going back, an equation with a bad result is a birth if no bad operand explains it. If
all that explains a NaN is an infinity, that is a birth too: were the infinity itself a fault, then
its own birth came before; were it meant (a mask, the start of a running maximum), this one is the
first. So the first birth in the order of execution is the origin, and nothing else decides.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _jax
from ._diagnose_sites import Place, Site, is_transposed, number_of
from ._replay import Replay, read, spread
from ._replay_rules import Mask, Rules, as_numpy, bad_elements, some

_MOVES = frozenset("broadcast_in_dim convert_element_type reshape squeeze transpose copy".split())


class Birth(NamedTuple):
    """A bad value and the equation that made it."""

    eqn: Any
    places: tuple[Place, ...]
    """The equations that it stands in, outermost first."""
    ins: list[Any]
    outs: list[Any]
    masks: list[np.ndarray]
    """The bad elements of each result that arrived."""
    key: tuple
    """Sorts by execution: forward, then backward, which runs from the last equation to the first;
    constants that someone wrote come after all of these."""


class Chase:
    """One search; `births` has the first birth, `visited` the equations on the way.

    Args:
      replay: runs what is inside of loops and calls.
      sites: the numbered equations of the user's program.
    """

    def __init__(self, replay: Replay, sites: Sequence[Site]):
        self.replay = replay
        self.sites = sites
        self.first: Birth | None = None
        self.constants: list[tuple[Any, np.ndarray]] = []
        """Closed-over arrays with a NaN that arrived."""
        self.visited: dict[int, tuple[Any, tuple[Place, ...]]] = {}
        self.rules = Rules()

    def run(
        self,
        closed: Any,
        args: Sequence[Any],
        masks: Sequence[Mask],
        places: tuple[Place, ...] = (),
        constant: Sequence[bool] | None = None,
    ) -> list[Mask]:
        """Return which bad elements of `args` explain the marked ones of the outputs.

        `constant` tells which `args` are constants that someone wrote; they are dealt with here.
        """
        jaxpr, values = closed.jaxpr, self.replay.record(closed, args)
        needs: dict[Any, np.ndarray] = {}
        for v, mask in zip(jaxpr.outvars, masks, strict=True):
            _need(needs, v, mask)
        written = _written(jaxpr, constant or [False] * len(args))
        for i, eqn in reversed(list(enumerate(jaxpr.eqns))):
            marked = [needs.pop(v, None) for v in eqn.outvars]
            if all(m is None for m in marked):
                continue
            # The inside of a call may round otherwise than the call as a whole did.
            marked = [
                None if m is None else some(m & bad_elements(values[v]))
                for m, v in zip(marked, eqn.outvars, strict=True)
            ]
            if all(m is None for m in marked):
                continue
            self.visited.setdefault(id(eqn), (eqn, places))
            ins, outs = [read(values, v) for v in eqn.invars], [values[v] for v in eqn.outvars]
            filled = [
                np.zeros(o.shape, bool) if m is None else m
                for m, o in zip(marked, outs, strict=True)
            ]
            constants = [isinstance(v, _jax.Literal) or v in written for v in eqn.invars]
            found = self._inside(eqn, ins, marked, places, i, constants)
            if found is None:
                found = self._primitive(eqn, ins, outs, filled, places, i)
            for v, x, mask, is_constant in zip(eqn.invars, ins, found, constants, strict=True):
                if mask is None:
                    continue
                if is_constant:
                    meant = not np.isnan(as_numpy(x)[mask]).any()
                    self._birth(eqn, places, i, ins, outs, filled, meant)
                    for v, same in _in_other_words(eqn, ins, x, mask, constants):
                        _need(needs, v, same)
                else:
                    _need(needs, v, mask)
        for v in jaxpr.constvars:
            if (mask := needs.get(v)) is not None and np.isnan(as_numpy(values[v])[mask]).any():
                self.constants.append((values[v], mask))
        return [needs.get(v) for v in jaxpr.invars]

    def _primitive(self, eqn, ins, outs, masks, places, i) -> list[Mask]:
        found, born = self.rules.explain(eqn, ins, outs, masks)
        if not any(m.any() for m in born):
            # Infinities alone do not explain a NaN.
            nans = [m & np.isnan(as_numpy(o)) for m, o in zip(masks, outs, strict=True)]
            given = [
                np.isnan(as_numpy(x)) & m for x, m in zip(ins, found, strict=True) if m is not None
            ]
            if not any(m.any() for m in given):
                born = nans
        if any(m.any() for m in born):
            self._birth(eqn, places, i, ins, outs, born, meant=False)
        return found

    def _inside(self, eqn, ins, masks, places, i, constants) -> list[Mask] | None:
        """Go into a loop, branch or call; None for an equation without an inside."""
        name = eqn.primitive.name
        if name == "scan":
            return self._loop(
                eqn, self.replay.scan(eqn, ins), _jax.scan_split(eqn), masks, places, i
            )
        if name == "while":
            p = eqn.params
            loop = self.replay.loop(eqn, ins)
            split = p["body_nconsts"], len(eqn.outvars)
            tested: list[Mask] = [None] * p["cond_nconsts"]
            return tested + self._loop(eqn, loop, split, masks, places, i)
        if (entered := self.replay.entered(eqn, ins)) is not None:
            inside, at = entered
            place = Place(eqn, None, (i, 0))
            some_ins, some_constant = [ins[k] for k in at], [constants[k] for k in at]
            reached = self.run(inside, some_ins, masks, (*places, place), some_constant)
            return spread(reached, at, len(ins))
        return None

    def _loop(self, eqn, loop, split, masks, places, i) -> list[Mask]:
        n_consts, n_carry = split
        carry, stacked = list(masks[:n_carry]), masks[n_carry:]
        consts: list[Mask] = [None] * n_consts
        n_slices = len(eqn.invars) - n_consts - n_carry if eqn.primitive.name == "scan" else 0
        slices: list[dict[int, np.ndarray]] = [{} for _ in range(n_slices)]
        for done, step in reversed(list(enumerate(loop.steps))):
            wanted = carry + [None if m is None else some(m[step]) for m in stacked]
            if all(m is None for m in wanted):
                continue
            carried, xs = loop.carry(step), loop.slices(step)
            place = Place(eqn, step, (i, done))
            found = self.run(loop.body, [*loop.consts, *carried, *xs], wanted, (*places, place))
            consts = [_either(a, b) for a, b in zip(consts, found[:n_consts], strict=True)]
            carry = found[n_consts : n_consts + n_carry]
            for k, mask in enumerate(found[n_consts + n_carry :]):
                if mask is not None:
                    slices[k][step] = mask
        return [*consts, *carry, *(_stacked(s, len(loop.steps)) for s in slices)]

    def _birth(self, eqn, places, i, ins, outs, masks, meant) -> None:
        key = (*self._order(eqn, places, meant), (*(p.position for p in places), (i, 0)))
        if self.first is None or key < self.first.key:
            self.first = Birth(eqn, places, list(ins), list(outs), list(masks), key)

    def _order(self, eqn, places, meant):
        backward, position = is_backward(self.sites, eqn, places), []
        for place in (*places, Place(eqn, None, (0, 0))):
            own, iteration = number_of(place.eqn), place.iteration
            position += [] if own is None else [-own if backward else own]
            if iteration is not None:
                # Of a reversed scan the last index is done first.
                position.append(-iteration if backward else place.position[1])
        return backward + 2 * meant, tuple(position)


def is_backward(sites: Sequence[Site], eqn: Any, places: Sequence[Place]) -> bool:
    """Tell whether `eqn` computes a derivative, and is not one that the user's program has."""
    own = innermost(eqn, places)
    same = own is not None and sites[own].eqn.primitive is eqn.primitive
    return not same or is_transposed(eqn, places)


def innermost(eqn: Any, places: Sequence[Place]) -> int | None:
    """Return the number of `eqn`, or of the nearest equation around it that has one."""
    for e in (eqn, *(p.eqn for p in reversed(places))):
        if (found := number_of(e)) is not None:
            return found
    return None


def _written(jaxpr: Any, constant: Sequence[bool]) -> set[Any]:
    """Variables that are only a constant someone wrote, moved about."""
    found = {v for v, c in zip(jaxpr.invars, constant, strict=True) if c}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _MOVES and all(
            isinstance(v, _jax.Literal) or v in found for v in eqn.invars
        ):
            found.update(eqn.outvars)
    return found


def _in_other_words(eqn, ins, constant, mask, constants):
    """Yield the operands of a selection that were, where it took `constant`, the same value.

    As in `where(x == 0, -inf, log(x))`: it is the logarithm that is infinite.
    """
    if eqn.primitive.name != "select_n":
        return
    for v, x, is_constant in list(zip(eqn.invars, ins, constants, strict=True))[1:]:
        if not is_constant:
            a, b = as_numpy(x), as_numpy(constant)
            if (same := some(mask & ((a == b) | (np.isnan(a) & np.isnan(b))))) is not None:
                yield v, same


def _stacked(rows: dict[int, np.ndarray], length: int) -> Mask:
    if not rows:
        return None
    whole = np.zeros((length, *next(iter(rows.values())).shape), bool)
    for i, row in rows.items():
        whole[i] = row
    return whole


def _need(needs, v, mask):
    if mask is not None and not isinstance(v, _jax.Literal):
        needs[v] = _either(needs.get(v), mask)


def _either(a: Mask, b: Mask) -> Mask:
    return b if a is None else a if b is None else a | b
