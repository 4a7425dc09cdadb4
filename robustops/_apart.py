"""`apart(x)`: x itself, which XLA for CPU compiles as if it were another array.

XLA for CPU writes to memory what two kernels have in common, and also what a sum would take along
in its pass but finds used twice: a copy's time for each, be it a constant in the shape of x. With a
derivative's arrays and a formula's constants set apart, a sum takes the formula along in one pass
over x, and the derivative is one loop. Elsewhere nothing is done.
"""

import jax
from jax import lax

from ._jax import Primitive, ad, batching, mlir

apart_p = Primitive("apart")
apart_p.multiple_results = True
apart_p.def_impl(lambda *xs: list(xs))
apart_p.def_abstract_eval(lambda *xs: list(xs))
mlir.register_lowering(apart_p, lambda ctx, *xs: list(xs))
mlir.register_lowering(
    apart_p, mlir.lower_fun(lambda *xs: lax.optimization_barrier(list(xs))), platform="cpu"
)
ad.primitive_jvps[apart_p] = lambda primals, tangents: (apart_p.bind(*primals), list(tangents))
batching.primitive_batchers[apart_p] = lambda args, dims: (apart_p.bind(*args), dims)


def apart(x: jax.Array) -> jax.Array:
    """Return `x`, apart from its other uses."""
    return apart_p.bind(x)[0]


def copies(x: jax.Array, count: int) -> list[jax.Array]:
    """Return `x` so many times, each apart from the others."""
    return apart_p.bind(*[x] * count)


def constants(like: jax.Array, *values: float) -> list[jax.Array]:
    """Return numbers of the dtype of `like`, weak where that is, each apart; for one use each."""
    return apart_p.bind(*(lax.full_like(like, v, shape=()) for v in values))
