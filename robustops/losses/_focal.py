"""Cross-entropies bent by the probability of a miss: focal losses and PolyLoss."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

from .._apart import apart, constants
from .._numerics import cast, held, infinite_with, largest, promote, smallest, widen, within
from .._spec import total
from .._zmul import zmul
from ..ops import log_softmax, safe_div, safe_log, safe_sqrt, sigmoid, softmax
from ..ops._reduce import keep, sum_of
from ..ops._similarity import difference
from ..ops._softmax import at_least, exp_and_sums, row, shift
from ._binary import bce_from_logits, logits_and_labels
from ._common import Axis, misses, narrowed, product, saturated_sum
from ._cross_entropy import soft_cross_entropy, soft_labels, soft_slope


def _exponent(name: str, gamma: ArrayLike) -> tuple[jax.Array, int | None]:
    """Return gamma, and twice gamma as an int if that is a small one.

    The power is then made of products and a root; jax.numpy.power takes ten times as long on CPU.
    """
    if isinstance(gamma, Tracer):
        return gamma, None
    values = np.asarray(gamma)
    if not np.all(values >= 0):
        raise ValueError(f"{name}: gamma must be >= 0, got {gamma}.")
    halves = 2 * float(values) if values.ndim == 0 else math.inf
    return jnp.asarray(gamma), int(halves) if halves <= 16 and halves.is_integer() else None


def _power_by_base(out, q, gamma):
    return safe_div(product(gamma, _powered(q, gamma)), q)


def _power_by_exponent(out, q, gamma):
    return product(_powered(q, gamma), safe_log(q))


@total(_power_by_base, _power_by_exponent)
def _powered(q, gamma):
    """q^gamma for 0 <= q <= 1 and gamma >= 0."""
    return jnp.power(q, gamma)


def _power(q, gamma, halves):
    if halves is None:
        return _powered(*jnp.broadcast_arrays(q, widen(gamma)))
    whole = lax.integer_pow(q, halves // 2)
    return whole * safe_sqrt(q) if halves % 2 else whole


def _between(z):
    """z within [0, 1], with slope 1 at the ends too."""
    z = widen(z)
    return jnp.where(z < 0, 0, jnp.where(z > 1, 1, z))


def _miss(x, z):
    """(1 - z) sigmoid(x) + z sigmoid(-x): one of the two for a hard label, with all its digits."""
    return (1 - z) * sigmoid(x) + z * sigmoid(-x)


def _jvp_of(form):
    """The rule of a function that has a quicker form of its own for the value of `form`."""

    def rule(out, arrays, tangents, **static):
        given = [k for k, t in enumerate(tangents) if t is not None]

        def of_given(*some):
            every = list(arrays)
            for k, a in zip(given, some, strict=True):
                every[k] = a
            return held(form(*every, **static), out.dtype)

        return jax.jvp(of_given, [arrays[k] for k in given], [tangents[k] for k in given])[1]

    return rule


def _by_logit(x, z, *options, halves, weighted):
    z = _between(z)
    x, gamma, yes, no = map(widen, (x, *options))
    p, q, miss = sigmoid(x), sigmoid(-x), _miss(x, z)
    # d log(miss) / dx. Where the miss underflows this is 0, and so is the weight.
    bend = (1 - 2 * z) * safe_div(p * q, miss)
    slope = zmul(1 - z, p) - zmul(z, q) + gamma * product(bce_from_logits(x, z), bend)
    return product((yes * z + no * (1 - z)) * _power(miss, gamma, halves), slope)


def _near_log1p(q):
    """-log(1 - q) for 0 <= q <= 1/2, in a quarter of the time of log1p in a loop on CPU."""
    u = q / (2 - q)
    v, p = u * u, 0
    for k in range(17 if u.dtype == jnp.float64 else 7, 0, -1):
        p = v * (2 / (2 * k + 1) + p)
    return u * (2 + p)


@total(jvp=_jvp_of(_by_logit))
def _logit_slope(x, z, *options, halves, weighted):
    """`_by_logit` from one exponential; its derivatives are those of the total functions there."""
    if halves is None:
        return held(_by_logit(x, z, *options, halves=halves, weighted=weighted), x.dtype)
    u, _, yes, no = map(widen, (x, *options))
    v = _between(z)
    size = jnp.minimum(abs(u), 1e4)  # q is 0 from there on
    q = 1 / (1 + jnp.exp(size))
    t = jnp.where(u < 0, v, 1 - v)
    miss = q + t * (1 - 2 * q)
    slope = t - q
    if halves:
        bend = (2 * t - 1) * (q / jnp.where(miss > 0, miss, 1)) * (1 - q)
        slope = slope + halves / 2 * bend * (_near_log1p(q) + t * size)
        slope = _root_power(miss, halves) * slope
    if weighted:
        slope = (yes * v + no * (1 - v)) * slope
    return held(jnp.where(u < 0, -slope, slope), x.dtype)


def _root_power(q, halves):
    """q^(halves / 2) for q >= 0."""
    whole = lax.integer_pow(q, halves // 2)
    return whole * jnp.sqrt(q) if halves % 2 else whole


def _by_label(out, x, z, *options, halves, weighted):
    x, z, gamma, yes, no = map(widen, (x, z, *options))
    outside, z = (z < 0) | (z > 1), _between(z)
    # Beyond, two terms of the second derivative would overflow to inf - inf.
    x = jnp.clip(x, -largest(x.dtype) / 64, largest(x.dtype) / 64)
    ce, miss = bce_from_logits(x, z), _miss(x, z)
    bend = safe_div(gamma * product(ce, -jnp.tanh(x / 2)), miss)
    slope = (yes * z + no * (1 - z)) * difference(bend, x)
    slope = product(_power(miss, gamma, halves), difference(slope, product(no - yes, ce)))
    return jnp.where(outside, 0, slope)


def _by_gamma(out, x, z, *options, halves, weighted):
    return product(widen(out), safe_log(_miss(widen(x), _between(z))))


def _bent(x, z, gamma, halves):
    return product(_power(_miss(x, z), gamma, halves), bce_from_logits(x, z))


def _by_yes(out, x, z, gamma, *weights, halves, weighted):
    z = _between(z)
    return product(z, _bent(widen(x), z, gamma, halves))


def _by_no(out, x, z, gamma, *weights, halves, weighted):
    z = _between(z)
    return product(1 - z, _bent(widen(x), z, gamma, halves))


def _doubt(x, z):
    """Return 1 - z where x is above 0, z where it is below, and 0 at 0; no select, see `clip`."""
    s = jnp.sign(x)
    (nought,) = constants(x, 0)
    return jnp.maximum(s, nought) - z * s


@total(
    lambda out, *arrays, **static: _logit_slope(*arrays, **static),
    _by_label,
    _by_gamma,
    _by_yes,
    _by_no,
)
def _sigmoid_focal(x, z, gamma, yes, no, *, halves, weighted):
    """(yes z + no (1 - z)) miss^gamma times the cross-entropy; `weighted` if yes or no is not 1."""
    u = widen(x)
    *ones, zero, nought, far = constants(u, 1, 1, 1, 1, 1, 0, 0, largest(u.dtype))
    given, m = _doubt(u, widen(z)), jnp.exp(-abs(u))
    t = jnp.minimum(jnp.maximum(given, zero), ones[0])
    miss = (t + (ones[1] - t) * m) / (ones[2] + m)
    power = _powered(miss, widen(gamma)) if halves is None else _root_power(miss, halves)
    y = power * (jnp.log1p(m) + t * jnp.minimum(abs(u), far))
    if weighted:
        v = jnp.minimum(jnp.maximum(widen(z), nought), ones[3])
        y = (widen(yes) * v + widen(no) * (ones[4] - v)) * y
    y = infinite_with(within(y, largest(x.dtype)), u)
    return cast(y + (given - given), x.dtype)  # for NaN: see `nan_of`


def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> jax.Array:
    """Focal loss of yes-or-no predictions, accurate for confident ones and for every gamma.

    (1 - p_t)^gamma times the binary cross-entropy, with 1 - p_t = (1 - z) sigmoid(x) +
    z sigmoid(-x), times alpha z + (1 - alpha) (1 - z) if `alpha` is given. A gamma that is
    a small multiple of 1/2 is cheapest.

    Edges: as `sigmoid_binary_cross_entropy`, which it is for gamma = 0. Labels outside [0, 1] have
    no meaning here, and count as 0 or 1.

    Args:
      logits: unnormalised log-odds, of any shape.
      labels: target probabilities in [0, 1]; they take the dtype of the logits. Broadcasts.
      alpha: weight of the positive class, in [0, 1]; the negative one has 1 - alpha.
      gamma: exponent >= 0, a number or an array that broadcasts.

    Returns:
      Loss per element, of the broadcast shape.

    Raises:
      ValueError: shapes that do not broadcast, or a `gamma` below 0.
      TypeError: logits that are not real and floating.

    Reference: Lin et al. 2017 (arXiv:1708.02002); signature of `optax.losses.sigmoid_focal_loss`.
    """
    name = "sigmoid_focal_loss"
    x, z = logits_and_labels(name, logits, labels)
    power, halves = _exponent(name, gamma)
    yes, no = (1, 1) if alpha is None else (alpha, 1 - jnp.asarray(alpha))
    arrays = promote(name, x, z, power, yes, no)
    return _sigmoid_focal(*arrays, halves=halves, weighted=alpha is not None)


def _losses(x, mask, axis):
    """-log softmax(x), without the infinities of classes at -inf."""
    lp = log_softmax(widen(x), axis, mask)
    return -jnp.maximum(lp, -largest(lp.dtype))


def _by_class_logits(x, z, gamma, mask=None, *, axis, halves):
    p, g, gamma = softmax(widen(x), axis, mask), _losses(x, mask, axis), widen(gamma)
    q, z = misses(p, axis), widen(keep(z, mask))
    # As a function of the log-probabilities the loss has the slope -z q^gamma (1 + gamma p g / q);
    # through the softmax that is a cross-entropy with these labels.
    bent = product(_power(q, gamma, halves), 1 + gamma * product(p, safe_div(g, q)))
    masks = () if mask is None else (mask,)
    return soft_slope(widen(x), product(z, bent), *masks, axis=axis)


class _Rows(NamedTuple):
    """What the focal loss needs of rows of classes; all but v and e have one entry for a row."""

    v: jax.Array
    """The logits, -inf where they are masked."""
    m: jax.Array
    """Their largest."""
    e: jax.Array
    """exp(v - m)"""
    s: jax.Array
    """The sum of e: at least 1, but 0 in a row of only -inf."""
    n: jax.Array
    """s, but 1 in a row of only -inf."""
    others: jax.Array
    """The sum of all e but one of the largest."""
    log: jax.Array
    """log n"""

    def parts(self, one, nought, far):
        """Return 1 - p and -log p, the second held within `far`; without a select, see `exp_less`.

        Since 1 - e is 0 at the largest, 1 - p has the digits of the others there.
        """
        cost = jnp.minimum(jnp.maximum(self.m - self.v, nought), far) + self.log
        return (self.others + (one - self.e)) / self.n, cost


def _of_rows(x, mask, axis):
    v = widen(keep(x, mask, -math.inf))
    m = shift(v, axis)
    e, s, rest, log = exp_and_sums(v, m, axis)
    # Where s < 2 there is one largest, and `rest` has kept the digits of the others.
    return _Rows(v, m, e, s, at_least(s, 1), jnp.where(s < 2, rest, s - 1), log)


@total(jvp=_jvp_of(_by_class_logits))
def _class_slope(x, z, gamma, mask=None, *, axis, halves):
    """`_by_class_logits` from one exponential; its derivatives are those of the functions there."""
    if halves is None:
        return held(_by_class_logits(x, z, gamma, mask, axis=axis, halves=halves), x.dtype)
    of = _of_rows(x, mask, axis)
    e, s, p = of.e, of.s, of.e / of.n
    q, g = of.parts(1, 0, largest(e.dtype))
    tiny = smallest(e.dtype)  # g / q -> 1 as both underflow
    bent = _root_power(q, halves) * (1 + halves / 2 * (p * ((g + tiny) / (q + tiny))))
    w = jnp.where(s < 1, 0, widen(keep(z, mask)))
    c = held(w * bent, e.dtype)
    # The slope p sum(c) - c; of a class with p > 1/2 without what cancels there.
    every, others = sum_of(c, axis), sum_of(c - c * jnp.floor(apart(e)), axis)
    lone = (e >= 1) & (s < 2)
    slope = p * jnp.where(lone, row(others), row(every)) - jnp.where(lone, q, 1) * c
    return keep(held(slope, x.dtype), mask)


def _bent_losses(x, gamma, mask, axis, halves):
    """The loss of each class as if it were the label, q^gamma (-log p), and q."""
    q = misses(softmax(widen(x), axis, mask), axis)
    return product(_power(q, widen(gamma), halves), _losses(x, mask, axis)), q


def _rule_softmax_focal(out, arrays, tangents, *, axis, halves):
    x, z, gamma, *mask = arrays
    where = mask[0] if mask else None
    by_label = lambda: _bent_losses(x, gamma, where, axis, halves)

    def by_gamma():
        bent, q = by_label()
        return product(product(widen(keep(z, where)), bent), safe_log(q))

    slopes = (
        lambda: _class_slope(*arrays, axis=axis, halves=halves),
        lambda: narrowed(keep(by_label()[0], where), dtype=z.dtype),
        lambda: narrowed(by_gamma(), dtype=gamma.dtype),
    )
    parts = [
        widen(zmul(slope(), t))
        for slope, t in zip(slopes, tangents[:3], strict=True)
        if t is not None
    ]
    return jnp.sum(sum(parts[1:], parts[0]), axis=axis).astype(out.dtype)


@total(jvp=_rule_softmax_focal)
def _softmax_focal(x, z, gamma, mask=None, *, axis, halves):
    w, of = widen(keep(z, mask)), _of_rows(x, mask, axis)
    numbers = 1, 0, largest(of.e.dtype)
    given = _bent_losses(x, gamma, mask, axis, halves)[0] if halves is None else None

    def bent(of, *numbers):
        if given is not None:
            return given
        q, g = of.parts(*numbers)
        return _root_power(q, halves) * g

    def safe():
        return saturated_sum(product(w, bent(of, *numbers)), axis, None, x.dtype)

    def fast():
        alone = _Rows(*map(apart, of))
        y = jnp.sum(w * bent(alone, *constants(of.e, *numbers)), axis=axis)
        fits = jnp.all(abs(y) <= largest(x.dtype))
        return lax.cond(fits, lambda: cast(y, x.dtype), safe)

    return lax.platform_dependent(cpu=fast, default=safe)


def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Focal loss over exclusive classes, accurate for confident predictions and for every gamma.

    sum_j alpha_j z_j (1 - p_j)^gamma (-log p_j) along `axis`, p the softmax of the logits, with
    1 - p_j formed from the other classes where p_j is near 1.

    Edges: as `softmax_cross_entropy`, which it is for gamma = 0, but an infinite loss is the
    largest finite number.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: target distributions, one-hot or soft; `logits` and `labels` broadcast.
      alpha: weight of each class, a number or an array that broadcasts with `labels`.
      gamma: exponent >= 0, a number or an array that broadcasts with `logits`.
      axis: axis or axes of the classes; None means all.
      where: boolean, True takes part; of the shape of `logits`, or without the class axis.

    Returns:
      Loss per example: the shape of `logits` without `axis`.

    Raises:
      ValueError: an axis out of range, shapes that do not broadcast, or a `gamma` below 0.
      TypeError: logits that are not real and floating, or a `where` that is not boolean.

    Reference: Lin et al. 2017 (arXiv:1708.02002).
    """
    name = "softmax_focal_loss"
    if alpha is not None:
        labels = product(*promote(name, alpha, labels))
    (x, z, *mask), axes = soft_labels(name, logits, labels, axis, where)
    power, halves = _exponent(name, gamma)
    x, z, power = jnp.broadcast_arrays(*promote(name, x, z, power))
    return _softmax_focal(x, z, power, *mask, axis=axes, halves=halves)


