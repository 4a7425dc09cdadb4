"""An audit of a model's initial parameters on its first batch."""

import contextvars
import dataclasses
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

try:
    from flax import nnx
except ImportError as error:
    raise ImportError(
        "robustops.train.rescale_init needs flax: run `pip install 'robustops[models]'`"
    ) from error


class LayerAudit(NamedTuple):
    """What `rescale_init` found in one layer, and did to it.

    Attributes:
      path: where the layer is in the model, e.g. "encoder.0".
      rule: "data" if judged by its outputs on the batch, "kernel" if by its kernel alone.
      before: standard deviation of the outputs (rule "data") or gain of the kernel, as it was.
      after: the same, with the kernel as it is now.
      factor: what the kernel was multiplied by; 1 if it was left alone.
      biases: how many biases were replaced.
    """

    path: str
    rule: str
    before: float
    after: float
    factor: float
    biases: int


def rescale_init(
    model: nnx.Module,
    x: ArrayLike,
    *,
    low: float = 0.01,
    high: float = 4.0,
    max_gain: float = 1.1,
) -> list[LayerAudit]:
    """Brings layers whose outputs explode, vanish or saturate on a first batch back to unit size.

    Runs `model(x)` and judges each `nnx.Linear` layer when it is called, so each sees inputs that
    the layers before it, already corrected, have made. In the layer's outputs `W a + b`:

    - the standard deviation of `W a` over the batch, pooled over the units, must lie in
      `[low, high]`; else W is multiplied by one factor that makes it 1;
    - a unit whose mean output is beyond `high` gets the bias 0, or `-mean(W a)` if that mean alone
      is beyond `high`.

    A layer whose input cannot be seen, because it is called inside `lax.scan` or jit, is judged by
    its kernel. If this is square, or square blocks side by side as a gated recurrent unit has, its
    largest spectral norm must lie in `[low, max_gain]`, else it is brought to 1: then the recurrent
    map does not expand. Any other kernel has the gain `rms(W) sqrt(fan_in)`, to lie in
    `[low, high]`; biases beyond `high` become 0.

    A layer that passes is left bit-identical, as are all-zero kernels, which are set on purpose,
    and all state that is no parameter (BatchNorm statistics, random counters). The sums are in
    float64 on the host, so nothing overflows for gains from 1e-37 to 1e38. Call it once, outside
    jit, with scaled data, before training.

    Args:
      model: a model whose layers are `nnx.Linear` (others are left alone); changed in place.
      x: a first batch, finite, of a few dozen rows or more.
      low: least healthy standard deviation or gain.
      high: greatest healthy standard deviation, mean or bias.
      max_gain: greatest healthy spectral norm of a recurrent kernel.

    Returns:
      A list with one `LayerAudit` for each `nnx.Linear` layer, those judged by their kernels first,
      then the others in the order of their calls.

    Raises:
      ValueError: x is empty or not finite, a kernel or bias is not finite, or the bounds are not
        0 < low <= 1 <= high, max_gain.

    References:
      Mishkin and Matas, `All you need is a good init <https://arxiv.org/abs/1511.06422>`_, 2016
    """
    if not (0 < low <= 1 <= high and max_gain >= 1):
        raise ValueError(
            "rescale_init: bounds must be 0 < low <= 1 <= high and max_gain >= 1, "
            f"got low={low}, high={high}, max_gain={max_gain}"
        )
    x = np.asarray(x) if not isinstance(x, jax.Array) else x
    if x.size == 0:
        raise ValueError(f"rescale_init: x is empty, shape {x.shape}; give a first batch")
    bad = x.size - int(np.isfinite(_float64(x)).sum())
    if bad:
        raise ValueError(
            f"rescale_init: {bad} of {x.size} cells of x are NaN or infinite; "
            "scale the batch first, e.g. RobustScaler().fit(x).transform(x)"
        )
    layers = {
        id(node): (".".join(map(str, path)), node)
        for path, node in nnx.iter_modules(model)
        if type(node) is nnx.Linear
    }
    for path, layer in layers.values():
        _check_finite(path, layer)
    audit = _Audit(low, high, max_gain, {name: path for name, (path, _) in layers.items()})
    # New variables with the same arrays: those of the model are advanced by the two runs.
    rest = jax.tree.map(lambda leaf: leaf, nnx.split(model, nnx.Param, ...)[2])
    with _intercepted([layer for _, layer in layers.values()], audit):
        model(x)
        for name, (_, layer) in layers.items():
            if name not in audit.seen:
                audit.by_kernel(layer)
        audit.correct = True
        model(x)
    nnx.update(model, rest)
    return list(audit.report.values())


