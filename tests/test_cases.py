"""Failures from public bug threads, rewritten as the docs advise: expected value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import robustops as ro
from robustops import losses, optim

# The case's computation, written with robustops.
REWRITTEN = {
    "where_sqrt_unselected": lambda x: jnp.where(x < 1, x, ro.safe_sqrt(x)),
    "where_power_max_zero": lambda x: jnp.where(x > 0, ro.safe_pow(jnp.maximum(x, 0), 0.3), 0),
    "sinc_naive_zero": lambda x: jnp.where(x == 0, 1, ro.safe_div(jnp.sin(x), x)),
    "entropy_softmax_saturated": lambda z: -jnp.sum(ro.xlogy(ro.softmax(z), ro.softmax(z))),
    "bce_sigmoid_log_neg": lambda x: losses.sigmoid_binary_cross_entropy(x, 0),
    "softplus_naive": lambda x: ro.logsumexp(jnp.stack([x, jnp.zeros_like(x)])),
    "sigmoid_naive_overflow": ro.sigmoid,
    "log_cosh_naive": losses.log_cosh,
    "optax_bce_inf_logit": lambda x: losses.sigmoid_binary_cross_entropy(x, 1),
    "triplet_naive_identical": lambda a, p: ro.safe_norm(a - p),
    "cosine_distance_fp16_overflow": lambda a, b: jnp.dot(
        ro.safe_normalize(a), ro.safe_normalize(b)
    ),
    "jnp_mean_where_all_false": lambda x: ro.safe_mean(x, where=jnp.zeros(2, bool)),
    "div_single_where_grad_denominator": lambda x, y: jnp.sum(ro.safe_div(x, y)),
    "normalise_probs_zero_sum": lambda x: jnp.vdot(
        jnp.asarray([1.0, 2.0]), ro.safe_div(x, jnp.sum(x))
    ),
    "linalg_norm_squared_zero": lambda x: ro.safe_norm(x) ** 2,
    "norm_homogeneity": lambda a, x: ro.safe_norm(a * x),
    "norm_overflow": ro.safe_norm,
    "hypot_zero": lambda x, y: ro.safe_norm(jnp.stack([x, y])),
    "pow_grad_exponent_zero_base": ro.safe_pow,
    "quaternion_normalise_zero": lambda q: jnp.sum(ro.safe_normalize(q)),
    "logsumexp_fp16_wide": ro.logsumexp,
    "logsumexp_all_neginf": lambda x: ro.logsumexp(jnp.stack([-jnp.inf, -jnp.inf + x])),
    "logsumexp_where_large_masked": lambda x: ro.logsumexp(x, where=jnp.asarray([True, False])),
    "softmax_where_large_masked": lambda x: jnp.vdot(
        jnp.asarray([1.0, 2.0, 3.0]), ro.softmax(x, where=jnp.asarray([True, True, False]))
    ),
    "log_softmax_where_large_masked": lambda x: ro.log_softmax(
        x, where=jnp.asarray([True, True, False])
    )[0],
    "fp16_std": ro.safe_std,
    "var_one_pass_cancellation": lambda x: ro.safe_std(x) ** 2,
    "nan_label_where_after_loss": lambda w: jnp.sum(
        jnp.where(
            jnp.asarray([True, False]),
            losses.squared_error(w * jnp.ones(2), jnp.asarray([1.0, jnp.nan])),
            0,
        )
    ),
    "optax_clip_global_norm_fp16": lambda g: jnp.sum(_update(optim.clip_by_global_norm(1.0), g)),
}


def _update(tx, g) -> jax.Array:
    return jax.tree.leaves(tx.update(g, tx.init(g), g)[0])[0]


@pytest.mark.parametrize("name", REWRITTEN)
@pytest.mark.parametrize("jit", [False, True])
def test_case(name, jit, issue_cases):
    case = issue_cases[name]
    fn = REWRITTEN[name]
    wrap = jax.jit if jit else lambda f: f
    value, gradients = case.expected

    def close(got, want):
        got = np.asarray(got, np.float64)
        want = np.broadcast_to(np.asarray(want, np.float64), got.shape)
        free = np.isnan(want)  # any finite number
        assert np.isfinite(got[free]).all()
        np.testing.assert_allclose(got[~free], want[~free], rtol=case.rtol, atol=case.atol)

    close(wrap(fn)(*case.args), value)
    if case.differentiate and name != "optax_clip_global_norm_fp16":
        argnums = tuple(range(len(case.args)))
        found = wrap(jax.grad(lambda *a: fn(*a).astype(jnp.float32), argnums))(*case.args)
        for k, got in enumerate(found):
            close(got, np.nan if gradients is None else gradients[k])
