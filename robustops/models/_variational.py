"""A variational autoencoder."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from robustops.losses import gaussian_kl, squared_error

from ._common import apply_stack, check_input, check_size, check_sizes, dense_stack, nnx


class Variational(NamedTuple):
    """What a `VariationalAutoencoder` returns."""

    reconstruction: jax.Array
    """Mean of the decoded distribution, shape `[..., features]`."""
    mean: jax.Array
    """Mean of the code, shape `[..., code]`."""
    log_variance: jax.Array
    """Logarithm of the code's variance, shape `[..., code]`."""


class VariationalAutoencoder(nnx.Module):
    """A dense variational autoencoder whose variance neither overflows nor vanishes.

    The encoder gives mean m and log variance l of a normal code; training mode decodes a sample
    `m + exp(l / 2) noise`, evaluation mode (`model.eval()`) decodes m. The log variance is
    `b tanh(raw / b)`, b = `max_log_variance`: the identity near 0, bounded by b, with a gradient
    that never jumps. An unbounded one overflows in `exp` at 89 in float32 and at 11 in float16.

    `model.loss` is the negative evidence lower bound, to be given to `robustops.train.fit`::

        fit(model, optax.adam(1e-3), x, model.loss, epochs=20, batch_size=64)

    Args:
      features: size of the last axis of the input.
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
      code: size of the code.
      beta: weight of the Kullback-Leibler divergence, >= 0; 1 is the lower bound itself.
      max_log_variance: bound b of the log variance, > 0; the default keeps a variance and its
        reciprocal below 2981, in the range of float16.
      activation: function between the layers.
      dtype: type to compute in; None takes it from the input and the parameters.
      param_dtype: type of the parameters.
      rngs: source of the initial parameters, and of the noise (its stream "noise", or the default).

    Attributes:
      encoder: `nnx.List` of `nnx.Linear` layers; the last makes mean and raw log variance.
      decoder: `nnx.List` of `nnx.Linear` layers.
      deterministic: whether in evaluation mode.

    Raises:
      ValueError: a size or number is out of range, or an input has another number of features.

    References:
      Kingma and Welling, `Auto-encoding variational Bayes <https://arxiv.org/abs/1312.6114>`_, 2014
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64,),
        code: int = 16,
        *,
        beta: float = 1.0,
        max_log_variance: float = 8.0,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        self.features: int = check_size(name, "features", features)
        self.code: int = check_size(name, "code", code)
        hidden = check_sizes(name, "hidden", hidden)
        if not 0 <= beta < float("inf"):
            raise ValueError(f"{name}: beta must be finite and >= 0, got {beta}")
        if not 0 < max_log_variance < float("inf"):
            raise ValueError(
                f"{name}: max_log_variance must be finite and > 0, got {max_log_variance}"
            )
        self.beta = beta
        self.max_log_variance = max_log_variance
        self.activation = activation
        self.deterministic = False
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.encoder: nnx.List[nnx.Linear] = dense_stack(
            (self.features, *hidden, 2 * self.code), **options
        )
        self.decoder: nnx.List[nnx.Linear] = dense_stack(
            (self.code, *hidden[::-1], self.features), **options
        )
        self.noise: nnx.RngStream = rngs.noise.fork()

    def encode(self, x: ArrayLike) -> tuple[jax.Array, jax.Array]:
        """Maps `x`, shape `[..., features]`, to the code's mean and log variance, `[..., code]`."""
        x = check_input(type(self).__name__, x, self.features)
        mean, raw = jnp.split(apply_stack(self.encoder, x, self.activation), 2, axis=-1)
        return mean, self.max_log_variance * jnp.tanh(raw / self.max_log_variance)

    def decode(self, code: ArrayLike) -> jax.Array:
        """Maps a code, shape `[..., code]`, to the mean of `x`, shape `[..., features]`."""
        code = check_input(f"{type(self).__name__}.decode", code, self.code, "[..., code]")
        return apply_stack(self.decoder, code, self.activation)

    def __call__(self, x: ArrayLike) -> Variational:
        """Encodes, samples (in training mode) and decodes `x`, shape `[..., features]`."""
        mean, log_variance = self.encode(x)
        code = mean
        if not self.deterministic:
            noise = jax.random.normal(self.noise(), mean.shape, mean.dtype)
            code = mean + jnp.exp(log_variance / 2) * noise
        return Variational(self.decode(code), mean, log_variance)

    def loss(self, outputs: Variational, targets: ArrayLike) -> jax.Array:
        """Negative evidence lower bound per example, with unit variance of the decoded features.

        `sum (x - reconstruction)^2 / 2 + beta KL`, without the constant; in float32 whatever the
        outputs are, since a sum over features may be beyond float16.
        """
        wide = lambda a: jnp.asarray(a, jnp.promote_types(jnp.result_type(a), jnp.float32))
        error = squared_error(wide(outputs.reconstruction), wide(targets)).sum(-1) / 2
        return error + self.beta * gaussian_kl(wide(outputs.mean), wide(outputs.log_variance))
