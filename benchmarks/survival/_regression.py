"""The scenarios that predict numbers: autoencoders and regression.

A docstring says what is usually told, what was measured here, and which levels are fair. All levels
are fair unless a docstring says otherwise: the clean information is in the data, and some program
could learn from it. Where an arm takes the stress away in place of bearing it, its rows are marked
"stress-removed", and the docstring says so.
"""

import jax.numpy as jnp
import numpy as np
import optax

from robustops.models import Autoencoder, Classifier

from . import _losses as losses
from ._data import Split, reconstruction, scaled, split, standardized
from ._scenario import ADAM, SGD, UNIT, Level, Remedy, Values, levels, scenario, share


@scenario(1)
def autoencoder_mse():
    """Autoencoder, linear code, mean squared error, unscaled pixels, under Adam and SGD.

    Told: raw pixels make the squared error explode. Measured: under SGD they do, at 255 already.
    Adam divides by the gradient's size and learns from pixels of 1e6 as well as from those of 1;
    it dies where squares leave float32, from 1e18. Standardizing, the usual advice, removes the
    stress, and so do the scalers of the arms optax+scaler and robustops.
    """

    def data(seed: int, values: Values) -> Split:
        return reconstruction(scaled(split("patches", seed), values["scale"] / 255))

    scales = (1, 255, 1e6, 1e18, 1e30)
    return {
        "axis": "largest pixel",
        "levels": tuple(
            Level(f"{name} {s:g}", {"scale": s}, optimizer=name)
            for name in ("adam", "sgd")
            for s in scales
        ),
        "quick": (0, 3, 6),
        "data": data,
        "model": lambda rngs: Autoencoder(64, (32,), 8, rngs=rngs),
        "naive_loss": losses.mse,
        "optax_loss": losses.optax_mse,
        "robustops_loss": losses.ro_mse,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("standardize the pixels", UNIT, standardize=True),
        "metric": "r2",
        "optimizers": {**ADAM, **SGD},
        "scaling_removes_stress": UNIT,
    }


@scenario(2)
def autoencoder_tanh():
    """Autoencoder with a tanh code and weight decay, on standardized data times a scale.

    Told: a bounded code, scaled data and weight decay keep an autoencoder finite. Measured: at
    scale 1 everything learns. At 10 the code saturates, and naive training falls behind (0.88 of
    perfect, the control 0.95), at 1000 it reaches 0.34, at 1e10 nothing; it dies from 1e20.
    Standardizing removes the stress.
    """

    def data(seed: int, values: Values) -> Split:
        return reconstruction(scaled(standardized(split("patches", seed)), values["scale"]))

    return {
        "axis": "scale of the standardized pixels",
        "levels": levels("scale", 1, 10, 1e3, 1e10, 1e20, 1e30),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Autoencoder(64, (32,), 8, code_activation=jnp.tanh, rngs=rngs),
        "naive_loss": losses.mse,
        "optax_loss": losses.optax_mse,
        "robustops_loss": losses.ro_mse,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("standardize the data", UNIT, standardize=True),
        "metric": "r2",
        "optimizers": {
            "adam+l2": lambda rate, values: optax.chain(
                optax.add_decayed_weights(1e-4), optax.adam(rate)
            )
        },
        "scaling_removes_stress": UNIT,
    }


