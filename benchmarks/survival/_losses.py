"""The losses of the scenarios, as they are usually written, from optax, and from robustops.

Each takes a model's outputs, the targets of the batch and the stress values of the level, and
returns the mean over the batch.
"""

import jax
import jax.numpy as jnp
import optax

import robustops as ro
import robustops.losses as ro_losses


def mse(outputs, targets, values):
    """Mean squared error by hand."""
    del values
    return jnp.mean((outputs - targets) ** 2)


def optax_mse(outputs, targets, values):
    del values
    return jnp.mean(optax.losses.squared_error(outputs, targets))


def ro_mse(outputs, targets, values):
    del values
    return ro_losses.mean_squared_error(outputs, targets)


def optax_huber(outputs, targets, values):
    del values
    return jnp.mean(optax.losses.huber_loss(outputs, targets))


def optax_cross_entropy(outputs, labels, values):
    del values
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(outputs, labels))


def ro_cross_entropy(outputs, labels, values):
    del values
    return ro.safe_mean(ro_losses.softmax_cross_entropy_with_integer_labels(outputs, labels))


def smoothed_cross_entropy(share: float):
    """optax's cross-entropy with a share of each label spread over all classes."""

    def loss(outputs, labels, values):
        del values
        targets = optax.losses.smooth_labels(jax.nn.one_hot(labels, outputs.shape[-1]), share)
        return jnp.mean(optax.losses.softmax_cross_entropy(outputs, targets))

    return loss


def scaled_cross_entropy(factor: float):
    """optax's cross-entropy times a factor, which the optimizer must take out of the gradient."""
    return lambda outputs, labels, values: factor * optax_cross_entropy(outputs, labels, values)


def clipped_bce(low: float, high: float):
    """Binary cross-entropy by hand, from probabilities clipped to `[low, high]`."""

    def loss(outputs, labels, values):
        del values
        p, labels = jnp.clip(jax.nn.sigmoid(outputs[:, 0]), low, high), labels.astype(outputs.dtype)
        return -jnp.mean(labels * jnp.log(p) + (1 - labels) * jnp.log(1 - p))

    return loss


bce = clipped_bce(0.0, 1.0)


def optax_bce(outputs, labels, values):
    """From logits: optax has no binary cross-entropy from probabilities."""
    del values
    labels = labels.astype(outputs.dtype)
    return jnp.mean(optax.losses.sigmoid_binary_cross_entropy(outputs[:, 0], labels))


def ro_bce(outputs, labels, values):
    """From probabilities, as the scenarios have it."""
    del values
    labels = labels.astype(outputs.dtype)
    return ro.safe_mean(ro_losses.binary_cross_entropy(ro.sigmoid(outputs[:, 0]), labels))


def bounded(outputs, targets, values):
    """`mean(e^2 / (e^2 + eps))`; optax has no bounded loss, so its arms use this one too."""
    squared = (outputs - targets) ** 2
    return jnp.mean(squared / (squared + values["eps"]))


def ro_geman_mcclure(outputs, targets, values):
    """Geman-McClure with a scale of three typical residuals, never below the eps asked for.

    The scale shrinks as the fit improves, so the loss is annealed from nearly quadratic to bounded.
    """
    residuals = jax.lax.stop_gradient(jnp.abs(outputs - targets))
    typical = jnp.median(jnp.mean(residuals, axis=-1))
    scale = jnp.maximum(3 * typical, ro.safe_sqrt(values["eps"]))
    return ro.safe_mean(ro_losses.geman_mcclure(outputs, targets, scale=scale))


def log_square(outputs, targets, values):
    """`mean(log(1 + |e|)^2)`; optax has none, so its arms use this one too."""
    del values
    return jnp.mean(jnp.log(1 + jnp.abs(outputs - targets)) ** 2)


def ro_log_square(outputs, targets, values):
    del values
    return ro.safe_mean(ro.safe_log1p(jnp.abs(outputs - targets)) ** 2)
