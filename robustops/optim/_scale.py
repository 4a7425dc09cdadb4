"""Dynamic loss scaling, for gradients in float16."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from robustops.optim._checks import check_count, check_number, check_order
from robustops.optim._decide import Guarded, Proposal
from robustops.optim._guard import guarded
from robustops.optim._norms import AxisName, is_float


class DynamicLossScaleState(NamedTuple):
    """State of `dynamic_loss_scale`."""

    inner_state: optax.OptState
    """State of the guarded inner transformation."""
    scale: jax.Array
    """What to multiply the next loss by, float32."""
    quiet: jax.Array
    """Steps taken since the scale last changed, int32."""


def dynamic_loss_scale(
    inner: optax.GradientTransformation | optax.MultiSteps,
    *,
    initial: ArrayLike = 2.0**15,
    factor: ArrayLike = 2.0,
    growth_interval: int = 2000,
    min_scale: ArrayLike = 1.0,
    max_scale: ArrayLike = 2.0**24,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Divides gradients by the scale of their loss, which it finds: float16 training.

    The loss is multiplied in the step, by the scale that `health` reads out of the state::

        scale = health(opt_state).scale
        grads = jax.grad(lambda p: loss(p).astype(jnp.float32) * scale)(params)
        params, opt_state = guarded_apply(tx, grads, opt_state, params)

    A refused step divides the scale by `factor`; `growth_interval` steps taken in a row multiply
    it. Use a power of two for both numbers: scaling is then exact.

    Gradients of 16 bits are widened to float32 before they are unscaled, and so are the parameters
    from which `inner` makes its state: moments and updates are float32, and Adam's eps of 1e-8 does
    not underflow. `optax.apply_updates` adds such an update in float32 and rounds once.

    Args:
        inner: any optax transformation; wrapped in `skip_nonfinite` unless it is a `guard` or
            another transformation of this module that refuses steps.
        initial: first scale, > 0.
        factor: step of the scale, >= 1.
        growth_interval: steps without overflow after which the scale grows, >= 1.
        min_scale: smallest scale, > 0.
        max_scale: largest scale, > 0.
        axis_name: as for `skip_nonfinite`; a guarded `inner` has its own.

    Returns:
        A transformation with state `DynamicLossScaleState`; see `health`.

    Raises:
        TypeError: `inner` is not a transformation.
        ValueError: a number is out of range, or not min_scale <= initial <= max_scale.

    Reference:
        Micikevicius et al., Mixed precision training, 2018.
    """
    where = "dynamic_loss_scale"
    tx, inside = guarded(where, inner, axis_name)
    for name, value in [("initial", initial), ("min_scale", min_scale), ("max_scale", max_scale)]:
        check_number(where, name, value)
    check_number(where, "factor", factor, least=1)
    check_order(where, min_scale=min_scale, initial=initial, max_scale=max_scale)
    check_count(where, "growth_interval", growth_interval)

    def init(params: optax.Params) -> DynamicLossScaleState:
        return DynamicLossScaleState(
            tx.init(jax.tree.map(_widen, params)),
            jnp.asarray(initial, jnp.float32),
            jnp.zeros((), jnp.int32),
        )

    def propose(
        updates: optax.Updates,
        state: DynamicLossScaleState,
        params: optax.Params | None,
        extra_args: dict[str, Any],
    ) -> Proposal:
        # A division, not a product with 1 / scale, which is subnormal for the largest scales.
        unscale = lambda g: (_widen(g) / state.scale).astype(_widen(g).dtype) if is_float(g) else g
        proposal = inside.propose(
            jax.tree.map(unscale, updates), state.inner_state, params, extra_args
        )

        def commit(ok: jax.Array, inner_state: optax.OptState) -> DynamicLossScaleState:
            quiet = jnp.where(ok, state.quiet + 1, 0)
            grows = quiet >= growth_interval
            scale = jnp.where(
                ok,
                jnp.where(grows, jnp.minimum(state.scale * factor, max_scale), state.scale),
                jnp.maximum(state.scale / factor, min_scale),
            )
            return DynamicLossScaleState(
                proposal.commit(ok, inner_state),
                scale.astype(jnp.float32),
                jnp.where(grows, 0, quiet),
            )

        return proposal._replace(commit=commit)

    innermost = lambda state: inside.innermost(state.inner_state)
    return optax.GradientTransformationExtraArgs(
        init, Guarded(propose, innermost, DynamicLossScaleState)
    )  # pyright: ignore[reportArgumentType]


def _widen(x: Any) -> Any:
    """A floating leaf in float32 or wider, others as they are."""
    if not is_float(x):
        return x
    return jnp.asarray(x, jnp.float32 if jnp.finfo(jnp.result_type(x)).bits < 32 else None)
