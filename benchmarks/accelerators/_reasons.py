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
_SATURATED = (
    "The derivative asks where the value saturated, so XLA for GPU writes the value and reads it "
    "again."
)

REASONS: dict[str, str] = {
    "binary_cross_entropy(label=0)": _SATURATED,
    "binary_cross_entropy(label=1)": _SATURATED,
    "gaussian_kl": "The terms are summed twice, once scaled, so that no partial sum overflows.",
    "softmax_cross_entropy": _CONFIDENT,
    "skip_nonfinite": _UPDATE,
    "guard": _UPDATE,
    "guard, AGC": _UPDATE,
}


def reason(case: str) -> str | None:
    """Why a case may move more than the usual form; None if nothing says so."""
    if case in OPS and re.search(r"\b(bytes|pass|passes|scan)\b", OPS[case].cost, re.IGNORECASE):
        return OPS[case].cost
    return REASONS.get(case)
