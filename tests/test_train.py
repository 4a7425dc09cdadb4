"""The initialisation audit and the training loop, on real data and on broken data."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_breast_cancer, load_digits

from robustops import losses
from robustops.models import Autoencoder, Classifier, SequenceClassifier
from robustops.optim import StuckError, guard, skip_nonfinite
from robustops.train import RobustScaler, StandardScaler, fit, rescale_init

CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels
MODELS: dict[str, Any] = {
    "autoencoder": lambda: Autoencoder(8, (32,), 4, rngs=nnx.Rngs(0)),
    "classifier": lambda: Classifier(8, (32, 32), 4, rngs=nnx.Rngs(0)),
    "rnn": lambda: SequenceClassifier(8, 32, 4, activation=nnx.relu, rngs=nnx.Rngs(0)),
    "gru": lambda: SequenceClassifier(8, 32, 4, cell="gru", rngs=nnx.Rngs(0)),
}


def batch(name, rows=64):
    shape = (rows, 12, 8) if name in ("rnn", "gru") else (rows, 8)
    return jax.random.normal(jax.random.key(1), shape)


def linear_layers(model: Any) -> list[Any]:
    return [node for _, node in nnx.iter_modules(model) if isinstance(node, nnx.Linear)]


def copy_of(model):
    return jax.tree.map(np.array, jax.tree.leaves(nnx.state(model, nnx.Param)))


def assert_equal(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def digits():
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    return x[order].astype(np.float32), y[order]


def accuracy(model, x, y):
    return float((np.asarray(nnx.jit(lambda m, x: m(x))(model, x)).argmax(-1) == y).mean())


@pytest.mark.parametrize("name", MODELS)
def test_healthy_initialisation_is_untouched(name):
    """Flax's default initialisation passes: bit-identical parameters, all factors 1."""
    model = MODELS[name]()
    before = copy_of(model)
    report = rescale_init(model, batch(name))
    assert_equal(copy_of(model), before)
    assert len(report) == len(linear_layers(model))
    assert all(r.factor == 1 and r.biases == 0 and r.before == r.after for r in report)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("gain", [1e-20, 10.0, 1e20])
def test_bad_gains_are_brought_back(name, gain):
    """Kernels times 1e-20 to 1e20 and biases of 1e4: afterwards every layer has unit deviation or a
    recurrent norm of 1, and outputs and gradients are finite and of order one."""
    model, x = MODELS[name](), batch(name)
    for layer in linear_layers(model):
        layer.kernel[...] *= gain
        if layer.bias is not None:
            layer.bias[...] += 1e4
    report = rescale_init(model, x)
    for r in report:
        assert r.before < 0.01 or r.before > 1.1
        np.testing.assert_allclose(r.after, 1, rtol=1e-5)
        np.testing.assert_allclose(r.factor, 1 / r.before, rtol=1e-5)
    assert 0.3 < float(jnp.std(model(x))) < 3
    norm = optax.tree.norm(nnx.grad(lambda m: jnp.mean(m(x) ** 2))(model))
    assert 1e-3 < float(norm) < 1e3
    assert all(np.abs(layer.bias[...]).max() <= 4 for layer in linear_layers(model) if layer.bias)
    if name in ("rnn", "gru"):
        gates = np.split(
            np.asarray(model.recurrent.kernel[...]), {"rnn": 1, "gru": 3}[name], axis=1
        )
        assert max(np.linalg.norm(gate, 2) for gate in gates) <= 1 + 1e-6


def test_bias_implied_by_the_data():
    """Data with mean 1e5: units whose mean would stay far out get the bias that centres them; a
    single absurd bias becomes 0, and the other biases stay."""
    model: Any
    model, x = Classifier(8, (16,), 3, rngs=nnx.Rngs(0)), batch("classifier") + 1e5
    rescale_init(model, x)
    first: Any = model.layers[0]
    outputs = np.asarray(x, np.float64) @ np.asarray(first.kernel[...]) + np.asarray(
        first.bias[...]
    )
    assert np.abs(outputs.mean(axis=0)).max() <= 4.1
    model = Classifier(8, (16,), 3, rngs=nnx.Rngs(0))
    model.layers[1].bias[...] = jnp.array([0.25, 1e4, -0.5])
    report = rescale_init(model, batch("classifier"))
    np.testing.assert_array_equal(model.layers[1].bias[...], [0.25, 0, -0.5])
    assert [r.biases for r in report] == [0, 1]


