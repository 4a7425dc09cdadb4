"""A repaired value that keeps the derivative of the plain one, and repairs that are rarely needed.

A product of 0 and infinity counts as 0, and its derivative by `_linear` has that 0 already: to
select in the value is enough. A selection that is differentiated too is kept for, and computed
again in, the backward pass; a branch keeps all that its repair might need.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from .. import _jax
from .._jax import ad, batching

instead_p = _jax.new_primitive("instead", lambda y, z: z, lambda y, z: z)
ad.primitive_jvps[instead_p] = lambda primals, tangents: (instead_p.bind(*primals), tangents[0])
batching.defbroadcasting(instead_p)


def instead(y: jax.Array, z: jax.Array) -> jax.Array:
    """Return `z`, with the derivative of `y`."""
    return instead_p.bind(y, lax.stop_gradient(z))


def unless_finite_throughout(y: jax.Array, repair: Callable, *operands: jax.Array) -> jax.Array:
    """Return `y`, or `repair(y, *operands)` if an element of `y` is not finite.

    A loop of no or one turn. A branch would copy `y`, and mapped over an axis compute both sides.
    """
    y, *fixed = (lax.stop_gradient(v) for v in (y, *operands))

    def turn(state):
        sound, y = state
        # Of what does not change in a loop XLA computes ahead of it all that it can.
        changing = (jnp.where(sound, 0, v) for v in fixed)
        return ~sound, repair(y, *changing)

    return lax.while_loop(lambda state: ~state[0], turn, (jnp.all(jnp.isfinite(y)), y))[1]
