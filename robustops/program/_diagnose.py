"""`diagnose`: where the first NaN or inf of a loss or of its gradient was born."""

import inspect
import linecache
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .. import _jax
from ._diagnose_chase import Birth, Chase, innermost, is_backward
from ._diagnose_path import Cause, causes, frame_of, scopes
from ._diagnose_remedies import INPUT, remedy
from ._diagnose_shards import without_shards
from ._diagnose_sites import LOOPS, RULES, Site, called, chain, is_transposed, number, number_of
from ._replay import Replay, is_float, read
from ._replay_rules import as_numpy, bad_elements
from ._report import Origin, Report, Step, operand


class _Program(NamedTuple):
    """The user's function, and the same with its gradient, as jaxprs of the same leaves."""

    value: Any
    both: Any
    sites: list[Site]
    leaves: list[Any]
    names: list[str]
    wanted: list[int]
    """Which leaves the gradient is for."""


def diagnose(
    fn: Callable,
    *args: Any,
    argnums: int | Sequence[int] = 0,
    grad: bool = True,
    **kwargs: Any,
) -> Report:
    """Name the line where the first NaN or inf of `fn(*args)` or of its gradient was born.

    Value and gradient are computed once more, equation by equation, and every bad element that
    arrived is followed back. What does not arrive is no alarm: a masking -inf, a branch that
    `where` did not take, NaN data that were cleaned. Overflow to inf counts as much as NaN. What an
    argument brought along is reported as the input's fault.

    It goes into jit, scan, while, cond, remat, vmap and custom derivative rules. The gradient is
    that of the first output if that is a scalar, so `(loss, aux)` will do, else of the sum of all
    floating outputs. Nothing is changed, and nothing costs anything until it is called.

    Args:
      fn: a function of pytrees of arrays, flax modules among them; jitted or not. Leaves that are
        no arrays (strings, functions) are passed on as they are.
      *args: its arguments, those of the failing step.
      argnums: which arguments the gradient is for, an index or several.
      grad: whether to look at the gradient too; False for a function that has none, and for one
        that computes gradients itself, as a whole train step does.
      **kwargs: further arguments of `fn`.

    Returns:
      A `Report`; `report.ok` says that all is finite.

    Raises:
      ValueError: `argnums` is out of range, or an argument was donated and is gone.
      TypeError: `fn` is not callable, or what the gradient is for has no floating leaf.
    """
    if not callable(fn):
        raise TypeError(
            f"diagnose: fn must be callable, got {type(fn).__name__}; give the function and then "
            "its arguments, diagnose(loss, params, batch)"
        )
    program = _trace(fn, args, kwargs, argnums, grad)
    for isolate in (True, False):
        replay = Replay(isolate)
        results = replay.run(program.both, program.leaves)
        bad = [bad_elements(r) if is_float(r) else None for r in results]
        if any(b is not None and b.any() for b in bad):
            return _explain(replay, program, bad)
    return Report(ok=True)


def _trace(fn, args, kwargs, argnums, grad) -> _Program:
    numbers = [argnums] if isinstance(argnums, int) else list(argnums)
    if grad and not all(-len(args) <= n < len(args) for n in numbers):
        raise ValueError(
            f"diagnose: argnums={argnums} for {len(args)} positional arguments; "
            "name one of those, or pass grad=False"
        )
    traced = _jax.trace(fn, *args, **kwargs)
    for leaf, path in zip(traced.leaves, traced.paths, strict=True):
        if isinstance(leaf, Tracer):
            raise TypeError(
                f"diagnose: {_name(fn, path)} is traced, and has no values to replay; call it "
                "outside jit and grad, with the arguments of the function that failed"
            )
        if isinstance(leaf, jax.Array) and leaf.is_deleted():
            raise ValueError(
                f"diagnose: {_name(fn, path)} was donated and is gone; keep a copy of the "
                "arguments of the step, or jit it without donate_argnums"
            )
    value, sites = number(without_shards(_jax.scalar_conditions(traced.jaxpr)))
    names = [_name(fn, path) for path in traced.paths]
    leaves = [
        jnp.asarray(x) if isinstance(x, bool | int | float | complex) else x for x in traced.leaves
    ]
    if not grad:
        return _Program(value, value, sites, leaves, names, [])
    prefixes = tuple(f"[0][{n % len(args)}]" for n in numbers)
    wanted = [
        i
        for i, (leaf, path) in enumerate(zip(leaves, traced.paths, strict=True))
        if path.startswith(prefixes) and is_float(leaf)
    ]
    if not wanted:
        raise TypeError(
            f"diagnose: no floating array in the arguments {argnums} to take the gradient for; "
            "pass other argnums, or grad=False"
        )
    return _Program(value, _with_gradient(value, wanted), sites, leaves, names, wanted)


