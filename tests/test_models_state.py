"""Models with state: norms whose statistics stay finite, a variational code, 16-bit training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from robustops import losses
from robustops.models import (
    Autoencoder,
    BatchNorm,
    Classifier,
    ConvAutoencoder,
    ConvClassifier,
    LayerNorm,
    SequenceClassifier,
    VariationalAutoencoder,
)
from robustops.optim import dynamic_loss_scale, guard, guarded_apply, health, unless_refused
from robustops.testing import inject_fault
from robustops.train import fit

X = np.random.default_rng(0).normal(3, 2, size=(32, 5)).astype(np.float32)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_batch_norm_is_the_textbook_function(mode):
    """Outputs and running mean as flax.nnx.BatchNorm, in training and after it."""
    ours, theirs = BatchNorm(5), nnx.BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0))
    for _ in range(2):
        np.testing.assert_allclose(ours(X), theirs(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.mean[...], theirs.mean[...], rtol=1e-5)
    mean, std = X.mean(0), X.std(0)
    np.testing.assert_allclose(ours.mean[...], 0.19 * mean, rtol=1e-5)
    np.testing.assert_allclose(ours.std[...], 0.81 + 0.19 * std, rtol=1e-5)
    getattr(ours, mode)()
    want = (X - mean) / std if mode == "train" else (X - 0.19 * mean) / (0.81 + 0.19 * std)
    np.testing.assert_allclose(ours(X), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_running_statistics_refuse_a_bad_feature(bad):
    """A NaN or inf makes its own feature's outputs NaN, and enters no running statistic."""
    norm, x = BatchNorm(5), X.copy()
    x[3, 2] = bad
    y = norm(x)
    others = [0, 1, 3, 4]
    assert not np.isfinite(np.asarray(y)[:, 2]).all()
    assert np.isfinite(np.asarray(y)[:, others]).all()
    assert norm.mean[2] == 0
    assert norm.std[2] == 1
    np.testing.assert_allclose(norm.mean[...][jnp.array(others)], 0.1 * X.mean(0)[others], 1e-5)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e18, 1e30, 1e37])
@pytest.mark.parametrize("layer", [BatchNorm(5), LayerNorm(5)])
def test_norms_are_finite_at_any_scale(layer, scale):
    """From constant data to 1e37: outputs, gradients and statistics finite; of unit size where
    epsilon is small beside the variance."""
    x = jnp.asarray(X - 3, jnp.float32) * scale

    def loss(x):
        return jnp.sum(jnp.sin(nnx.clone(layer)(x)))

    value, gradient = jax.value_and_grad(loss)(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    y = layer(x)
    assert np.isfinite(y).all()
    assert scale < 1 or abs(float(jnp.std(y)) - 1) < 1e-3
    if isinstance(layer, BatchNorm):
        assert np.isfinite(layer.mean[...]).all()
        assert np.isfinite(layer.std[...]).all()


def test_layer_norm_is_right_for_a_large_mean():
    """Rows near 1.3e5 come out as in float64, where E[x^2] - E[x]^2 gives +-12000."""
    x = (131072 + np.arange(20).reshape(4, 5) % 3).astype(np.float32)
    wide = x.astype(np.float64)
    want = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(LayerNorm(5)(x), want, atol=1e-4)
    assert np.abs(nnx.LayerNorm(5, rngs=nnx.Rngs(0))(x)).max() > 1e3


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_norms_keep_the_type_and_their_statistics_float32(dtype):
    """A float16 image of 6e4 has a deviation whose square is beyond float16."""
    norm = BatchNorm(5, dtype=dtype)
    y = norm(jnp.asarray(X * 1e4 / 3, dtype))
    assert y.dtype == dtype
    assert np.isfinite(y).all()
    assert norm.mean[...].dtype == norm.std[...].dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(y, np.float32).std(0), 1, rtol=0.02)
    assert LayerNorm(5, dtype=dtype)(jnp.asarray(X, dtype)).dtype == dtype


def test_norm_errors():
    for make in (BatchNorm, LayerNorm):
        name = make.__name__
        with pytest.raises(ValueError, match=f"{name}: features must be an integer >= 1"):
            make(0)
        with pytest.raises(ValueError, match=f"{name}: epsilon must be finite and > 0, got 0"):
            make(5, epsilon=0.0)
        with pytest.raises(ValueError, match=f"{name}: built for 5 features"):
            make(5)(np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\), got 1"):
        BatchNorm(5, momentum=1.0)


