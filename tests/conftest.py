"""Eight virtual CPU devices, before jax is imported, so that sharding is real in every test."""

import gc
import importlib.util
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

import jax
import pytest

# Every full collection walks all jaxprs that jax keeps: a tenth of the time at Python's default.
gc.set_threshold(50_000, 20, 50)


HERE = Path(__file__).parent


def named_in(file: str) -> set[str]:
    """The tests, without their cases, that a file beside this one names."""
    return {x for x in (HERE / file).read_text().splitlines() if not x.startswith("#")}


def sample(items: list[pytest.Item]) -> list[pytest.Item]:
    """Cases in which each value of each parameter occurs; every fourth of a single parameter."""
    indices = [getattr(item, "callspec").indices for item in items]  # noqa: B009, pytest's own
    axes = {tuple(index[name] for index in indices) for name in indices[0]}
    if len(axes) == 1:
        return items[1::4]
    seen: list[set[int]] = [set() for _ in axes]
    kept = []
    for item, values in zip(items, zip(*axes, strict=True), strict=True):
        if any(value not in known for value, known in zip(values, seen, strict=True)):
            kept.append(item)
            for value, known in zip(values, seen, strict=True):
                known.add(value)
    return kept


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Marks by `long.txt` and `sampled.txt`; a test named there that is gone is an error."""
    long, sampled = named_in("long.txt"), named_in("sampled.txt")
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.split("[")[0], [])
        if not item.get_closest_marker("slow"):
            cases[item.nodeid.split("[")[0]].append(item)
    one_asked_for = any("[" in argument for argument in config.args)
    for name, group in cases.items():
        if name in sampled and not one_asked_for:
            kept = sample(group)
            for item in group:
                if item not in kept:
                    item.add_marker(pytest.mark.slow)
            group = kept
        for item in group if name in long else ():
            item.add_marker(pytest.mark.long)
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not cases.keys() >= (
        named := long | sampled
    ):
        raise pytest.UsageError(f"named in long.txt or sampled.txt: {sorted(named - cases.keys())}")


@pytest.fixture
def x64():
    """Run the test with float64 available."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["eager", "cond", "select"])
def run(request, monkeypatch):
    """Compiles a function in each form that the decision can take, or leaves it eager."""
    if request.param == "select":
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *, cpu, default: default())
    return (lambda f: f) if request.param == "eager" else jax.jit


def failure_cases(name):
    """A module of real failures kept beside the project; absent from a bare checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "cases" / f"{name}.py"
    if not path.exists():
        pytest.skip(f"needs the folder of failure cases, {path.parent}, which is not here")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where `inspect` looks for it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own: an open file left to the garbage collector
        spec.loader.exec_module(module)
        gc.collect()
    return module


@pytest.fixture(scope="session")
def issue_cases():
    """Failures from bug threads, by name."""
    return {case.id: case for case in failure_cases("issue_cases").CASES}


@pytest.fixture(scope="session")
def program_cases():
    """The module of programs in which the line of the bug is marked."""
    return failure_cases("program_cases")
