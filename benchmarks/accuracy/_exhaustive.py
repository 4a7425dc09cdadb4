"""All 2^32 float32 inputs of an op of one argument: finite, and how far from the truth.

The op and its derivative run as a user has them, compiled by themselves; another program compares
what they gave with a textbook function in float64, whose own error is measured against mpmath.
"""

import datetime
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustops._accuracy import errors, true_values, truth_at
from robustops.testing import OPS, Op

from .._command import choose
from ._float64 import FLOAT64

Row = dict[str, Any]

RESULTS = Path(__file__).parents[1] / "results" / "exhaustive.json"
STATE = Path(__file__).parents[1] / "out" / "exhaustive-state.json"
CHUNK = 2**20
CHUNKS = 2**32 // CHUNK
SAVE_SECONDS = 20
TRUSTED = 0.05
"""Largest error that a float64 reference may have, in ulps of float32."""

EPS = float(jnp.finfo(jnp.float32).eps)
TINY = float(jnp.finfo(jnp.float32).tiny)
LARGEST = float(jnp.finfo(jnp.float32).max)
FAULTS = {
    "nonfinite_values": "values not finite at a finite input",
    "nonfinite_derivatives": "derivatives not finite at a finite input",
    "nan_hidden": "NaN inputs with a value or derivative that is not NaN",
    "off_extension": "inputs outside the domain not on its constant",
}


def one_argument() -> list[str]:
    """Names of the ops that can be tried on every input."""
    return [name for name, op in OPS.items() if len(op.domain) == 1 and not op.reduces]


def run_exhaustive(
    names: Sequence[str],
    *,
    state: Path = STATE,
    chunks: range = range(CHUNKS),
    advance: Callable[[str, int], None] = lambda what, chunks: None,
) -> list[Row]:
    """Tries every float32 input of the ops named; returns one row for each.

    Args:
      names: of `one_argument()`.
      state: file that holds what is done of an op; a later call goes on from there.
      chunks: which 2^20 inputs each, by bit pattern; all of them unless a test wants fewer.
      advance: called with the op's name and how many chunks were done.

    Returns:
      Rows as dictionaries that JSON can hold: counts of inputs and of faults, the largest errors
      in ulps and where, and the versions, date and program that they belong to.

    Raises:
      ValueError: an op that has not one argument, or whose float64 reference is not good enough.
    """
    with jax.enable_x64(True):
        chosen = choose("op of one argument", names, one_argument())
        return [_run(OPS[name], state, chunks, advance) for name in chosen]


def _run(op: Op, state: Path, chunks: range, advance: Callable[[str, int], None]) -> Row:
    reference_error(op)
    row = _resume(state, op, chunks)
    look = judge(op)
    saved = begin = time.perf_counter()
    spent = row["seconds"]
    advance(op.name, row["next"] - chunks.start)
    for chunk in range(row["next"], chunks.stop):
        counts, compared = look(chunk * CHUNK)
        for key, count in zip(("finite_inputs", *FAULTS), counts, strict=True):
            row[key] += count
        if compared is not None:
            _add(row, *compared)
        row["next"] = chunk + 1
        row["seconds"] = spent + time.perf_counter() - begin
        advance(op.name, 1)
        if time.perf_counter() - saved > SAVE_SECONDS:
            _write(state, row)
            saved = time.perf_counter()
    worst = [row[key] for key in ("value_at", "derivative_at") if row[key] is not None]
    row["reference_ulps"] = reference_error(op, worst)
    row["seconds"] = round(row["seconds"])
    row["date"] = datetime.date.today().isoformat()
    del row["next"]
    state.unlink(missing_ok=True)
    return row


