"""The speed benchmark: its rows, what it times, its command line. No test asserts a time."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("rich")

from benchmarks import __main__ as command
from benchmarks._losses import cases
from benchmarks._peers import Peer, load
from benchmarks._rows import read_rows
from benchmarks.report import page
from benchmarks.speed import _measure, run, summary, verify
from benchmarks.speed._report import sentence
from robustops._spec import OPS

CHOSEN = ["safe_log", "logsumexp"]
OVERHEAD = ("eager", "trace", "compile")
MEASURED = ("robustops", "naive")
"""Those whose overhead is measured."""


@pytest.fixture(scope="module")
def rows():
    return run(CHOSEN, peers=load(["jax", "optax"])[0], elements=1024, rounds=3)


def test_rows_are_plain_and_complete(rows):
    verify(rows, CHOSEN)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    libraries = {"safe_log": {"robustops", "naive", "double where", "jax"}}
    libraries["logsumexp"] = {"robustops", "naive", "jax"}
    timed = {(row["op"], row["library"], row["mode"]) for row in rows}
    assert timed == {
        (op, library, mode)
        for op, known in libraries.items()
        for library in known
        for mode in ("value", "gradient", *(OVERHEAD if library in MEASURED else ()))
    }
    for row in rows:
        assert row["elements"] == 1024
        assert row["rounds"] == 3
        assert row["seconds"] > 0


def test_verify_refuses_missing_rows(rows):
    with pytest.raises(AssertionError, match=r"rows missing: .*'safe_log', 'float32', 'robustops'"):
        verify([row for row in rows if row["op"] != "safe_log"], CHOSEN)
    with pytest.raises(AssertionError, match="ratio"):
        verify([row | {"ratio": 0.0} for row in rows], CHOSEN)


def made(op, library, ratio):
    row = {"op": op, "dtype": "float32", "mode": "value", "library": library, "error": None}
    return row | {"ratio": ratio, "device": "cpu", "elements": 1, "rounds": 1}


def test_summary_is_a_geometric_mean_over_the_cases():
    rows = [
        *(made("a", library, r) for library, r in [("robustops", 2), ("naive", 1), ("jax", 4)]),
        *(made("b", library, r) for library, r in [("robustops", 8), ("naive", 1), ("torch", 4)]),
        made("a", "torch", 1.0),
    ]
    found = summary(rows)
    assert found["naive", "value"] == {
        "cases": 2, "mean": pytest.approx(4), "worst": 8, "worst_op": "b float32",
    }  # fmt: skip
    assert found["jax", "value"]["mean"] == 0.5
    assert found["fastest peer", "value"]["mean"] == pytest.approx(2)  # 2 / 1 and 8 / 4
    assert "robustops takes 4.00x naive (value, 2 cases, at most 8.00x: b float32)" in sentence(
        rows
    )


@pytest.mark.parametrize("name", cases())
def test_inputs_lie_inside_the_domain(name):
    op = cases()[name]
    arrays = _measure.inputs(op, jnp.float32, 256)
    for x, (lo, hi) in zip(arrays, op.domain, strict=True):
        assert x.size == 256
        assert ((x > lo) & (x < hi)).all()
        assert np.ptp(x) > 0.5


def test_double_where_is_the_naive_form_inside_and_finite_outside():
    guarded = _measure.double_where(OPS["safe_log"])
    assert guarded is not None
    np.testing.assert_array_equal(guarded(jnp.asarray([1.0, 0.0, -1.0, np.e])), [0, 0, 0, 1])
    div = _measure.double_where(OPS["safe_div"])
    assert div is not None
    np.testing.assert_array_equal(div(jnp.asarray([1.0, 1.0]), jnp.asarray([2.0, 0.0])), [0.5, 0])
    assert _measure.double_where(OPS["sigmoid"]) is None
    assert _measure.double_where(OPS["logsumexp"]) is None


def test_a_library_that_refuses_is_a_row():
    def refuses(x):
        raise TypeError("no float32 here")

    found = run(["sigmoid"], peers=[Peer("other", {"sigmoid": refuses})], elements=256, rounds=1)
    assert [row["error"] for row in found[-2:]] == ["TypeError: no float32 here"] * 2
    verify(found, ["sigmoid"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ops", "nonsense"], "unknown op 'nonsense'; choose from: "),
        (["--dtypes", "float64"], "unknown dtype 'float64'; choose from: float32, bfloat16"),
        (["--peers", "numpy"], "unknown peer 'numpy'; choose from: jax, optax, scipy"),
        (
            ["--peers", "jax", "--elements", "3"],
            "elements must be >= 128 and rounds >= 1, got [3] and 15",
        ),
    ],
)
def test_command_refuses_bad_input(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["speed", *argv])
    assert message in capsys.readouterr().err


def test_command_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "rows.json"
    argv = "--elements 512 --rounds 2 --ops safe_sqrt --peers jax --dtypes float32 bfloat16"
    assert command.main(["speed", *argv.split(), "--json", str(file)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    rows = read_rows(file)
    assert sentence(rows) in printed
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16"}


def test_rows_carry_the_stamp_and_become_a_page(rows):
    for row in rows:
        assert {"suite", "device", "machine", "versions", "error"} <= set(row)
    assert page(rows, "").count("<section") == 2