IMAGES = np.random.default_rng(0).normal(size=(24, 4, 4, 1)).astype(np.float32)
LABELS = np.arange(24) % 3
CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels


def state_of(model):
    """All arrays of a model; random keys as numbers."""
    pure = nnx.as_pure(nnx.state(model))
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: np.asarray(jax.random.key_data(a) if is_key(a) else a), pure)


def test_fit_leaves_statistics_of_a_refused_step_alone():
    """Gradient faults at each step: parameters, BatchNorm statistics and dropout's counter are what
    they were; without the faults all of them move."""
    model = ConvClassifier((4, 4, 1), (4,), 3, dropout=0.5, rngs=nnx.Rngs(0))
    before = state_of(model)
    tx = optax.chain(inject_fault(float("nan"), at=[0, 1, 2]), guard(optax.adam(1e-3)))
    with pytest.raises(RuntimeError, match="all 3 steps of epoch 1 were refused"):
        fit(model, tx, (IMAGES, LABELS), CROSS_ENTROPY, epochs=1, batch_size=8, progress=False)
    jax.tree.map(np.testing.assert_array_equal, state_of(model), before)
    fit(model, guard(optax.adam(1e-3)), (IMAGES, LABELS), CROSS_ENTROPY, epochs=1, batch_size=8,
        progress=False)  # fmt: skip
    after: Any = state_of(model)
    assert (after["norms"][0]["mean"] != before["norms"][0]["mean"]).all()  # pyright: ignore
    assert after["dropout"]["rngs"]["count"] == 3


def test_a_loop_of_your_own_keeps_statistics_with_unless_refused():
    """The recipe of `unless_refused` puts back what a finite batch of a refused step has moved."""
    model: Any = ConvClassifier((4, 4, 1), (4,), 3, rngs=nnx.Rngs(0))
    tx = optax.chain(inject_fault(float("inf"), at=1), guard(optax.adam(1e-3)))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def train(model, optimizer, x, y):
        rest = lambda: nnx.as_pure(nnx.state((model, optimizer.step), nnx.Not(nnx.Param)))
        kept = rest()
        grads = nnx.grad(lambda model: jnp.mean(CROSS_ENTROPY(model(x), y)))(model)
        optimizer.update(model, grads)
        nnx.update((model, optimizer.step), unless_refused(optimizer, rest(), kept))

    train(model, optimizer, IMAGES[:8], LABELS[:8])
    mean = np.asarray(model.norms[0].mean[...])
    train(model, optimizer, IMAGES[8:16], LABELS[8:16])
    np.testing.assert_array_equal(model.norms[0].mean[...], mean)
    train(model, optimizer, IMAGES[16:], LABELS[16:])
    assert (model.norms[0].mean[...] != mean).all()
    assert optimizer.step[...] == 2


def test_variational_modes():
    """Evaluation decodes the mean; training samples anew at each call."""
    model = VariationalAutoencoder(5, (16,), 3, rngs=nnx.Rngs(0))
    out = model(X)
    assert [a.shape for a in out] == [(32, 5), (32, 3), (32, 3)]
    assert not np.array_equal(out.reconstruction, model(X).reconstruction)
    model.eval()
    out = model(X)
    np.testing.assert_array_equal(out.reconstruction, model.decode(out.mean))
    np.testing.assert_array_equal(out.mean, model.encode(X)[0])


