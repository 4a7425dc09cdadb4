"""Time of ours, of the usual forms and of the peers, as ratios to a copy in the same run."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robustops.testing import Op

from .._command import choose
from .._losses import LABELS, cases
from .._peers import Peer, compiled, load
from .._rows import Once, Row, failed, fresh, said
from ._overhead import overhead

OURS = "robustops"
DTYPES = {jnp.dtype(d).name: d for d in (jnp.float32, jnp.bfloat16, jnp.float16)}
ELEMENTS = 2**24
"""Of float32 64 MiB: what is above 32 MiB comes as new pages from the system at every call. Of 16
MiB malloc keeps some and not others, and the same copy takes 1.1 or 5 ms."""
QUICK_ELEMENTS = 2**20
FULL_ELEMENTS = {"float32": ELEMENTS, "bfloat16": 2**22}
"""The second beside the naive forms only, and smaller, for the time that it takes."""
ROUNDS = 15
QUICK_ROUNDS = 7
SCALED = ("safe_log", "safe_norm", "softmax", "sigmoid_binary_cross_entropy")
SCALING = (1_024, 10_240, 102_400, 1_024_000, 10_240_000, 102_400_000)
"""Sizes at which those are timed too in a full run: 1e3 to 1e8, in whole rows."""
WIDTH = 128
"""Elements in a row of a reduction."""


def run(
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
    peers: Sequence[Peer] | None = None,
    *,
    elements: int | Sequence[int] = ELEMENTS,
    rounds: int = ROUNDS,
    calls: bool = True,
    once: Once = fresh,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Times the value, and the value and gradient, of ops and losses.

    The gradient is that of the sum, by the logits or the like: labels are arrays without one.
    Everything that stands beside one op runs in turn, round after round, with a copy (x + 1) of as
    many elements: a ratio is the median over the rounds of time over the copy's time.

    Args:
      ops: names of ops and loss cases; None for all.
      dtypes: of float32, bfloat16, float16.
      peers: libraries beside the naive and the double-where form; None for all installed.
      elements: size of each array argument, or several; reductions have rows of 128.
      rounds: number of rounds.
      calls: whether to time an eager call, tracing and compiling too.
      once: measures a unit, an op at one size in one dtype, unless its rows are kept.
      advance: called with an op's name and 1 for each unit done.

    Returns:
      One row for each op, dtype, size, library and mode ("value", "gradient"; and of ours and the
      naive form "eager", "trace", "compile"): the ratio with its quartiles, and seconds.

    Raises:
      ValueError: an unknown op or dtype (the valid ones are listed), or too few elements.
    """
    sizes = [elements] if isinstance(elements, int) else elements
    if min(sizes) < WIDTH or rounds < 1:
        raise ValueError(f"elements must be >= {WIDTH} and rounds >= 1, got {sizes} and {rounds}")
    known = cases()
    peers = load()[0] if peers is None else peers
    if jax.devices()[0].platform != "cpu":
        peers = [peer for peer in peers if not peer.host]  # another device's time
    rows = []
    for name in choose("op", ops, known):
        for dtype in choose("dtype", dtypes, DTYPES):
            for size in sizes:
                unit = {"suite": "speed", "op": name, "dtype": dtype, "elements": size}
                rows += once(
                    unit | {"rounds": rounds},
                    lambda args=(known[name], dtype, peers, size, rounds, calls): _measure(*args),
                )
                advance(f"{name}: {dtype}", 1)
    return rows


