"""Normalisation layers whose outputs and statistics stay finite."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from robustops.ops import safe_hypot, safe_mean, safe_norm

from ._common import check_input, check_size, nnx


class BatchNorm(nnx.Module):
    """Batch normalisation whose running statistics no batch can make non-finite.

    `y = scale * (x - mean) / sqrt(std^2 + epsilon) + bias` for each feature, over all axes but the
    last: with the batch's statistics in training mode, which also move the running ones,
    `new = momentum * old + (1 - momentum) * batch`; with the running ones in evaluation mode
    (`model.eval()`). It differs from `flax.nnx.BatchNorm` in this:

    - a batch statistic that is NaN or infinite does not enter the running ones, feature by feature;
    - the statistics are of float32 whatever `x` is, without E[x^2] - E[x]^2, which cancels for a
      large mean, and without squares, which overflow beyond 1e19: so it keeps the running
      *standard deviation*;
    - a constant feature gives `bias`, with finite derivatives.

    A finite batch of a step that the optimizer refuses moves them as well: `robustops.train.fit`
    puts them back, in a loop of your own `robustops.optim.unless_refused` does.

    Args:
      features: size of the last axis of the input.
      momentum: share of the old running statistics that is kept at each call.
      epsilon: added to the variance, > 0.
      dtype: type of the output; None takes it from the input and the parameters.
      param_dtype: type of scale and bias; the running statistics are float32.

    Attributes:
      scale: factor for each feature, at first 1.
      bias: what is added to each feature, at first 0.
      mean: running mean.
      std: running standard deviation.
      use_running_average: whether in evaluation mode.

    Raises:
      ValueError: a size or number is out of range, or an input has another number of features.

    References:
      Ioffe and Szegedy, `Batch normalization <https://arxiv.org/abs/1502.03167>`_, 2015
    """

    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        name = type(self).__name__
        self.features: int = check_size(name, "features", features)
        if not 0 <= momentum < 1:
            raise ValueError(f"{name}: momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.epsilon: float = _check_epsilon(name, epsilon)
        self.dtype = dtype
        self.scale: nnx.Param[jax.Array] = nnx.Param(jnp.ones(self.features, param_dtype))
        self.bias: nnx.Param[jax.Array] = nnx.Param(jnp.zeros(self.features, param_dtype))
        self.mean: nnx.BatchStat[jax.Array] = nnx.BatchStat(jnp.zeros(self.features, jnp.float32))
        self.std: nnx.BatchStat[jax.Array] = nnx.BatchStat(jnp.ones(self.features, jnp.float32))
        self.use_running_average = False

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[..., features]`, to normalised features of the same shape."""
        x = check_input(type(self).__name__, x, self.features)
        if self.use_running_average:
            row = (1,) * (x.ndim - 1) + (self.features,)
            centred = _wide(x) - self.mean[...].reshape(row)
            return _affine(self, x, centred, self.std[...].reshape(row))
        mean, centred, std = _moments(x, tuple(range(x.ndim - 1)))
        self._remember(mean.reshape(-1), std.reshape(-1))
        return _affine(self, x, centred, std)

    def _remember(self, mean: jax.Array, std: jax.Array) -> None:
        mean, std = jax.lax.stop_gradient((mean, std))
        ok = jnp.isfinite(mean) & jnp.isfinite(std)
        for kept, new in ((self.mean, mean), (self.std, std)):
            old = kept[...]
            # Each product is at most the larger of the two, so the sum cannot overflow.
            moved = self.momentum * old + (1 - self.momentum) * jnp.where(ok, new, old)
            kept[...] = jnp.where(ok, moved, old).astype(old.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation that is right for a large mean and cannot overflow.

    `y = scale * (x - mean) / sqrt(std^2 + epsilon) + bias`, the statistics over the last axis, in
    float32 whatever `x` is. `flax.nnx.LayerNorm` forms E[x^2] - E[x]^2, which cancels: inputs near
    1.3e5 come out as +-12000 in place of +-1.34. A constant row gives `bias`, with finite
    derivatives.

    Args:
      features: size of the last axis of the input.
      epsilon: added to the variance, > 0.
      dtype: type of the output; None takes it from the input and the parameters.
      param_dtype: type of scale and bias.

    Attributes:
      scale: factor for each feature, at first 1.
      bias: what is added to each feature, at first 0.

    Raises:
      ValueError: a size or number is out of range, or an input has another number of features.

    References:
      Ba, Kiros and Hinton, `Layer normalization <https://arxiv.org/abs/1607.06450>`_, 2016
    """

    def __init__(
        self,
        features: int,
        *,
        epsilon: float = 1e-5,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
    ):
        name = type(self).__name__
        self.features: int = check_size(name, "features", features)
        self.epsilon: float = _check_epsilon(name, epsilon)
        self.dtype = dtype
        self.scale: nnx.Param[jax.Array] = nnx.Param(jnp.ones(self.features, param_dtype))
        self.bias: nnx.Param[jax.Array] = nnx.Param(jnp.zeros(self.features, param_dtype))

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[..., features]`, to normalised features of the same shape."""
        x = check_input(type(self).__name__, x, self.features)
        _, centred, std = _moments(x, (-1,))
        return _affine(self, x, centred, std)


def _check_epsilon(name: str, epsilon: float) -> float:
    if not 0 < epsilon < float("inf"):
        raise ValueError(f"{name}: epsilon must be finite and > 0, got {epsilon}")
    return epsilon


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _moments(x: jax.Array, axes: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, `x - mean` and standard deviation in float32, all with the rank of `x`."""
    x = _wide(x)
    mean = safe_mean(x, axis=axes, keepdims=True)
    centred = x - mean
    # The rounding of a mean of 1e5 is 1/128: the mean of what is left takes it away.
    centred = centred - safe_mean(centred, axis=axes, keepdims=True)
    return mean, centred, safe_norm(centred, axis=axes, keepdims=True) / _root_count(x, axes)


def _root_count(x: jax.Array, axes: tuple[int, ...]) -> float:
    return math.prod(x.shape[axis] for axis in axes) ** 0.5


def _affine(
    layer: BatchNorm | LayerNorm, x: jax.Array, centred: jax.Array, std: jax.Array
) -> jax.Array:
    """`scale * centred / sqrt(std^2 + epsilon) + bias`."""
    row = (1,) * (x.ndim - 1) + (layer.features,)
    scale, bias = layer.scale[...].reshape(row), layer.bias[...].reshape(row)
    # hypot, since std^2 overflows beyond 1e19.
    y = centred / safe_hypot(std, jnp.asarray(layer.epsilon**0.5, std.dtype))
    y = y * scale.astype(y.dtype) + bias.astype(y.dtype)
    return y.astype(layer.dtype or jnp.promote_types(x.dtype, scale.dtype))
