"""Directives that print kept benchmark results: accuracy, exhaustive, accelerators, models.

Names behind a directive choose the rows; without any it prints them all.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from op_record import rows
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from robustops import losses
from robustops.testing import OPS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
OURS = "robustops"
FAILED = "NaN, ∞"


def kept(name: str, ops: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of one file of results, an array or JSON lines; of the given ops, if any."""
    text = (RESULTS / f"{name}.json").read_text()
    found = (
        json.loads(text)
        if text.startswith("[")
        else [json.loads(line) for line in text.splitlines()]
    )
    unknown = set(ops) - {row["op"] for row in found} if ops else ()
    if unknown:
        raise ValueError(f"{name}.json has no {', '.join(sorted(unknown))}")
    return [row for row in found if row["op"] in ops] if ops else found


def linked(name: str) -> str:
    """A case by name, which leads to its entry."""
    if name in OPS:
        return f"{{py:func}}`{name} <robustops.{name}>`"
    entry = name.split("(")[0]
    known = hasattr(losses, entry)
    return f"{{py:func}}`{name} <robustops.losses.{entry}>`" if known else f"`{name}`"


def error(row: dict[str, Any] | None, kind: str) -> str:
    """Largest error in ulps, or that a result was not finite."""
    if row is None or row[f"{kind}_failed"] is None:
        return ""
    if row[f"{kind}_failed"]:
        return FAILED
    return f"{row[f'{kind}_max']:.2g}".replace("e+0", "e").replace("e+", "e")


def accuracy(ops: Sequence[str] = ()) -> str:
    """Largest errors in float32: ours, the naive form's and the peers'."""
    found = [row for row in kept("accuracy", ops) if row["dtype"] == "float32" and not row["error"]]
    libraries = list(dict.fromkeys([OURS, "naive", *sorted(row["library"] for row in found)]))
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found:
        table.setdefault(row["op"], {})[row["library"]] = row
    body = (
        (linked(op), *(_pair(line.get(library)) for library in libraries))
        for op, line in sorted(table.items())
    )
    return rows(("", *libraries), body)


def _pair(row: dict[str, Any] | None) -> str:
    both = [error(row, "value"), error(row, "derivative")]
    return FAILED if both == [FAILED, FAILED] else " / ".join(filter(None, both))


def exhaustive(ops: Sequence[str] = ()) -> str:
    """What all 2^32 inputs gave."""
    heading = ("", "not finite", "other faults", "value", "at", "derivative", "at", "date", "jax")
    return rows(
        heading,
        (
            (
                linked(row["op"]),
                str(row["nonfinite_values"] + row["nonfinite_derivatives"]),
                str(row["nan_hidden"] + row["off_extension"]),
                f"{row['value_ulps']:.2f}",
                _at(row["value_at"]),
                f"{row['derivative_ulps']:.2f}",
                _at(row["derivative_at"]),
                row["date"],
                row["jax"],
            )
            for row in kept("exhaustive", ops)
        ),
    )


def _at(x: float | None) -> str:
    return "" if x is None else f"{x:.9g}"


def accelerators() -> str:
    """Bytes over the usual form's on each target."""
    table: dict[str, dict[str, list[str]]] = {}
    targets: list[str] = []
    for row in kept("accelerators"):
        if row.get("bytes_ratio") is None:
            continue
        if row["target"] not in targets:
            targets.append(row["target"])
        cells = table.setdefault(row["case"], {}).setdefault(row["target"], [])
        cells.append(f"{row['bytes_ratio']:.2f}")
    body = (
        (linked(case), *(" / ".join(line.get(target, [])) for target in targets))
        for case, line in sorted(table.items())
    )
    return rows(("", *targets), body)


class ResultTable(SphinxDirective):
    """Kept results, of the ops that the argument names."""

    optional_arguments = 1
    final_argument_whitespace = True
    table: Callable[[Sequence[str]], str]

    def run(self):
        """The table as nodes."""
        try:
            return self.parse_text_to_nodes(type(self).table(" ".join(self.arguments).split()))
        except ValueError as error:
            raise self.error(f"{self.name}: {error}") from error


class AcceleratorsTable(SphinxDirective):
    """Bytes on accelerators."""

    def run(self):
        """The table as nodes."""
        return self.parse_text_to_nodes(accelerators())


def models() -> str:
    """What the reference models reach: over the seeds, mean and worst."""
    cells: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in kept("models"):
        cells.setdefault((row["task"], row["dtype"], row["data"]), []).append(row)
    heading = ("", "type", "data", "goal", "mean", "worst", "change", "refused", "seconds")
    return rows(heading, (_cell(key, cells) for key in cells))


def _cell(key: tuple[str, str, str], cells: dict[Any, list[dict[str, Any]]]) -> tuple[str, ...]:
    task, dtype, data = key
    # A share of the variance, which less is better of, beside principal components.
    less = cells[key][0]["components"] is not None
    scores = [row["score"] for row in cells[key]]
    mean = statistics.fmean(scores)
    clean = statistics.fmean(row["score"] for row in cells[task, "float32", "clean"])
    skipped, steps = (sum(row[name] for row in cells[key]) for name in ("skipped", "steps"))
    return (
        task,
        dtype,
        data,
        ("≤ " if less else "≥ ") + f"{cells[key][0]['goal']:.1%}",
        f"{mean:.2%}",
        f"{(max if less else min)(scores):.2%}",
        f"{100 * (clean - mean if less else mean - clean):+.2f}",
        f"{skipped} of {steps}",
        f"{statistics.median(row['seconds'] for row in cells[key]):.0f}",
    )


class ModelsTable(SphinxDirective):
    """What the reference models reach."""

    def run(self):
        """The table as nodes."""
        return self.parse_text_to_nodes(models())


class AccuracyTable(ResultTable):
    """Errors of ours and the peers."""

    table = staticmethod(accuracy)


class ExhaustiveTable(ResultTable):
    """The exhaustive runs."""

    table = staticmethod(exhaustive)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("accelerators-table", AcceleratorsTable)
    app.add_directive("accuracy-table", AccuracyTable)
    app.add_directive("exhaustive-table", ExhaustiveTable)
    app.add_directive("models-table", ModelsTable)
    return {"parallel_read_safe": True}
