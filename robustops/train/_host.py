"""Pytrees of device arrays as named numpy arrays on the host, and back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def names(tree: Any) -> list[str]:
    """The path of each leaf, such as `params.layers.0.kernel`."""
    paths = [path for path, _ in jax.tree.leaves_with_path(tree)]
    spelled = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    return [name.removesuffix(".value") for name in spelled]


def to_host(tree: Any) -> dict[str, np.ndarray]:
    """Copies the leaves by name; random keys as their bits.

    A copy, since on CPU `device_get` gives a view of a buffer that the next step is given.
    """
    leaves = [_bits(x) for x in jax.tree.leaves(tree)]
    copies = [np.array(x) for x in jax.device_get(leaves)]
    return dict(zip(names(tree), copies, strict=True))


def from_host(like: Any, arrays: dict[str, np.ndarray], where: str) -> Any:
    """The tree of `like` with the values of `arrays`, numpy but for random keys.

    Raises:
      ValueError: other names, shapes or dtypes; `where` says what holds the arrays.
    """
    wanted = dict(zip(names(like), jax.tree.leaves(like), strict=True))
    for name in [*wanted, *arrays]:
        have = _kind(arrays[name]) if name in arrays else "nothing"
        want = _kind(_bits(wanted[name])) if name in wanted else "nothing"
        if have != want:
            raise ValueError(
                f"{where} is of another model or optimizer: it holds {have} for {name}, and this "
                f"one has {want} there"
            )
    leaves = [
        jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=jax.random.key_impl(x))
        if is_key(x)
        else arrays[name]
        for name, x in wanted.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _bits(x: Any) -> Any:
    return jax.random.key_data(x) if is_key(x) else x


def is_key(x: Any) -> bool:
    """Whether a leaf holds random keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _kind(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"
