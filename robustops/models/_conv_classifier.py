"""A convolutional classifier of images."""

import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from robustops.ops import softmax

from ._common import check_image, check_size, check_sizes, conv_shapes, nnx
from ._norms import BatchNorm


class ConvClassifier(nnx.Module):
    """A convolutional classifier of images of one size; it returns logits.

    Stages of 3x3 convolution, `BatchNorm` and `activation`, each but the first halving height and
    width; then dropout, and a linear layer from all that is left to the logits. Training mode
    normalises with the batch's statistics and drops features: call `model.eval()` before you
    predict (`robustops.train.fit` does so for validation).

    Args:
      shape: height, width and channels of an image.
      hidden: channels of the stages, at least one.
      classes: number of logits.
      activation: function after each stage.
      dropout: share of the last stage's features that a training step leaves out, in [0, 1).
      dtype: type to compute in; None takes it from the input and the parameters.
      param_dtype: type of the parameters; running statistics are float32.
      rngs: source of the initial parameters, and of dropout.

    Attributes:
      convolutions: `nnx.List` of the `nnx.Conv` layers.
      norms: `nnx.List` of their `BatchNorm` layers.
      head: `nnx.Linear` that makes the logits.

    Raises:
      ValueError: a size is not a positive integer, `dropout` is out of range, or an input is not
        `[batch, height, width, channels]`.
    """

    def __init__(
        self,
        shape: Sequence[int] = (8, 8, 1),
        hidden: Sequence[int] = (32, 64),
        classes: int = 10,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        self.classes: int = check_size(name, "classes", classes)
        hidden = check_sizes(name, "hidden", hidden, least=1)
        if not 0 <= dropout < 1:
            raise ValueError(f"{name}: dropout must be in [0, 1), got {dropout}")
        self.activation = activation
        shapes = conv_shapes(name, shape, hidden)
        self.shape: tuple[int, ...] = shapes[0]
        options = {"dtype": dtype, "param_dtype": param_dtype}
        self.convolutions: nnx.List[nnx.Conv] = nnx.List(
            nnx.Conv(
                before[-1],
                after[-1],
                (3, 3),
                1 if before[:2] == after[:2] else 2,
                use_bias=False,  # BatchNorm has one, and would take this one away.
                rngs=rngs,
                **options,
            )
            for before, after in itertools.pairwise(shapes)
        )
        self.norms: nnx.List[BatchNorm] = nnx.List(
            BatchNorm(channels, **options) for channels in hidden
        )
        self.dropout: nnx.Dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head: nnx.Linear = nnx.Linear(
            math.prod(shapes[-1]), self.classes, rngs=rngs, **options
        )

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[batch, height, width, channels]`, to logits, `[batch, classes]`."""
        x = check_image(type(self).__name__, x, self.shape)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.activation(norm(convolution(x)))
        return self.head(self.dropout(x.reshape(len(x), -1)))

    def probabilities(self, x: ArrayLike) -> jax.Array:
        """Maps `x` to probabilities, shape `[batch, classes]`, of two or more classes."""
        return softmax(self(x))
