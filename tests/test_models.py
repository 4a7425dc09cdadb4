"""The reference models: shapes, reachable layers, clear errors, bounded recurrent states."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import robustops as ro
from robustops import losses
from robustops.models import (
    Autoencoder,
    Classifier,
    ConvAutoencoder,
    ConvClassifier,
    SequenceClassifier,
)


def leaves(model: Any) -> list[Any]:
    return jax.tree.leaves(nnx.state(model, nnx.Param))


def evaluating(model):
    model.eval()
    return model


IMAGES = (5, 6, 4, 2)
CASES: dict[str, Any] = {
    "autoencoder": (lambda **k: Autoencoder(8, (16,), 3, rngs=nnx.Rngs(0), **k), (5, 8), (5, 8)),
    "linear autoencoder": (
        lambda **k: Autoencoder(8, (), 3, code_activation=jnp.tanh, rngs=nnx.Rngs(0), **k),
        (5, 8),
        (5, 8),
    ),
    "classifier": (lambda **k: Classifier(8, (16, 16), 4, rngs=nnx.Rngs(0), **k), (5, 8), (5, 4)),
    "rnn": (lambda **k: SequenceClassifier(8, 16, 4, rngs=nnx.Rngs(0), **k), (5, 7, 8), (5, 4)),
    "gru": (
        lambda **k: SequenceClassifier(8, 16, 4, cell="gru", rngs=nnx.Rngs(0), **k),
        (5, 7, 8),
        (5, 4),
    ),
    "conv classifier": (
        lambda **k: evaluating(ConvClassifier((6, 4, 2), (4, 8, 8), 4, rngs=nnx.Rngs(0), **k)),
        IMAGES,
        (5, 4),
    ),
    "conv autoencoder": (
        lambda **k: ConvAutoencoder((6, 4, 2), (4, 8), 3, rngs=nnx.Rngs(0), **k),
        IMAGES,
        IMAGES,
    ),
}

# The convolutional ones take as long as all others.
EACH = [pytest.param(c, marks=[pytest.mark.slow] * c.startswith("conv")) for c in CASES]


@pytest.mark.parametrize("case", EACH)
@pytest.mark.parametrize("dtype", [jnp.bfloat16])
def test_shapes_and_dtypes(case, dtype):
    """The output has the documented shape and the asked dtype; parameters keep param_dtype."""
    make, shape, expected = CASES[case]
    assert make()(jnp.ones(shape)).dtype == jnp.float32
    model = make(dtype=dtype, param_dtype=jnp.float32)
    y = model(jnp.ones(shape, dtype))
    assert (y.shape, y.dtype) == (expected, dtype)
    assert {leaf.dtype for leaf in leaves(model)} == {jnp.dtype(jnp.float32)}
    low = make(param_dtype=dtype)
    assert {leaf.dtype for leaf in leaves(low)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("case", EACH)
def test_jit_grad_vmap_agree_with_eager(case):
    """nnx.jit gives the eager output, and every parameter gets a finite, not all-zero gradient."""
    make, shape, _ = CASES[case]
    model, x = make(), jax.random.normal(jax.random.key(1), shape)
    np.testing.assert_allclose(nnx.jit(lambda m, x: m(x))(model, x), model(x), rtol=1e-5, atol=1e-6)
    batched = jax.vmap(model)(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(batched[1], model(2 * x), rtol=1e-5, atol=1e-6)
    grads = jax.tree.leaves(nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model))
    assert all(np.isfinite(g).all() for g in grads)
    assert all((np.asarray(g) != 0).any() for g in grads)


def test_seed_determines_parameters():
    """The same rngs give the same parameters, another seed others."""
    first, same, other = (Classifier(8, rngs=nnx.Rngs(seed)) for seed in (0, 0, 1))
    a, b, c = (first.layers[0].kernel[...], same.layers[0].kernel[...], other.layers[0].kernel[...])
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_layers_are_reachable():
    """Each layer's kernel and bias can be reached by name, and changing them changes the output."""
    x = jnp.ones((2, 8))
    model = Autoencoder(8, (16,), 3, rngs=nnx.Rngs(0))
    assert [layer.kernel.shape for layer in model.encoder] == [(8, 16), (16, 3)]
    assert [layer.kernel.shape for layer in model.decoder] == [(3, 16), (16, 8)]
    model.decoder[-1].kernel[...] *= 0
    bias = model.decoder[-1].bias
    assert bias is not None
    bias[...] += 3
    np.testing.assert_array_equal(model(x), np.full((2, 8), 3.0))
    rnn = SequenceClassifier(8, 16, 4, cell="gru", rngs=nnx.Rngs(0))
    assert rnn.inputs.kernel.shape == (8, 48)
    assert rnn.recurrent.kernel.shape == (16, 48)
    assert rnn.recurrent.bias is None
    assert rnn.head.bias is not None
    assert rnn.head.bias.shape == (4,)


