"""Directives that list public names with what they do: `api-table MODULE` and `loss-table`."""

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import optax
from op_record import rows
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import robustops
from robustops import losses


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """What a module offers, in its own order; what the package has at the top is listed there."""
    for name in getattr(module, "__all__", dict.fromkeys([*vars(module), *dir(module)])):
        thing = getattr(module, name)
        if name.startswith("_") or inspect.ismodule(thing):
            continue
        listed = name in getattr(module, "__all__", ())
        ours = listed or getattr(thing, "__module__", "").startswith("robustops")
        above = module is not robustops and getattr(robustops, name, None) is thing
        if ours and not above:
            yield name, thing


def claim(thing: Any) -> str:
    """The first paragraph of a docstring, as Markdown."""
    if not callable(thing):
        return "Data; see its entry."
    text = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    # What stands between backticks is code; elsewhere a star is a product.
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`").removesuffix(":"))
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_])", r"\\\1", part) for part in parts
    )


def entry(module: str, name: str) -> str:
    """A name that leads to its entry."""
    return f"{{py:obj}}`{name} <{module}.{name}>`"


def api(module: Any) -> str:
    """One row for each public name."""
    body = ((entry(module.__name__, name), claim(thing)) for name, thing in public(module))
    return rows(("name", "what it is"), body)


def loss_table() -> str:
    """One row for each loss."""
    body = (
        (
            entry("robustops.losses", name),
            claim(fn),
            "yes" if hasattr(optax.losses, name) else "",
        )
        for name, fn in sorted(public(losses))
    )
    return rows(("loss", "what it is", "in `optax.losses`"), body)


class ApiTable(SphinxDirective):
    """The public names of the module that the argument names."""

    required_arguments = 1

    def run(self):
        """The table as nodes."""
        return self.parse_text_to_nodes(api(importlib.import_module(self.arguments[0])))


class LossTable(SphinxDirective):
    """All losses."""

    def run(self):
        """The table as nodes."""
        return self.parse_text_to_nodes(loss_table())


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_directive("api-table", ApiTable)
    app.add_directive("loss-table", LossTable)
    return {"parallel_read_safe": True}