def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    epsilon: ArrayLike = 2.0,
    axis: Axis = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """PolyLoss: the cross-entropy plus `epsilon` times the probability of a miss.

    sum_j z_j (-log p_j + epsilon (1 - p_j)) along `axis`, p the softmax of the logits.

    Edges: as `softmax_cross_entropy`.

    Args:
      logits: unnormalised log-probabilities, shape `[..., num_classes]`.
      labels: target distributions; `logits` and `labels` broadcast.
      epsilon: coefficient of the first term of the polynomial: 2 for images, -1 for detection.
      axis: axis or axes of the classes; None means all.
      where: boolean, True takes part; of the shape of `logits`, or without the class axis.

    Returns:
      Loss per example: the shape of `logits` without `axis`.

    Raises:
      ValueError: an axis out of range, or shapes that do not broadcast.
      TypeError: logits that are not real and floating, or a `where` that is not boolean.

    Reference: Leng et al. 2022 (arXiv:2204.12511); signature of
    `optax.losses.poly_loss_cross_entropy`.
    """
    name = "poly_loss_cross_entropy"
    (x, z, *mask), axes = soft_labels(name, logits, labels, axis, where)
    where = mask[0] if mask else None
    missed = product(widen(z), misses(softmax(widen(x), axes, where), axes))
    loss = soft_cross_entropy(x, z, *mask, axis=axes)
    loss, miss, weight = promote(name, loss, saturated_sum(missed, axes, where, z.dtype), epsilon)
    return difference(loss, -product(weight, miss))