def _with_gradient(value: Any, wanted: list[int]) -> Any:
    """The jaxpr of all outputs of `value` and the gradients for its inputs `wanted`."""
    floats = [i for i, v in enumerate(value.jaxpr.outvars) if is_float(v.aval)]
    if 0 in floats and value.jaxpr.outvars[0].aval.shape == ():
        floats = [0]

    def both(*leaves):
        def chosen(*inputs):
            new = list(leaves)
            for i, x in zip(wanted, inputs, strict=True):
                new[i] = x
            outs = _jax.evaluate(value, new)
            return [outs[i] for i in floats], outs

        seeds, pull, outs = jax.vjp(chosen, *(leaves[i] for i in wanted), has_aux=True)
        return [*outs, *pull([jnp.ones_like(s) for s in seeds])]

    try:
        # The rules of the user's functions call jitted ones that others may have traced before.
        return _jax.without_foreign_lines(_jax.retrace(both, value))
    except Exception as error:
        error.add_note("robustops: to look at the value alone, pass grad=False")
        raise


def _explain(replay: Replay, program: _Program, bad: list[np.ndarray | None]) -> Report:
    n = len(program.value.jaxpr.outvars)
    bad = [b if b is not None and b.any() else None for b in bad]
    consequences = ["output"] if any(b is not None for b in bad[:n]) else []
    consequences += [
        f"gradient of {program.names[i]}"
        for i, b in zip(program.wanted, bad[n:], strict=False)
        if b is not None
    ]
    # An output that is bad has its own cause; a gradient is looked into if the outputs are good.
    chased = program.value if "output" in consequences else program.both
    targets = bad[:n] if "output" in consequences else [*[None] * n, *bad[n:]]
    chase = Chase(replay, program.sites)
    reached = chase.run(chased, program.leaves, targets)
    origin, path = _from_input(program, chase, reached), ()
    if origin is None and chase.first is not None:
        origin, path = _from_birth(replay, program, chase, chase.first)
    if origin is None:
        origin = _from_input(program, chase, reached, masks_too=True)
    return Report(False, origin, tuple(path), tuple(consequences))


def _from_input(program, chase, reached, masks_too=False) -> Origin | None:
    """The argument at fault, if a NaN or inf of one arrived; -inf among zeros is a mask."""
    candidates = [
        (name, leaf, mask)
        for name, leaf, mask in zip(program.names, program.leaves, reached, strict=True)
        if mask is not None and (masks_too or not _is_mask(leaf))
    ]
    candidates += [("a closed-over array", array, mask) for array, mask in chase.constants]
    if not candidates:
        return None
    name, leaf, mask = candidates[0]
    return Origin(
        phase="input",
        primitive=None,
        file=None,
        line=None,
        function=None,
        source="",
        operands=(operand(leaf),),
        index=_index(mask),
        iteration=None,
        remedy=INPUT,
        argument=name,
    )


def _is_mask(leaf) -> bool:
    array = as_numpy(leaf)
    return bool(np.isin(array, (0, -np.inf)).all())


