"""Connectionist temporal classification: labelling of sequences without an alignment."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from .._numerics import narrow, widen
from .._spec import total
from ..ops import log_softmax, sigmoid
from ..ops._similarity import difference
from ._common import floating


@total(
    lambda out, x, y: sigmoid(difference(x, y)),
    lambda out, x, y: sigmoid(difference(y, x)),
)
def _logaddexp(x, y):
    return jnp.maximum(x, y) + jnp.log1p(jnp.exp(-abs(difference(x, y))))


def _plus(x, y):
    """x + y, saturated."""
    return difference(x, -y)


def _checked(name, logits, logit_paddings, labels, label_paddings):
    (x,) = floating(name, logits=logits)
    arrays = [jnp.asarray(a) for a in (logit_paddings, labels, label_paddings)]
    frames, labels, tail = arrays
    if x.ndim != 3 or frames.shape != x.shape[:2] or x.shape[1] == 0:
        raise ValueError(
            f"{name}: logits need the shape [batch, time, classes], time > 0, and logit_paddings "
            f"[batch, time], got {x.shape} and {frames.shape}."
        )
    if labels.ndim != 2 or tail.shape != labels.shape or len(labels) != len(x):
        raise ValueError(
            f"{name}: labels and label_paddings need the shape [{len(x)}, length], got "
            f"{labels.shape} and {tail.shape}."
        )
    return x, frames, labels, tail


def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """CTC loss, with the logarithms of the forward probabilities.

    The loss is minus the log-probability that the frames, each labelled by the softmax of its
    logits, spell the labels once repetitions and blanks are removed.

    Edges: logits of -inf (classes that cannot be) and of any finite size are right in value and
    gradient; what is padded may hold anything, NaN too; a label that names no class gives NaN;
    labels that do not fit into the frames give a loss near -`log_epsilon`, as in Optax.

    Args:
      logits: shape `[batch, time, num_classes]`, blank included.
      logit_paddings: shape `[batch, time]`, 1.0 at padded frames, else 0.0.
      labels: integer classes, shape `[batch, length]`.
      label_paddings: shape `[batch, length]`, 1.0 at padded labels, which must come last.
      blank_id: class of the blank.
      log_epsilon: stands for the logarithm of 0.

    Returns:
      The loss, shape `[batch]`, and the log-probabilities of having ended in a blank, shape
      `[time, batch, length + 1]`, and in a label, shape `[time, batch, length]`; float32 for
      float16 and bfloat16 logits.

    Raises:
      ValueError: shapes that do not agree.
      TypeError: logits that are not real and floating.

    Reference: Graves et al. 2006, doi:10.1145/1143844.1143891; signature of
    `optax.losses.ctc_loss_with_forward_probs`.
    """
    name = "ctc_loss_with_forward_probs"
    x, frames, labels, tail = _checked(name, logits, logit_paddings, labels, label_paddings)
    padded = jnp.swapaxes(frames != 0, 0, 1)[..., None]  # [time, batch, 1]
    log_p = log_softmax(widen(x))
    log_p = jnp.swapaxes(narrow(log_p, log_p.dtype), 0, 1)  # -inf would make inf - inf
    batch, length = labels.shape
    named = jnp.clip(labels, 0, x.shape[-1] - 1)
    emit = jnp.take_along_axis(log_p, named[None], axis=-1)  # [time, batch, length]
    blank = log_p[..., blank_id : blank_id + 1]
    # log_epsilon where a label equals the next one: these need a blank between them
    zero = jnp.asarray(log_epsilon, log_p.dtype)
    again = jnp.pad(labels[:, :-1] == labels[:, 1:], ((0, 0), (0, 1)))
    skip, stay = jnp.where(again, zero, 0), jnp.where(again, 0, zero)

    def entered(in_blank, score):
        """In the blank after each label also from the label itself."""
        later = _logaddexp(in_blank[:, 1:], score)
        return jnp.concatenate([in_blank[:, :1], later], axis=-1)

    def step(carry, frame):
        in_blank, in_label = carry
        log_blank, log_emit, skipped = frame
        ready = entered(in_blank, _plus(in_label, skip))
        next_label = _logaddexp(_plus(ready[:, :-1], log_emit), _plus(in_label, log_emit))
        kept = jnp.broadcast_to(log_blank, ready.shape)
        next_blank = entered(_plus(ready, kept), _plus(_plus(in_label, kept[:, 1:]), stay))
        new = (
            jnp.where(skipped, in_blank, next_blank),
            jnp.where(skipped, in_label, next_label),
        )
        return new, new

    in_blank = jnp.full((batch, length + 1), zero).at[:, 0].set(0)
    in_label = jnp.full((batch, length), zero)
    last, (blanks, emits) = lax.scan(step, (in_blank, in_label), (blank, emit, padded))
    ends = entered(*last)
    blanks = blanks.at[-1].set(ends)
    used = length - jnp.sum(tail, axis=1).astype(jnp.int32)
    loss = -jnp.take_along_axis(ends, used[:, None], axis=1)[:, 0]
    wrong = jnp.any((labels != named) & (tail == 0), axis=1)
    return jnp.where(wrong, jnp.nan, loss), blanks, emits


def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
) -> jax.Array:
    """CTC loss of each sequence: the first result of `ctc_loss_with_forward_probs`.

    Args:
      logits: shape `[batch, time, num_classes]`, blank included.
      logit_paddings: shape `[batch, time]`, 1.0 at padded frames, else 0.0.
      labels: integer classes, shape `[batch, length]`.
      label_paddings: shape `[batch, length]`, 1.0 at padded labels, which must come last.
      blank_id: class of the blank.
      log_epsilon: stands for the logarithm of 0.

    Returns:
      Loss per sequence, shape `[batch]`.

    Raises:
      ValueError: shapes that do not agree.
      TypeError: logits that are not real and floating.

    Reference: same signature as `optax.losses.ctc_loss`.
    """
    return ctc_loss_with_forward_probs(
        logits, logit_paddings, labels, label_paddings, blank_id=blank_id, log_epsilon=log_epsilon
    )[0]
