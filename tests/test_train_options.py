"""What `fit` does beside training: metrics files, stopping, callbacks, batches, loss scaling."""

import csv
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from robustops import losses, optim
from robustops.models import Classifier
from robustops.testing import inject_fault
from robustops.train import Batches, Checkpoints, fit
from robustops.train._metrics import MetricsFiles

CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels


def data(rows=48):
    x = np.random.default_rng(0).normal(size=(rows, 4)).astype(np.float32)
    return x, x[:, :3].argmax(axis=1)


def train(given: Any = None, tx: Any = None, **options: Any) -> Any:
    dtype = options.pop("dtype", None)
    model = Classifier(4, (8,), 3, dtype=dtype, rngs=nnx.Rngs(0))
    rows = (
        {} if isinstance(given, Batches | list) or hasattr(given, "__next__") else {"batch_size": 8}
    )
    options = {"epochs": 3, "nonfinite": "keep", "progress": False, **rows, **options}
    given = data() if given is None else given
    return model, fit(model, tx or optax.adam(0.05), given, CROSS_ENTROPY, **options)


def read(file):
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def kernel(model):
    return np.asarray(model.layers[0].kernel[...])


def test_metrics_files(tmp_path):
    """One row a step in CSV, JSON lines and TensorBoard, the same numbers, with what the guard did;
    the validation loss stands at the last step of an epoch."""
    x, y = data()
    x[5] = np.nan
    files = [tmp_path / "m.csv", tmp_path / "deep" / "m.jsonl", tmp_path / "board"]
    _, history = train((x, y), metrics=files, validation=(x[:4], y[:4]))
    table = read(files[0])
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert len(table) == len(lines) == history.steps == 18
    for row, line in zip(table, lines, strict=True):
        assert {k: float(v) for k, v in row.items() if v and v != "nan"} == {
            k: float(v) for k, v in line.items() if v != "NaN"
        }
    assert sum(line["skipped"] for line in lines) == history.skipped.sum() == 3
    assert [line["loss"] for line in lines].count("NaN") == 3
    assert [i for i, line in enumerate(lines) if "validation_loss" in line] == [5, 11, 17]
    assert lines[17]["validation_loss"] == history.validation_loss[-1]
    taken = [line["loss"] for line in lines[:6] if not line["skipped"]]
    np.testing.assert_allclose(np.mean(taken), history.loss[0], rtol=1e-12)
    (events,) = files[2].iterdir()
    text = events.read_bytes()
    assert text.count(b"grad_norm") == 18
    assert text.count(b"validation_loss") == 3
    with pytest.raises(ValueError, match=r"metrics go to \*\.csv, \*\.jsonl or .* got 'm\.txt'"):
        train(metrics="m.txt")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metrics_file_of_a_run_that_goes_on(tmp_path, suffix):
    """Rows up to the checkpoint stay, later ones and half a line go; a new run replaces the file;
    rows that are lost are told."""
    file = tmp_path / f"m.{suffix}"
    row = lambda step: {"step": step, "epoch": 1, "loss": 0.1 * step}
    with MetricsFiles(file, 0) as whole:
        whole.write([row(i) for i in range(1, 6)])
    text = file.read_text()
    with file.open("a") as more:
        more.write(text.splitlines()[-1][:9])
    with MetricsFiles(file, 3) as going_on:
        going_on.write([row(4)])
        going_on.write([row(5)])
    assert file.read_text() == text
    with MetricsFiles([file], 0):
        assert len(file.read_text().splitlines()) == (suffix == "csv")
    with (
        pytest.warns(UserWarning, match=rf"m\.{suffix} has rows for 0 of the 6 steps before"),
        MetricsFiles(file, 6),
    ):
        pass


def test_tensorboard_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(
        ImportError, match=r"need tensorboardX: run `pip install 'robustops\[tensor"
    ):
        train(metrics=tmp_path / "board")


def test_patience_stops_a_loss_that_does_not_move(tmp_path):
    """With a rate of 0 from the fourth epoch on, three epochs pass and the run ends; started again,
    it stays ended."""
    tx = optax.adam(lambda step: jnp.where(jnp.less(step, 18), 0.05, 0.0))
    x, y = data()
    options = {"epochs": 50, "patience": 3, "validation": (x, y), "checkpoints": tmp_path}
    for _ in range(2):
        _, history = train(None, tx, **options)
        assert history.stopped == "patience"
        assert len(history.loss) == 3 + 3
    _, history = train(None, optax.adam(0.05), epochs=6, patience=3)
    assert history.stopped == ""
    assert len(history.loss) == 6


def test_callbacks_see_each_epoch_and_may_stop(tmp_path):
    """A callback gets numbers and a copy of the model in evaluation mode; True stops the run."""
    seen = []

    def watch(epoch):
        seen.append(epoch)
        assert kernel(epoch.model()).shape == (4, 8)
        return epoch.number == 2

    model, history = train(callbacks=[watch], epochs=5)
    assert history.stopped == "callback"
    assert [e.number for e in seen] == [1, 2]
    assert [e.step for e in seen] == [6, 12]
    assert [e.loss for e in seen] == history.loss.tolist()
    np.testing.assert_array_equal(kernel(seen[-1].model()), kernel(model))
    assert seen[0].validation_loss is None