def test_variational_loss_is_the_lower_bound():
    """sum (x - r)^2 / 2 + beta KL, written out in float64, and its float16 form is in float32."""
    model = VariationalAutoencoder(5, (16,), 3, beta=0.5, rngs=nnx.Rngs(0))
    out = model(X)
    r, m, l = (np.asarray(a, np.float64) for a in out)
    want = ((X - r) ** 2).sum(1) / 2 + 0.5 * (m**2 + np.exp(l) - 1 - l).sum(1) / 2
    np.testing.assert_allclose(model.loss(out, X), want, rtol=1e-5)
    low = VariationalAutoencoder(5, (16,), 3, dtype=jnp.float16, rngs=nnx.Rngs(0))
    value = low.loss(low(1e3 * X), 1e3 * X)
    assert value.dtype == jnp.float32
    assert float(value.max()) > 65504


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_log_variance_is_bounded(dtype):
    """Raw log variances of 1e4 and more come out within the bound, with finite gradients."""
    model: Any = VariationalAutoencoder(5, (16,), 3, dtype=dtype, rngs=nnx.Rngs(0))
    last = model.encoder[-1].kernel
    last[...] = last[...].at[:, 3:].multiply(1e3)
    x = jnp.asarray(X * 10, dtype)
    assert 7.9 < np.abs(model.encode(x)[1]).max() <= 8
    value, grads = nnx.value_and_grad(lambda m: jnp.mean(m.loss(m(x), x)))(model)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "beta must be finite and >= 0, got -1.0"),
        ({"max_log_variance": 0.0}, "max_log_variance must be finite and > 0, got 0.0"),
        ({"code": 0}, "VariationalAutoencoder: code must be an integer"),
    ],
)
def test_variational_errors(options, message):
    with pytest.raises(ValueError, match=message):
        VariationalAutoencoder(5, rngs=nnx.Rngs(0), **options)


def test_fit_takes_a_variational_autoencoder():
    """`fit` trains it with its own loss, and names the remedy for a loss that takes one array."""
    model = VariationalAutoencoder(5, (16,), 3, rngs=nnx.Rngs(0))
    history = fit(model, optax.adam(1e-2), X, model.loss, epochs=5, batch_size=8, progress=False,
                  validation=X)  # fmt: skip
    assert history.loss[-1] < history.loss[0]
    assert history.skipped.sum() == 0
    with pytest.raises(ValueError, match=r"the model returns a Variational; .*Autoencoder\.loss"):
        fit(model, optax.adam(1e-2), X, losses.squared_error, epochs=1, batch_size=8)


FLAT = IMAGES.reshape(24, 16)
# Model, inputs, and the loss of what it returns.
TRAINED: dict[str, Any] = {
    "autoencoder": (lambda **k: Autoencoder(16, (16,), 4, **k), FLAT, None),
    "conv autoencoder": (lambda **k: ConvAutoencoder((4, 4, 1), (4, 4), 4, **k), IMAGES, None),
    "variational": (lambda **k: VariationalAutoencoder(16, (16,), 4, **k), FLAT, None),
    "classifier": (lambda **k: Classifier(16, (16,), 3, **k), FLAT, LABELS),
    "conv classifier": (lambda **k: ConvClassifier((4, 4, 1), (4, 4), 3, **k), IMAGES, LABELS),
    "gru": (
        lambda **k: SequenceClassifier(1, 8, 3, cell="gru", **k),
        FLAT[..., None],
        LABELS,
    ),
}


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize(
    ("low", "kind"),
    [
        pytest.param("dtype", jnp.float16, marks=pytest.mark.slow),
        pytest.param("dtype", jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param("param_dtype", jnp.float16, marks=pytest.mark.slow),
        pytest.param("param_dtype", jnp.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_every_model_learns_in_16_bits(name, low, kind):
    """With a scaled loss, 40 steps on one batch lower the loss, with 16-bit parameters too; the
    first float16 steps overflow at a scale of 2^24, and are refused."""
    make, x, y = TRAINED[name]
    model = make(**{low: kind}, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tx = dynamic_loss_scale(guard(optax.adam(1e-2)), initial=2.0**24)

    def objective(params, rest, scale):
        model: Any = nnx.merge(graph, params, rest, copy=True)
        out = model(x)
        if isinstance(model, VariationalAutoencoder):
            values = model.loss(out, x)
        else:
            values = losses.squared_error(out, x) if y is None else CROSS_ENTROPY(out, y)
        loss = jnp.mean(values.astype(jnp.float32))
        return loss * scale, (loss, nnx.split(model, nnx.Param, ...)[2])

    @jax.jit
    def run(params, rest):
        def step(carry, _):
            params, rest, state = carry
            grads, (loss, new) = jax.grad(objective, has_aux=True)(
                params, rest, health(state).scale
            )
            params, state = guarded_apply(tx, grads, state, params)
            return (params, unless_refused(state, new, rest), state), loss

        return jax.lax.scan(step, (params, rest, tx.init(params)), length=40)

    (params, rest, state), values = run(params, rest)
    assert np.isfinite(values).all()
    assert values[-1] < 0.9 * values[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert int(health(state).skipped) < 20
