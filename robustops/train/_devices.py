"""Where arrays live: on one device, or state on all of them and a share of each batch on each."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ._host import is_key


class Placement:
    """Places state and batches for data-parallel training.

    Args:
      devices: None for one device, or all of them if there are several processes; "all"; or a list.
      batch_size: must be a multiple of their number; None if it is not known yet.
    """

    def __init__(self, devices: Literal["all"] | Sequence[Any] | None, batch_size: int | None):
        if devices is None and jax.process_count() == 1:
            self._state = self._batch = None
            self.count = 1
            return
        if isinstance(devices, str) and devices != "all":
            raise ValueError(f"fit: devices must be 'all', a list of devices or None: {devices!r}")
        chosen = jax.devices() if devices is None or isinstance(devices, str) else list(devices)
        if not chosen:
            raise ValueError("fit: devices is an empty list; pass 'all', or None for one device")
        missing = set(range(jax.process_count())) - {d.process_index for d in chosen}
        if missing:
            raise ValueError(f"fit: no device of process {min(missing)} is in devices; pass 'all'")
        mesh = jax.make_mesh((len(chosen),), ("rows",), (AxisType.Auto,), devices=chosen)
        self._state, self._batch = NamedSharding(mesh, P()), NamedSharding(mesh, P("rows"))
        self.count = len(chosen)
        if batch_size is not None and batch_size % self.count:
            lower = batch_size - batch_size % self.count
            raise ValueError(
                f"fit: a batch of {batch_size} rows cannot be shared by {self.count} devices; "
                f"take batch_size={lower or self.count}"
            )

    def jit(self, fn: Any, donate: tuple[int, ...] = ()) -> Any:
        """Compiles a function whose outputs are whole on every device."""
        if self._state is None:
            return jax.jit(fn, donate_argnums=donate)
        return jax.jit(fn, donate_argnums=donate, out_shardings=self._state)

    def state(self, tree: Any) -> Any:
        """Puts copies of the leaves on the devices, whole on each."""
        if self._state is None:
            return jax.tree.map(jax.numpy.copy, tree)
        return jax.tree.map(lambda x: self._put(x, self._state), tree)

    def batch(self, arrays: Any) -> Any:
        """Puts an equal share of the rows on each device; all of them if they cannot be shared."""
        if self._batch is None:
            return arrays
        put = lambda x: self._put(x, self._state if len(x) % self.count else self._batch)
        return jax.tree.map(put, arrays)

    def _put(self, x: Any, sharding: Any) -> Any:
        # Each process has all of x and takes what its devices need. A copy for each: on CPU an
        # array may share numpy's memory, and a step that is given it would write there.
        if is_key(x):
            bits = self._put(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(x))
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, sharding, lambda i: np.array(host[i]))