def _measure(
    op: Op, dtype: str, peers: Sequence[Peer], elements: int, rounds: int, calls: bool
) -> list[Row]:
    arrays = inputs(op, DTYPES[dtype], elements)
    labels = labels_of(op, arrays[0])
    rows = overhead(op, arrays) if calls else []  # before anything of the op has been compiled
    timed = []
    copy, _ = compiled(lambda x: x + 1, arrays[:1])
    copy()
    for library, fn, thunks in _implementations(op, peers):
        fn = (lambda *xs, fn=fn: fn(*xs, axis=-1)) if op.reduces else fn
        made = thunks(fn, arrays, labels) if labels else thunks(fn, arrays)
        for mode, thunk in zip(("value", "gradient"), made, strict=True):
            if thunk is None:
                continue
            row: Row = {"library": library, "mode": mode, "error": None}
            rows.append(row)
            try:
                thunk()
            except Exception as error:  # A peer that refuses a dtype is a row of the table.
                row["error"] = said(error)
                continue
            timed.append((row, thunk))
    for (row, _), (ratios, seconds) in zip(
        timed, _interleaved(copy, [thunk for _, thunk in timed], rounds), strict=True
    ):
        low, middle, high = (float(q) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        row |= {"ratio": middle, "ratio_low": low, "ratio_high": high, "seconds": seconds}
    return rows


def _interleaved(
    copy: Callable[[], Any], calls: Sequence[Callable[[], Any]], rounds: int
) -> list[tuple[list[float], float]]:
    """For each call its ratios to the copy before it, and its median seconds.

    A copy that is not timed comes first: what the call before it has left to be freed, arrays of
    intermediate results, would count as time of the copy, up to as much again.
    """
    ratios: list[list[float]] = [[] for _ in calls]
    times: list[list[float]] = [[] for _ in calls]
    order = np.random.default_rng(0)
    for _ in range(rounds):
        for k in order.permutation(len(calls)):
            copy()
            base, mine = _seconds(copy), _seconds(calls[k])
            ratios[k].append(mine / base)
            times[k].append(mine)
    return [(r, float(np.median(t))) for r, t in zip(ratios, times, strict=True)]


def _seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _implementations(op: Op, peers: Sequence[Peer]) -> list[tuple[str, Callable, Callable]]:
    usual = [(OURS, op.fn, compiled), ("naive", op.naive, compiled)]
    guarded = double_where(op)
    if guarded is not None:
        usual.append(("double where", guarded, compiled))
    theirs = [(p.name, p.functions[op.name], p.thunks) for p in peers if op.name in p.functions]
    return usual + theirs


def double_where(op: Op) -> Callable | None:
    """The idiom that guards the naive form inside and outside; None where nothing is to guard."""
    if op.name in _POLES:
        return _POLES[op.name]
    if op.reduces or not any(math.isfinite(end) for bounds in op.domain for end in bounds):
        return None

    def guarded(*arrays):
        inside = jnp.bool_(True)
        for x, (lo, hi) in zip(arrays, op.domain, strict=True):
            inside = inside & (x > lo) & (x < hi)
        safe = [
            jnp.where(inside, x, _middle(*bounds))
            for x, bounds in zip(arrays, op.domain, strict=True)
        ]
        return jnp.where(inside, op.naive(*safe), 0)

    return guarded


# A pole inside the domain is not in the record as an interval.
_POLES: dict[str, Callable] = {
    "safe_div": lambda x, y: jnp.where(y == 0, 0, x / jnp.where(y == 0, 1, y)),
    "safe_reciprocal": lambda x: jnp.where(x == 0, 0, 1 / jnp.where(x == 0, 1, x)),
}


def _middle(lo: float, hi: float) -> float:
    """A point well inside an interval; where it has no end, 2 from the other one, or 0."""
    return (max(lo, min(hi, 2) - 4) + min(hi, max(lo, -2) + 4)) / 2


def inputs(op: Op, dtype: Any, elements: int, seed: int = 0) -> list[np.ndarray]:
    """Arrays of ordinary numbers inside the domain."""
    rng = np.random.default_rng(seed)
    shape = (elements // WIDTH, WIDTH) if op.reduces else (elements,)
    arrays = []
    for lo, hi in op.domain:
        middle = _middle(lo, hi)
        reach = 0.9 * min(middle - lo, hi - middle, 2.0)
        x = rng.uniform(middle - reach, middle + reach, shape)
        arrays.append(x.astype(np.float32).astype(dtype))
    return arrays


def labels_of(op: Op, x: np.ndarray, seed: int = 1) -> list[np.ndarray]:
    """Labels at random for a loss that takes them after its arrays; none for others."""
    return [LABELS[op.name](np.random.default_rng(seed), x)] if op.name in LABELS else []


def verify(
    rows: Sequence[Row],
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] = ("float32",),
) -> None:
    """Asserts that each op has its value and gradient timed, ours and the naive form's."""
    timed = {(r["op"], r["dtype"], r["library"], r["mode"]) for r in rows if r["error"] is None}
    asked = {
        (op, dtype, library, mode)
        for op in choose("op", ops, cases())
        for dtype in choose("dtype", dtypes, DTYPES)
        for library in (OURS, "naive")
        for mode in ("value", "gradient")
    }
    assert not failed(rows, OURS), "\n".join(failed(rows, OURS))
    assert asked <= timed, f"rows missing: {sorted(asked - timed)}"
    for row in rows:
        if row["error"] is None:
            assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"] < math.inf, row


def main_rows(rows: Sequence[Row]) -> list[Row]:
    """Of each dtype the rows at the size at which most was timed, the largest such size."""
    counts = Counter((row["dtype"], row["elements"]) for row in rows)
    most: dict[str, int] = {}
    for (dtype, elements), _ in sorted(counts.items(), key=lambda item: (item[1], item[0][1])):
        most[dtype] = elements
    return [row for row in rows if row["elements"] == most[row["dtype"]]]


def summary(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """For each other library, and the fastest peer, and mode: our time over theirs, geometric mean.

    Of `main_rows`. The fastest peer of an op is the fastest of jax, optax, scipy, tfp, torch and
    keras that have it.
    """
    known = {
        (row["op"], row["dtype"], row["mode"], row["library"]): row["ratio"]
        for row in main_rows(rows)
        if row["error"] is None
    }
    found: dict[tuple[str, str], dict[str, float]] = {}
    for (op, dtype, mode, library), ratio in known.items():
        if library != OURS:
            continue
        others = {
            key[3]: theirs
            for key, theirs in known.items()
            if key[:3] == (op, dtype, mode) and key[3] != OURS
        }
        peers = [t for name, t in others.items() if name not in ("naive", "double where")]
        if peers:
            others["fastest peer"] = min(peers)
        for name, theirs in others.items():
            found.setdefault((name, mode), {})[f"{op} {dtype}"] = ratio / theirs
    return {
        key: {
            "cases": len(each),
            "mean": math.exp(np.mean(np.log(list(each.values())))),
            "worst": max(each.values()),
            "worst_op": max(each, key=lambda op, each=each: each[op]),
        }
        for key, each in found.items()
    }
