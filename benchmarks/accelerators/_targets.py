"""The accelerators that are compiled for, and the compilers' wheels."""

from dataclasses import dataclass
from importlib import metadata
from typing import Any

_H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3" """


@dataclass(frozen=True)
class Target:
    """A device that is described, not present."""

    platform: str
    topology: str
    wheels: tuple[str, ...]
    options: dict[str, Any]

    def problem(self) -> str | None:
        """Why nothing can be compiled for it here; None if it can."""
        for wheel in self.wheels:
            try:
                version = metadata.version(wheel)
            except metadata.PackageNotFoundError:
                return f"{wheel} is not installed; run `pip install -e '.[accelerators]'`"
            if wheel.startswith("jax-") and version != metadata.version("jaxlib"):
                wanted = metadata.version("jaxlib")
                return (
                    f"{wheel} is version {version}, jaxlib {wanted}; run "
                    f"`pip install {wheel}=={wanted}`"
                )
        return None


TARGETS = {
    "tpu-v5e": Target("tpu", "v5e:2x2", ("libtpu",), {}),
    "h100": Target(
        "cuda",
        "1x1x1",
        ("jax-cuda12-plugin", "jax-cuda12-pjrt"),
        {"target_config": _H100, "topology": "1x1x1"},
    ),
}

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
"""Must be set before jax is imported, so the compilers run in a process of their own."""
