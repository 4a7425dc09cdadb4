"""The speed benchmark: its rows, what it times, its command line. No test asserts a time."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("rich")

from benchmarks import __main__ as command
from benchmarks._losses import LABELS, OF, cases
from benchmarks._peers import Peer, compiled, load
from benchmarks._rows import read_rows
from benchmarks.report import page
from benchmarks.speed import _cli, _measure, run, summary, verify
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


def test_summary_leaves_out_the_sizes_of_the_scaling():
    rows = [
        *(
            made(op, library, 2 if library == "robustops" else 1)
            for op in "ab"
            for library in MEASURED
        ),
        *(made("a", library, 9) | {"elements": 1000} for library in MEASURED),
        *(made("a", library, 8) | {"dtype": "bfloat16", "elements": 4} for library in MEASURED),
    ]
    of = summary(rows)["naive", "value"]
    assert (of["cases"], of["worst_op"]) == (3, "a float32")
    assert of["mean"] == pytest.approx((2 * 2 * 1) ** (1 / 3))
    assert "1 elements of float32, 4 elements of bfloat16, medians of 1 " in sentence(rows)


def test_full_times_the_second_dtype_beside_the_naive_form_and_some_ops_at_all_sizes(monkeypatch):
    asked = []

    def note(ops, dtypes, peers, *, elements, **_):
        asked.append((ops, dtypes, [peer.name for peer in peers], elements))
        return []

    for name, stub in (("run", note), ("conclude", lambda *_: 0), ("sentence", str)):
        monkeypatch.setattr(_cli, name, stub)
    _cli.main(["--full", "--ops", "safe_log", "safe_div", "--peers", "jax"])
    both = ["safe_log", "safe_div"]
    assert asked == [
        (both, ["float32"], ["jax"], [2**24]),
        (both, ["bfloat16"], [], [2**22]),
        (["safe_log"], ["float32"], ["jax"], list(_measure.SCALING)),
    ]


def test_every_call_follows_a_copy_that_is_not_timed():
    made = []
    calls = [lambda k=k: made.append(k) for k in range(4)]
    found = _measure._interleaved(lambda: made.append("copy"), calls, 6)
    assert [len(ratios) for ratios, _ in found] == [6] * 4
    turns = [made[i : i + 3] for i in range(0, len(made), 3)]
    assert all(turn[:2] == ["copy"] * 2 for turn in turns)
    rounds = [tuple(turn[2] for turn in turns[i : i + 4]) for i in range(0, len(turns), 4)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
    assert len(set(rounds)) > 1  # none always follows the same neighbour


@pytest.mark.parametrize("name", cases())
def test_inputs_lie_inside_the_domain(name):
    op = cases()[name]
    arrays = _measure.inputs(op, jnp.float32, 256)
    for x, (lo, hi) in zip(arrays, op.domain, strict=True):
        assert x.size == 256
        assert ((x > lo) & (x < hi)).all()
        assert np.ptp(x) > 0.5


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_arguments_and_have_no_gradient(name):
    """As in a training step: by the logits alone, of labels that the program does not know."""
    op = cases()[name]
    (x,) = _measure.inputs(op, jnp.float32, 256)
    labels = _measure.labels_of(op, x)
    assert len(np.unique(labels[0])) > 1
    both = compiled(op.fn, [x], labels)[1]
    assert both is not None
    value, gradients = both()
    assert [g.shape for g in gradients] == [x.shape]
    np.testing.assert_allclose(value, np.sum(op.fn(x, *labels)), rtol=1e-5)
    assert abs(value - np.sum(op.fn(x))) > 0.1  # the default labels are others
    np.testing.assert_allclose(op.naive(x, *labels), op.fn(x, *labels), rtol=1e-3, atol=1e-5)
    if hasattr(optax.losses, name.split("(")[0]):
        theirs = OF[name](optax.losses)(x, *map(jnp.asarray, labels))
        np.testing.assert_allclose(op.fn(x, *labels), theirs, rtol=1e-4, atol=1e-6)


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
