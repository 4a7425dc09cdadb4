"""Sphinx configuration: `sphinx-build -W -b html docs docs/_build`, without network access."""

import ast
import inspect
import sys
import textwrap
from pathlib import Path

import robustops

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "robustops"
author = "the robustops authors"
copyright = "the robustops authors"
version = release = robustops.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_parser",
    "api",
    "op_record",
    "results",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
nitpicky = False

# Docstrings: Google style, single backticks are code, and types only in the source.
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Reference", "References")]

myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_title = f"robustops {version}"
html_show_sphinx = False
html_copy_source = False


def _escape_bars(app, what, name, obj, options, lines):
    """|x| in a docstring is a magnitude, not a reStructuredText substitution."""
    lines[:] = [
        "`".join(part if i % 2 else part.replace("|", r"\|") for i, part in enumerate(s.split("`")))
        for s in lines
    ]


def _signature_of_init(app, what, name, obj, options, shown, returns):
    """The metaclass of `nnx.Module` hides the signature of `__init__`."""
    if what == "class" and shown == "(*args, **kwargs)":
        source = textwrap.dedent(inspect.getsource(obj.__init__))
        arguments = ast.parse(source).body[0].args
        arguments.args.pop(0)  # self
        for node in ast.walk(arguments):
            if isinstance(node, ast.arg):
                node.annotation = None
        shown = f"({ast.unparse(arguments)})"
    return shown, returns


def setup(app):
    """Registers the hooks."""
    app.connect("autodoc-process-signature", _signature_of_init)
    app.connect("autodoc-process-docstring", _escape_bars)