def test_steps_in_place_of_epochs():
    """8 steps end in the middle of the second epoch."""
    _, history = train(epochs=None, steps=8)
    assert history.steps == int(history.health.steps) == 8
    assert len(history.loss) == 2
    with pytest.raises(ValueError, match="pass epochs or steps, one of them, got epochs=2 and st"):
        train(epochs=2, steps=8)
    with pytest.raises(ValueError, match="steps must be an integer >= 1, got 0"):
        train(epochs=None, steps=0)
    with pytest.raises(ValueError, match="min_delta must be >= 0"):
        train(min_delta=-1.0)


@pytest.mark.parametrize("validation", [None, "rows"])
def test_steps_that_end_within_an_epoch_go_on_there(tmp_path, validation):
    """8 steps and 10 more are 18, bit for bit; a run that has ended tells the same again."""
    options: dict = {"validation": data() if validation else None, "checkpoints": tmp_path}
    whole, told = train(epochs=None, steps=18, validation=options["validation"])
    first, history = train(epochs=None, steps=8, metrics=tmp_path / "m.csv", **options)
    again, same = train(epochs=None, steps=8, metrics=tmp_path / "m.csv", **options)
    np.testing.assert_array_equal(kernel(again), kernel(first))
    np.testing.assert_array_equal(same.loss, history.loss)
    assert len((tmp_path / "m.csv").read_text().splitlines()) == 9
    model, history = train(epochs=None, steps=18, **options)
    np.testing.assert_array_equal(kernel(model), kernel(whole))
    np.testing.assert_array_equal(history.loss, told.loss)
    assert history.steps == 18


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tx": "adam"}, "tx must be an optax transformation, as optax.adam.1e-3., got 'adam'"),
        ({"given": "digits"}, "data must be .inputs, targets., one array or batches, got 'digits'"),
        ({"given": {"x": 1, "y": 2}}, "one array or batches, got a dict of ..x', 'y'.; robust"),
        ({"callbacks": print}, "callbacks must be a sequence of functions, got <built-in"),
        ({"callbacks": None}, "callbacks must be a sequence of functions, got None"),
        ({"callbacks": ["save"]}, "callbacks must be a sequence of functions, got ..save"),
        ({"metrics": None}, "metrics must be a path or several, got None"),
    ],
)
def test_arguments_of_another_type(given, message):
    with pytest.raises(TypeError, match=message):
        train(**given)


def test_model_and_loss_of_another_type():
    x, y = data()
    model = Classifier(4, (8,), 3, rngs=nnx.Rngs(0))
    each: Any = functools.partial(fit, tx=optax.adam(0.05), data=(x, y), epochs=1, batch_size=8)
    with pytest.raises(TypeError, match="loss must be a function of outputs and targets, got nda"):
        each(model, loss=y)
    with pytest.raises(TypeError, match=r"model must be an instance of flax\.nnx\.Module, got"):
        each(Classifier, loss=CROSS_ENTROPY)
    with pytest.raises(TypeError, match="loss must return floating-point numbers, got int"):
        each(model, loss=lambda outputs, targets: outputs.argmax(-1))


def test_losses_of_all_pairs_are_refused():
    """[n, 1] against [n] broadcasts to [n, n], and would train each row on every target."""
    x, y = data()
    model = Classifier(4, (8,), 1, rngs=nnx.Rngs(0))
    binary, options = (x, np.float32(y > 0)), {"epochs": 1, "batch_size": 8, "progress": False}
    with pytest.raises(ValueError, match=r"\(8, 1\) and .* \(8,\) gave losses of shape \(8, 8\)"):
        fit(model, optax.adam(0.05), binary, lambda o, t: losses.hinge_loss(o, t), **options)
    with pytest.raises(ValueError, match="reshape one of them"):
        fit(model, optax.adam(0.05), binary, losses.sigmoid_focal_loss, **options)
    flat = lambda o, t: losses.sigmoid_focal_loss(o[:, 0], t)
    assert np.isfinite(fit(model, optax.adam(0.05), binary, flat, **options).loss).all()


def test_a_list_of_two_batches_is_no_pair():
    """Two batches an epoch, as an iterator of them gives, and not inputs and targets."""
    x, y = data()
    batches = [(x[:8], y[:8]), (x[8:16], y[8:16])]
    model, history = train(batches, epochs=2)
    assert history.steps == 4
    again, _ = train(iter(batches * 2), epochs=1)
    np.testing.assert_array_equal(kernel(model), kernel(again))


