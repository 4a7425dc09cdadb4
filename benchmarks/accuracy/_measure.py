"""Errors of ours and of the peers on one sample of the whole domain, against mpmath."""

import contextlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from robustops._accuracy import Truth, errors, evaluate, rowwise, true_values
from robustops.testing import Op

from .._command import choose
from .._losses import cases
from .._peers import Peer, load
from .._rows import Once, Row, failed, fresh, said

OURS = "robustops"
DTYPES = {jnp.dtype(d).name: d for d in (jnp.float32, jnp.bfloat16, jnp.float16, jnp.float64)}
PLOTTED = ("sigmoid_binary_cross_entropy", "log_cosh", "softplus", "log1mexp", "safe_logit")
"""Functions of one number whose rows carry the error against the input."""
SAMPLES = 1000
QUICK_SAMPLES = 150
FULL_SAMPLES = 5000


def run(
    ops: Sequence[str] | None = None,
    dtypes: Sequence[str] | None = None,
    peers: Sequence[Peer] | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    once: Once = fresh,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Measures ops and losses, ours, the naive form and the peers', on one sample each.

    Args:
      ops: names of ops and loss cases; None for all.
      dtypes: of float32, bfloat16, float16, float64; None for all.
      peers: libraries beside the naive form; None for all that are installed.
      samples: number of arguments drawn; a tenth of it in float64, where the truth is slow.
      seed: of the draw.
      once: measures a unit, an op in one dtype, unless its rows are kept.
      advance: called with an op's name and 1 for each dtype done.

    Returns:
      One row for each op, dtype and library that has it. For value and derivative: the largest,
      99.9th percentile and median error in ulps over the points where the result is finite, the
      worst input, and `failed`, the number of points where it is not.

    Raises:
      ValueError: an unknown op or dtype; the valid ones are listed.
    """
    known = cases()
    peers = load()[0] if peers is None else peers
    rows = []
    for name in choose("op", ops, known):
        op = known[name]
        for dtype in choose("dtype", dtypes, DTYPES):
            count = max(samples // 10, 20) if dtype == "float64" else samples
            unit = {"suite": "accuracy", "op": name, "dtype": dtype, "samples": count}
            rows += once(
                unit | {"seed": seed},
                lambda args=(op, dtype, count, seed, peers): _measure(*args),
            )
            advance(f"{name}: {dtype}", 1)
    return rows


def _measure(op: Op, dtype: str, samples: int, seed: int, peers: Sequence[Peer]) -> list[Row]:
    with jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext():
        truth = true_values(op, DTYPES[dtype], samples=samples, seed=seed)
        return [_row(op, dtype, truth, *each) for each in _implementations(op, peers)]


def _implementations(op: Op, peers: Sequence[Peer]) -> list[tuple[str, Callable, Callable]]:
    theirs = [(p.name, p.functions[op.name], p.evaluate) for p in peers if op.name in p.functions]
    return [(OURS, op.fn, evaluate), ("naive", op.naive, evaluate), *theirs]


def _row(op: Op, dtype: str, truth: Truth, library: str, fn: Callable, outputs: Callable) -> Row:
    row: Row = {
        "library": library,
        "compared": int(truth.compared.sum()),
        "claimed_ulps": list(op.ulps) if library == OURS else None,
        "error": None,
    }
    try:
        with np.errstate(all="ignore"):
            values, derivatives = outputs(rowwise(op, fn), truth.arrays)
        found = errors(truth, DTYPES[dtype], values, derivatives)
    except Exception as error:  # A peer that refuses a dtype is a row of the table.
        row["error"] = said(error)
        found = [np.full(len(truth.compared), np.nan)] * 2
    for kind, ulps in zip(("value", "derivative"), found, strict=True):
        row |= {f"{kind}_{key}": v for key, v in _statistics(ulps, truth).items()}
    if op.name in PLOTTED and dtype == "float32":
        row["curve"] = {"value": _curve(found[0], truth), "derivative": _curve(found[1], truth)}
    return row


def _curve(ulps: np.ndarray, truth: Truth) -> list[tuple[float, float | None]]:
    """Points of a plot, at most 80: the input and the error there, None where it is not finite.

    Of neighbouring inputs the one with the largest error.
    """
    known = np.flatnonzero(~np.isnan(ulps))
    points = []
    for part in np.array_split(known[np.argsort(truth.arrays[0][known])], 80):
        if len(part):
            worst = part[np.argmax(ulps[part])]
            error = float(ulps[worst])
            points.append((float(truth.arrays[0][worst]), error if np.isfinite(error) else None))
    return points


def _statistics(ulps: np.ndarray, truth: Truth) -> Row:
    known = ulps[~np.isnan(ulps)]
    finite = known[np.isfinite(known)]
    if not len(known):
        return dict.fromkeys(("max", "p999", "median", "at", "failed"))
    worst = int(np.argmax(np.where(np.isnan(ulps), -1, ulps)))
    quantile = lambda q: float(np.quantile(finite, q, method="higher")) if len(finite) else None
    return {
        "max": quantile(1),
        "p999": quantile(0.999),
        "median": quantile(0.5),
        "at": truth.point(worst),
        "failed": len(known) - len(finite),
    }


def verify(
    rows: Sequence[Row], ops: Sequence[str] | None = None, dtypes: Sequence[str] | None = None
) -> None:
    """Asserts that no row of ours is missing, and each is finite and within the ulps claimed."""
    ours = {(row["op"], row["dtype"]): row for row in rows if row["library"] == OURS}
    asked = {
        (op, dtype)
        for op in choose("op", ops, cases())
        for dtype in choose("dtype", dtypes, DTYPES)
    }
    assert not failed(rows, OURS), "\n".join(failed(rows, OURS))
    assert set(ours) == asked, f"rows missing: {sorted(asked - set(ours))}"
    faults = []
    for (op, dtype), row in ours.items():
        for kind, claimed in zip(("value", "derivative"), row["claimed_ulps"], strict=True):
            if row["compared"] == 0:
                continue  # a loss of 4e-9, for one, is below the numbers of float16
            if row[f"{kind}_max"] is None:
                faults.append(f"{op} {dtype}: no {kind} of {row['compared']} points was compared")
            elif row[f"{kind}_failed"]:
                faults.append(f"{op} {dtype}: {kind} not finite at {row[f'{kind}_at']}")
            elif row[f"{kind}_max"] > claimed:
                faults.append(
                    f"{op} {dtype}: {kind} {row[f'{kind}_max']:.3g} ulp off at "
                    f"{row[f'{kind}_at']}, claimed {claimed}"
                )
    assert not faults, "\n".join(faults)


def summary(rows: Sequence[Row]) -> dict[str, Row]:
    """For each library: ops, points compared, points that failed, and the worst errors."""
    found: dict[str, Row] = {}
    for row in rows:
        if row["error"]:
            continue
        total = found.setdefault(
            row["library"],
            {"ops": set(), "compared": 0, "failed": 0, "value_max": None, "derivative_max": None},
        )
        total["ops"].add(row["op"])
        total["compared"] += row["compared"]
        total["failed"] += max(row["value_failed"] or 0, row["derivative_failed"] or 0)
        for key in ("value_max", "derivative_max"):
            if row[key] is not None:
                total[key] = max(total[key] or 0.0, row[key])
    return {library: total | {"ops": len(total["ops"])} for library, total in found.items()}