@dataclasses.dataclass
class _Audit:
    """The bounds, and what is known so far; layers are keyed by their id."""

    low: float
    high: float
    max_gain: float
    paths: dict[int, str]
    correct: bool = False
    seen: set[int] = dataclasses.field(default_factory=set)
    report: dict[int, LayerAudit] = dataclasses.field(default_factory=dict)

    def called(self, layer: Any, inputs: Any) -> None:
        """Notes that a layer's input can be seen; on the second run, judges the layer by it."""
        if isinstance(inputs, Tracer) or id(layer) not in self.paths:
            return
        self.seen.add(id(layer))
        if self.correct and id(layer) not in self.report:
            self.by_data(layer, inputs)

    def by_data(self, layer: Any, inputs: Any) -> None:
        a = _float64(inputs).reshape(-1, inputs.shape[-1])
        a = a[np.isfinite(a).all(axis=1)]
        products = a @ _float64(layer.kernel[...])
        # One row, rows equal up to the rounding of the layers before, or a kernel of zeros have no
        # deviation to judge by.
        floating = jnp.issubdtype(inputs.dtype, jnp.floating)
        rounding = 8 * float(jnp.finfo(inputs.dtype).eps) if floating else 0.0
        equal = np.ptp(a, axis=0).max(initial=0) <= rounding * abs(a).max(initial=0)
        deviation = 0.0 if equal else float(np.sqrt(np.mean(np.var(products, axis=0))))
        if deviation == 0:
            self.by_kernel(layer)
            return
        factor = self._factor(deviation, self.high)
        biases = self._set_biases(layer, products.mean(axis=0) * factor)
        self._scale(layer, "data", deviation, factor, biases)

    def by_kernel(self, layer: Any) -> None:
        kernel = _float64(layer.kernel[...])
        inputs, outputs = kernel.shape
        if outputs % inputs == 0:
            blocks = np.split(kernel, outputs // inputs, axis=1)
            gain, limit = max(float(np.linalg.norm(b, 2)) for b in blocks), self.max_gain
        else:
            gain, limit = math.sqrt(inputs * float(np.mean(kernel**2))), self.high
        biases = self._set_biases(layer, np.zeros(outputs))
        self._scale(layer, "kernel", gain, self._factor(gain, limit), biases)

    def _factor(self, size: float, limit: float) -> float:
        return 1.0 if size == 0 or self.low <= size <= limit else 1 / size

    def _set_biases(self, layer: Any, means: np.ndarray) -> int:
        if layer.bias is None:
            return 0
        bias = _float64(layer.bias[...])
        absurd = np.abs(means + bias) > self.high
        if absurd.any():
            implied = np.where(np.abs(means) > self.high, -means, 0)
            _assign(layer.bias, np.where(absurd, implied, bias))
        return int(absurd.sum())

    def _scale(self, layer: Any, rule: str, before: float, factor: float, biases: int) -> None:
        if factor != 1:
            _assign(layer.kernel, _float64(layer.kernel[...]) * factor)
        path = self.paths[id(layer)]
        self.report[id(layer)] = LayerAudit(path, rule, before, before * factor, factor, biases)


_running: contextvars.ContextVar[_Audit] = contextvars.ContextVar("robustops_rescale_init")


class _Intercepted(nnx.Linear):
    """A Linear layer that shows its input to the running audit before it uses it."""

    def __call__(self, inputs, *args, **kwargs):
        _running.get().called(self, inputs)
        return super().__call__(inputs, *args, **kwargs)


@contextmanager
def _intercepted(layers: list[Any], audit: _Audit) -> Iterator[None]:
    """Layers report to the audit inside this context, and are plain `nnx.Linear` again after it."""
    token = _running.set(audit)
    for layer in layers:
        layer.__class__ = _Intercepted
    try:
        yield
    finally:
        for layer in layers:
            layer.__class__ = nnx.Linear
        _running.reset(token)


def _float64(x: Any) -> np.ndarray:
    return np.asarray(x).astype(np.float64)


def _assign(variable: Any, value: np.ndarray) -> None:
    variable[...] = jax.numpy.asarray(value.astype(variable[...].dtype))


def _check_finite(path: str, layer: Any) -> None:
    for name in ("kernel", "bias"):
        variable = getattr(layer, name)
        if variable is not None and not np.isfinite(_float64(variable[...])).all():
            raise ValueError(
                f"rescale_init: {name} of layer {path!r} has NaN or infinite entries, so no factor "
                "repairs it; build the model anew"
            )