def test_audit_leaves_other_state_and_types_alone():
    """BatchNorm statistics and dropout counters are what they were, layers are plain Linear again
    (also after an error), and an all-zero kernel, set on purpose, stays zero."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(8, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(8, 1, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

        def __call__(self, x):
            return self.head(self.drop(self.norm(self.layer(x))))

    model: Any = Net(nnx.Rngs(0))
    model.layer.kernel[...] *= 1e10
    rescale_init(model, batch("classifier"))
    np.testing.assert_array_equal(model.norm.mean[...], 0)
    assert int(model.drop.rngs.count[...]) == 0
    np.testing.assert_array_equal(model.head.kernel[...], 0)
    with pytest.raises(TypeError):
        rescale_init(model, jnp.ones((4, 5)))
    assert type(model.layer) is type(model.head) is nnx.Linear


def test_audit_errors():
    """Bad batches, bounds and non-finite parameters are named with a remedy."""
    model = MODELS["classifier"]()
    x = np.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="x is empty"):
        rescale_init(model, x[:0])
    with pytest.raises(ValueError, match="1 of 32 cells of x are NaN or infinite; scale"):
        rescale_init(model, np.where(np.arange(32).reshape(4, 8) == 3, np.nan, x))
    with pytest.raises(ValueError, match="bounds must be 0 < low <= 1 <= high"):
        rescale_init(model, x, low=2.0)
    model.layers[1].kernel[...] = jnp.full((32, 32), jnp.inf)
    with pytest.raises(ValueError, match=r"kernel of layer 'layers\.1' has NaN or infinite"):
        rescale_init(model, x)


def test_classifier_learns_digits():
    """A Classifier on scaled digits is right on over 90% of unseen rows after a few epochs; the
    history is as long as the epochs, the loss falls, and no step is refused."""
    x, y = digits()
    z = np.asarray(StandardScaler().fit(x[:1400]).transform(x))
    model = Classifier(64, rngs=nnx.Rngs(0))
    history: Any = fit(
        model,
        optax.adam(1e-2),
        (z[:1400], y[:1400]),
        CROSS_ENTROPY,
        epochs=4,
        batch_size=64,
        validation=(z[1400:], y[1400:]),
        progress=False,
    )
    assert accuracy(model, z[1400:], y[1400:]) > 0.9
    assert history.loss.shape == history.grad_norm.shape == history.validation_loss.shape == (4,)
    assert history.loss[-1] < history.loss[0] / 5
    assert history.skipped.tolist() == [0] * 4
    assert int(history.health.steps) == 4 * 22
    want = np.mean(CROSS_ENTROPY(model(z[1400:]), jnp.asarray(y[1400:])))
    np.testing.assert_allclose(history.validation_loss[-1], want, rtol=1e-5)


def test_planted_nan_is_skipped_and_learning_goes_on():
    """With 4 NaN rows kept in the data, at most 4 steps an epoch are refused, and the classifier
    still learns digits, from sequences of rows with a GRU."""
    x, y = digits()
    x = (x / 16).reshape(-1, 8, 8)
    x[[5, 300, 700, 1100]] = np.nan
    model = SequenceClassifier(8, 64, cell="gru", rngs=nnx.Rngs(0))
    history = fit(
        model,
        optax.adam(1e-2),
        (x[:1400], y[:1400]),
        CROSS_ENTROPY,
        epochs=5,
        batch_size=32,
        nonfinite="keep",
        progress=False,
    )
    assert history.nonfinite == 4
    assert ((history.skipped >= 1) & (history.skipped <= 8)).all()
    assert int(history.health.skipped) == history.skipped.sum()
    assert np.isfinite(history.loss).all()
    assert all(np.isfinite(leaf).all() for leaf in copy_of(model))
    assert accuracy(model, x[1400:], y[1400:]) > 0.9


def test_autoencoder_on_raw_magnitudes_after_a_scaler():
    """Breast cancer data, raw from 1e-3 to 4e3: after a RobustScaler an autoencoder of code 8
    explains most of the variance, given the inputs alone as data."""
    x = load_breast_cancer(return_X_y=True)[0]
    z = np.asarray(RobustScaler(max_sigmas=10.0).fit(x).transform(x))
    model = Autoencoder(30, (32,), 8, rngs=nnx.Rngs(0))
    fit(model, optax.adam(1e-2), z, losses.squared_error, epochs=15, batch_size=64, progress=False)
    residual = np.mean((np.asarray(model(z)) - z) ** 2)
    assert residual < 0.3 * np.mean((z - z.mean(axis=0)) ** 2)


class Stateful(nnx.Module):
    """A model whose state other than parameters moves at every call."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.layer(x)))


