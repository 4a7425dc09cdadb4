"""The rows that all suites share: plain dictionaries, kept as JSON lines, measured once.

A row says what was measured (`suite` and the fields of its *unit*, the smallest piece of work that
is done or not done), on what (`device`, `machine`, `versions`), and what came of it: figures, or an
`error`.
"""

import functools
import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

Row = dict[str, Any]
Once = Callable[[Row, Callable[[], list[Row]]], list[Row]]
"""`once(unit, measure)`: the rows of a unit, measured unless they are kept."""

OURS = "robustops"
CHECKOUT = Path(__file__).parents[1]
PACKAGES = ("jax", "jaxlib", "numpy", "optax", "flax", "scipy", "torch", "keras", "tfp-nightly")


def said(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, of what is measured, and of robustops with its commit."""
    found = {"python": platform.python_version(), "robustops": _robustops()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _robustops() -> str:
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    version = metadata.version("robustops")
    return f"{version} ({commit})" if commit else version


@functools.cache
def machine() -> dict[str, Any]:
    """Processor, cores and system of the host."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def device() -> str:
    """The device that jax computes on, as it names itself: "cpu", "NVIDIA H100 80GB HBM3"."""
    return jax.devices()[0].device_kind


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, JSON lines or an array with one row a line; a torn last line is left out.

    Raises:
      ValueError: a file that is neither.
    """
    rows = []
    lines = path.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        text = line.strip().rstrip(",")
        if text in ("", "[", "]"):
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            if number == len(lines) and not line.endswith("\n"):
                break  # the run was stopped while it wrote
            raise ValueError(f"{path}, line {number}: not a row of JSON: {error}") from None
        if not isinstance(row, dict) or "suite" not in row:
            raise ValueError(f"{path}, line {number}: not a row of a benchmark: {text[:60]}")
        rows.append(row)
    return rows


class Journal:
    """Measures units, and writes their rows to a file as they are done.

    Args:
      path: file of JSON lines; None keeps nothing.
      resume: keep what the file holds, and measure only what it lacks; else begin it anew.

    Raises:
      ValueError: the file to resume was made on another machine or with other versions.
    """

    def __init__(self, path: Path | None = None, *, resume: bool = False):
        self.path = path
        self.kept: list[Row] = []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            self.kept = read_rows(path)
            for row in self.kept:
                _same_run(path, row)
        path.write_text("".join(map(_line, self.kept)))

    def once(self, unit: Row, measure: Callable[[], list[Row]]) -> list[Row]:
        """The kept rows of a unit, or those that `measure` gives; what it raises becomes a row."""
        found = [row for row in self.kept if unit.items() <= row.items()]
        if found:
            return found
        try:
            made = measure()
        except Exception as error:
            made = [{"library": OURS, "mode": "", "error": said(error)}]
        rows = [_stamped({**unit, **row}) for row in made]
        if self.path is not None:
            with self.path.open("a") as file:
                file.write("".join(map(_line, rows)))
        return rows


def fresh(unit: Row, measure: Callable[[], list[Row]]) -> list[Row]:
    """Rows that are kept nowhere: the `once` of a run without a journal."""
    return Journal().once(unit, measure)


def _stamped(row: Row) -> Row:
    row = {"error": None, "device": device(), **row, "machine": machine()}
    row["versions"] = {**versions(), **row.get("versions", {})}
    return row


def _same_run(path: Path, row: Row) -> None:
    stale = row.get("machine") != machine() or not versions().items() <= row["versions"].items()
    if stale:
        raise ValueError(
            f"{path} was made with {row.get('versions')} on {row.get('machine')}, now it is "
            f"{versions()} on {machine()}; run without --resume, or write to another file"
        )


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def failed(rows: Sequence[Row], library: str) -> list[str]:
    """One line for each row of a library that is an error."""
    return [
        f"{name(row)}: {row['error']}"
        for row in rows
        if row["error"] is not None and row.get("library", library) == library
    ]


def name(row: Row) -> str:
    """A row's case in words."""
    fields = ("op", "case", "scenario", "stress", "arm", "fault", "tree", "form", "mode", "dtype")
    return " ".join(str(row[field]) for field in (*fields, "target") if row.get(field))
