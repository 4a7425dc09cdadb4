"""Scenarios whose fault is in the program, not in the data."""

import optax

from robustops.models import Classifier

from . import _losses as losses
from ._data import Split, split, standardized
from ._scenario import Level, Remedy, Values, levels, scenario

DECAY = "a decay that outweighs the loss is another objective"


def _digits(seed: int, values: Values) -> Split:
    del values
    return standardized(split("digits", seed))


@scenario(21)
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
        "naive_loss": losses.optax_cross_entropy,
        "optax_loss": losses.optax_cross_entropy,
        "robustops_loss": losses.ro_cross_entropy,
        "control_loss": losses.optax_cross_entropy,
        "remedy": Remedy("no decay", "the decay of stress 0", resets=("decay",)),
        "metric": "accuracy",
        "optimizers": {
            "adamw": lambda rate, values: optax.adamw(rate, weight_decay=values["decay"])
        },
    }