def test_refused_step_changes_nothing():
    """Steps that are all refused leave parameters, BatchNorm statistics and dropout counters as
    they were; a taken step changes each of them."""
    x, y = np.ones((8, 4), np.float32), np.zeros((8, 3), np.float32)
    x += np.arange(8, dtype=np.float32)[:, None]
    model: Any = Stateful(nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))
    options = {"epochs": 1, "batch_size": 8, "nonfinite": "keep", "progress": False}

    def state():
        return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey))))

    with pytest.raises(StuckError):
        fit(model, optax.adam(0.1), (x * np.nan, y), losses.squared_error, **options)
    assert jax.tree.all(jax.tree.map(np.array_equal, state(), before))
    fit(model, optax.adam(0.1), (x, y), losses.squared_error, **options)
    changed = jax.tree.map(lambda a, b: not np.array_equal(a, b), state(), before)
    assert changed["layer"]["kernel"]
    assert changed["norm"]["mean"]
    assert changed["drop"]["rngs"]["count"]


def test_step_that_spoils_only_module_state_is_refused():
    """An input of 1e30 makes BatchNorm's variance infinite while its output stays finite: such a
    step is refused too, so that evaluation mode never sees the infinity."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.BatchNorm(4, use_fast_variance=False, rngs=rngs)
            self.head = nnx.Linear(4, 1, rngs=rngs)

        def __call__(self, x):
            return self.head(self.norm(x))

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 4)).astype(np.float32)
    x[7] = 1e30
    model: Any = Net(nnx.Rngs(0))
    history = fit(
        model, optax.sgd(0.1), (x, x[:, :1] * 0), losses.squared_error, epochs=2, batch_size=16,
        progress=False,
    )  # fmt: skip
    assert history.skipped.tolist() == [1, 1]
    assert np.isfinite(model.norm.var[...]).all()


def test_modes_of_the_model():
    """Training uses training mode and validation evaluation mode, whatever the model's own mode,
    which stays."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, 4)).astype(np.float32), np.zeros((32, 3), np.float32)
    model: Any = Stateful(nnx.Rngs(0))
    model.eval()
    history: Any = fit(
        model, optax.sgd(0.0), (x, y), losses.squared_error, epochs=1, batch_size=32,
        validation=(x, y), progress=False,
    )  # fmt: skip
    assert model.drop.deterministic
    assert int(model.drop.rngs.count[...]) == 1
    want = np.mean(np.asarray(model(x)) ** 2)
    np.testing.assert_allclose(history.validation_loss[0], want, rtol=1e-5)


def test_stuck_names_the_remedy_and_keeps_the_model():
    """If every step of an epoch is refused, StuckError says so, with the remedies, at once."""
    model = MODELS["classifier"]()
    before = copy_of(model)
    x = np.full((20, 8), np.nan, np.float32)
    with pytest.raises(StuckError, match=r"all 2 steps of epoch 1 .*RobustScaler.*rescale_init"):
        fit(
            model, optax.sgd(0.1), (x, np.zeros(20, int)), CROSS_ENTROPY, epochs=3, batch_size=10,
            nonfinite="keep", progress=False,
        )  # fmt: skip
    assert_equal(copy_of(model), before)


