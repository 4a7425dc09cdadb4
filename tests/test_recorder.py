"""The flight recorder: what a refused step leaves behind, and what replay makes of it."""

import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from robustops import losses, optim
from robustops.__main__ import main
from robustops.models import Classifier
from robustops.testing import inject_fault
from robustops.train import FlightRecorder, fit, load_record, replay
from robustops.train._devices import Placement
from robustops.train._record import spell, unspell
from robustops.train._run import Run
from robustops.train._source import Batch
from robustops.train._step import TrainState
from robustops.train._steps import Steps

CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels
BUILD = functools.partial(Classifier, features=4, hidden=(8,), classes=3, activation=nnx.tanh)


class Noisy(nnx.Module):
    """A user's model: dropout, BatchNorm, and a logarithm that fails at 0."""

    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.drop(self.norm(jnp.log(x))))


def naive_cross_entropy(logits, labels):
    return -jnp.log(jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], 1))[:, 0]


def data():
    rng = np.random.default_rng(0)
    return rng.uniform(1, 2, (20, 4)).astype(np.float32), rng.integers(0, 3, 20)


def run(recorder, x, y, model: Any = None, loss: Any = CROSS_ENTROPY, tx=None, **options):
    model = BUILD(rngs=nnx.Rngs(5)) if model is None else model
    options = {"epochs": 2, "batch_size": 5, "nonfinite": "keep", "progress": False, **options}
    history = fit(model, tx or optax.adam(0.01), (x, y), loss, recorder=recorder, **options)
    return model, history


def only(directory):
    (file,) = directory.iterdir()
    return file


def test_good_steps_leave_nothing(tmp_path):
    run(tmp_path / "flight", *data())
    assert not (tmp_path / "flight").exists()


def test_record_holds_what_made_the_step(tmp_path):
    """Parameters, optimizer state, module state and random key as a run has them that is stopped
    right before the step, and its batch with the numbers of its rows."""
    x, y = data()
    row = np.random.default_rng((0, 0)).permutation(20)[12]  # in the third batch
    x[row] = 0.0  # log(0)
    _, history = run(FlightRecorder(tmp_path, max_files=1), x, y, Noisy(nnx.Rngs(5)))
    assert history.skipped.tolist() == [1, 1]
    record: Any = load_record(only(tmp_path))
    assert record.file.name == f"refused_{record.step:08d}.npz"
    assert (record.step, record.epoch) == (3, 1)
    assert row in record.rows
    np.testing.assert_array_equal(record.arrays["inputs"], x[record.rows])
    np.testing.assert_array_equal(record.arrays["targets"], y[record.rows])
    again, _ = run(None, x, y, Noisy(nnx.Rngs(5)), epochs=None, steps=record.step - 1)
    for name, value in {
        "params.layer.kernel": again.layer.kernel,
        "rest.norm.mean": again.norm.mean,
        "rest.drop.rngs.count": again.drop.rngs.count,
    }.items():
        np.testing.assert_array_equal(record.arrays[name], value[...])
    key = jax.random.key_data(again.drop.rngs.key[...])
    np.testing.assert_array_equal(record.arrays["rest.drop.rngs.key"], key)
    assert int(record.arrays["opt_state.inner_state.0.count"]) == record.step - 1


def test_an_error_of_the_data_loses_no_record(tmp_path):
    x, y = data()

    def batches():
        yield x, y
        yield x * np.nan, y
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        fit(BUILD(rngs=nnx.Rngs(5)), optax.sgd(0.1), batches(), CROSS_ENTROPY, epochs=1,
            progress=False, recorder=tmp_path)  # fmt: skip
    assert load_record(only(tmp_path)).step == 2


HELD = {
    "guard": lambda: optax.adam(0.01),
    "float16 scale": lambda: optim.dynamic_loss_scale(optim.guard(optax.adam(0.01))),
    "micro-gradients": lambda: optim.guard(optax.MultiSteps(optax.adam(0.01), 2)),
    "rollback": lambda: optim.rollback(optim.guard(optax.adam(0.01)), patience=2),
    "chain": lambda: optax.chain(optim.clip_by_zscore(), optim.skip_nonfinite(optax.sgd(0.01))),
}


