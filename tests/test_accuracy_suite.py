"""The accuracy benchmark: its rows, its references, the kept exhaustive runs, its command line."""

import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("mpmath")
pytest.importorskip("rich")

import mpmath

from benchmarks import __main__ as command
from benchmarks._losses import LOSSES, cases
from benchmarks._peers import PEERS, Peer, load
from benchmarks._rows import read_rows
from benchmarks.accuracy import _exhaustive as exhaustive
from benchmarks.accuracy import _measure, run, summary, verify, verify_exhaustive
from benchmarks.accuracy._report import exhaustive_sentence, sentence
from robustops._accuracy import _representable, errors, true_values, truth_at
from robustops._spec import OPS
from robustops.testing import Op, ulp_distance

CHOSEN = ["sigmoid", "safe_div", "softmax", "log_cosh"]


@pytest.fixture(scope="module")
def rows():
    return run(CHOSEN, ["float32"], load(["jax", "optax"])[0], samples=60)


def test_rows_are_plain_and_complete(rows):
    verify(rows, CHOSEN, ["float32"])
    assert json.loads(json.dumps(rows, allow_nan=False)) == json.loads(json.dumps(rows))
    libraries = {(row["op"], row["library"]) for row in rows}
    assert libraries == {
        *((op, library) for op in CHOSEN for library in ("robustops", "naive")),
        *((op, "jax") for op in ("sigmoid", "safe_div", "softmax")),
        ("log_cosh", "optax"),
    }
    for row in rows:
        assert row["error"] is None
        assert 20 <= row["compared"] <= row["samples"] == 60
        for kind in ("value", "derivative"):
            found = [row[f"{kind}_{key}"] for key in ("max", "p999", "median")]
            assert found == sorted(found, reverse=True)
            assert row[f"{kind}_failed"] >= 0


def test_known_faults_of_others_are_found(rows):
    """The derivative of sigmoid is 0 above 17; the naive one and log cosh overflow."""
    by = {(row["op"], row["library"]): row for row in rows}
    assert by["sigmoid", "jax"]["derivative_max"] > 1e6
    assert by["sigmoid", "robustops"]["derivative_max"] < 8
    assert by["log_cosh", "naive"]["value_failed"] > 0
    assert by["log_cosh", "optax"]["value_max"] > 1e5


def test_same_seed_same_rows(rows):
    again = run(["sigmoid"], ["float32"], load(["jax"])[0], samples=60)
    assert again == [row for row in rows if row["op"] == "sigmoid"]


def test_a_value_that_rounds_to_the_largest_number_is_not_compared():
    # 65502.6, 65483.7 and 65469.9; the largest numbers of float16 are 65472 and 65504.
    pairs = [np.array(a, np.float16) for a in ([47936, 46304, 47936], [44640, 46304, 44592])]
    truth = truth_at(OPS["safe_hypot"], jnp.float16, pairs)
    assert truth.compared.tolist() == [False, True, True]
    for dtype in (jnp.float32, jnp.float64):
        info = np.finfo(dtype)
        with mpmath.workprec(200):
            top, ulp = mpmath.mpf(float(info.max)), mpmath.mpf(2) ** (info.maxexp - 1 - info.nmant)
            values = np.array([[top - ulp * share] for share in (0, 0.49, 0.51)], dtype=object)
        assert _representable(values, dtype, saturated=False).ravel().tolist() == [
            False,
            False,
            True,
        ]


def test_a_dtype_that_holds_none_of_the_true_values_is_no_fault():
    name = "softmax_cross_entropy(margin)"
    found = run([name], ["float16"], [], samples=20)
    assert found[0]["compared"] == 0
    verify(found, [name], ["float16"])
    with pytest.raises(AssertionError, match="no value of 3 points was compared"):
        verify([found[0] | {"compared": 3}], [name], ["float16"])


def test_verify_refuses_missing_and_wrong_rows(rows):
    with pytest.raises(AssertionError, match="rows missing"):
        verify(rows[1:], CHOSEN, ["float32"])
    for change, message in [
        ({"value_max": 4.5}, "sigmoid float32: value 4.5 ulp off at"),
        ({"derivative_failed": 1}, "sigmoid float32: derivative not finite at"),
    ]:
        bad = [row | change if row["op"] == "sigmoid" else row for row in rows]
        with pytest.raises(AssertionError, match=message):
            verify(bad, CHOSEN, ["float32"])


def test_sentence_has_the_figures(rows):
    said, total = sentence(rows), summary(rows)
    assert said.startswith("On 4 ops and losses in float32 on ")
    ours = total["robustops"]
    assert f"robustops is off by up to {ours['value_max']:.3g} ulp" in said
    assert f"not finite at 0 of {ours['compared']:,} points" in said
    assert total["jax"]["ops"] == 3


