"""A dense autoencoder."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from ._common import apply_stack, check_input, check_size, check_sizes, dense_stack, nnx


class Autoencoder(nnx.Module):
    """A dense autoencoder with a linear output: `decode(encode(x))` has the shape of `x`.

    The decoder mirrors the encoder: `features -> *hidden -> code -> *reversed(hidden) -> features`.
    The output layer is linear, so no target is out of reach and none saturates it; what keeps the
    loss finite on unscaled data is a scaler (`robustops.train.StandardScaler`).

    Args:
      features: size of the last axis of the input.
      hidden: widths of the encoder's hidden layers; `()` gives a linear encoder and decoder.
      code: size of the code.
      activation: function between the layers.
      code_activation: function applied to the code, e.g. `jnp.tanh`; None leaves it linear.
      dtype: type to compute in; None takes it from the input and the parameters.
      param_dtype: type of the parameters.
      rngs: source of the initial parameters.

    Attributes:
      encoder: `nnx.List` of the encoder's `nnx.Linear` layers.
      decoder: `nnx.List` of the decoder's `nnx.Linear` layers.

    Raises:
      ValueError: a size is not a positive integer, or an input has another number of features.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64,),
        code: int = 16,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        code_activation: Callable[[jax.Array], jax.Array] | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        self.features: int = check_size(name, "features", features)
        self.code: int = check_size(name, "code", code)
        sizes = (self.features, *check_sizes(name, "hidden", hidden), self.code)
        self.activation = activation
        self.code_activation = code_activation
        self.encoder: nnx.List[nnx.Linear] = dense_stack(
            sizes, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.decoder: nnx.List[nnx.Linear] = dense_stack(
            sizes[::-1], dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def encode(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[..., features]`, to its code, shape `[..., code]`."""
        x = check_input(type(self).__name__, x, self.features)
        code = apply_stack(self.encoder, x, self.activation)
        return code if self.code_activation is None else self.code_activation(code)

    def decode(self, code: ArrayLike) -> jax.Array:
        """Maps a code, shape `[..., code]`, to a reconstruction, shape `[..., features]`."""
        code = check_input(f"{type(self).__name__}.decode", code, self.code, "[..., code]")
        return apply_stack(self.decoder, code, self.activation)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Returns the reconstruction of `x`, shape `[..., features]`."""
        return self.decode(self.encode(x))
