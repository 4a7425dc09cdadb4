"""Kernels and bytes of every case on every target, ours over the usual form's."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .._command import choose
from ._reasons import REASONS
from ._targets import ENVIRONMENT, TARGETS

Row = dict[str, Any]

OURS = "robustops"
LIMIT = 1.02
"""The most bytes over the usual form's that need no reason."""
STATE = Path(__file__).parents[1] / "out" / "accelerators-state.jsonl"


def run(
    ops: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    *,
    state: Path = STATE,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Compiles ops, losses and guards ahead of time for accelerators that need not be here.

    Nothing is executed: the figures are what the compiler put into the program, the same on every
    machine. Programs that `state` holds are not compiled again, so a run that was stopped goes on.

    Args:
      ops: names of cases; None for all.
      targets: of "tpu-v5e" and "h100"; None for those whose compilers are installed.
      state: file of what was compiled before.
      advance: called with a case's name and 1 for each that is done on a target.

    Returns:
      One row for each target, case, mode ("value" or "gradient"; "update" or "guarded_apply" of a
      guard) and library: kernels, bytes, temporaries, the compiler's estimate; in ours also
      `bytes_ratio` and `kernels_ratio` over the other's.

    Raises:
      ValueError: an unknown name, or a target without its compiler.
    """
    from ._cases import names

    chosen = choose("op", ops, names())
    state.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for target in installed() if targets is None else choose("target", targets, TARGETS):
        problem = TARGETS[target].problem()
        if problem:
            raise ValueError(f"{target}: {problem}")
        rows += _compile(target, chosen, state, advance)
    return _compared(rows)


def installed() -> list[str]:
    """The targets whose compilers are here."""
    return [name for name, target in TARGETS.items() if target.problem() is None]


def _compile(target: str, cases: Sequence[str], state: Path, advance: Callable) -> list[Row]:
    command = [sys.executable, "-m", "benchmarks.accelerators._worker", target, str(state), *cases]
    checkout = Path(__file__).parents[2]
    rows: list[Row] = []
    with subprocess.Popen(
        command,
        env={**os.environ, **ENVIRONMENT},
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            row = json.loads(line)
            if rows and row["case"] != rows[-1]["case"]:
                advance(f"{target}: {rows[-1]['case']}", 1)
            rows.append(row)
        complaint = process.stderr.read()
    if process.returncode:
        raise RuntimeError(f"compiling for {target} failed:\n{complaint}")
    advance(f"{target}: {rows[-1]['case']}", 1)
    return rows


def _compared(rows: list[Row]) -> list[Row]:
    others = {_key(row): row for row in rows if row["library"] != OURS and not row["error"]}
    for row in rows:
        other = others.get(_key(row)) if row["library"] == OURS else None
        for what in ("bytes", "kernels"):
            row[f"{what}_ratio"] = other and row[what] / other[what]
    return rows


def _key(row: Row) -> tuple[str, str, str]:
    return row["target"], row["case"], row["mode"]


def reason(row: Row) -> str | None:
    """Why a case of ours may move more than the usual form."""
    return REASONS.get(row["case"], {}).get(row["mode"])


def verify(rows: Sequence[Row]) -> None:
    """Asserts that ours moves at most 1.02 times the other's bytes, or that its reason is kept."""
    ours = [row for row in rows if row["library"] == OURS]
    assert ours, "no rows"
    heavy = [
        f"{row['case']} {row['mode']} on {row['target']}: {row['bytes_ratio']:.3f}"
        for row in ours
        if row["bytes_ratio"] is not None and row["bytes_ratio"] > LIMIT and reason(row) is None
    ]
    assert not heavy, f"more bytes than the usual form, without a reason: {heavy}"