def test_a_library_that_refuses_is_a_row():
    def refuses(x):
        raise TypeError("no float32 here")

    found = run(["sigmoid"], ["float32"], [Peer("other", {"sigmoid": refuses})], samples=30)
    assert found[-1]["library"] == "other"
    assert found[-1]["error"] == "TypeError: no float32 here"
    assert found[-1]["value_max"] is None
    assert "other" not in summary(found)


def test_a_wrong_op_is_found():
    """Off by 40 ulp at one place, NaN at another: neither passes."""
    op = OPS["sigmoid"]
    truth = true_values(op, jnp.float32, samples=50, seed=3)
    values = np.asarray([float(v) for v in truth.values[:, 0]], np.float32)
    good, _ = errors(truth, jnp.float32, values, [])
    assert np.nanmax(good) <= 0.5
    near = int(np.nanargmax(np.where(truth.compared, values, -1)))
    values[near] += 40 * np.spacing(values[near])
    assert 39 <= errors(truth, jnp.float32, values, [])[0][near] <= 41
    values[near] = math.nan
    assert errors(truth, jnp.float32, values, [])[0][near] == math.inf


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in OPS])
def test_losses_hold_the_ulps_of_their_cases(name):
    """The ops' are held by their contract test."""
    verify(run([name], ["float32"], [], samples=40), [name], ["float32"])


