"""What the suites' command lines share: options, choosing names, the progress bar, the end."""

import argparse
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ._rows import Journal, Row

try:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
except ImportError as error:
    raise ImportError(
        "benchmarks needs rich: run `pip install -e '.[benchmarks]'` in the checkout"
    ) from error


def choose(kind: str, wanted: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The wanted names in the order of the known ones; all of them for None."""
    known = list(known)
    if wanted is None:
        return known
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        problem = f"unknown {kind} {', '.join(map(repr, unknown))}" if unknown else f"no {kind}"
        raise ValueError(f"{problem}; choose from: {', '.join(known)}")
    return [name for name in known if name in wanted]


def size_options(made: argparse.ArgumentParser, quick: str, full: str) -> Any:
    """Add `--quick` and `--full`, which exclude each other; returns their group."""
    size = made.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help=quick)
    size.add_argument("--full", action="store_true", help=full)
    return size


def output_options(made: argparse.ArgumentParser) -> None:
    """Add where rows and page go."""
    made.add_argument("--json", type=Path, metavar="FILE", help="write the rows as JSON lines")
    made.add_argument(
        "--resume", action="store_true", help="measure only what FILE does not hold yet"
    )
    made.add_argument("--report", type=Path, metavar="DIR", help="write a page, DIR/index.html")


def parsed(made: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The options given; `command` is the line that gave them."""
    given = sys.argv[1:] if argv is None else argv
    chosen = made.parse_args(given)
    chosen.command = shlex.join([*made.prog.split(), *given])
    return chosen


def journal(chosen: argparse.Namespace) -> Journal:
    """The file of rows that the options ask for; that of a report if none is named.

    Raises:
      ValueError: `--resume` without a file, or one that cannot be resumed.
    """
    path = chosen.json or (chosen.report and chosen.report / "rows.jsonl")
    if chosen.resume and path is None:
        raise ValueError("--resume needs --json FILE or --report DIR, the file to go on with")
    return Journal(path, resume=chosen.resume)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar on stderr; yields `advance(what, how_many)`."""
    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), transient=True) as shown:
        task = shown.add_task("compiling", total=total)

        def advance(what: str, count: int) -> None:
            shown.update(task, advance=count, description=what)

        yield advance


def console() -> Console:
    """Where results are printed; wide where nobody sees an edge."""
    made = Console()
    return made if made.is_terminal else Console(width=160)


def conclude(
    chosen: argparse.Namespace,
    rows: Sequence[Row],
    begin: float,
    shown: Sequence[Any],
    sentence: str,
    verify: Callable[[], None],
) -> int:
    """Print tables and sentence, write the page, check the rows; returns the exit status."""
    out = console()
    for table in shown:
        out.print(table)
        out.print()
    out.print(sentence, highlight=False)
    out.print(f"{len(rows)} rows in {time.perf_counter() - begin:.0f} s.")
    if chosen.json:
        out.print(f"wrote {chosen.json}", highlight=False)
    if chosen.report:
        from .report import write_report

        out.print(f"wrote {write_report(rows, chosen.report, chosen.command)}", highlight=False)
    try:
        verify()
    except (AssertionError, ValueError) as error:
        out.print(f"FAILED: {error}", highlight=False, markup=False)
        return 1
    return 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on stderr: XLA's plugins log from C++ straight to file descriptor 2."""
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)