def test_same_seed_same_run_and_one_compilation():
    """The same seed gives bit-identical parameters, another seed others; a partial last batch is
    filled up, so that the model is traced once for the step, whatever the number of rows."""
    x = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    y = (np.arange(50) % 4).astype(np.int64)
    shapes = []

    def counting(outputs, labels):
        shapes.append(outputs.shape)
        return CROSS_ENTROPY(outputs, labels)

    def run(seed):
        model = MODELS["classifier"]()
        fit(
            model, optax.sgd(0.1), (x, y), counting, epochs=2, batch_size=16, seed=seed,
            progress=False,
        )  # fmt: skip
        return copy_of(model)

    first = run(0)
    assert set(shapes) == {(16, 4)}
    assert len(shapes) == 1
    assert_equal(first, run(0))
    assert not np.array_equal(first[1], run(1)[1])


def test_partial_batch_uses_every_row():
    """50 rows in batches of 16 make 4 full batches, in which every row is used."""
    from robustops.train._data import Data
    from robustops.train._source import FromRows

    rows = np.arange(50)
    parts = list(FromRows(Data(rows, rows, 0), 16, seed=0).epoch(0, None))
    assert [len(part.inputs) for part in parts] == [16] * 4
    assert set(np.concatenate([part.inputs for part in parts])) == set(range(50))


def test_own_guard_is_kept():
    """An optimizer that is guarded already is not wrapped again: its own clip is the only one."""
    x, y = batch("classifier"), np.arange(64) % 4
    for tx, clips in ((guard(optax.sgd(0.1), max_norm=None), 0), (optax.sgd(0.1), 4)):
        history = fit(
            MODELS["classifier"](), tx, (100 * x, y), CROSS_ENTROPY, epochs=1, batch_size=16,
            progress=False,
        )  # fmt: skip
        assert int(history.health.clipped) == clips
    history = fit(
        MODELS["classifier"](), skip_nonfinite(optax.sgd(0.1)), (x, y), CROSS_ENTROPY, epochs=1,
        batch_size=64, progress=False,
    )  # fmt: skip
    assert type(history.opt_state).__name__ == "SkipNonfiniteState"


def test_nonfinite_rows():
    """By default rows with NaN or inf are an error with their counts; "drop" leaves them out."""
    x, y = np.array(batch("classifier")), np.arange(64) % 4
    x[3, 2], x[9] = np.inf, np.nan
    run = functools.partial(
        fit, MODELS["classifier"](), optax.sgd(0.1), (x, y), CROSS_ENTROPY, epochs=1, batch_size=31,
        progress=False,
    )  # fmt: skip
    with pytest.raises(
        ValueError, match="2 of 64 rows of data are not finite, first row 3: 9 cells"
    ):
        run()
    history = run(nonfinite="drop")
    assert (history.nonfinite, int(history.health.steps)) == (2, 2)
    assert history.skipped.tolist() == [0]


def test_integer_features_and_float64():
    """uint8 features train as float features do; float64 beyond float32 counts as infinite."""
    x, y = np.arange(512).reshape(64, 8).astype(np.uint8), np.arange(64) % 4
    runs = []
    for inputs in (x, x.astype(np.float64)):
        model = MODELS["classifier"]()
        fit(
            model, optax.sgd(0.1), (inputs, y), CROSS_ENTROPY, epochs=1, batch_size=64,
            progress=False,
        )  # fmt: skip
        runs.append(copy_of(model))
    assert_equal(*runs)
    with pytest.raises(ValueError, match=r"64 of 64 rows .* beyond float32"):
        fit(
            model, optax.sgd(0.1), (x + 1e300, y), CROSS_ENTROPY, epochs=1, batch_size=64,
            progress=False,
        )  # fmt: skip


