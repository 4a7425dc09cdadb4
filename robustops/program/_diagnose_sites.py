"""Numbering the equations of a program, so that what jax derives from one can be traced back."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .. import _jax

LOOPS = frozenset({"scan", "while"})
RULES = frozenset({"custom_jvp_call", "custom_vjp_call"})
REMAT = frozenset({"remat", "remat2", "checkpoint"})
_NUMBER = re.compile(r"robustops:(\d+)")


class Site(NamedTuple):
    """An equation that the user's program has, and the number of the one that it stands in."""

    eqn: Any
    parent: int | None


class Place(NamedTuple):
    """An equation entered, and which iteration of it: None if it is no loop."""

    eqn: Any
    iteration: int | None
    position: tuple[int, int]
    """Where it stands among its neighbours, and how many iterations came before."""


def number(closed: Any) -> tuple[Any, list[Site]]:
    """Return `closed` with a number as the name stack of each equation, and the equations.

    Numbers count up in program order, an equation before those inside of it.
    """
    sites: list[Site] = []

    def mark(closed, parent):
        eqns = []
        for eqn in closed.jaxpr.eqns:
            own = len(sites)
            sites.append(Site(eqn, parent))
            inner: dict[str, Sequence[Any]] = {}
            for name, subs in _jax.subjaxprs(eqn).items():
                inner[name] = [mark(sub, own) for sub in subs]
            new = _jax.with_subjaxprs(eqn, inner) if inner else eqn
            if eqn.primitive.name in RULES:
                new = _jax.with_rules_own_lines(new)
            eqns.append(_jax.renamed(new, f"robustops:{own}"))
        return _jax.with_eqns(closed, eqns)

    return mark(_jax.without_foreign_lines(closed), None), sites


def number_of(eqn: Any) -> int | None:
    """Return the number of the equation that `eqn` is, or was derived from."""
    found = _NUMBER.findall(_jax.name_stack(eqn))
    return int(found[-1]) if found else None


def chain(sites: list[Site], number: int) -> list[int]:
    """Return the numbers of the equations around that one, outermost first, and its own."""
    numbers = [number]
    while (parent := sites[numbers[0]].parent) is not None:
        numbers.insert(0, parent)
    return numbers


def called(sites: list[Site], number: int) -> int:
    """Return the number of the equation that the user called, for one that computes a derivative.

    A program that takes gradients itself has equations of derivative rules among its own. They
    share the stack of the call that they were made for, and that call's own equation came first.
    """
    if not any(_in_derivative(sites[n].eqn) for n in chain(sites, number)):
        return number
    call = _jax.call_site(sites[number].eqn)
    if not call:
        return number
    return next(n for n, site in enumerate(sites) if _jax.call_site(site.eqn) == call)


def is_transposed(eqn: Any, places: Iterable[Place]) -> bool:
    """Tell whether `eqn` belongs to a backward pass, and not to what that computes once more."""
    around = [p.eqn for p in places]
    for k, outer in enumerate(around):
        if outer.primitive.name in REMAT:
            if not outer.params.get("differentiated"):
                return _transposed(eqn)
            return not any(_recomputed(e) for e in (*around[k + 1 :], eqn))
    return any(_transposed(e) for e in (eqn, *around))


def _recomputed(eqn: Any) -> bool:
    # In the backward pass of a remat the name stack tells what of it is forward.
    return "rematted_computation" in _jax.name_stack(eqn)


def _transposed(eqn: Any) -> bool:
    # Of a numbered program these are later transformations: its own name stacks are gone.
    return "transpose" in _jax.transformations(eqn)


def _in_derivative(eqn: Any) -> bool:
    return not _jax.transformations(eqn).isdisjoint({"jvp", "transpose"})
