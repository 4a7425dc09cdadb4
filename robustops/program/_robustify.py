"""`robustify(fn)`: the function, not edited, with total derivatives, and total values if asked."""

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from .. import _jax
from ._derivatives import derivatives, is_arithmetic, readable_name
from ._values import rewrite


def robustify(fn: Callable, *, values: bool = False) -> Callable:
    """Return `fn` with derivatives that are finite and in which zero absorbs.

    A transformation like `jax.grad`: `fn` is traced, not edited, and the result composes with jit,
    grad (inside and outside), vmap, scan, while, cond, remat, custom rules and shard_map. Applying
    it twice is applying it once.

    By default the values are bit-identical to those of `fn`, and a derivative changes only where
    it was wrong:

    - A zero tangent or cotangent gives exactly 0, whatever it meets: `where` and masks work.
    - Where a primitive's local derivative over- or underflows on the way (`x / y` and `arctan2` at
      1e-25), it takes its finite value; where it is not finite (`sqrt` at 0), it counts as 0.

    With `values=True` the values are total as well: `log(softmax(x))`, `log(1 + exp(x))`,
    `sqrt(sum(x**2))` and the like are computed from representations that do not overflow, and what
    is left takes the ops of the catalogue. Ordinary results then change by rounding only.

    Args:
      fn: A pure function of pytrees. Only jax arrays among the arguments' leaves are traced;
        numbers, numpy arrays and strings reach `fn` as they are.
      values: Whether to repair values, too.

    Returns:
      A function with the signature of `fn`.

    Raises:
      TypeError: `fn` is not callable.
      ValueError: When called, if `fn` changes its arguments in place, as a flax BatchNorm does.
    """
    if not callable(fn):
        raise TypeError(f"robustify: fn must be callable, got {type(fn).__name__}.")

    @functools.wraps(fn)
    def robust(*args, **kwargs):
        traced = _trace(fn, args, kwargs)
        new = _transform(traced.jaxpr, values)
        return traced.unflatten(_jax.evaluate(new, traced.leaves))

    return robust


class Change(NamedTuple):
    """What `robustify` changed at one line of the user's code.

    Attributes:
      file: The file; empty where no line of the user's is known.
      line: The line, counted from 1.
      function: The function that the line stands in.
      before: The primitives there that were replaced.
      after: What replaced them.
    """

    file: str
    line: int
    function: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        place = f"{self.file}:{self.line} in {self.function}" if self.file else "(library code)"
        return f"{place}\n  before: {', '.join(self.before)}\n  after:  {', '.join(self.after)}"


class Changes(tuple[Change, ...]):
    """The changes that `robustify.report` found; `print` shows them line by line."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "robustify: nothing to change."


def report(fn: Callable, *args: Any, values: bool = False, **kwargs: Any) -> Changes:
    """List what `robustify(fn, values=values)` changes for these arguments.

    Args:
      fn: The function, as given to `robustify`.
      *args: Its arguments.
      values: As for `robustify`.
      **kwargs: Its keyword arguments.

    Returns:
      One `Change` for each line of the user's code, in the order of the program.
    """
    given = _jax.without_foreign_lines(_trace(fn, args, kwargs).jaxpr)
    new = _jax.without_foreign_lines(_transform(given, values))
    before, after = _primitives_by_place(given), _primitives_by_place(new)
    changes = []
    for place in dict.fromkeys([*before, *after]):
        old, now = before.get(place, Counter()), after.get(place, Counter())
        if old != now:
            removed, added = _listed(old - now), _listed(now - old)
            place = place or _jax.Frame("", 0, "")
            changes.append(Change(place.file, place.line, place.function, removed, added))
    return Changes(changes)


robustify.report = report  # pyright: ignore[reportFunctionMemberAccess]


def _trace(fn, args, kwargs):
    is_traced = lambda leaf: isinstance(leaf, jax.Array)
    traced = _jax.trace(fn, *args, is_traced=is_traced, whole_calls=True, **kwargs)
    if traced.mutated:
        raise ValueError(
            "robustify: fn changes its arguments in place, which a transformed function cannot: "
            f"{', '.join(traced.mutated)}. Return the new state instead (flax: nnx.split the "
            "module outside, nnx.merge(graphdef, state, copy=True) inside, return its nnx.state)."
        )
    return traced


def _transform(closed, values):
    return derivatives(rewrite(_jax.scalar_conditions(closed)) if values else closed)


def _primitives_by_place(closed, enclosing=None):
    found: dict[Any, Counter] = {}
    for eqn in closed.jaxpr.eqns:
        place = _jax.frame(eqn) or enclosing
        own = _jax.inlined(eqn)
        subs = [s for jaxprs in _jax.subjaxprs(eqn).values() for s in jaxprs] if not own else [own]
        for sub in subs:
            for inner, names in _primitives_by_place(sub, place).items():
                found.setdefault(inner, Counter()).update(names)
        if not subs:
            found.setdefault(place, Counter())[eqn.primitive.name] += 1
    return found


def _listed(names):
    """Name the arithmetic; the selections and shapes around it would hide it."""
    return tuple(
        readable_name(name) + (f" (x{count})" if count > 1 else "")
        for name, count in names.items()
        if is_arithmetic(name)
    )