def _resume(state: Path, op: Op, chunks: range) -> Row:
    """What a stopped run of the same program left, or a new beginning."""
    fresh = {
        "suite": "exhaustive",
        "op": op.name,
        "dtype": "float32",
        "inputs": len(chunks) * CHUNK,
        "finite_inputs": 0,
        **dict.fromkeys(FAULTS, 0),
        "compared": 0,
        "value_ulps": 0.0,
        "value_at": None,
        "derivative_ulps": 0.0,
        "derivative_at": None,
        "claimed_ulps": list(op.ulps),
        "device": jax.devices()[0].platform,
        "jax": jax.__version__,
        "program": program(op),
        "next": chunks.start,
        "seconds": 0.0,
    }
    if state.exists():
        found = json.loads(state.read_text())
        same = ("op", "inputs", "device", "jax", "program")
        if all(found[key] == fresh[key] for key in same):
            return found
    return fresh


def _write(path: Path, content: Any) -> None:
    """Write JSON in one step, so that a stopped run leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def _add(row: Row, compared: int, value: tuple, slope: tuple) -> None:
    row["compared"] += compared
    for key, (ulps, at) in (("value", value), ("derivative", slope)):
        if ulps > row[f"{key}_ulps"]:
            row[f"{key}_ulps"], row[f"{key}_at"] = float(ulps), float(at)


def keep(rows: Sequence[Row], path: Path = RESULTS) -> None:
    """Put rows into the kept results, in place of older ones of the same ops."""
    kept = {row["op"]: row for row in kept_rows(path)} | {row["op"]: row for row in rows}
    _write(path, [kept[name] for name in sorted(kept)])


def kept_rows(path: Path = RESULTS) -> list[Row]:
    """The kept results."""
    return json.loads(path.read_text()) if path.exists() else []


def is_current(row: Row) -> bool:
    """Whether a kept row is of the op as it is now, under this jax and on this device."""
    with jax.enable_x64(True):
        now = jax.__version__, jax.devices()[0].platform, program(OPS[row["op"]])
    return now == (row["jax"], row["device"], row["program"])


def verify_exhaustive(rows: Sequence[Row]) -> None:
    """Asserts that every row is without faults and within the ulps claimed."""
    for row in rows:
        faults = [f"{row[key]} {words}" for key, words in FAULTS.items() if row[key]]
        for k, key in enumerate(("value", "derivative")):
            if not row[f"{key}_ulps"] <= row["claimed_ulps"][k]:
                faults.append(f"{key} {row[f'{key}_ulps']:.3g} ulp off at {row[f'{key}_at']:.9g}")
        assert not faults, f"{row['op']}: {'; '.join(faults)}"


def value_and_slope(op: Op) -> jax.stages.Wrapped:
    """The op and its derivative, compiled."""
    return jax.jit(lambda x: jax.jvp(op.fn, (x,), (jnp.ones_like(x),)))


def program(op: Op) -> str:
    """A digest of the program that is measured: with the same jax it changes when the op does."""
    lowered = value_and_slope(op).lower(jax.ShapeDtypeStruct((CHUNK,), jnp.float32))
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]


def _reference(op: Op, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Value and derivative of the textbook function in float64."""
    return jax.jvp(FLOAT64.get(op.name, op.naive), (x,), (jnp.ones_like(x),))


def reference_error(op: Op, points: Sequence[float] = (), samples: int = 400) -> float:
    """Largest error of the float64 reference against mpmath, in ulps of float32.

    Raises:
      ValueError: it is above `TRUSTED`; the op then needs a better form in `_float64.py`.
    """
    truths = [true_values(op, jnp.float32, samples=samples, seed=2)]
    if points:
        truths.append(truth_at(op, jnp.float32, [np.asarray(points, np.float32)]))
    worst = 0.0
    for truth in truths:
        value, slope = map(np.asarray, _reference(op, jnp.asarray(truth.arrays[0], jnp.float64)))
        found = np.stack(errors(truth, jnp.float32, value, [slope]))
        worst = max(worst, float(np.nanmax(found, initial=0)))
    if not worst <= TRUSTED:
        raise ValueError(
            f"{op.name}: its float64 reference is {worst:.2g} ulp of float32 off; "
            "write a better one in benchmarks/accuracy/_float64.py"
        )
    return worst


