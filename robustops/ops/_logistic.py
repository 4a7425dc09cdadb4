"""Functions of the logistic family: sigmoid, its logarithm and inverse, softplus."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from .._apart import constants, copies
from .._numerics import cast, nan_of, promote, smallest, widen
from .._spec import op, total
from ._families import reciprocal
from ._floors import bounded_slope, extended, options

inf = math.inf
nan = math.nan


# (p q)' = -p q tanh(x / 2): the difference p q^2 - p^2 q loses all digits near 0.
@total(lambda out, x: -out * jnp.tanh(x / 2))
def sigmoid_slope(x):
    """The derivative of sigmoid, sigmoid(x) sigmoid(-x)."""
    m = 1 / (1 + jnp.exp(abs(widen(x))))
    return cast(m * (1 - m), x.dtype)


@total(lambda out, x: sigmoid_slope(x))
def _sigmoid(x):
    # exp overflows where 1 / (1 + exp(-x)) is subnormal: to 0.
    z = widen(x)
    one, another = constants(z, 1, 1)
    return cast(one / (another + jnp.exp(-z)), x.dtype)


@op(
    naive=lambda x: 1 / (1 + jnp.exp(-x)),
    reference=lambda mp, x: 1 / (1 + mp.exp(-x)),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), 0.5, 0.25),
        ((1e4,), 1.0, 0.0),
        ((-1e4,), 0.0, 0.0),
        ((inf,), 1.0, 0.0),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="logistic",
    hint="1 / (1 + exp(-x)) overflows below -88.7 in float32, and its derivative p (1 - p) is lost "
    "above 17: use robustops.sigmoid, and for losses keep the logit.",
)
def sigmoid(x: ArrayLike, /) -> jax.Array:
    """Logistic function 1 / (1 + exp(-x)), with a derivative that is right in both tails.

    The derivative is sigmoid(x) sigmoid(-x), not p (1 - p), which is 0 from x = 17 in float32 where
    the truth is 4e-8.

    Edges: -inf gives 0, inf gives 1, both with derivative 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`, in [0, 1].

    Raises:
      TypeError: complex `x`.
    """
    (x,) = promote("sigmoid", x)
    return _sigmoid(x)


@total(lambda out, x: _sigmoid(x))
def _softplus(x):
    z, size = (widen(a) for a in copies(x, 2))
    (nought,) = constants(z, 0)
    # A NaN comes through the logarithm.
    return cast(jnp.maximum(z, nought) + jnp.log1p(jnp.exp(-abs(size))), x.dtype)


@op(
    naive=lambda x: jnp.log(1 + jnp.exp(x)),
    reference=lambda mp, x: mp.log1p(mp.exp(x)),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), math.log(2.0), 0.5),
        ((1e4,), 1e4, 1.0),
        ((-1e4,), 0.0, 0.0),
        ((inf,), inf, 1.0),
        ((-inf,), 0.0, 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="softplus",
    hint="log(1 + exp(x)) overflows above 88.7 in float32: use robustops.softplus.",
    cost="On CPU 1.1 times the naive form's time, with gradient less.",
)
def softplus(x: ArrayLike, /) -> jax.Array:
    """Softplus log(1 + exp(x)), right in both tails, with the derivative sigmoid(x).

    Formed as max(x, 0) + log1p(exp(-|x|)).

    Edges: -inf gives 0, inf gives inf; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`, not negative.

    Raises:
      TypeError: complex `x`.

    Reference: same meaning as `jax.nn.softplus`; the inverse is `softplus_inverse`.
    """
    (x,) = promote("softplus", x)
    return _softplus(x)


@total(lambda out, x: _sigmoid(-x))
def _log_sigmoid(x):
    z, size = (widen(a) for a in copies(x, 2))
    (nought,) = constants(z, 0)
    return cast(jnp.minimum(z, nought) - jnp.log1p(jnp.exp(-abs(size))), x.dtype)


@op(
    naive=lambda x: jnp.log(1 / (1 + jnp.exp(-x))),
    reference=lambda mp, x: -mp.log1p(mp.exp(-x)),
    domain=[(-inf, inf)],
    edges=[
        ((0.0,), -math.log(2.0), 0.5),
        ((1e4,), 0.0, 0.0),
        ((-1e4,), -1e4, 1.0),
        ((inf,), 0.0, 0.0),
        ((-inf,), -inf, 1.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="log_sigmoid",
    hint="log(sigmoid(x)) is log(0) below -88.7 in float32: use robustops.log_sigmoid.",
    cost="On CPU 1.2 times the naive form's time, with gradient less.",
)
def log_sigmoid(x: ArrayLike, /) -> jax.Array:
    """Logarithm of the sigmoid, -log(1 + exp(-x)), right in both tails.

    Formed as min(x, 0) - log1p(exp(-|x|)); the derivative is sigmoid(-x).

    Edges: -inf gives -inf, inf gives 0; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.

    Returns:
      Array of the shape and dtype of `x`, not positive.

    Raises:
      TypeError: complex `x`.

    Reference: same meaning as `jax.nn.log_sigmoid`.
    """
    (x,) = promote("log_sigmoid", x)
    return _log_sigmoid(x)


@total(
    lambda out, x, *, low, high, linear: bounded_slope(
        out, x, low, high, linear, lambda z: reciprocal(z) + reciprocal(1 - z)
    )
)
def _safe_logit(x, *, low, high, linear):
    y = _logit(widen(x), low, high)
    return extended(y, x, low, high, linear, lambda end: 1 / (end * (1 - end)))


def _logit(x, low, high):
    half, below, above, two = constants(x, 0.5, low - 0.5, high - 0.5, 2)
    one, least, last = constants(x, 1, low, 1 - high)
    middle, steep, minus, plus = constants(x, 0.5, 2.0**60, -1, 1)
    # x - 1/2 is exact from 1/4 on, so the zero at 1/2 keeps its digits.
    t = abs(jnp.minimum(jnp.maximum(x - half, below), above))
    size = jnp.log1p(two * t / jnp.minimum(jnp.maximum(x, least), jnp.maximum(one - x, last)))
    sign = jnp.minimum(jnp.maximum((x - middle) * steep, minus), plus)
    return size * sign + nan_of(x)


@op(
    naive=lambda x: jnp.log(x / (1 - x)),
    reference=lambda mp, x: mp.log(x / (1 - x)),
    domain=[(0, 1)],
    edges=[
        ((0.5,), 0.0, 4.0),
        ((0.25,), -math.log(3.0), 16 / 3),
        ((0.0,), lambda i: math.log(i.tiny), 0.0),
        ((-1.0,), lambda i: math.log(i.tiny), 0.0),
        ((1.0,), lambda i: -math.log(i.epsneg), 0.0),
        ((2.0,), lambda i: -math.log(i.epsneg), 0.0),
        ((inf,), lambda i: -math.log(i.epsneg), 0.0),
        ((nan,), nan, nan),
    ],
    ulps=(4, 8),
    replaces="logit",
    hint="the logit of a probability that can reach 0 or 1 is infinite: keep the logit that the "
    "probability came from, or use robustops.safe_logit.",
    cost="On CPU 1.6 times the naive form's time, with gradient less.",
)
def safe_logit(
    x: ArrayLike, /, *, floor: float | None = None, extend: str = "constant"
) -> jax.Array:
    """Logit log(x / (1 - x)) of a probability, finite with finite derivatives, at 0 and 1 too.

    Right near 1/2, where it is 0: formed as the sign of 2x - 1 times
    log1p(|2x - 1| / min(x, 1 - x)). Outside [floor, 1 - floor] it goes on as a constant, or with
    `extend="linear"` along the tangent there.

    Edges: 0 and below give about -87.3 in float32, 1 and above 16.6; NaN gives NaN.

    Args:
      x: real array of any shape; integers become floats.
      floor: smallest probability, and smallest distance from 1, taken as it is; at most 1/4.
        Default: the smallest normal number of the dtype at 0, and the number next to 1 at 1,
        1.2e-38 and 1 - 6e-8 in float32.
      extend: "constant" or "linear", see above. "linear" leads a descent step back into the domain.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      ValueError: `floor` outside the range above, or an unknown `extend`.
      TypeError: complex `x`, or a `floor` that is no Python number.

    Reference: same meaning as `jax.scipy.special.logit`; the inverse is `sigmoid`.
    """
    (x,) = promote("safe_logit", x)
    settings = options("safe_logit", x, floor, extend, smallest(x.dtype), most=0.25)
    low = settings.pop("floor")
    high = jnp.dtype(x.dtype).type(1 - max(low, float(jnp.finfo(x.dtype).epsneg)))
    return _safe_logit(x, low=low, high=float(high), **settings)