def test_kept_rows_do_not_spoil_the_validation():
    """With nonfinite="keep" a NaN row of the validation data is dropped: its loss is that of the
    others, and patience counts them."""
    x, y = data()
    holed = np.concatenate([x, x[:1] * np.nan]), np.concatenate([y, y[:1]])
    options = {"nonfinite": "keep", "patience": 1, "epochs": 3}
    _, history = train((x, y), validation=holed, **options)
    _, want = train((x, y), validation=(x, y), **options)
    np.testing.assert_array_equal(history.validation_loss, want.validation_loss)
    assert np.isfinite(history.validation_loss).all()


@pytest.mark.slow
def test_what_does_not_go_together(tmp_path):
    with pytest.raises(
        ValueError, match="batch_size=8 is for rows in memory, and data come in bat"
    ):
        train([data(), data()], batch_size=8)
    (tmp_path / "f").write_text("")
    with pytest.raises(ValueError, match=r"Checkpoints: .*f is a file; name a directory"):
        train(checkpoints=tmp_path / "f")


def test_batches_train_as_rows_do(tmp_path):
    """`Batches` with the same seed and size give the same parameters, also when the run is resumed
    by a new one of them; an iterator of batches is trained on for one pass."""
    whole, _ = train()
    x, y = data()
    fresh = lambda: Batches((x, y.astype(np.int32)), 8, backend="numpy")
    checkpoints = Checkpoints(tmp_path, every_steps=4)
    train(fresh(), epochs=1, checkpoints=checkpoints)
    model, history = train(fresh(), checkpoints=checkpoints)
    np.testing.assert_array_equal(kernel(model), kernel(whole))
    assert history.steps == 18
    with pytest.raises(ValueError, match="with rows=48, this one has rows=24"):
        train(Batches((x[:24], y[:24]), 8, backend="numpy"), checkpoints=checkpoints)
    batches = fresh()
    model, history = train(iter([next(batches) for _ in range(6)]), epochs=1)
    assert history.steps == 6
    with pytest.raises(ValueError, match="no batch in epoch 2; an iterator gives one pass"):
        train(iter([next(batches) for _ in range(6)]), epochs=2)
    with pytest.raises(ValueError, match="iterator has get_state and set_state"):
        train(iter([next(batches) for _ in range(6)]), epochs=1,
              checkpoints=Checkpoints(tmp_path / "other", every_steps=4))  # fmt: skip
    with pytest.raises(ValueError, match=r"a batch must be \(inputs, targets\), got a ndarray"):
        train(iter([x]), epochs=1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_loss_scale(dtype, tmp_path):
    """The loss is scaled by what `dynamic_loss_scale` asks for and reported as it is: float32 ends
    as without it; float16 finds its scale by refused steps, counted as such, and learns."""
    first = 2.0**10 if dtype == jnp.float32 else 2.0**24
    tx = optim.dynamic_loss_scale(optim.guard(optax.adam(0.05)), initial=first)
    epochs = 3 if dtype == jnp.float32 else 12
    _, history = train(None, tx, dtype=dtype, epochs=epochs, metrics=tmp_path / "m.csv")
    if dtype == jnp.float32:
        _, alone = train(dtype=dtype)  # The scale is a power of 2: the same but for rounding.
        np.testing.assert_allclose(history.loss, alone.loss, rtol=1e-6)
        assert history.skipped.sum() == 0
        return
    assert 1 <= history.skipped.sum() < 20
    assert float(history.health.scale) == first / 2.0 ** int(history.health.skipped)
    rows = read(tmp_path / "m.csv")
    assert float(rows[0]["scale"]) == first
    assert float(rows[-1]["scale"]) == float(history.health.scale)
    assert history.loss[-1] < 0.5 * float(rows[0]["loss"])


def test_health_adds_up_under_faults():
    """NaN rows, outliers and a gradient fault every 5th step: each step is taken or refused, once;
    history, metrics and health agree."""
    x, y = data()
    x[7], x[13] = np.nan, 1e6
    tx: Any = optax.chain(
        inject_fault(jnp.inf, at=range(4, 100, 5)), optim.guard(optax.adam(0.05), max_norm=0.5)
    )
    _, history = train((x, y), tx, epochs=10)
    health = jax.device_get(history.health)
    planted = int(history.opt_state[0].planted)
    assert int(health.steps) == history.steps == 60
    assert int(health.skipped) == history.skipped.sum()
    assert int(health.clipped) == history.clipped.sum()
    # A row is in a batch once an epoch, or twice where the last batch is filled up.
    assert planted == 12
    both = planted + 10 - int(health.skipped)
    assert 0 <= both <= 10
    assert health.clipped > 0
    assert np.isfinite(history.loss).all()


def test_interrupt_leaves_the_last_step():
    """An error in a callback: the model has the parameters of that moment."""
    model = Classifier(4, (8,), 3, rngs=nnx.Rngs(0))
    before, seen = kernel(model), []

    def fail(epoch):
        seen.append(kernel(epoch.model()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, optax.adam(0.05), data(), CROSS_ENTROPY, epochs=3, batch_size=8,
            callbacks=[fail], progress=False)  # fmt: skip
    np.testing.assert_array_equal(kernel(model), seen[0])
    assert not np.array_equal(kernel(model), before)
