"""Why some cases move more than 1.02 times the bytes of the usual form.

An op's reason is the `cost` of its record, where that speaks of bytes or of passes over the data;
losses, guards and train steps have no record, so theirs stand here.
"""

import re

from robustops.testing import OPS

_CONFIDENT = (
    "A pass for the maximum and sums of their own for what is not the largest entry, which keep "
    "the digits that 1 - p and 1 + rest lose."
)
_UPDATE = (
    "The update and the new state are judged as well as the gradient, and formed anew when they "
    "are applied."
)
_GRADIENT = "The gradient is read once more than Adam alone reads it, and with AGC the parameters."
_CONSTANT = _CONFIDENT + (
    " The labels are constant here, so the compiler leaves out of the usual form what it would "
    "read for others."
)
_COMPOSED = (
    "The slope is formed by several total functions, which the compiler does not join; no rule of "
    "one pass has been written yet."
)

REASONS: dict[str, str] = {
    "gaussian_kl": "The terms are summed twice, once scaled, so that no partial sum overflows.",
    "general_robust_loss(alpha=0.5)": _COMPOSED,
    "kl_divergence": _COMPOSED,
    "softmax_cross_entropy": _CONFIDENT,
    "softmax_cross_entropy(margin)": _CONSTANT,
    "softmax_cross_entropy(masked logits)": _CONSTANT,
    "softmax_cross_entropy_with_integer_labels(margin)": _CONSTANT,
    "softmax_focal_loss": _CONSTANT + " What several sums read is written to memory.",
    "train step, Autoencoder": _UPDATE,
    "train step, Classifier": _UPDATE,
    "skip_nonfinite": _UPDATE,
    "guard": _UPDATE,
    "guard, AGC": _UPDATE,
    "skip_nonfinite, gradient": _GRADIENT,
    "guard, gradient": _GRADIENT,
    "guard, AGC, gradient": _GRADIENT,
}


def reason(case: str) -> str | None:
    """Why a case may move more than the usual form; None if nothing says so."""
    if case in OPS and re.search(r"\b(bytes|pass|passes|scan)\b", OPS[case].cost, re.IGNORECASE):
        return OPS[case].cost
    return REASONS.get(case)
