"""A dense classifier."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from robustops.ops import softmax

from ._common import apply_stack, check_input, check_size, check_sizes, dense_stack, nnx


class Classifier(nnx.Module):
    """A dense classifier that returns logits, to be given to a loss that takes logits.

    It has no softmax of its own: `robustops.losses.softmax_cross_entropy_with_integer_labels` is
    accurate from logits where a logarithm of probabilities has already lost them. With
    `classes=1` it is a binary classifier for `sigmoid_binary_cross_entropy`, or a regressor.

    Args:
      features: size of the last axis of the input.
      hidden: widths of the hidden layers; `()` gives (multinomial) logistic regression.
      classes: number of logits.
      activation: function between the layers.
      dtype: type to compute in; None takes it from the input and the parameters.
      param_dtype: type of the parameters.
      rngs: source of the initial parameters.

    Attributes:
      layers: `nnx.List` of the `nnx.Linear` layers; the last one makes the logits.

    Raises:
      ValueError: a size is not a positive integer, or an input has another number of features.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64,),
        classes: int = 10,
        *,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        self.features: int = check_size(name, "features", features)
        self.classes: int = check_size(name, "classes", classes)
        sizes = (self.features, *check_sizes(name, "hidden", hidden), self.classes)
        self.activation = activation
        self.layers: nnx.List[nnx.Linear] = dense_stack(
            sizes, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[..., features]`, to logits, shape `[..., classes]`."""
        x = check_input(type(self).__name__, x, self.features)
        return apply_stack(self.layers, x, self.activation)

    def probabilities(self, x: ArrayLike) -> jax.Array:
        """Maps `x` to probabilities, shape `[..., classes]`, of two or more classes."""
        return softmax(self(x))
