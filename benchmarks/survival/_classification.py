"""The scenarios that predict classes; `_regression` says how to read the docstrings."""

import jax
import numpy as np
import optax
from flax import nnx

from robustops.models import Classifier, SequenceClassifier

from . import _losses as losses
from ._data import Split, scaled, split, standardized
from ._scenario import ADAM, AUDIT, SGD, UNIT, Level, Remedy, Values, levels, scenario, share


@scenario(4)
def high_rate():
    """ReLU classifier with a learning rate and initial weights far too large, SGD.

    Told: a rate of 0.1 gives NaN. Measured: no; each arm's best rate on this net is larger. At ten
    times the tuned rate with ten times the weights the naive arm dies. Under Adam it would not: a
    ReLU net is homogeneous, Adam's steps do not depend on the gradient's size, and the same net
    learns (0.96 of the way to perfection) at 1e15 times the rate, to die at 1e30. Lowering the
    rate and re-initialising, the advice, removes the stress. The audit of the robustops arm
    removes the gain; the rate stays, and is borne by the guard's cap on the relative update.
    """

    def data(seed: int, values: Values) -> Split:
        del values
        return standardized(split("digits", seed))

    def stress_init(model, values: Values):
        for layer in model.layers:
            layer.kernel[...] = layer.kernel[...] * values["gain"]

    pairs = ((1, 1), (10, 10), (1e3, 1e2), (1e6, 1e4), (1e15, 1e10), (1e30, 1e18))
    return {
        "axis": "multiple of the tuned rate, gain of the initial weights",
        "levels": tuple(Level(f"{r:g}, {g:g}", {"rate": r, "gain": g}) for r, g in pairs),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(64, (64,), 10, rngs=rngs),
        "naive_loss": losses.optax_cross_entropy,
        "optax_loss": losses.optax_cross_entropy,
        "robustops_loss": losses.ro_cross_entropy,
        "control_loss": losses.optax_cross_entropy,
        "remedy": Remedy(
            "lower the rate, re-initialise",
            "the rate and the weights of stress 0",
            reinitialize=True,
            lower_rate=True,
        ),
        "metric": "accuracy",
        "optimizers": SGD,
        "stress_init": stress_init,
    }


@scenario(5)
def clip_bce():
    """Logistic regression, cross-entropy after clip(p, 1e-8, 1 - 1e-8), no clip in float32.

    Told: the clip protects the logarithm. Measured: 1 - 1e-8 is 1 in float32, so log(1 - p) is
    -inf and 0 * inf NaN as soon as one p rounds to 1: from scale 10 the naive arm is dead. The
    usual remedy, a clip at 1e-7, lives, but has no gradient where it clips: it falls behind from
    100 and learns nothing from 1e4. From logits optax learns in two or three seeds of five at 1e10,
    and at 1e36, where logits overflow, only with a scaler, which removes the stress, as it does in
    the robustops arm.
    """

    def data(seed: int, values: Values) -> Split:
        return scaled(standardized(split("breast_cancer", seed, held_out=0.5)), values["scale"])

    return {
        "axis": "scale of the standardized features",
        "levels": levels("scale", 1, 10, 1e2, 1e4, 1e10, 1e36),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (), 1, rngs=rngs),
        "naive_loss": losses.clipped_bce(1e-8, 1 - 1e-8),
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy("clip at 1e-7", loss=losses.clipped_bce(1e-7, 1 - 1e-7)),
        "metric": "accuracy",
        "optimizers": ADAM,
        "steps": 600,
        "scaling_removes_stress": UNIT,
    }


@scenario(7)
def rnn():
    """ReLU RNN on long sequences with a large recurrent gain: exploding gradients.

    Told: long sequences explode. Measured: not by length alone; with the model's orthogonal start
    96 steps train well. The recurrent gain is the stress: at 2 the naive arm lives and learns half
    over 24 steps, nothing over 96, at 8 the state itself overflows and all is NaN. Clipping the
    gradient, the usual advice, comes too late for that. A sequence is one digit, row by row,
    scanned 3 or 12 times, so that the task does not get harder with the length. The state's bound
    (`max_state`) is off in all arms. The audit of the robustops arm brings the gain back to 1, and
    removes the stress.
    """

    def data(seed: int, values: Values) -> Split:
        digits = split("digits", seed)
        scans = values["length"] // 8
        sequence = lambda x: np.tile(x.reshape(-1, 8, 8) / 16, (1, scans, 1))
        return digits._replace(x=sequence(digits.x), x_test=sequence(digits.x_test))

    def stress_init(model, values: Values):
        model.recurrent.kernel[...] = model.recurrent.kernel[...] * values["gain"]

    pairs = ((24, 1), (24, 2), (96, 2), (96, 8), (96, 100))
    return {
        "axis": "sequence length, recurrent gain",
        "levels": tuple(Level(f"{n}, {g:g}", {"length": n, "gain": g}) for n, g in pairs),
        "quick": (0, 2, 4),
        "data": data,
        "model": lambda rngs: SequenceClassifier(
            8, 32, 10, activation=nnx.relu, max_state=None, rngs=rngs
        ),
        "naive_loss": losses.optax_cross_entropy,
        "optax_loss": losses.optax_cross_entropy,
        "robustops_loss": losses.ro_cross_entropy,
        "control_loss": losses.optax_cross_entropy,
        "remedy": Remedy(
            "clip the gradient's norm at 1",
            wrap=lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
        ),
        "metric": "accuracy",
        "optimizers": ADAM,
        "stress_init": stress_init,
        "audit_removes_stress": AUDIT,
        "batch": 32,
    }


