"""What the suites' command lines share: choosing names, the progress bar, writing rows."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
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


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, int], None]]:
    """Show a bar on stderr; yields `advance(what, how_many)`."""
    columns = (
        TextColumn("{task.description:<36}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
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


def write_rows(path: Path | None, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON, one a line, if a file was asked for."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    path.write_text(f"[\n{lines}\n]\n")
    console().print(f"wrote {path}", highlight=False)