def test_progress_bar(capsys):
    """The bar shows epoch, loss, gradient norm and refused steps."""
    fit(
        MODELS["classifier"](), optax.sgd(0.1), (batch("classifier"), np.arange(64) % 4),
        CROSS_ENTROPY, epochs=2, batch_size=64,
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "epoch 2" in shown
    assert "loss" in shown
    assert "skipped 0" in shown


ONES = np.ones((6, 8), np.float32)
BCE = losses.sigmoid_binary_cross_entropy


@pytest.mark.parametrize(
    ("data", "loss", "message"),
    [
        ((ONES, np.zeros(5, int)), CROSS_ENTROPY, "6 rows of inputs, but 5 of targets"),
        ((ONES[:0], np.zeros(0, int)), CROSS_ENTROPY, r"data is empty: shapes \(0, 8\)"),
        ((ONES, np.array(["a"] * 6)), CROSS_ENTROPY, "targets must be real numbers, got dtype <U1"),
        ((ONES.astype(object), np.zeros(6, int)), CROSS_ENTROPY, "inputs must be real numbers"),
        ((ONES, ONES, ONES), losses.squared_error, r"must be \(inputs, targets\) or one array"),
        (1.0, losses.squared_error, "must have rows along the first axis, got a scalar"),
        ((ONES, np.arange(6)), CROSS_ENTROPY, r"2 labels of data are outside 0\.\.3 .* e\.g\. 4"),
        ((ONES, np.array([0, 0, 0, 0, 0, -1])), CROSS_ENTROPY, "1 labels of data are outside"),
        ((ONES, np.arange(6)), lambda o, t: CROSS_ENTROPY(o, t), "2 labels of data are outside"),
        ((ONES, np.zeros(6)), CROSS_ENTROPY, "wants integer class labels, but .* float32"),
        ((ONES, np.zeros((6, 2), int)), CROSS_ENTROPY, r"must have shape \(6,\)"),
        ((ONES, np.full((6, 4), 2)), BCE, r"24 targets of data are outside \[0, 1\] .* e\.g\. 2"),
        ((ONES, np.full((6, 4), -0.5)), optax.sigmoid_binary_cross_entropy, "outside"),
        ((ONES, np.zeros(6)), losses.squared_error, r"have shape \(6,\), but the model's outputs"),
        ((ONES, np.zeros((6, 1))), functools.partial(losses.huber_loss, delta=2.0), "reshape one"),
    ],
)
def test_bad_data(data, loss, message):
    """Bad data is an error before the first step: what, where, how many."""
    with pytest.raises(ValueError, match=message):
        fit(
            MODELS["classifier"](), optax.sgd(0.1), data, loss, epochs=1, batch_size=2,
            progress=False,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer >= 1, got 2.5"),
        ({"nonfinite": "ignore"}, "nonfinite must be 'raise', 'drop' or 'keep', got 'ignore'"),
        ({"targets": "labels"}, "targets must be 'auto'"),
        ({"validation": (ONES, np.full(6, 9))}, "labels of validation are outside"),
    ],
)
def test_bad_options(options, message):
    """A bad option names its choices; validation data is checked like training data."""
    with pytest.raises(ValueError, match=message):
        fit(
            MODELS["classifier"](), optax.sgd(0.1), (ONES, np.zeros(6, int)), CROSS_ENTROPY,
            **{"epochs": 1, "batch_size": 2, "progress": False, **options},
        )  # fmt: skip


@pytest.mark.parametrize("row", [0.3, 1.0, None], ids=["0.3", "ones", "random"])
def test_equal_rows_rescale_by_the_kernel(row):
    """Their deviation is rounding only, 1e-16, and a factor of 1e16 would destroy the model."""
    one = np.random.default_rng(0).normal(size=(1, 4)) if row is None else np.full((1, 4), row)
    model = Classifier(4, (8, 8), 3, rngs=nnx.Rngs(0))
    report = rescale_init(model, np.tile(np.float32(one), (64, 1)))
    assert all(0.1 < layer.factor < 10 for layer in report)