def test_convolutional_codes_compose():
    """decode(encode(x)) is the call; an odd size is halved upwards by the classifier."""
    model = ConvAutoencoder((6, 4, 2), (4, 8), 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), IMAGES)
    assert model.encode(x).shape == (5, 3)
    np.testing.assert_array_equal(model.decode(model.encode(x)), model(x))
    odd = ConvClassifier((7, 5, 1), (4, 4), 3, rngs=nnx.Rngs(0))
    assert odd.head.kernel.shape == (4 * 3 * 4, 3)
    assert odd(jnp.ones((2, 7, 5, 1))).shape == (2, 3)


def test_encode_and_decode_compose():
    """decode(encode(x)) is the call, and the code passes through code_activation."""
    model = Autoencoder(8, (16,), 3, code_activation=jnp.tanh, rngs=nnx.Rngs(0))
    x = 1e3 * jax.random.normal(jax.random.key(0), (5, 8))
    code = model.encode(x)
    assert code.shape == (5, 3)
    assert np.abs(code).max() <= 1
    np.testing.assert_array_equal(model.decode(code), model(x))


def test_integers_are_accepted():
    """An integer image gives the output of the same image as floats."""
    model = Autoencoder(8, rngs=nnx.Rngs(0))
    x = np.arange(16, dtype=np.uint8).reshape(2, 8)
    np.testing.assert_array_equal(model(x), model(x.astype(np.float32)))


