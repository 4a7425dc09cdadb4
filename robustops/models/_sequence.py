"""A recurrent classifier of sequences."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from robustops.ops import sigmoid, softmax

from ._common import check_input, check_size, nnx


def _orthogonal_blocks(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """One square orthogonal matrix per gate, side by side: each has all singular values 1."""
    hidden, outputs = shape
    keys = jax.random.split(key, outputs // hidden)
    # QR has no float16 or bfloat16 form.
    exact = jnp.promote_types(dtype, jnp.float32)
    blocks = [jax.nn.initializers.orthogonal()(k, (hidden, hidden), exact) for k in keys]
    return jnp.concatenate(blocks, axis=1).astype(dtype)


class SequenceClassifier(nnx.Module):
    """A recurrent classifier of sequences whose state is bounded, and starts with gain 1.

    `cell="rnn"` is `h' = activation(W x + U h + b)`. `cell="gru"` is the gated unit of Cho et al.
    (2014), with the reset gate after the product as in cuDNN: `r, z = sigmoid(W x + U h + b)`,
    `n = activation(W_n x + b_n + r * (U_n h))`, `h' = (1 - z) * n + z * h`. The logits are a linear
    map of the last state.

    A product over time of `U`'s gain overflows float32 after 43 steps at gain 8. So `U` starts
    orthogonal (gain exactly 1), and the state is clipped to `[-max_state, max_state]`: this changes
    nothing for tanh, and with `activation=nnx.relu` a unit that runs away stops there, and passes
    no gradient, in place of overflowing. If `U` was loaded or scaled to a large gain,
    `robustops.train.rescale_init` brings it back.

    Args:
      features: size of the last axis of the input.
      hidden: size of the state.
      classes: number of logits.
      cell: "rnn" or "gru".
      activation: function of the state, by default tanh; `nnx.relu` is unbounded.
      max_state: bound of the state's magnitude; None for none, as the textbook writes the cell.
      dtype: type to compute in; None takes it from the input and the parameters.
      param_dtype: type of the parameters.
      rngs: source of the initial parameters.

    Attributes:
      inputs: `nnx.Linear`, `W` and `b`, from the features to the gates.
      recurrent: `nnx.Linear` without a bias, `U`, from the state to the gates (r, z, n for a GRU).
      head: `nnx.Linear` from the last state to the logits.

    Raises:
      ValueError: a size is not a positive integer, `cell` or `max_state` is unknown, or an input
        is not `[batch, time, features]` with at least one step.
    """

    def __init__(
        self,
        features: int,
        hidden: int = 64,
        classes: int = 10,
        *,
        cell: Literal["rnn", "gru"] = "rnn",
        activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
        max_state: float | None = 1e4,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        self.features: int = check_size(name, "features", features)
        self.hidden: int = check_size(name, "hidden", hidden)
        self.classes: int = check_size(name, "classes", classes)
        if cell not in ("rnn", "gru"):
            raise ValueError(f"{name}: cell must be 'rnn' or 'gru', got {cell!r}")
        if max_state is not None and not max_state > 0:
            raise ValueError(f"{name}: max_state must be > 0 or None, got {max_state}")
        self.cell = cell
        self.activation = activation
        self.max_state = max_state
        gates = self.hidden * (3 if cell == "gru" else 1)
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.inputs: nnx.Linear = nnx.Linear(self.features, gates, **options)
        self.recurrent: nnx.Linear = nnx.Linear(
            self.hidden, gates, use_bias=False, kernel_init=_orthogonal_blocks, **options
        )
        self.head: nnx.Linear = nnx.Linear(self.hidden, self.classes, **options)

    def _next(self, state: jax.Array, inputs: jax.Array) -> jax.Array:
        recurrent = self.recurrent(state)
        if self.cell == "rnn":
            return self.activation(inputs + recurrent)
        in_r, in_z, in_n = jnp.split(inputs, 3, axis=-1)
        re_r, re_z, re_n = jnp.split(recurrent, 3, axis=-1)
        r, z = sigmoid(in_r + re_r), sigmoid(in_z + re_z)
        n = self.activation(in_n + r * re_n)
        return (1 - z) * n + z * state

    def states(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[batch, time, features]`, to all states, `[batch, time, hidden]`."""
        x = check_input(type(self).__name__, x, self.features, "[batch, time, features]")
        if x.shape[1] == 0:
            raise ValueError(f"{type(self).__name__}: x has no time steps, shape {x.shape}")
        inputs = jnp.swapaxes(self.inputs(x), 0, 1)

        def step(state, inputs):
            state = self._next(state, inputs)
            if self.max_state is not None:
                state = jnp.clip(state, -self.max_state, self.max_state)
            return state, state

        start = jnp.zeros((x.shape[0], self.hidden), inputs.dtype)
        return jnp.swapaxes(jax.lax.scan(step, start, inputs)[1], 0, 1)

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Maps `x`, shape `[batch, time, features]`, to logits, shape `[batch, classes]`."""
        return self.head(self.states(x)[:, -1])

    def probabilities(self, x: ArrayLike) -> jax.Array:
        """Maps `x` to probabilities, shape `[batch, classes]`, of two or more classes."""
        return softmax(self(x))
