"""Why some cases move more than 1.02 times the bytes of the usual form."""

_KEPT = (
    "The derivative asks where the value saturated, so XLA for GPU writes the value and reads it "
    "again; the naive derivative needs x only."
)
_MAGNITUDE = (
    "One pass more, for the largest magnitude, without which the squares overflow or underflow."
)
_MAXIMUM = "One pass more, for the maximum, without which exp overflows."
_CONFIDENT = (
    "A pass for the maximum and sums of their own for what is not the largest entry, which keep "
    "the digits that 1 - p and 1 + rest lose."
)
_TWO_SUMS = "The terms are summed twice, once scaled, so that no partial sum overflows."
_UPDATE = (
    "The update and the new state are judged as well as the gradient, and formed anew when they "
    "are applied."
)


def _both(reason: str) -> dict[str, str]:
    return {"value": reason, "gradient": reason}


REASONS: dict[str, dict[str, str]] = {
    "binary_cross_entropy(label=0)": {"gradient": _KEPT},
    "binary_cross_entropy(label=1)": {"gradient": _KEPT},
    "cosine_similarity": _both(_MAGNITUDE),
    "entr": {"gradient": _KEPT},
    "gaussian_kl": _both(_TWO_SUMS),
    "guard": {"update": _UPDATE, "guarded_apply": _UPDATE},
    "guard, AGC": {"update": _UPDATE, "guarded_apply": _UPDATE},
    "kl_div": {"gradient": _KEPT},
    "log_softmax": _both(_CONFIDENT),
    "logcumsumexp": _both(
        "The scan carries a maximum and a sum with its rounding error, three numbers for one."
    ),
    "logmeanexp": _both(_CONFIDENT),
    "logsumexp": _both(_CONFIDENT),
    "pairwise_distance": _both(_MAGNITUDE),
    "rel_entr": {"gradient": _KEPT},
    "safe_expm1": {"gradient": _KEPT},
    "safe_hypot": {"gradient": _KEPT},
    "safe_norm": _both(_MAGNITUDE),
    "safe_normalize": _both(_MAGNITUDE),
    "safe_pow": {"gradient": "The value is kept, as its derivative is formed from it (H100)."},
    "safe_std": _both(_MAGNITUDE),
    "safe_var": _both(_MAGNITUDE),
    "skip_nonfinite": {"update": _UPDATE, "guarded_apply": _UPDATE},
    "softmax": _both(_MAXIMUM),
    "softmax_cross_entropy": _both(_CONFIDENT),
    "xlog1py": {"gradient": _KEPT},
    "xlogy": {"gradient": _KEPT},
}
