"""Scenarios whose fault is in the program: its start, its decay, its precision."""

import jax.numpy as jnp
import optax

from robustops.models import Classifier

from . import _losses as losses
from ._data import Split, scaled, split, standardized
from ._scenario import ADAM, AUDIT, UNIT, Level, Remedy, Values, levels, scenario

DECAY = "a decay that outweighs the loss is another objective"


def _digits(seed: int, values: Values) -> Split:
    del values
    return standardized(split("digits", seed))


def _gain(model, values: Values):
    for layer in model.layers:
        layer.kernel[...] = layer.kernel[...] * values["gain"]


_CLASSES = {
    "naive_loss": losses.optax_cross_entropy,
    "optax_loss": losses.optax_cross_entropy,
    "robustops_loss": losses.ro_cross_entropy,
    "control_loss": losses.optax_cross_entropy,
    "metric": "accuracy",
}


@scenario(21)
def bad_init():
    """Three hidden ReLU layers whose initial weights are too large, Adam.

    Told: large initial weights explode. Measured: under Adam not at once: at a gain of 10 the
    net learns four fifths, at 100 a quarter, and from 1e10, where four layers overflow, it is
    dead. Re-initialising removes the stress, and so does the audit of the robustops arm.
    """
    return {
        "axis": "gain of the initial weights",
        "levels": levels("gain", 1, 10, 1e2, 1e4, 1e10, 1e20),
        "quick": (0, 2, 5),
        "data": _digits,
        "model": lambda rngs: Classifier(64, (64, 64, 64), 10, rngs=rngs),
        **_CLASSES,
        "remedy": Remedy("re-initialise", "the weights of stress 0", reinitialize=True),
        "optimizers": ADAM,
        "stress_init": _gain,
        "audit_removes_stress": AUDIT,
    }


@scenario(22)
def saturated_tanh():
    """A tanh net whose initial weights saturate it, Adam.

    Told: saturated units do not learn. Measured: at a gain of 10 the naive arm comes 0.70 of
    the way, from 100 it learns next to nothing, and it never dies: tanh' is 0, and only the
    output layer learns, on random signs. Re-initialising removes the stress, and so does the
    audit.
    """
    return {
        "axis": "gain of the initial weights",
        "levels": levels("gain", 1, 10, 1e2, 1e4, 1e10, 1e30),
        "quick": (0, 2, 5),
        "data": _digits,
        "model": lambda rngs: Classifier(64, (64, 64), 10, activation=jnp.tanh, rngs=rngs),
        **_CLASSES,
        "remedy": Remedy("re-initialise", "the weights of stress 0", reinitialize=True),
        "optimizers": ADAM,
        "stress_init": _gain,
        "audit_removes_stress": AUDIT,
    }


@scenario(23)
def weight_decay():
    """Weight decay far too strong, AdamW.

    Told: too much decay makes training unstable. Measured: AdamW multiplies the weights by 1 -
    rate * decay in each step, so it dies where that is below -1, at 1e4; a decay of 1 costs
    nothing, one of 10 a tenth of the skill. Adam moves a weight by at most about the rate in a
    step, so the decay holds it below 1 / decay: at 100 and beyond the objective no longer asks
    for the task, and these levels are not counted.
    """
    too_strong = {"fair": False, "note": DECAY}
    return {
        "axis": "decay of AdamW",
        "levels": (
            *levels("decay", 0, 0.1, 1, 10),
            *(Level(f"{v:g}", {"decay": v}, **too_strong) for v in (100, 1e4)),
        ),
        "quick": (0, 2, 5),
        "data": _digits,
        "model": lambda rngs: Classifier(64, (64,), 10, rngs=rngs),
        **_CLASSES,
        "remedy": Remedy("no decay", "the decay of stress 0", resets=("decay",)),
        "optimizers": {
            "adamw": lambda rate, values: optax.adamw(rate, weight_decay=values["decay"])
        },
    }


@scenario(24)
def float16():
    """Layers that compute in float16, on data too large or too small for it.

    Told: float16 overflows above 65504 and is 0 below 6e-8. Measured: from a scale of 1e5 the
    inputs themselves are inf and the naive arm is dead; at 1e-4 and below it lives and learns
    nothing, for products and gradients vanish. Scaling the loss is the usual advice. The
    scalers remove the stress.
    """

    def data(seed: int, values: Values) -> Split:
        return scaled(standardized(split("digits", seed)), values["scale"])

    scales = (1, 1e3, 1e5, 1e20, 1e-4, 1e-6, 1e-9)
    return {
        "axis": "scale of the standardized features, up and down",
        "levels": levels("scale", *scales),
        "quick": (0, 2, 6),
        "data": data,
        "model": lambda rngs: Classifier(64, (64,), 10, dtype=jnp.float16, rngs=rngs),
        **_CLASSES,
        "remedy": Remedy(
            "scale the loss by 1024",
            loss=losses.scaled_cross_entropy(1024),
            wrap=lambda tx: optax.chain(optax.scale(1 / 1024), tx),
        ),
        "optimizers": ADAM,
        "scaling_removes_stress": UNIT,
    }
