"""A convolutional classifier of images."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from robustops.ops import softmax

from ._common import check_input, check_size, check_sizes, nnx
from ._norms import BatchNorm


class ConvClassifier(nnx.Module):
    """A convolutional classifier that returns logits, for images of any size.

    Stages of 3x3 convolution, `BatchNorm` and `activation`, each but the first with stride 2; then
    the mean over the image, dropout, and a linear layer to the logits. Training mode normalises
    with the batch's statistics and drops features; call `model.eval()` before predicting
    (`robustops.train.fit` does so for validation).

    Args:
      features: channels of the input: 1 for grey images, 3 for colour.
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
      head: `nnx.Linear` from the features' means to the logits.

    Raises:
      ValueError: a size is not a positive integer, or an input is not
        `[batch, height, width, features]`.
    """

    def __init__(
        self,
        features: int = 1,
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
        self.features = check_size(name, "features", features)
        self.classes = check_size(name, "classes", classes)
        hidden = check_sizes(name, "hidden", hidden)
        if not hidden:
            raise ValueError(f"{name}: hidden must name at least one stage, got ()")
        self.activation = activation
        options = {"dtype": dtype, "param_dtype": param_dtype}
        self.convolutions = nnx.List(
            nnx.Conv(inputs, outputs, (3, 3), stride, use_bias=False, rngs=rngs, **options)
            for inputs, outputs, stride in zip(
                (self.features, *hidden), hidden, (1, *[2] * (len(hidden) - 1)), strict=False
            )
        )
        self.norms = nnx.List(BatchNorm(size, **options) for size in hidden)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.head = nnx.Linear(hidden[-1], self.classes, rngs=rngs, **options)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[batch, height, width, features]`, to logits, `[batch, classes]`."""
        axes = "[batch, height, width, features]"
        x = check_input(type(self).__name__, x, self.features, axes)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.activation(norm(convolution(x)))
        return self.head(self.dropout(x.mean((1, 2))))

    def probabilities(self, x: ArrayLike) -> jax.Array:
        """Maps `x` to probabilities, shape `[batch, classes]`, of two or more classes."""
        return softmax(self(x))