def test_missing_peers_are_told(monkeypatch):
    def absent():
        raise ImportError("No module named 'torch'")

    monkeypatch.setitem(PEERS, "torch", absent)
    found, missing = load(["jax", "torch"])
    assert [peer.name for peer in found] == ["jax"]
    assert missing == [
        "torch is left out: No module named 'torch'; run `pip install -e '.[peers]'` in the "
        "checkout"
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what a peer calls is its own affair
@pytest.mark.parametrize("name", PEERS)
def test_peers_that_are_installed_give_what_ours_give(name):
    """Each function is the one meant, with arguments in our order."""
    found, missing = load([name])
    if missing:
        pytest.skip(missing[0])
    (peer,) = found
    rng = np.random.default_rng(0)
    known = cases()
    assert peer.functions
    for key, fn in peer.functions.items():
        if "masked" in key:
            continue  # Optax gives NaN there
        op = known[key]
        shape = (2, 4) if op.reduces else (2,)
        args = [
            (rng.uniform(0.3, 0.7, shape) + (lo == 1)).astype(np.float32) for lo, _ in op.domain
        ]
        axis = {"axis": -1} if op.reduces else {}
        want = op.fn(*args, **axis)
        if peer.evaluate is _measure.evaluate:  # jax's own derivatives
            values = fn(*map(jnp.asarray, args), **axis)
        else:
            values, jacobians = peer.evaluate(_measure.rowwise(op, fn), args)
            _, slopes = _measure.evaluate(_measure.rowwise(op), args)
            for got, slope in zip(jacobians, slopes, strict=False):
                np.testing.assert_allclose(got, slope, rtol=2e-3, atol=1e-5, err_msg=key)
        np.testing.assert_allclose(values, want, rtol=2e-4, atol=1e-6, err_msg=key)


def ulps(got, want):
    arrays = jnp.asarray(got, jnp.float32), jnp.asarray(want, jnp.float64)
    found, _ = exhaustive._ulps(*arrays, 0.0, jnp.ones(len(got), bool))
    return np.asarray(found)


def test_ulps_of_arrays_are_ulp_distance():
    rng = np.random.default_rng(0)
    want = rng.normal(size=300) * 2.0 ** rng.integers(-100, 100, 300)
    got = np.float32(want * (1 + rng.normal(size=300) * 1e-6))
    with jax.enable_x64(True):
        np.testing.assert_allclose(ulps(got, want), ulp_distance(got, want), rtol=1e-6)
        assert ulps([math.nan], [1.0])[0] == math.inf
        assert ulps([0.0], [1e-38])[0] == 0  # flushed
        assert ulps([0.0], [1e39])[0] == 0  # not representable
        assert np.isnan(ulps([0.0], [math.nan])[0])


# Chunks of 2^20 about 1, about -1, and the first of the NaNs.
CHUNKS = [range(1016, 1018), range(3064, 3065), range(2041, 2042)]


def small(tmp_path, name, chunks=CHUNKS[0], **options):
    return exhaustive.run_exhaustive([name], state=tmp_path / "state", chunks=chunks, **options)


def test_exhaustive_rows(tmp_path):
    found = [small(tmp_path, "safe_log", chunks)[0] for chunks in CHUNKS]
    verify_exhaustive(found)
    for chunks, row in zip(CHUNKS, found, strict=True):
        assert json.loads(json.dumps(row, allow_nan=False)) == row
        assert row["inputs"] == len(chunks) * 2**20
        assert row["compared"] == (row["inputs"] if chunks is CHUNKS[0] else 0)
        assert row["finite_inputs"] == (0 if chunks is CHUNKS[2] else row["inputs"])
    assert "1 ops were tried on 1,048,576 float32 inputs" in exhaustive_sentence(found[2:])


def test_exhaustive_finds_faults(tmp_path, monkeypatch):
    """jnp.log itself: not finite at 0 and below, right above."""
    naive = Op(
        jnp.log, naive=jnp.log, reference=lambda mp, x: mp.log(x), domain=[(0, math.inf)],
        edges=[], ulps=(0.5, 8), hint="",
    )  # fmt: skip
    monkeypatch.setattr(exhaustive, "OPS", {"log": naive})
    (row,) = small(tmp_path, "log", CHUNKS[1])
    assert row["nonfinite_values"] == 2**20
    with pytest.raises(AssertionError, match="log: 1048576 values not finite at a finite input"):
        verify_exhaustive([row])
    (row,) = small(tmp_path, "log")
    with pytest.raises(AssertionError, match=r"log: value [\d.]+ ulp off at "):
        verify_exhaustive([row])


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(exhaustive, "SAVE_SECONDS", -1)
    (whole,) = small(tmp_path, "safe_log")

    counts = []

    def stop(what, count):
        counts.append(count)
        if counts == [0, 1, 1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, "safe_log", advance=stop)
    left = json.loads((tmp_path / "state").read_text())
    assert left["next"] == CHUNKS[0].start + 1
    assert left["compared"] == 2**20
    (row,) = small(tmp_path, "safe_log")
    same = set(whole) - {"seconds"}
    assert {key: row[key] for key in same} == {key: whole[key] for key in same}
    assert not (tmp_path / "state").exists()


def test_an_inaccurate_reference_is_refused(monkeypatch):
    monkeypatch.setitem(exhaustive.FLOAT64, "log_cosh", lambda x: jnp.log(jnp.cosh(x)))
    with jax.enable_x64(True), pytest.raises(ValueError, match="log_cosh: its float64 reference"):
        exhaustive.reference_error(OPS["log_cosh"], samples=60)


def test_kept_results_are_replaced_by_op(tmp_path):
    path = tmp_path / "kept.json"
    exhaustive.keep([{"op": "b", "v": 1}, {"op": "a", "v": 1}], path)
    exhaustive.keep([{"op": "b", "v": 2}], path)
    assert exhaustive.kept_rows(path) == [{"op": "a", "v": 1}, {"op": "b", "v": 2}]


def test_kept_exhaustive_runs_hold():
    kept = exhaustive.kept_rows()
    assert len(kept) >= 10
    verify_exhaustive(kept)
    for row in kept:
        assert row["inputs"] == 2**32
        assert row["finite_inputs"] == 2**32 - 2**24
        assert row["reference_ulps"] <= exhaustive.TRUSTED
        assert row["claimed_ulps"] == list(OPS[row["op"]].ulps), row["op"]


def test_kept_exhaustive_runs_are_of_these_programs():
    """A changed op makes its row stale; `python -m benchmarks accuracy --exhaustive --ops NAME`."""
    kept = [row for row in exhaustive.kept_rows() if row["jax"] == jax.__version__]
    if not kept:
        pytest.skip("the kept runs were made with another jax, whose programs read differently")
    assert [row["op"] for row in kept if not exhaustive.is_current(row)] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--ops", "nonsense"], "unknown op 'nonsense'; choose from: sigmoid_binary_cross"),
        (["--dtypes", "int8"], "unknown dtype 'int8'; choose from: float32, bfloat16"),
        (["--peers", "numpy"], "unknown peer 'numpy'; choose from: jax, optax, scipy"),
        (["--quick", "--full"], "not allowed with argument"),
        (["--exhaustive", "--ops", "softmax"], "unknown op of one argument 'softmax'"),
    ],
)
def test_command_refuses_bad_input(argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["accuracy", *argv])
    assert message in capsys.readouterr().err


def test_command_prints_and_writes(tmp_path, capsys):
    file = tmp_path / "new" / "rows.json"
    argv = ["accuracy", "--quick", "--ops", "safe_sqrt", "--peers", "jax", "--json", str(file)]
    assert command.main(argv) == 0
    printed = " ".join(capsys.readouterr().out.split())
    rows = read_rows(file)
    assert sentence(rows) in printed
    assert re.search(r"3 rows in \d+ s", printed)
    assert command.main(["accuracy", "--list"]) == 0
    assert "softmax" in capsys.readouterr().out