def _from_birth(replay, program, chase, birth: Birth) -> tuple[Origin, list[Step]]:
    sites = program.sites
    own = innermost(birth.eqn, birth.places)
    iterations = [p.iteration for p in birth.places if p.iteration is not None]
    # Inside a custom rule the equations are the user's; elsewhere they are those of jax's rules.
    in_rule = own is None or (
        sites[own].eqn.primitive.name in RULES
        and sites[own].eqn.primitive is not birth.eqn.primitive
    )
    backward = is_backward(sites, birth.eqn, birth.places)
    # A program that takes gradients itself: from the derivative to what it is the derivative of.
    user = own if own is None or in_rule else called(sites, own)
    numbers = [] if user is None else chain(sites, user)
    around = scopes(replay, program.value, program.leaves, sites, numbers, iterations)
    eqn, ins = birth.eqn, birth.ins
    closed, values, _ = around[-1]
    if not in_rule:
        eqn = next(e for e in closed.jaxpr.eqns if number_of(e) == user)
        ins = [read(values, v) for v in eqn.invars]
        # The rule of pow calls pow, and what is computed again for the gradient is forward still.
        backward = (
            eqn.primitive is not birth.eqn.primitive
            or is_transposed(birth.eqn, birth.places)
            or is_transposed(sites[own].eqn, [])
            or not _same(ins, birth.ins)
            or not any(bad_elements(values[v]).any() for v in eqn.outvars if is_float(v.aval))
        )
    frame = frame_of(birth.eqn, birth.places, sites)
    mask = next(m for m in birth.masks if m.any())
    loops = [n for n in numbers[:-1] if sites[n].eqn.primitive.name in LOOPS]
    place = [s.place.iteration for s in around[1:] if s.place and s.place.iteration is not None]
    place = place if len(place) == len(loops) else iterations
    origin = Origin(
        phase="backward" if backward else "forward",
        primitive=eqn.primitive.name,
        file=frame and frame.file,
        line=frame and frame.line,
        function=frame and frame.function,
        source=_source(frame),
        operands=tuple(operand(x) for x in ins),
        index=_index(mask),
        iteration=None if not place else place[0] if len(place) == 1 else tuple(place),
        remedy=remedy(eqn.primitive.name),
    )
    before: list[Cause] = []
    if not in_rule:
        outs = [values[v] for v in eqn.outvars]
        marks = [mask if mask.shape == o.shape else np.ones(o.shape, bool) for o in outs]
        sources = chase.rules.sources(eqn, ins, outs, marks)
        before = causes(replay, chase.rules, around, eqn, sources)
    return origin, _path(chase, birth, before, origin, sites)


def _same(a, b) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(as_numpy(x), as_numpy(y), equal_nan=is_float(x))
        for x, y in zip(a, b, strict=True)
    )


def _path(chase, birth, before: list[Cause], origin: Origin, sites) -> list[Step]:
    # Where precision went, and of the other steps the nearest three lines.
    steps = [_step("before", c.eqn, c.places, sites, c.note) for c in before]
    here = (origin.file, origin.line)
    plain = list(dict.fromkeys((s.file, s.line) for s in steps if (s.file, s.line) != here))[:3]
    chosen, seen = [], set()
    for step in steps:
        place = (step.file, step.line)
        if step.note or (place in plain and place not in seen):
            seen.add(place)
            chosen.append(step)
    after = []
    for eqn, places in reversed(chase.visited.values()):
        step = _step("after", eqn, places, sites)
        place = (step.file, step.line)
        after += [] if step.file is None or place == here or eqn is birth.eqn else [step]
    seen = {}
    for step in after:
        seen.setdefault((step.file, step.line), step)
    own = Step("origin", origin.primitive or "", origin.file, origin.line, origin.source)
    return [*reversed(chosen), own, *list(seen.values())[:8]]


def _step(role, eqn, places, sites, note="") -> Step:
    frame = frame_of(eqn, places, sites)
    own = number_of(eqn)
    name = eqn.primitive.name if own is None else sites[own].eqn.primitive.name
    return Step(role, name, frame and frame.file, frame and frame.line, _source(frame), note)


def _source(frame) -> str:
    return linecache.getline(frame.file, frame.line).strip() if frame else ""


def _index(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(mask)[0])


def _name(fn: Callable, path: str) -> str:
    """Spell a leaf's path in (args, kwargs) as the user would: params['w']."""
    where, _, rest = path.partition("]")
    first, _, rest = rest.partition("]")
    key = first.removeprefix("[")
    if where == "[1":
        return key.strip("'\"") + rest
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # Some callables written in C have no signature.
        parameters = []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    positional = [p.name for p in parameters if p.kind in kinds]
    return (positional[int(key)] if int(key) < len(positional) else f"args[{key}]") + rest
