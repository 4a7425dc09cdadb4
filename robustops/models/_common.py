"""What the models share: the flax import, checked sizes, checked inputs."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

try:
    from flax import nnx as nnx
except ImportError as error:
    raise ImportError(
        "robustops.models needs flax: run `pip install 'robustops[models]'`"
    ) from error


def check_size(model: str, name: str, size: Any) -> int:
    """Returns `size` if it is an integer of at least 1, else raises a ValueError that names it."""
    if isinstance(size, bool) or not hasattr(size, "__index__") or size.__index__() < 1:
        raise ValueError(f"{model}: {name} must be an integer >= 1, got {size!r}")
    return size.__index__()


def check_sizes(model: str, name: str, sizes: Sequence[int], least: int = 0) -> tuple[int, ...]:
    """Returns the widths of the hidden layers as a tuple; raises if one of them is not a size."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise ValueError(f"{model}: {name} must be a tuple of layer widths, got {sizes!r}")
    if len(sizes) < least:
        raise ValueError(f"{model}: {name} must have at least {least} entry, got {sizes!r}")
    return tuple(check_size(model, f"{name}[{i}]", size) for i, size in enumerate(sizes))


def check_input(model: str, x: Any, features: int, axes: str = "[..., features]") -> jax.Array:
    """Returns `x` as a floating array whose last axis has `features` entries.

    Integers and booleans become the default floating type, so that a raw `uint8` image is
    accepted; a complex array, a wrong rank or a wrong last axis is a ValueError.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise ValueError(f"{model}: x must be real, got dtype {x.dtype}")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        x = x.astype(jnp.result_type(float))
    rank = axes.count(",") + 1
    if (x.ndim != rank) if "..." not in axes else (x.ndim < 1):
        raise ValueError(f"{model}: x must have axes {axes}, got shape {x.shape}")
    if x.shape[-1] != features:
        raise ValueError(
            f"{model}: built for {features} features, but the last axis of x has {x.shape[-1]} "
            f"(shape {x.shape}); build the model with features={x.shape[-1]}, or reshape x"
        )
    return x


def check_image(model: str, x: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns a batch of images of this shape as a floating array."""
    x = check_input(model, x, shape[-1], "[batch, height, width, channels]")
    if x.shape[1:] != shape:
        raise ValueError(
            f"{model}: built for images of shape {shape}, got {x.shape[1:]} (x has shape "
            f"{x.shape}); build the model with shape={x.shape[1:]}, or resize x"
        )
    return x


def conv_shapes(model: str, shape: Sequence[int], hidden: Sequence[int]) -> list[tuple[int, ...]]:
    """Shapes of an image before and after each stage: all but the first halve height and width."""
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"{model}: shape must be (height, width, channels), got {shape!r}")
    height, width, channels = (check_size(model, f"shape[{i}]", n) for i, n in enumerate(shape))
    shapes = [(height, width, channels)]
    for stage, size in enumerate(hidden):
        if stage:
            height, width = -(-height // 2), -(-width // 2)
        shapes.append((height, width, size))
    return shapes


def dense_stack(
    sizes: Sequence[int], *, dtype: Any, param_dtype: Any, rngs: nnx.Rngs
) -> nnx.List[nnx.Linear]:
    """Linear layers from each size to the next, as an `nnx.List`."""
    return nnx.List(
        nnx.Linear(inputs, outputs, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        for inputs, outputs in itertools.pairwise(sizes)
    )


def apply_stack(layers: nnx.List, x: jax.Array, activation: Any) -> jax.Array:
    """Applies the layers, with `activation` between them and none after the last."""
    *hidden, last = layers
    for layer in hidden:
        x = activation(layer(x))
    return last(x)