@scenario(8)
def division():
    """NaN and inf in the data, from a division by zero in the preprocessing.

    Told: a single NaN kills the run. Measured: yes, at one bad row of 284, in the naive and in
    both optax arms; `apply_if_finite` gives up after five bad steps in a row, and a standard
    scaler turns a column with an inf into NaN. Three of the 30 cells of each bad row are x / 0 or
    0 / 0. Dropping the bad rows works while there are others; where all rows are bad it has
    nothing left to train on, though nine tenths of the cells are good: that level is fair.
    """

    def data(seed: int, values: Values) -> Split:
        clean = standardized(split("breast_cancer", seed, held_out=0.5))
        rng = np.random.default_rng([seed, 2])
        rows = rng.permutation(len(clean.x))[: round(values["share"] * len(clean.x))]
        columns = np.stack([rng.permutation(clean.x.shape[1])[:3] for _ in rows] or [[0, 0, 0]])
        cells = rows[:, None], columns[: len(rows)]
        divisor = np.ones_like(clean.x)
        divisor[cells] = 0.0
        numerator = clean.x.copy()
        numerator[cells] *= rng.integers(0, 2, cells[1].shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            return clean._replace(x=numerator / divisor)

    return {
        "axis": "share of bad rows",
        "levels": tuple(Level(share(p), {"share": p}) for p in (0, 0.005, 0.1, 0.5, 0.9, 1)),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (16,), 1, rngs=rngs),
        "naive_loss": losses.bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy("drop the bad rows", standardize=True, drop_bad_rows=True),
        "metric": "accuracy",
        "optimizers": ADAM,
    }


@scenario(9)
def exact_probabilities():
    """Cross-entropy from probabilities that are exactly 0 or 1.

    Told: log(0) gives inf. Measured: at a logit scale of 10 the naive arm dies in four seeds of
    five, beyond that in all. From logits, the remedy, it lives and comes within 85% of perfect up
    to 1e10, because a right sign is all that accuracy asks: half to four fifths of the seeds learn.
    The logit scale is a gain on the output layer's initial weights; the audit of the robustops arm
    removes it. Probabilities that a fixed temperature drives to 0 and 1 are another matter: there
    float32 has lost the logit, and only the loss from logits can help.
    """

    def data(seed: int, values: Values) -> Split:
        del values
        return standardized(split("breast_cancer", seed, held_out=0.5))

    def stress_init(model, values: Values):
        kernel = model.layers[-1].kernel
        kernel[...] = kernel[...] * values["gain"]

    return {
        "axis": "scale of the initial logits",
        "levels": levels("gain", 1, 10, 1e2, 1e4, 1e10, 1e30),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (16,), 1, rngs=rngs),
        "naive_loss": losses.bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy("compute the loss from logits", loss=losses.optax_bce),
        "metric": "accuracy",
        "optimizers": ADAM,
        "stress_init": stress_init,
        "audit_removes_stress": AUDIT,
    }


@scenario(10)
def sigmoid_raw():
    """Sigmoid network on inputs of order 1000.

    Told: it saturates and gives NaN. Measured: it saturates and lives, to 1e35. At 1000 it learns
    next to nothing. From 1e6 its hidden units are random switches, on which the output layer alone
    still learns two thirds of the way from trivial to perfect. Standardizing removes the stress.
    """

    def data(seed: int, values: Values) -> Split:
        return scaled(split("digits", seed), values["scale"] / 16)

    return {
        "axis": "largest input",
        "levels": levels("scale", 1, 30, 1e3, 1e6, 1e20, 1e35),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(64, (32, 32), 10, activation=jax.nn.sigmoid, rngs=rngs),
        "naive_loss": losses.optax_cross_entropy,
        "optax_loss": losses.optax_cross_entropy,
        "robustops_loss": losses.ro_cross_entropy,
        "control_loss": losses.optax_cross_entropy,
        "remedy": Remedy("standardize the inputs", UNIT, standardize=True),
        "metric": "accuracy",
        "optimizers": ADAM,
        "scaling_removes_stress": UNIT,
    }


@scenario(11)
def output_bias():
    """Output bias that saturates the sigmoid at the start.

    Told: a large bias stops learning. Measured: from probabilities it kills, at 20 already. From
    logits, the remedy, the bias walks back by one learning rate a step: at 20 it mostly arrives, at
    100 the other weights make good two thirds, from 1e4 nothing is learned. The audit of the
    robustops arm sets such a bias to 0: the stress is removed.
    """

    def data(seed: int, values: Values) -> Split:
        del values
        return standardized(split("breast_cancer", seed, held_out=0.5))

    def stress_init(model, values: Values):
        bias = model.layers[-1].bias
        bias[...] = bias[...] + values["bias"]

    return {
        "axis": "initial output bias",
        "levels": levels("bias", 0, 20, 100, 1e4, 1e10, 1e30),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(30, (16,), 1, rngs=rngs),
        "naive_loss": losses.bce,
        "optax_loss": losses.optax_bce,
        "robustops_loss": losses.ro_bce,
        "control_loss": losses.optax_bce,
        "remedy": Remedy("compute the loss from logits", loss=losses.optax_bce),
        "metric": "accuracy",
        "optimizers": ADAM,
        "stress_init": stress_init,
        "audit_removes_stress": AUDIT,
    }
