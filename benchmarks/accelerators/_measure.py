"""Kernels and bytes of every case on every target, ours over the usual form's."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from .._command import choose
from .._rows import Once, Row, failed, fresh
from ._reasons import reason
from ._targets import ENVIRONMENT, TARGETS

OURS = "robustops"
FLOOR = "by hand"
"""A gate around this one Adam that does nothing else: what the least guard costs."""
WITH_RATIO = (OURS, FLOOR)
"""Libraries whose rows stand beside the usual form's."""
LIMIT = 1.02
"""The most bytes over the usual form's that need no reason."""
CHECKOUT = Path(__file__).parents[2]
STATE = Path(__file__).parents[1] / "out" / "accelerators-state.jsonl"


def run(
    ops: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    *,
    state: Path = STATE,
    once: Once = fresh,
    advance: Callable[[str, int], None] = lambda what, count: None,
) -> list[Row]:
    """Compiles ops, losses and train steps ahead of time for accelerators that need not be here.

    Nothing is executed: the figures are what the compiler put into the program, the same on every
    machine. Programs that `state` holds are not compiled again, so a run that was stopped goes on.

    Args:
      ops: names of cases; None for all.
      targets: of "tpu-v5e" and "h100"; None for those whose compilers are installed.
      state: file of what was compiled before.
      once: measures a unit, a case on a target, unless its rows are kept.
      advance: called with a case's name and 1 for each that is done on a target.

    Returns:
      One row for each target, case, mode ("value" or "gradient"; "update" or "guarded_apply" of a
      guard or a train step) and library: kernels, bytes, temporaries, the compiler's estimate; in
      ours and in gates by hand also `bytes_ratio` and `kernels_ratio` over the other's.

    Raises:
      ValueError: an unknown name, or a target without its compiler.
    """
    from ._cases import names

    chosen = choose("op", ops, names())
    state.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        compilers = {}
        for target in installed() if targets is None else choose("target", targets, TARGETS):
            problem = TARGETS[target].problem()
            if problem:
                raise ValueError(f"{target}: {problem}")
            compilers[target] = stack.enter_context(contextlib.closing(_Compiler(target, state)))
        for case in chosen:

            def measure(mine: _Compiler, case: str = case) -> list[Row]:
                for each in compilers.values():  # they compile side by side
                    each.ask(case)
                return _compared(mine.answer(case))

            for target, compiler in compilers.items():
                unit = {"suite": "accelerators", "target": target, "case": case}
                rows += once(unit, functools.partial(measure, compiler))
                advance(f"{target}: {case}", 1)
    return rows


def installed() -> list[str]:
    """The targets whose compilers are here."""
    return [name for name, target in TARGETS.items() if target.problem() is None]


class _Compiler:
    """A process that compiles for one target, started when it is first asked."""

    def __init__(self, target: str, state: Path):
        self._target, self._state = target, state
        self._process: subprocess.Popen | None = None
        self._complaints = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would block
        self._asked: list[str] = []
        """Cases that it has not answered."""
        self._taken: set[str] = set()
        """All cases that it was given."""

    def ask(self, case: str) -> None:
        """Begins to compile a case, unless that was asked before."""
        if case in self._taken:
            return
        if self._process is None:
            worker = "benchmarks.accelerators._worker"
            self._process = subprocess.Popen(
                [sys.executable, "-m", worker, self._target, str(self._state)],
                env={**os.environ, **ENVIRONMENT},
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                text=True,
            )
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `answer` says why
            print(case, file=self._process.stdin, flush=True)
        self._asked.append(case)
        self._taken.add(case)

    def answer(self, case: str) -> list[Row]:
        """The rows of a case that was asked for; answers before it, which nobody wants, are lost.

        Raises:
          RuntimeError: the process ended.
        """
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if not line:
                self._process.communicate()
                self._process, self._asked, self._taken = None, [], set()
                self._complaints.seek(0)
                last = self._complaints.read().strip().splitlines()[-1:] or ["it gave no reason"]
                raise RuntimeError(f"the compiler for {self._target} ended: {last[0]}")
            if self._asked.pop(0) == case:
                return json.loads(line)

    def close(self) -> None:
        """Ends the process; what it has not answered nobody wants."""
        if self._process is not None:
            if self._asked:
                self._process.kill()
            self._process.communicate()
        self._complaints.close()


def _compared(rows: list[Row]) -> list[Row]:
    good = [row for row in rows if row["error"] is None]
    others = {row["mode"]: row for row in good if row["library"] not in WITH_RATIO}
    for row in rows:
        compared = row["library"] in WITH_RATIO and row in good
        other = others.get(row["mode"]) if compared else None
        for what in ("bytes", "kernels"):
            row[f"{what}_ratio"] = other and row[what] / other[what]
    return rows


def verify(rows: Sequence[Row]) -> None:
    """Asserts that ours moves at most 1.02 times the other's bytes, or that its reason is kept."""
    ours = [row for row in rows if row["library"] == OURS]
    assert ours, "no rows"
    assert not failed(rows, OURS), "\n".join(failed(rows, OURS))
    heavy = [
        f"{row['case']} {row['mode']} on {row['target']}: {row['bytes_ratio']:.3f}"
        for row in ours
        if (row["bytes_ratio"] or 0) > LIMIT and reason(row["case"]) is None
    ]
    assert not heavy, f"more bytes than the usual form, without a reason: {heavy}"