@scenario(3)
def bounded_loss():
    """Autoencoder with the bounded loss e^2 / (e^2 + eps): finite, but it learns nothing.

    Told: a bounded loss cannot explode. Measured: true, no arm ever dies, down to eps = 0 (which
    is 0/0 only at a residual of exactly 0, and float32 residuals of this net never are). But at
    the eps usually written, 1e-7, all residuals lie on the plateau, the loss is 1, the gradient
    noise, and the reconstruction is far worse than the mean patch. Huber, the remedy, learns, at
    the price of the bound. robustops keeps the bound: `geman_mcclure` is the same loss, with a
    scale of three typical residuals of the batch where eps asks for less, so it is annealed as the
    fit improves. That is a choice of the loss's own parameter: at these levels eps no longer acts,
    and the stress is removed.
    """

    def data(seed: int, values: Values) -> Split:
        del values
        return reconstruction(standardized(split("patches", seed)))

    return {
        "axis": "eps, beside squared residuals of order 1",
        "levels": levels("eps", 1.0, 1e-2, 1e-4, 1e-7, 1e-20, 0.0),
        "quick": (0, 3, 5),
        "data": data,
        "model": lambda rngs: Autoencoder(64, (32,), 8, rngs=rngs),
        "naive_loss": losses.bounded,
        "optax_loss": losses.bounded,
        "robustops_loss": losses.ro_geman_mcclure,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("take Huber", "another loss, without eps", loss=losses.optax_huber),
        "metric": "r2",
        "optimizers": ADAM,
        "robustops_removes_stress": "a scale from the residuals overrides a smaller eps",
    }


@scenario(6)
def outlier_regression():
    """Linear regression on unscaled inputs with outlier cells, SGD.

    Told: unscaled inputs and outliers make SGD diverge. Measured: from scale 10 with 0.2% of the
    training cells replaced by normal numbers of 1e4 deviations, at once. Standardizing with Huber
    lives, but the outliers set the scale: 0.35 in place of 0.48 at 0.2%, almost nothing from 1%.
    The scaler removes the unit, not the outliers: robustops' counts cells beyond 30 robust sigmas
    as missing.
    """

    def data(seed: int, values: Values) -> Split:
        clean = standardized(split("diabetes", seed), targets=True)
        rng = np.random.default_rng([seed, 2])
        outlier = rng.random(clean.x.shape) < values["share"]
        x = np.where(outlier, 1e4 * rng.normal(size=clean.x.shape), clean.x)
        return scaled(clean._replace(x=x), values["scale"])

    pairs = ((1, 0), (10, 0.002), (1e3, 0.01), (1e10, 0.02), (1e30, 0.05))
    return {
        "axis": "input scale, share of outlier cells",
        "levels": tuple(Level(f"{s:g}, {share(p)}", {"scale": s, "share": p}) for s, p in pairs),
        "quick": (0, 2, 4),
        "data": data,
        "model": lambda rngs: Classifier(10, (), 1, rngs=rngs),
        "naive_loss": losses.mse,
        "optax_loss": losses.optax_mse,
        "robustops_loss": losses.ro_mse,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("standardize, take Huber", loss=losses.optax_huber, standardize=True),
        "metric": "r2",
        "optimizers": SGD,
    }


@scenario(12)
def log_square():
    """Regression with mean(log(1 + |e|)^2) under RMSprop, targets in large units.

    Told: RMSprop with this loss gives NaN. Measured: never, for targets to 1e36: the loss is at
    most 88^2 and its gradient at most 0.74. But a step of fixed size does not reach targets of 1e2
    or more, and the gradient, 2 log(1 + |e|) / (1 + |e|), fades with the error: alive, nothing
    learned. Standardizing the targets removes the stress.
    """

    def data(seed: int, values: Values) -> Split:
        clean = standardized(split("diabetes", seed), targets=True)
        return clean._replace(y=clean.y * values["scale"], y_test=clean.y_test * values["scale"])

    return {
        "axis": "target scale",
        "levels": levels("scale", 1, 10, 1e2, 1e6, 1e20, 1e36),
        "quick": (0, 2, 5),
        "data": data,
        "model": lambda rngs: Classifier(10, (16,), 1, rngs=rngs),
        "naive_loss": losses.log_square,
        "optax_loss": losses.log_square,
        "robustops_loss": losses.ro_log_square,
        "control_loss": losses.optax_mse,
        "remedy": Remedy("standardize the targets", UNIT, standardize=True),
        "metric": "r2",
        "optimizers": {"rmsprop": lambda rate, values: optax.rmsprop(rate)},
        "scaling_removes_stress": UNIT,
    }
