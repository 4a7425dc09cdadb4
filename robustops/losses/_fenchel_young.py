"""Losses built from a function that takes a (soft) maximum."""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._numerics import promote, widen
from ..ops._similarity import difference
from ._common import product, saturated_sum


class MaxFun(Protocol):
    """A function of a vector of scores to a scalar, such as `robustops.logsumexp`."""

    def __call__(self, scores: jax.Array, *args: Any, **kwargs: Any) -> ArrayLike:
        """Return the (soft) maximum of the scores."""
        ...


def make_fenchel_young_loss(max_fun: MaxFun) -> Callable[..., jax.Array]:
    """Make the Fenchel-Young loss max_fun(scores) - sum_j targets_j scores_j of a (soft) maximum.

    Its gradient is that of `max_fun` less the targets. It is total if `max_fun` is: take
    `robustops.logsumexp`. Where a cross-entropy is meant `softmax_cross_entropy` keeps the digits
    that this difference loses for a confident prediction.

    Edges: a zero target absorbs a score of -inf; overflow saturates; NaN gives NaN.

    Args:
      max_fun: function of a vector to a scalar.

    Returns:
      `loss(scores, targets, *args, **kwargs)`, over the last axis of both; the other axes
      broadcast, and the further arguments go to `max_fun`.

    Reference: Blondel et al. 2020 (arXiv:1901.02324); signature of
    `optax.losses.make_fenchel_young_loss`.
    """

    def fenchel_young_loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> jax.Array:
        s, t = promote("fenchel_young_loss", scores, targets)
        top = jnp.vectorize(lambda v: max_fun(v, *args, **kwargs), signature="(n)->()")(s)
        inner = saturated_sum(product(widen(t), widen(s)), (-1,), None, s.dtype)
        return difference(*promote("fenchel_young_loss", top, inner))

    return fenchel_young_loss