@pytest.mark.parametrize(("name", "batch_size"), [*((name, 5) for name in HELD), ("guard", 1)])
def test_recording_changes_nothing(name, batch_size, tmp_path):
    """Refused one by one, in a row, first and last, one held or many: the same run bit for bit."""
    x, y = data()
    shuffled = [np.random.default_rng((0, epoch)).permutation(20) for epoch in range(2)]
    x[[shuffled[0][0], shuffled[0][12], shuffled[0][17], shuffled[1][19]]] = 0.0  # log(0)
    states = []
    for recorder in (None, FlightRecorder(tmp_path, max_files=100)):
        options = {"epochs": 3, "batch_size": batch_size}
        model, history = run(recorder, x, y, Noisy(nnx.Rngs(5)), tx=HELD[name](), **options)
        state = (nnx.state(model, nnx.Not(nnx.RngKey)), history.opt_state)
        states.append((jax.tree.leaves(state), history))
    (plain, history), (recorded, again) = states
    for one, other in zip(plain, recorded, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    np.testing.assert_array_equal(history.loss, again.loss)
    assert history.skipped.tolist() == again.skipped.tolist()
    assert len(list(tmp_path.iterdir())) == history.skipped.sum() >= 6


def test_steps_are_launched_before_the_last_ones_are_read(tmp_path):
    """What was done, in order, for eight steps of which the sixth is refused: one is read for one,
    two and then four of them."""
    done = []

    class Told:
        def __init__(self, name, taken):
            self.name, self.taken = name, taken

        def __array__(self, dtype=None, copy=None):
            done.append(f"read {self.name}")
            return np.array([0.0, 0.0, self.taken, 0.0, 1.0])

    class Written(FlightRecorder):
        def write(self, state, batch, metrics, loss, epoch, step):
            done.append(f"write {step}")

    def step(leaves, x, y, go):
        done.append(f"{'launch' if go else 'hold'} {x}")
        return leaves, Told(x, bool(go and x != 6)), bool(go and x != 6)

    run = Run(TrainState(None, None, None), {}, None, None)
    with Steps(step, True, run, Placement(None, None), Written(tmp_path), CROSS_ENTROPY) as steps:
        for x in range(1, 9):
            steps.take(Batch(x, 0, None, None))
    assert done == [
        "launch 1", "launch 2", "read 1", "launch 3", "launch 4", "launch 5", "read 3", "launch 6",
        "hold 7", "hold 8", "read 8", "read 4", "read 5", "read 6", "write 6", "launch 7",
        "launch 8", "read 8",
    ]  # fmt: skip
    assert run.step == 8
    assert [metrics.taken for metrics in run.here] == [True] * 5 + [False] + [True] * 2


def test_nothing_is_read_once_the_recorder_is_full(tmp_path):
    """As many steps run ahead as without a recorder, and none is held."""
    done = []

    class Full(FlightRecorder):
        @property
        def full(self):
            return True

    def step(leaves, x, y, go):
        done.append(bool(go))
        return leaves, None, False

    run = Run(TrainState(None, None, None), {}, None, None)
    with Steps(step, True, run, Placement(None, None), Full(tmp_path), CROSS_ENTROPY) as steps:
        for x in range(5):
            steps.take(Batch(x, 0, None, None))
    assert done == [True] * 5


def test_replay_of_a_bad_row(tmp_path, capsys):
    """A NaN in the data: the command names the argument and the row, with a model of the library
    and no need to trust the file; a mistyped name is an error of one line."""
    x, y = data()
    x[[2, 11], 1] = np.nan
    run(FlightRecorder(tmp_path, build=BUILD, max_files=1), x, y)
    assert main(["replay", str(only(tmp_path))]) == 0
    told = capsys.readouterr().out
    assert "was refused: loss nan, gradient norm nan" in told
    assert "the input is at fault: inputs" in told
    rows: Any = load_record(only(tmp_path)).rows
    bad = [row for row in (2, 11) if row in rows]
    assert told.endswith(f"rows of the data: {', '.join(map(str, bad))}\n")
    assert main(["replay", str(tmp_path / "absent.npz")]) == 2
    assert "absent.npz" in capsys.readouterr().err


def test_replay_of_the_users_own_code(tmp_path):
    """A loss that takes the log of a probability: the line is named, once the user trusts it; a
    lambda cannot be imported, and replay says how to go on, and that works."""
    x, y = data()
    linear = functools.partial(BUILD, hidden=())
    x[7] *= 1e4
    y[7] = int(linear(rngs=nnx.Rngs(5))(x[7]).argmin())  # a probability of 0
    tx = optim.guard(optax.sgd(0.0))
    recorder = FlightRecorder(tmp_path / "a", build=linear, max_files=1)
    _, history = run(recorder, x, y, linear(rngs=nnx.Rngs(5)), naive_cross_entropy, tx)
    assert history.skipped.tolist() == [1, 1]
    told = replay(only(tmp_path / "a"))
    assert "Not replayed: " in told
    assert "naive_cross_entropy is the user's code" in told
    assert "--trust" in told
    told = replay(only(tmp_path / "a"), trust=True)
    assert "-jnp.log(jnp.take_along_axis" in told
    assert "in naive_cross_entropy" in told

    local = lambda logits, labels: naive_cross_entropy(logits, labels)
    run(tmp_path / "b", x, y, linear(rngs=nnx.Rngs(5)), local, tx, epochs=1)
    file = only(tmp_path / "b")
    assert "the record does not name its model" in replay(file)
    assert main(["replay", str(file)]) == 1
    assert f"load_record({str(file)!r})" in replay(file)
    record = load_record(file)
    assert record.loss_name is None
    origin = record.diagnose(linear(rngs=nnx.Rngs(9)), local).origin
    assert origin is not None
    assert origin.function == "naive_cross_entropy"
    with pytest.raises(ValueError, match="of another model or optimizer"):
        record.diagnose(Noisy(nnx.Rngs(0)), local)


def test_replay_of_a_finite_step(tmp_path):
    """What replay says of a step whose loss and gradient are finite: refused in the optimizer, or
    spoilt on the way to it."""
    x, y = data()
    tx = optax.chain(inject_fault(jnp.inf, at=3), optim.guard(optax.adam(0.01)))
    run(FlightRecorder(tmp_path / "a", build=BUILD), x, y, tx=tx)
    assert load_record(only(tmp_path / "a")).step == 4
    told = replay(only(tmp_path / "a"))
    assert "everything is finite" in told
    assert "spoilt on the way to\nthe guard" in told
    huge = optax.scale_by_schedule(lambda step: jnp.where(step == 2, 1e38, -0.1))
    with pytest.raises(optim.StuckError):
        run(FlightRecorder(tmp_path / "b", build=BUILD, max_files=1), 1e4 * x, y,
            tx=optim.guard(optax.chain(huge, optax.scale(1e3))))  # fmt: skip
    assert load_record(only(tmp_path / "b")).step == 3
    assert "it was refused in the optimizer" in replay(only(tmp_path / "b"))


@pytest.mark.slow
def test_loss_scale_and_half_precision(tmp_path):
    """A float16 model whose gradient overflows by its loss scale: the record has the scale, and
    replay finds the overflow, which is not there without it. bfloat16 arrays come back."""
    x, y = data()
    for dtype, scale in ((jnp.float16, 2.0**24), (jnp.bfloat16, 1.0)):
        build = functools.partial(BUILD, dtype=dtype, param_dtype=dtype)
        model = build(rngs=nnx.Rngs(5))
        tx = optim.dynamic_loss_scale(optax.sgd(1e-3), initial=scale, factor=2.0**12)
        directory = tmp_path / jnp.dtype(dtype).name
        bad = x.copy()
        bad[0] = np.nan if scale == 1 else 1
        run(FlightRecorder(directory, build=build, max_files=1), bad, y, model, tx=tx)
        record = load_record(only(directory))
        assert record.scale == scale
        assert record.arrays["params.layers.0.kernel"].dtype == dtype
        report = record.diagnose(build(rngs=nnx.Rngs(9)), CROSS_ENTROPY)
        assert not report.ok
        assert ("output" in report.consequences) == (scale == 1)
        assert f"loss scale {scale:g}" in replay(record.file) or scale == 1


def test_records_are_bounded(tmp_path):
    """The first max_files of a run, and as many in the directory, older runs' going first; a record
    beyond max_bytes loses the optimizer state, and then is not written."""
    x, y = data()
    x[:] = np.where(np.arange(20)[:, None] % 2, np.nan, x)
    names = lambda d: sorted(p.name for p in d.iterdir())
    with pytest.raises(optim.StuckError):
        run(FlightRecorder(tmp_path / "a", max_files=3), x, y)
    assert names(tmp_path / "a") == [f"refused_{i:08d}.npz" for i in (1, 2, 3)]
    shutil.copy(tmp_path / "a" / "refused_00000001.npz", tmp_path / "a" / "refused_00000077.npz")
    with pytest.raises(optim.StuckError):
        run(FlightRecorder(tmp_path / "a", max_files=2), x, y)
    assert names(tmp_path / "a") == [f"refused_{i:08d}.npz" for i in (1, 2)]

    with pytest.raises(optim.StuckError):
        run(FlightRecorder(tmp_path / "b", max_files=1, max_bytes=600), x, y)
    record = load_record(only(tmp_path / "b"))
    assert "without optimizer state" in record.note
    assert not any(name.startswith("opt_state") for name in record.arrays)
    assert record.note in replay(record.file)
    with (
        pytest.warns(
            UserWarning, match=r"no record of refused step 1: its \d+ bytes are more than"
        ),
        pytest.raises(optim.StuckError),
    ):
        run(
            FlightRecorder(tmp_path / "c", max_files=1, max_bytes=100),
            x,
            y,
            epochs=1,
            batch_size=20,
        )
    assert not (tmp_path / "c").exists()


def test_directory_must_not_be_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(ValueError, match=r"FlightRecorder: .*f is a file; name a directory"):
        FlightRecorder(tmp_path / "f").check(BUILD(rngs=nnx.Rngs(0)))


def test_build_must_make_the_model(tmp_path):
    other = functools.partial(BUILD, hidden=(9,))
    with pytest.raises(ValueError, match=r"build makes another model .* differ in layers"):
        run(FlightRecorder(tmp_path, build=other), *data())
    with pytest.raises(ValueError, match=r"cannot be named in a record: .* is a lambda"):
        FlightRecorder(tmp_path, build=lambda: BUILD(rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="partial with positional arguments; use keywords"):
        FlightRecorder(tmp_path, build=functools.partial(Classifier, 4))
    with pytest.raises(ValueError, match=r"the keyword hidden=.* is no number"):
        FlightRecorder(tmp_path, build=functools.partial(BUILD, hidden=np.ones(3)))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="max_files must be an integer >= 1, got 0"):
        FlightRecorder(tmp_path, max_files=0)


@pytest.mark.parametrize(
    "fn",
    [
        CROSS_ENTROPY,
        functools.partial(losses.huber_loss, delta=2.0),
        functools.partial(Classifier, features=4, hidden=(8, 9), dtype=jnp.bfloat16),
        functools.partial(Classifier, features=4, activation=nnx.relu, param_dtype="float16"),
    ],
)
def test_names_come_back(fn):
    back = unspell(spell(fn), trust=False)
    assert getattr(back, "func", back) is getattr(fn, "func", fn)
    mine, theirs = (getattr(f, "keywords", {}) for f in (fn, back))
    assert mine.keys() == theirs.keys()
    assert all(jnp.dtype(theirs[k]) == jnp.dtype(mine[k]) if "dtype" in k else theirs[k] == mine[k]
               for k in mine)  # fmt: skip


@pytest.mark.parametrize(
    "name", ["os:system", "robustops.models._common:itertools.pairwise", "jax.numpy:save"]
)
def test_a_record_runs_nothing_it_should_not(name):
    """A file may name what it likes: only what robustops, optax and jax define is called."""
    with pytest.raises(PermissionError):
        unspell({"import": name, "keywords": {}}, trust=False)


def test_not_a_record(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_record(tmp_path / "refused_00000001.npz")
    np.savez(tmp_path / "other.npz", x=np.ones(3))
    with pytest.raises(ValueError, match=r"other\.npz is no record, or a damaged one"):
        load_record(tmp_path / "other.npz")
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(ValueError, match=r"no record, or a damaged one \(it is no npz file\)"):
        load_record(tmp_path / "text.npz")
