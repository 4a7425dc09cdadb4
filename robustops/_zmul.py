"""`zmul(p, t)`: the product in which zero absorbs, as a bilinear primitive.

A derivative rule multiplies a local partial `p` by a tangent `t`. With an ordinary product a masked
tangent, exactly 0, meets a partial that is inf or NaN and 0 * inf = NaN escapes. A `where` cannot
be used instead, since `t` in its condition makes the rule non-linear, which reverse mode refuses.
"""

import jax
import jax.numpy as jnp
from jax import lax

from ._jax import Primitive, ad, batching, mlir

zmul_p = Primitive("zmul")


def _product(p, t):
    # Nested selects: with an `or` of the conditions gradients of softmax took 1.5x as long on CPU.
    return jnp.where(p == 0, 0, jnp.where(t == 0, 0, p * t))


zmul_p.def_impl(jax.jit(_product))
zmul_p.def_abstract_eval(lambda p, t: lax.mul_p.abstract_eval(p, t)[0])
mlir.register_lowering(zmul_p, mlir.lower_fun(_product, multiple_results=False))
ad.defbilinear(
    zmul_p,
    lambda ct, p, t: zmul_p.bind(ct, t),
    lambda ct, p, t: zmul_p.bind(p, ct),
)


def _batch(args, dims):
    # Both operands keep one full shape, so that the transposes above need not sum.
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    full = (batching.bdim_at_front(a, d, size) for a, d in zip(args, dims, strict=True))
    return zmul(*full), 0


batching.primitive_batchers[zmul_p] = _batch


def zmul(p: jax.Array, t: jax.Array) -> jax.Array:
    """Return `p * t`, and exactly 0 where either factor is 0, whatever the other is.

    Bilinear: linear in each argument in the sense of jax's transposition, to every order.
    Shapes broadcast; dtypes must agree.
    """
    shape = jnp.broadcast_shapes(p.shape, t.shape)
    p, t = vary_alike(*(jnp.broadcast_to(a, shape) for a in (p, t)))
    if jax.typeof(p).sharding != jax.typeof(t).sharding:
        # Under an explicit mesh a sum knows which sharding the two have together.
        p, t = p + jnp.zeros_like(t), t + jnp.zeros_like(p)
    return zmul_p.bind(p, t)


def vary_alike(*operands: jax.Array) -> list[jax.Array]:
    """Mark each operand as varying over the mesh axes (of a `shard_map`) that any varies over.

    lax's own operators do so before they bind a primitive.
    """
    varying = [jax.typeof(a).manual_axis_type.varying for a in operands]
    union = frozenset().union(*varying)
    return [
        lax.pcast(a, tuple(union - own), to="varying") if union != own else a
        for a, own in zip(operands, varying, strict=True)
    ]
