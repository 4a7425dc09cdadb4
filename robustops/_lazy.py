"""Names of `robustops.program`, which is loaded when one is first asked for.

The package imports this module's `__getattr__` and `__dir__` as its own. Loading the program tools
with it would take as long as loading the ops.
"""

import sys
from importlib import import_module
from typing import Any

PACKAGE = __name__.rpartition(".")[0]
PROGRAM = ("Range", "certify", "check_finite", "diagnose", "robustify")


def __getattr__(name: str) -> Any:
    if name in PROGRAM:
        return getattr(import_module(f"{PACKAGE}.program"), name)
    raise AttributeError(f"module {PACKAGE!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*vars(sys.modules[PACKAGE]), *PROGRAM})
