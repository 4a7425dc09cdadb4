"""A convolutional autoencoder of images."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from ._common import check_image, check_input, check_size, check_sizes, conv_shapes, nnx


class ConvAutoencoder(nnx.Module):
    """A convolutional autoencoder with a dense code and a linear output.

    The encoder is stages of 3x3 convolution and `activation`, each but the first halving height and
    width, and a linear layer to the code. The decoder mirrors it: a linear layer, and 3x3
    transposed convolutions. It has no normalisation, so it is one function in training and
    evaluation; as in `Autoencoder`, scale the data.

    Args:
      shape: height, width and channels of an image. All but the first stage must find an even
        height and width, so that doubling gives them back.
      hidden: channels of the stages, at least one.
      code: size of the code.
      activation: function between the layers.
      dtype: type to compute in; None takes it from the input and the parameters.
      param_dtype: type of the parameters.
      rngs: source of the initial parameters.

    Attributes:
      encoder: `nnx.List` of the `nnx.Conv` layers.
      to_code: `nnx.Linear` from the last stage to the code.
      from_code: `nnx.Linear` from the code back.
      decoder: `nnx.List` of the `nnx.ConvTranspose` layers.

    Raises:
      ValueError: a size is not a positive integer or cannot be halved, or an input has another
        shape.
    """

    def __init__(
        self,
        shape: Sequence[int] = (8, 8, 1),
        hidden: Sequence[int] = (16, 32),
        code: int = 16,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        self.code: int = check_size(name, "code", code)
        hidden = check_sizes(name, "hidden", hidden, least=1)
        shapes = conv_shapes(name, shape, hidden)
        self.shape: tuple[int, ...] = shapes[0]
        self.small: tuple[int, ...] = shapes[-1]
        halvings = 2 ** (len(hidden) - 1)
        if self.shape[0] % halvings or self.shape[1] % halvings:
            raise ValueError(
                f"{name}: {len(hidden)} stages halve an image {len(hidden) - 1} times, but height "
                f"and width {self.shape[:2]} are not multiples of {halvings}; pad the images, or "
                "take fewer stages"
            )
        self.activation = activation
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}

        def layers(kind, shapes):
            # A stage that keeps height and width has stride 1.
            return nnx.List(
                kind(a[-1], b[-1], (3, 3), 1 if a[0] == b[0] else 2, **options)
                for a, b in itertools.pairwise(shapes)
            )

        self.encoder: nnx.List[nnx.Conv] = layers(nnx.Conv, shapes)
        self.to_code: nnx.Linear = nnx.Linear(math.prod(self.small), self.code, **options)
        self.from_code: nnx.Linear = nnx.Linear(self.code, math.prod(self.small), **options)
        self.decoder: nnx.List[nnx.ConvTranspose] = layers(nnx.ConvTranspose, shapes[::-1])

    def encode(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[batch, height, width, channels]`, to its code, `[batch, code]`."""
        x = check_image(type(self).__name__, x, self.shape)
        for layer in self.encoder:
            x = self.activation(layer(x))
        return self.to_code(x.reshape(len(x), -1))

    def decode(self, code: ArrayLike) -> jax.Array:
        """Maps a code, shape `[batch, code]`, to images, `[batch, height, width, channels]`."""
        code = check_input(f"{type(self).__name__}.decode", code, self.code, "[batch, code]")
        x = self.from_code(code).reshape(len(code), *self.small)
        for layer in self.decoder:
            x = layer(self.activation(x))
        return x

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Returns the reconstruction of `x`, shape `[batch, height, width, channels]`."""
        return self.decode(self.encode(x))
