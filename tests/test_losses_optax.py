"""A drop-in for optax.losses: same names and signatures, and Optax's own tests pass with ours."""

import importlib.util
import inspect
import types
import unittest
from pathlib import Path

import numpy as np
import optax.losses as peer
import pytest

from robustops import losses

NAMES = sorted(n for n, v in vars(peer).items() if not n.startswith("_") and callable(v))
TESTS = ["_fenchel_young", "_ranking", "_regression", "_self_supervised", "_smoothing"]
LONG = ["_classification", "_segmentation"]


@pytest.mark.parametrize("name", NAMES)
def test_signature(name):
    """The same parameters in the same order, of the same kind, with the same defaults."""
    ours, theirs = (inspect.signature(getattr(m, name)) for m in (losses, peer))
    assert list(ours.parameters) == list(theirs.parameters)
    for mine, other in zip(ours.parameters.values(), theirs.parameters.values(), strict=True):
        assert (mine.kind, mine.default) == (other.kind, other.default), mine


class _Seeded(unittest.TestResult):
    """Some of Optax's tests draw their input (once in 32 times an empty mask) from numpy."""

    def startTest(self, test):
        np.random.seed(0)  # noqa: NPY002
        super().startTest(test)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "name", [*TESTS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_optax_tests_pass_with_ours(name, monkeypatch):
    """Their file is loaded with modules that hold nothing but robustops.losses."""
    file = Path(peer.__file__).with_name(f"{name}_test.py")
    if not file.exists():
        pytest.skip(f"this optax came without its tests, {file.name}")
    for private in [*TESTS, *LONG]:
        ours = types.ModuleType(private)
        vars(ours).update((n, getattr(losses, n)) for n in NAMES)
        monkeypatch.setattr(peer, private, ours)
    spec = importlib.util.spec_from_file_location(f"robustops{name}_test", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = _Seeded()
    unittest.defaultTestLoader.loadTestsFromModule(module).run(result)
    assert result.testsRun > 0
    assert not result.skipped
    failed = [f"{test}\n{trace}" for test, trace in result.failures + result.errors]
    assert not failed, "\n".join(failed)
