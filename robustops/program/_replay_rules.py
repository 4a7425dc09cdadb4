"""Which elements of its operands a bad element of a result comes from, primitive by primitive."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import _jax
from ._replay import is_float

Mask = np.ndarray | None
"""Boolean, of the shape of a value; None where nothing is meant."""

_ELEMENTWISE = frozenset(
    """
    abs acos acosh add add_any asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil complex
    conj copy copy_p cos cosh digamma div erf erf_inv erfc exp exp2 expm1 floor igamma igammac imag
    integer_pow is_finite lgamma log log1p logistic mul neg nextafter not polygamma pow real
    reduce_precision regularized_incomplete_beta rem round rsqrt sign sin sinh sqrt square
    stop_gradient sub tan tanh convert_element_type zmul apart pcast pvary optimization_barrier
    instead
    """.split()
)
_SELECTING = frozenset({"max", "min", "clamp"})
_EXTREMA = frozenset({"reduce_max", "reduce_min"})
# Results are elements of the operands, and nothing else.
_MOVES = frozenset("broadcast_in_dim expand_dims reshape squeeze transpose".split())
# Linear in their floating operands, so that their transpose at 1 says what depends on what.
_LINEAR = frozenset(
    """
    concatenate conv_general_dilated cumsum dot_general dynamic_slice dynamic_update_slice gather
    pad reduce_window_sum rev scatter scatter-add select_and_scatter_add slice split
    """.split()
)


class Rules:
    """The rules, with what was compiled for them."""

    def __init__(self):
        self._compiled: dict[tuple[str, ...], Callable] = {}

    def sources(
        self, eqn: Any, ins: Sequence[Any], outs: Sequence[Any], masks: Sequence[np.ndarray]
    ) -> list[Mask]:
        """Return for each operand the elements that the marked elements of the results depend on.

        Exact for elementwise, selecting and linear primitives; else every element of every operand.
        """
        name, mask = eqn.primitive.name, masks[0]
        if name in _LINEAR:
            return self._linear(eqn, ins, masks)[0]
        if name in ("apart", "optimization_barrier"):
            found = list(masks)
        elif name in _ELEMENTWISE:
            found = [unbroadcast(mask, x.shape) for x in ins]
        elif name == "select_n":
            which = np.asarray(ins[0]).astype(int)
            found = [None, *(mask & (which == k) for k in range(len(ins) - 1))]
        elif name in _SELECTING:
            found = [unbroadcast(mask & _picked(x, outs[0]), x.shape) for x in ins]
        elif name in _EXTREMA:
            out = np.expand_dims(as_numpy(outs[0]), eqn.params["axes"])
            found = [np.expand_dims(mask, eqn.params["axes"]) & _picked(ins[0], out)]
        elif name == "reduce_sum":
            wide = np.expand_dims(mask, eqn.params["axes"])
            found = [np.broadcast_to(wide, ins[0].shape)]
        elif name in _MOVES:
            found = [_moved(eqn, mask, ins[0].shape), *(None for _ in ins[1:])]
        else:
            found = [np.ones(x.shape, bool) for x in ins]
        return [m if is_float(x) else None for x, m in zip(ins, found, strict=True)]

    def explain(
        self, eqn: Any, ins: Sequence[Any], outs: Sequence[Any], masks: Sequence[np.ndarray]
    ) -> tuple[list[Mask], list[np.ndarray]]:
        """Return the bad elements of the operands that explain the marked ones of the results.

        And, of the marked elements, those that no bad operand explains.
        """
        name = eqn.primitive.name
        if name in _LINEAR:
            sources, born = self._linear(eqn, ins, masks)
        else:
            sources, born = self.sources(eqn, ins, outs, masks), list(masks)
        bad = [
            None if m is None else some(m & bad_elements(x))
            for m, x in zip(sources, ins, strict=True)
        ]
        if all(m is None for m in bad):
            return bad, list(masks)
        if name in ("apart", "optimization_barrier"):
            born = [m & ~(m if b is None else b) for m, b in zip(masks, bad, strict=True)]
        elif name in _ELEMENTWISE | _SELECTING | {"select_n"}:
            reached = np.zeros(masks[0].shape, bool)
            for b in bad:
                reached = reached if b is None else reached | b
            born = [masks[0] & ~reached]
        elif name in _EXTREMA | {"reduce_sum"}:
            reached = np.any(bad[0], axis=eqn.params["axes"])  # pyright: ignore[reportArgumentType]
            born = [masks[0] & ~reached]
        elif name not in _LINEAR:
            born = [np.zeros(m.shape, bool) for m in masks]
        return bad, born

    def _linear(self, eqn, ins, masks) -> tuple[list[Mask], list[np.ndarray]]:
        """What the marked results depend on, and which are bad though bad operands are made 0."""
        at = [i for i, v in enumerate(eqn.invars) if is_float(v.aval)]
        # The layers of a model have equations alike, and compiling is what takes the time.
        alike = eqn.primitive.name, str(eqn.params), *(str(v.aval) for v in eqn.invars)
        if alike not in self._compiled:
            self._compiled[alike] = jax.jit(lambda *args: _transposed(eqn, at, *args))
        sources, born = self._compiled[alike](list(ins), list(masks))
        found: list[Mask] = [None] * len(ins)
        for i, m in zip(at, sources, strict=True):
            found[i] = np.asarray(m)
        return found, [np.asarray(b) for b in born]


def _transposed(eqn, at, ins, masks):
    def call(*floats):
        values = list(ins)
        for i, x in zip(at, floats, strict=True):
            values[i] = x
        return _jax.bind(eqn, *values)

    outs, pull = jax.vjp(call, *(jnp.ones_like(ins[i]) for i in at))
    sources = pull([m.astype(o.dtype) for m, o in zip(masks, outs, strict=True)])
    cleaned = call(*(jnp.where(jnp.isfinite(ins[i]), ins[i], 0) for i in at))
    born = [m & ~jnp.isfinite(o) for m, o in zip(masks, cleaned, strict=True)]
    return [ct != 0 for ct in sources], born


def _moved(eqn, mask, shape):
    name = eqn.primitive.name
    if name == "transpose":
        return mask.transpose(np.argsort(eqn.params["permutation"]))
    if name == "broadcast_in_dim":
        kept = eqn.params["broadcast_dimensions"]
        mask = mask.any(tuple(i for i in range(mask.ndim) if i not in kept))
        return unbroadcast(mask, shape)
    return mask.reshape(shape)


def some(mask: np.ndarray) -> Mask:
    """Return `mask`, or None if it marks nothing."""
    return mask if mask.any() else None


def unbroadcast(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `mask` for an operand of `shape`, which jax has broadcast."""
    if mask.shape == tuple(shape):
        return mask
    if not shape:
        return np.asarray(mask.any())
    axes = tuple(i for i, (n, k) in enumerate(zip(mask.shape, shape, strict=True)) if n != k)
    return np.asarray(mask.any(axes, keepdims=True))


def bad_elements(value: Any) -> np.ndarray:
    """Return where `value` is NaN or infinite."""
    return ~np.isfinite(as_numpy(value))


def as_numpy(value: Any) -> np.ndarray:
    """Return `value` in numpy, 16-bit and smaller floats as float32, which all of numpy knows."""
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4:
        return array.astype(np.float32)
    return array


def _picked(x, out):
    x, out = as_numpy(x), as_numpy(out)
    return np.isnan(x) | (x == out)
