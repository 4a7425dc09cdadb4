"""Imports point down only, and `import robustops` loads jax alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustops
from robustops import _lazy, program

PACKAGE = Path(robustops.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BOTTOM = {"_apart", "_jax", "_numerics", "_spec", "_zmul"}
# What a layer may import: layers below it (and itself), and packages besides jax.
BELOW = {
    "_jax": set(),
    "_apart": {"_jax"},
    "_numerics": {"_apart"},
    "_zmul": {"_jax"},
    "_spec": {"_apart", "_numerics", "_zmul"},
    "_accuracy": {"_spec", "numpy", "mpmath"},
    "ops": BOTTOM | {"numpy"},
    "losses": BOTTOM | {"ops", "numpy"},
    "_total": {"numpy"},
    "_contract": {"_accuracy", "_spec", "_total", "numpy"},
    "_faults": {"optax"},
    "testing": {"_accuracy", "_contract", "_faults", "_spec", "_total"},
    "optim": {"_numerics", "optax", "flax"},
    "models": {"ops", "losses", "flax"},
    "train": {
        *{"ops", "losses", "optim", "models", "program", "testing"},
        *{"numpy", "optax", "flax", "rich", "grain", "sklearn"},
        *{"matplotlib", "orbax", "tensorboardX", "tyro"},
    },
    "__main__": {"train"},
    "program": BOTTOM | {"ops", "numpy"},
    "_lazy": set(),
    "__init__": {"_lazy", "ops", "program"},
}
HEAVY = ["optax", "flax", "chex", "mpmath", "sklearn", "rich", "matplotlib", "orbax", "tyro"]
name_of = lambda file: str(file.relative_to(PACKAGE))


def imports(file: Path) -> set[str]:
    """Modules and names that a file imports anywhere, by their absolute dotted names."""
    package = ("robustops", *file.relative_to(PACKAGE).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_point_down(file):
    layer = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = BELOW[layer] | {layer, "jax"}
    for name in imports(file):
        top, *rest = name.split(".")
        if top not in sys.stdlib_module_names:
            assert (rest[0] if top == "robustops" else top) in allowed, name


def test_one_file_touches_jax_internals():
    internal = ("jax.interpreters", "jax.extend", "jax._src")
    touching = [name_of(f) for f in FILES if any(n.startswith(internal) for n in imports(f))]
    assert touching == ["_jax.py"]


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "__init__.py"], ids=name_of)
def test_init_files_only_reexport(file):
    docstring, *body = ast.parse(file.read_text()).body
    assert isinstance(docstring, ast.Expr)
    for node in body:
        if ast.unparse(node).startswith("__version__ = "):
            continue
        # What is loaded when first asked for is imported for type checkers only.
        lazy = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for line in [*node.body, *node.orelse] if lazy else [node]:
            assert isinstance(line, ast.ImportFrom), ast.unparse(line)
            assert all(a.asname in (a.name, f"_{a.name}") for a in line.names), ast.unparse(line)


def test_program_is_loaded_when_first_asked_for():
    assert set(_lazy.PROGRAM) <= set(dir(robustops))
    for name in _lazy.PROGRAM:
        assert getattr(robustops, name) is getattr(program, name)
    with pytest.raises(AttributeError, match="'robustops' has no attribute 'safe_lgo'"):
        _lazy.__getattr__("safe_lgo")


def test_import_loads_jax_only():
    lazy = [*HEAVY, "jax.extend", "robustops.program"]
    code = f"import robustops, sys; print([m for m in {lazy} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"
