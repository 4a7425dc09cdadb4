"""Directives that print the op record: `op-table` (all ops) and `op` (one with its edges)."""

import inspect
import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from robustops._spec import OPS, Op

EXTENSIONS = ("floor", "fill", "extend")


def number(v: float) -> str:
    """A number in a few digits."""
    if math.isinf(v):
        return "∞" if v > 0 else "-∞"
    return f"{v:.4g}"


def entry(v: Any) -> str:
    """An entry of an edge row in float32: a number, a list, or a function of `finfo`."""
    if v is None:
        return "not defined"
    if callable(v):
        v = v(jnp.finfo(jnp.float32))
    if isinstance(v, list):
        return f"[{', '.join(map(entry, v))}]"
    return number(v)


def entries(vs: Any) -> str:
    """Several arguments, or the derivatives by them."""
    return ", ".join(map(entry, vs)) if isinstance(vs, tuple) else entry(vs)


def interval(lo: float, hi: float) -> str:
    """An open interval."""
    return f"({number(lo)}, {number(hi)})"


def rows(heading: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *body]
    cells = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def table() -> str:
    """One row for each registered op."""
    heading = ("op", "domain", "outside", "ulps", "in place of", "cost beyond the naive form")
    return rows(heading, (_facts(op) for op in OPS.values()))


def _facts(op: Op) -> tuple[str, ...]:
    return (
        f"[`{op.name}`](#robustops.{op.name})",
        " × ".join(interval(*bounds) for bounds in op.domain),
        "; ".join([*_constants(op), *_choices(op)]),
        f"{op.ulps[0]} / {op.ulps[1]}" + (r" \*" if op.conditioning else ""),
        f"`{op.replaces}`" if op.replaces else "",
        op.cost,
    )


def _constants(op: Op) -> Iterable[str]:
    """The value beyond each end of the domain, in float32."""
    if len(op.domain) > 1 or op.reduces:
        return
    for sign, end in zip("≤≥", op.domain[0], strict=True):
        if math.isfinite(end):
            yield f"{number(float(op.fn(jnp.float32(end))))} for x {sign} {number(end)}"


def _choices(op: Op) -> Iterable[str]:
    """The options that set another extension."""
    return (f"`{name}=`" for name in inspect.signature(op.fn).parameters if name in EXTENSIONS)


def edges(op: Op) -> str:
    """The points that define an op."""
    names = ", ".join(list(inspect.signature(op.fn).parameters)[: len(op.domain)])
    heading = (names, "value", "derivative" + ("s" if len(op.domain) > 1 or op.reduces else ""))
    return rows(heading, (tuple(map(entries, edge)) for edge in op.edges))


class OpTable(SphinxDirective):
    """All ops."""

    def run(self):
        """The table as nodes."""
        return self.parse_text_to_nodes(table())


class OpEntry(SphinxDirective):
    """Signature, docstring, hint and edges of the op that the argument names."""

    required_arguments = 1

    def run(self):
        """The entry as nodes."""
        name = self.arguments[0]
        if name not in OPS:
            raise self.error(f"op: {name!r} is not registered; known: {', '.join(OPS)}")
        entry = f"```{{eval-rst}}\n.. autofunction:: robustops.{name}\n```"
        return self.parse_text_to_nodes(
            f"{entry}\n\n*Hint*: {OPS[name].hint}\n\n{edges(OPS[name])}\n"
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("op-table", OpTable)
    app.add_directive("op", OpEntry)
    return {"parallel_read_safe": True}
