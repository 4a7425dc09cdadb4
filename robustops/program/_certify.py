"""`certify`: proof that no NaN or inf can arise, for all inputs in given ranges at once."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ._certificate import Bound, Certificate, Unproved
from ._diagnose import _name, _source, _with_gradient
from ._diagnose_chase import innermost, is_backward
from ._diagnose_path import frame_of
from ._diagnose_remedies import remedy
from ._diagnose_sites import RULES, called, number
from ._intervals import Value, between, constant, format_of
from ._intervals_walk import Analysis, Birth
from ._replay import is_float


@dataclasses.dataclass(frozen=True, init=False)
class Range:
    """All arrays of one shape and dtype whose elements lie between `low` and `high`.

    Args:
      low: lowest number, or an array of lowest numbers.
      high: highest number, or an array of highest numbers.
      shape: the shape; by default that of `low` and `high` together.
      dtype: the dtype; by default theirs, float32 for Python's numbers (float64 under x64).

    Raises:
      ValueError: `low` is above `high`, either is not finite, they do not fit the dtype, or they do
        not broadcast to the shape.
      TypeError: `low` or `high` is neither a number nor an array.
    """

    low: Any
    high: Any
    shape: tuple[int, ...]
    dtype: Any

    def __init__(self, low: Any, high: Any, shape: Any = None, dtype: Any = None):
        for name, end in (("low", low), ("high", high)):
            if not isinstance(end, bool | int | float) and not hasattr(end, "dtype"):
                raise TypeError(f"Range: {name} must be a number or an array, got {end!r}")
        kind = jnp.result_type(low, high, *([] if _is_array_like(low, high) else [float]))
        dtype = jnp.dtype(jax.dtypes.canonicalize_dtype(kind if dtype is None else dtype))
        ends = [np.asarray(a).astype(np.float64) for a in (low, high)]
        natural = np.broadcast_shapes(*(e.shape for e in ends))
        shape = natural if shape is None else (shape,) if isinstance(shape, int) else tuple(shape)
        try:
            np.broadcast_to(np.empty(natural), shape)
        except ValueError:
            raise ValueError(
                f"Range: low and high of shape {natural} do not broadcast to shape {shape}; "
                "pass numbers, or arrays of that shape"
            ) from None
        f = format_of(dtype)
        if f.kind not in ("float", "int", "bool"):
            raise ValueError(f"Range: dtype must be real, got {dtype}; pass such an array itself")
        if not all(np.isfinite(e).all() for e in ends):
            raise ValueError(
                f"Range: the ends must be finite, got {low} and {high}; for the whole dtype use "
                "jnp.finfo(dtype).min and max"
            )
        if (ends[0] > ends[1]).any():
            raise ValueError(f"Range: low {low} is above high {high}; swap them")
        if (ends[0] < f.least).any() or (ends[1] > f.most).any():
            raise ValueError(f"Range: {low} to {high} does not fit {dtype}; name a wider dtype=")
        for name, given in (("low", low), ("high", high), ("shape", shape), ("dtype", dtype)):
            object.__setattr__(self, name, given)

    def _value(self) -> Value:
        low, high = (np.asarray(a).astype(np.float64) for a in (self.low, self.high))
        if format_of(self.dtype).kind == "float":
            # An end that the dtype rounds is in the range, rounded or not.
            low = np.minimum(low, low.astype(self.dtype).astype(np.float64))
            high = np.maximum(high, high.astype(self.dtype).astype(np.float64))
        return between(low, high, self.shape, self.dtype)


def _is_array_like(*ends: Any) -> bool:
    return any(hasattr(e, "dtype") for e in ends)


def certify(
    fn: Callable,
    ranges: Sequence[Any],
    *,
    argnums: int | Sequence[int] = 0,
    grad: bool = True,
) -> Certificate:
    """Prove that `fn` and its gradient are finite for all inputs in the ranges, or say what is not.

    The program is run once on intervals instead of numbers, equation by equation: each variable
    gets bounds that hold for every input, rounding, overflow and flushed subnormals included. Where
    the bounds exclude NaN and inf from the output and the gradient, that is a proof. Where they do
    not, the operations that may make one are listed; bounds can be wider than the truth, so such
    an operation may be innocent. What certify has no rule for is listed, never passed.

    As for `diagnose`, only what arrives counts, not a masking -inf that does not. The gradient is
    that of the first output if that is a scalar, else of the sum of all floating outputs.

    What is assumed: an operation is right to 4 ulp (matrix products and convolutions to 2^-7 of the
    sum of magnitudes, sums of n terms to n ulp, `pow` to 256), also when XLA fuses it or computes
    it twice; XLA does not exchange operations for others that overflow where these do not; a
    comparison and what it selects see the same number; and robustops' own ops keep their contract.

    Args:
      fn: a function of pytrees of arrays, jitted or not; nothing is computed.
      ranges: one entry for each argument of `fn`, a pytree like the argument, with a `Range` for
        each array that may vary. Arrays and numbers stand for themselves; other leaves are
        passed on.
      argnums: which arguments the gradient is for, an index or several.
      grad: whether to prove the gradient, too.

    Returns:
      A `Certificate`; `certificate.ok` says that all is proved.

    Raises:
      ValueError: `argnums` is out of range.
      TypeError: `ranges` is a single Range or not a sequence, or there is no floating leaf in the
        arguments that the gradient is for.
    """
    if isinstance(ranges, Range) or not isinstance(ranges, list | tuple):
        raise TypeError(
            f"certify: ranges must be a tuple or list with one entry for each argument of fn, got "
            f"{type(ranges).__name__}; for a function of one argument write (range,)"
        )
    numbers = [argnums] if isinstance(argnums, int) else list(argnums)
    if grad and not all(-len(ranges) <= n < len(ranges) for n in numbers):
        raise ValueError(
            f"certify: argnums={argnums} for {len(ranges)} arguments; name one of those, "
            "or pass grad=False"
        )
    given = [leaf for leaf in jax.tree.leaves(tuple(ranges)) if _is_traced(leaf)]
    args = jax.tree.map(_struct, tuple(ranges))
    try:
        traced = _jax.trace(fn, *args, is_traced=_is_traced)
    except TypeError as error:
        for i, entry in enumerate(ranges):
            if isinstance(entry, tuple | list) and all(isinstance(x, int | float) for x in entry):
                error.add_note(
                    f"certify: ranges[{i}] is a {type(entry).__name__} of numbers, which fn was "
                    "given as it is; an interval is Range(low, high, shape)"
                )
        raise
    program, sites = number(_jax.scalar_conditions(traced.jaxpr))
    names = [_name(fn, path) for path in traced.paths]
    wanted, both = [], program
    if grad:
        prefixes = tuple(f"[0][{n % len(args)}]" for n in numbers)
        avals = [v.aval for v in program.jaxpr.invars]
        wanted = [
            i
            for i, path in enumerate(traced.paths)
            if path.startswith(prefixes) and is_float(avals[i])
        ]
        if not wanted:
            raise TypeError(
                f"certify: no floating array in the arguments {argnums} to take the gradient for; "
                "pass other argnums, or grad=False"
            )
        both = _with_gradient(program, wanted)
    both = _jax.prune(both)
    analysis = Analysis(sites)
    avals = [v.aval for v in both.jaxpr.invars]
    inputs = [
        leaf._value() if isinstance(leaf, Range) else constant(leaf, aval.dtype)
        for leaf, aval in zip(given, avals, strict=True)
    ]
    results = analysis.run(both, inputs)
    titles = _titles(traced.out_tree) + [f"gradient of {names[i]}" for i in wanted]
    found = list(zip(titles, results, strict=True))
    floats = [(t, v) for t, v in found if format_of(v.dtype).kind in ("float", "other")]
    bad = [v for _, v in floats if not v.finite]
    births = sorted(frozenset().union(*(v.births for v in bad)))
    in_value = frozenset().union(*(v.births for v in results[: len(program.jaxpr.outvars)]))
    unproved: dict[Any, Unproved] = {}
    entries = [_unproved(analysis, analysis.births[b], b in in_value) for b in births]
    # The derivative of what fails in the value is no second finding.
    for entry in sorted(entries, key=lambda e: e.phase == "backward"):
        unproved.setdefault((entry.primitive, entry.file, entry.line), entry)
    bounds = tuple(_bound(title, v) for title, v in floats)
    return Certificate(not bad, tuple(unproved.values()), bounds)


def _is_traced(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | complex) or hasattr(leaf, "dtype")


def _struct(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if isinstance(leaf, Range) else leaf


def _titles(tree: Any) -> list[str]:
    """Name each output as it stands in the result."""
    numbered = jax.tree.unflatten(tree, range(tree.num_leaves))
    paths = jax.tree_util.tree_flatten_with_path(numbered)[0]
    return [f"output{jax.tree_util.keystr(path)}" for path, _ in paths]


def _bound(name: str, v: Value) -> Bound:
    return Bound(name, v.shape, str(v.dtype), v.low, v.high, v.may_be_nan)


def _unproved(analysis: Analysis, birth: Birth, in_value: bool) -> Unproved:
    """Say where the operation stands, in terms of the user's own."""
    sites = analysis.sites
    own = innermost(birth.eqn, birth.places)
    eqn, operands = birth.eqn, birth.operands
    # The rule of a function computes its value, too.
    backward = not in_value and is_backward(list(sites), birth.eqn, birth.places)
    if own is not None and sites[own].eqn.primitive.name not in RULES:
        user = called(list(sites), own)
        same = sites[user].eqn.primitive is eqn.primitive
        if user in analysis.operands and not same:
            eqn, operands = sites[user].eqn, analysis.operands[user]
    frame = frame_of(birth.eqn, birth.places, list(sites))
    return Unproved(
        phase="backward" if backward else "forward",
        primitive=eqn.primitive.name,
        file=frame and frame.file,
        line=frame and frame.line,
        function=frame and frame.function,
        source=_source(frame),
        operands=tuple(_bound(f"operand {k}", v) for k, v in enumerate(operands)),
        reason=_reason(birth, eqn.primitive.name),
        remedy=remedy(eqn.primitive.name),
    )


def _reason(birth: Birth, name: str) -> str:
    own = birth.eqn.primitive.name
    within = "" if own == name else f"in its derivative, {own}: "
    if birth.kind == "unknown":
        return f"{within}certify knows no bounds for this operation"
    if birth.kind == "constant":
        return f"{within}an infinity or NaN that the program has as a constant may show"
    first, last, out = birth.operands[0], birth.operands[-1], birth.result
    assert out is not None
    if own == "div" and last.low <= 0 <= last.high:
        return f"{within}the divisor may be 0, or so small that it is flushed to 0"
    if own in ("log", "rsqrt", "sqrt", "log1p") and first.low < (-1 if own == "log1p" else 0):
        return f"{within}the operand may leave the domain"
    if own in ("log", "rsqrt", "log1p"):
        return f"{within}the operand may reach the edge of the domain, where it is infinite"
    if out.may_be_nan:
        return f"{within}the result may be NaN"
    most = format_of(out.dtype).most
    return f"{within}the result may exceed {most:.4g}, the largest {out.dtype}"