def judge(op: Op) -> Callable[[int], tuple[list[int], tuple | None]]:
    """`f(start)`: counts of the chunk of inputs that begins at a bit pattern, and its errors."""
    ((lo, hi),) = op.domain
    fn = value_and_slope(op)
    # Outside its domain an op stays at its value at the end.
    ends = [
        (sign, end, op.fn(jnp.float32(end)))
        for sign, end in ((-1, lo), (1, hi))
        if math.isfinite(end)
    ]

    @jax.jit
    def inputs(start):
        bits = start + jnp.arange(CHUNK, dtype=jnp.uint32)
        return jax.lax.bitcast_convert_type(bits, jnp.float32)

    # Many small programs: XLA CPU takes five times as long over them in one.
    @jax.jit
    def faults(x, y, d):
        finite = jnp.isfinite(x)
        off = jnp.zeros_like(finite)
        for sign, end, constant in ends:
            off |= finite & (sign * x >= sign * end) & ((y != constant) | (d != 0))
        hidden = jnp.isnan(x) & ~(jnp.isnan(y) & jnp.isnan(d))
        return finite & ~jnp.isfinite(y), finite & ~jnp.isfinite(d), hidden, off

    finite = jax.jit(lambda x: _sum(jnp.isfinite(x)))
    faulty = jax.jit(lambda x, y, d: _sum(functools.reduce(jnp.bitwise_or, faults(x, y, d))))

    @jax.jit
    def inside(x):
        return (x > lo) & (x < hi) & (abs(x) >= TINY) & (abs(x) <= LARGEST)

    @jax.jit
    def reference(x, inside):
        return _reference(op, jnp.where(inside, x, 0.5).astype(jnp.float64))

    def look(start):
        x = inputs(np.uint32(start))
        y, d = fn(x)
        counts = [int(finite(x)), *([0] * len(FAULTS))]
        if faulty(x, y, d):
            counts[1:] = (int(_sum(fault)) for fault in faults(x, y, d))
        first, last = float(x[0]), float(x[-1])
        if math.isnan(last) or max(first, last) <= lo or min(first, last) >= hi:
            return counts, None
        compared = inside(x)
        value, slope = reference(x, compared)
        scales = op.conditioning(jnp, x.astype(jnp.float64)) if op.conditioning else (0.0, 0.0)
        of_value, compared = _ulps(y, value, scales[0], compared)
        of_slope, _ = _ulps(d, slope, scales[1], compared)
        worst = jax.device_get((_largest(of_value, x), _largest(of_slope, x)))
        if any(math.isnan(ulps) for ulps, _ in worst):
            raise ValueError(
                f"{op.name}: its float64 reference is NaN inside the domain; "
                "write a better one in benchmarks/accuracy/_float64.py"
            )
        return counts, (int(_sum(compared)), *worst)

    return look


@jax.jit
def _sum(condition: jax.Array) -> jax.Array:
    return jnp.sum(condition, dtype=jnp.int32)


@jax.jit
def _ulps(
    got: jax.Array, want: jax.Array, magnitude: Any, inside: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`ulp_distance` as `robustops.testing.accuracy` counts it, and where there is one.

    0 where the truth is not representable and for what XLA flushed to 0; NaN where it is unknown.
    """
    size = jnp.maximum(jnp.maximum(abs(want), magnitude), TINY)
    bits = jax.lax.bitcast_convert_type(size, jnp.int64)
    power = jax.lax.bitcast_convert_type(bits >> 52 << 52, jnp.float64)
    error = abs(got - want)
    ulps = jnp.where(error < 4 * TINY, 0, error / (EPS * power))
    ulps = jnp.where(jnp.isnan(got), math.inf, ulps)
    compared = inside & ((want == 0) | ((abs(want) >= TINY) & (abs(want) <= LARGEST)))
    unknown = inside & jnp.isnan(want)
    ulps = jnp.where(unknown, math.nan, jnp.where(compared, ulps, 0))
    return ulps.astype(jnp.float32), compared


@jax.jit
def _largest(ulps: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest error and an input that has it; argmax takes XLA CPU five times as long."""
    largest = jnp.max(ulps)
    return largest, jnp.max(jnp.where(ulps == largest, x, -jnp.inf))
