"""The one sentence that says what to do, by primitive."""

from .._spec import OPS

# For primitives that no op stands in for.
_OTHERS = {
    "sub": "inf - inf is NaN: subtract a maximum only where it is finite, and for a softmax whose "
    "whole row may be masked use robustops.softmax(x, where=mask).",
    "add": "a sum overflowed, or inf met -inf: scale the terms first, or sum in a wider dtype.",
    "mul": "a product overflowed: scale the factors first, work in log space, or widen the dtype.",
    "integer_pow": "a power overflowed, or a negative one met 0: scale its base first "
    "(robustops.safe_norm, safe_std), or use a wider dtype.",
    "reduce_sum": "a sum overflowed: take the mean (robustops.safe_mean), or sum in a wider dtype.",
    "reduce": "a reduction overflowed: scale its terms, or reduce in a wider dtype.",
    "reduce_prod": "a product overflowed: sum logarithms instead.",
    "cumsum": "a running sum overflowed: scale its terms, or use a wider dtype.",
    "cumprod": "a running product overflowed: sum logarithms instead (jnp.cumsum of the logs).",
    "dot_general": "a matrix product overflowed: scale its operands or, of 16 bits, ask for a "
    "wider result with preferred_element_type=jnp.float32.",
    "conv_general_dilated": "a convolution overflowed: scale its operands or, of 16 bits, ask for "
    "a wider result with preferred_element_type=jnp.float32.",
    "convert_element_type": "the value does not fit the narrower dtype: scale it down before the "
    "cast, or keep it in float32 or bfloat16.",
    "exp2": "exp2 overflows above 128 in float32: bound its argument.",
    "sinh": "sinh overflows above 89.4 in float32: bound its argument.",
    "cosh": "cosh overflows above 89.4 in float32: bound its argument; for its logarithm use "
    "robustops.losses.log_cosh.",
    "cholesky": "the matrix is not positive definite in this precision: add a multiple of the "
    "identity (jitter) to it, and look for equal rows.",
    "triangular_solve": "the triangular matrix is singular, or nearly: add a multiple of the "
    "identity (jitter) to the matrix that it comes from.",
    "lu": "the matrix is singular, or nearly: add a multiple of the identity to it.",
    "eigh": "the derivative of eigenvectors is infinite where two eigenvalues are equal: add a "
    "small diagonal that tells them apart, or use eigenvalues only.",
    "svd": "the derivative of singular vectors is infinite where two singular values are equal "
    "or 0: use singular values only, or add a small perturbation.",
    "rem": "the remainder by 0 is NaN: put jnp.where(y == 0, 1, y) in place of the divisor y.",
    "digamma": "digamma has poles at 0, -1, -2, ...: keep its argument above 0, say by a softplus.",
    "lgamma": "lgamma has poles at 0, -1, -2, ...: keep its argument above 0, say by a softplus.",
    "erf_inv": "erf_inv is infinite at -1 and 1 and NaN beyond: clip its argument inside of them.",
    "select_n": "NaN or an infinity is written as a constant here, or in the function called here "
    "for arguments outside of its domain (a singular matrix, a value of no probability): write a "
    "finite one, keep the arguments inside, or mask what follows.",
    "gather": "an index is out of bounds, for which jnp fills in NaN: check the indices.",
    "reduce_max": "the maximum of nothing is -inf: give a finite initial=, or look for empty rows.",
    "reduce_min": "the minimum of nothing is inf: give a finite initial=, or look for empty rows.",
}
INPUT = (
    "clean the data before the step: robustops.train.fit counts such rows and can drop them, and "
    "jnp.where(jnp.isfinite(x), x, 0.0) with a mask in the loss leaves single cells out."
)
_GENERAL = "keep the operands inside the domain of this operation, away from its edges."


def remedy(primitive: str) -> str:
    """Return the hint of the op that stands in for `primitive`, or one from the table here."""
    hints = {op.replaces: op.hint for op in OPS.values()}
    return hints.get(primitive) or _OTHERS.get(primitive, _GENERAL)