def test_cells_match_their_equations():
    """Both cells equal a numpy loop over the equations in the docstring."""

    def sigmoid(v):
        return 1 / (1 + np.exp(-v))

    x = np.random.default_rng(0).normal(size=(3, 6, 5))
    for cell in ("rnn", "gru"):
        model = SequenceClassifier(5, 4, 2, cell=cell, rngs=nnx.Rngs(0))
        w, b, u = (
            np.asarray(v[...], np.float64)  # pyright: ignore[reportOptionalSubscript]
            for v in (model.inputs.kernel, model.inputs.bias, model.recurrent.kernel)
        )
        h = np.zeros((3, 4))
        for t in range(6):
            i, r = x[:, t] @ w + b, h @ u
            if cell == "rnn":
                h = np.tanh(i + r)
            else:
                reset, z = sigmoid(i + r)[:, :4], sigmoid(i + r)[:, 4:8]
                h = (1 - z) * np.tanh(i[:, 8:] + reset * r[:, 8:]) + z * h
        np.testing.assert_allclose(model.states(x.astype(np.float32))[:, -1], h, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "gru"])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_recurrent_kernels_start_orthogonal(cell, param_dtype):
    """Each gate's recurrent kernel has all singular values 1, so the state's norm is kept."""
    model = SequenceClassifier(5, 16, 2, cell=cell, param_dtype=param_dtype, rngs=nnx.Rngs(0))
    kernel = np.asarray(model.recurrent.kernel[...].astype(jnp.float32))
    gates = np.split(kernel, kernel.shape[1] // 16, axis=1)
    assert len(gates) == {"rnn": 1, "gru": 3}[cell]
    for gate in gates:
        tolerance = 16 * float(jnp.finfo(param_dtype).eps)
        np.testing.assert_allclose(np.linalg.svd(gate)[1], 1, atol=tolerance)


@pytest.mark.parametrize("activation", [jnp.tanh, nnx.relu])
def test_forward_is_finite_at_any_recurrent_gain(activation):
    """200 steps at recurrent gains to 1e30 give finite logits with the default bound on the state;
    without it, relu overflows at gain 8: the bound is what holds."""
    x = jax.random.normal(jax.random.key(0), (4, 200, 8))
    for gain in (1.0, 8.0, 1e10, 1e30):
        model = SequenceClassifier(8, 16, 4, activation=activation, rngs=nnx.Rngs(0))
        model.recurrent.kernel[...] *= gain
        assert np.isfinite(model(x)).all(), gain
        assert np.abs(model.states(x)).max() <= 1e4
    textbook = SequenceClassifier(8, 16, 4, activation=nnx.relu, max_state=None, rngs=nnx.Rngs(0))
    textbook.recurrent.kernel[...] *= 8
    assert not np.isfinite(textbook(x)).all()


def test_bound_changes_nothing_below_it():
    """A healthy relu network gives the same logits and gradients with the bound as without."""
    x = jax.random.normal(jax.random.key(0), (4, 20, 8))
    models = [
        SequenceClassifier(8, 16, 4, activation=nnx.relu, max_state=m, rngs=nnx.Rngs(0))
        for m in (1e4, None)
    ]
    bounded, free = (nnx.value_and_grad(lambda m: jnp.sum(m(x) ** 2))(m) for m in models)
    for a, b in zip(jax.tree.leaves(bounded), jax.tree.leaves(free), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", EACH)
def test_nan_is_not_hidden(case):
    """A NaN cell makes its own row of the output NaN, and no other row."""
    make, shape, _ = CASES[case]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x[(2, *([0] * (len(shape) - 1)))] = np.nan
    y = np.asarray(make()(x))
    assert np.isnan(y[2]).all()
    assert np.isfinite(np.delete(y, 2, axis=0)).all()


def test_probabilities():
    """Probabilities are the softmax of the logits and stay so at logits of 1e30."""
    model = Classifier(8, (), 3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (4, 8))
    np.testing.assert_array_equal(model.probabilities(x), ro.softmax(model(x)))
    model.layers[0].kernel[...] *= 1e30
    p = model.probabilities(x)
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-6)
    rnn = SequenceClassifier(8, 16, 3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(rnn.probabilities(x[None]).sum(axis=-1), 1, rtol=1e-6)


def test_confident_classifier_keeps_a_gradient():
    """With logits of order 1e3 the loss and its gradient are finite."""
    model = Classifier(8, (16,), 3, rngs=nnx.Rngs(0))
    model.layers[-1].kernel[...] *= 1e3
    x, y = jax.random.normal(jax.random.key(0), (6, 8)), jnp.arange(6) % 3

    def loss(model):
        return losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    value, grads = nnx.value_and_grad(loss)(model)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Autoencoder, {"features": 0}, "Autoencoder: features must be an integer >= 1, got 0"),
        (Autoencoder, {"hidden": (4, -1)}, r"Autoencoder: hidden\[1\] must be an integer"),
        (Autoencoder, {"code": 2.5}, "Autoencoder: code must be an integer"),
        (Classifier, {"hidden": 64}, "Classifier: hidden must be a tuple of layer widths"),
        (Classifier, {"classes": True}, "Classifier: classes must be an integer"),
        (ConvClassifier, {"shape": (8, 8)}, r"shape must be \(height, width, channels\), got"),
        (ConvClassifier, {"shape": (8, 0, 1)}, r"ConvClassifier: shape\[1\] must be an integer"),
        (ConvClassifier, {"hidden": ()}, "hidden must have at least 1 entry"),
        (ConvClassifier, {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        (ConvAutoencoder, {"shape": (6, 5, 1)}, r"\(6, 5\) are not multiples of 2; pad"),
        (SequenceClassifier, {"hidden": 0}, "SequenceClassifier: hidden must be"),
        (SequenceClassifier, {"cell": "lstm"}, "cell must be 'rnn' or 'gru'"),
        (SequenceClassifier, {"max_state": 0.0}, "max_state must be > 0 or None"),
    ],
)
def test_bad_sizes(make, options, message):
    """A bad size names the model, the argument and what was given."""
    if make not in (ConvAutoencoder, ConvClassifier):
        options = {"features": 8, **options}
    with pytest.raises(ValueError, match=message):
        make(**options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("case", "x", "message"),
    [
        ("classifier", np.ones((5, 9)), "Classifier: built for 8 features, .* has 9"),
        ("autoencoder", np.ones((5, 7)), "Autoencoder: built for 8 features, .* has 7"),
        ("autoencoder", np.ones((), np.float32), r"must have axes \[\.\.\., features\]"),
        ("classifier", np.ones((5, 8), complex), "must be real"),
        ("rnn", np.ones((5, 8)), r"must have axes \[batch, time, features\], got shape \(5, 8\)"),
        ("rnn", np.ones((5, 7, 3)), "SequenceClassifier: built for 8 features"),
        ("gru", np.ones((5, 0, 8)), "no time steps"),
        ("conv classifier", np.ones((5, 48)), r"must have axes \[batch, height, width, channels\]"),
        ("conv autoencoder", np.ones((5, 4, 6, 2)), r"images of shape \(6, 4, 2\), got \(4, 6, 2"),
    ],
)
def test_bad_inputs(case, x, message):
    """A wrong feature count, rank or dtype names the model, the shape and the remedy."""
    model = CASES[case][0]()
    with pytest.raises(ValueError, match=message):
        model(x)
    with pytest.raises(ValueError, match=message):
        nnx.jit(lambda m, x: m(x))(model, x)
