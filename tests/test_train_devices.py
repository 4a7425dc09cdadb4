"""The same `fit` on eight devices, and in two processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from robustops import losses
from robustops.train import Checkpoints, fit, load_record

from .training_child import Net

CROSS_ENTROPY = losses.softmax_cross_entropy_with_integer_labels


def rows():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(64, 8)).astype(np.float32)
    y = x[:, :4].argmax(axis=1)
    x[21] = np.nan
    return x, y


def train(directory: Path | None = None, **options: Any):
    x, y = rows()
    model: Any = Net(nnx.Rngs(0))
    options = {"epochs": 3, "batch_size": 16, "nonfinite": "keep", "progress": False, **options}
    if directory is not None:
        options["checkpoints"] = Checkpoints(directory / "c", every_steps=3)
        options["recorder"] = directory / "records"
        options["metrics"] = directory / "metrics.csv"
    history = fit(
        model, optax.adam(1e-2), (x, y), CROSS_ENTROPY, validation=(x[:5], y[:5]), **options
    )
    return model, history


def test_eight_devices_train_as_one_does(tmp_path):
    """Each has two rows of a batch of 16; dropout, BatchNorm over the whole batch, one refused step
    an epoch, and the result agree to rounding; a checkpoint goes from eight devices to one."""
    assert jax.device_count() == 8
    alone: Any
    shared: Any
    one, alone = train()
    eight, shared = train(tmp_path, devices="all")
    assert shared.skipped.tolist() == alone.skipped.tolist() == [1, 1, 1]
    np.testing.assert_allclose(shared.loss, alone.loss, rtol=1e-5)
    np.testing.assert_allclose(shared.validation_loss, alone.validation_loss, rtol=1e-4)
    for a, b in zip(
        jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(eight)), strict=True
    ):
        assert len(b.devices()) == 1, "the model comes back to the default device"
        if not jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    kernel = shared.opt_state.inner_state[0].mu["inner"]["kernel"][...]
    assert len(kernel.addressable_shards) == 8
    first = np.asarray(kernel.addressable_shards[0].data)
    assert all(np.array_equal(first, s.data) for s in kernel.addressable_shards)
    record: Any = load_record(next((tmp_path / "records").iterdir()))
    assert 21 in record.rows
    again, history = train(tmp_path)
    assert history.steps == 12
    for a, b in zip(
        jax.tree.leaves(nnx.state(eight)), jax.tree.leaves(nnx.state(again)), strict=True
    ):
        assert jax.numpy.array_equal(a, b)


def test_bad_devices():
    with pytest.raises(ValueError, match=r"16 rows cannot be shared by 3 devices; .*batch_size=15"):
        train(devices=jax.devices()[:3])
    with pytest.raises(ValueError, match="devices must be 'all', a list of devices or None: 'al'"):
        train(devices="al")
    with pytest.raises(ValueError, match="devices is an empty list"):
        train(devices=[])


PROCESS = """
import sys
from pathlib import Path
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", num_processes=2, process_id=int(sys.argv[1]))
from tests.test_train_devices import train
from tests.training_child import digest
directory = Path(sys.argv[3])
if sys.argv[4] == "resumed":
    train(directory, epochs=1)
model, history = train(directory)
print(digest(model, history), history.steps, int(history.health.skipped))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["whole", "resumed"])
def test_two_processes_train_as_one(tmp_path, how):
    """Over the loopback, in one go or with a stop after the first epoch: both end in the same bits,
    and as two devices in one process do; one of them writes the metrics."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = str(Path(__file__).parents[1])
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "PYTHONPATH": root}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(port), str(tmp_path / "two"), how],
            env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=180) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [p.returncode for p in both] == [0, 0], [errors[-3000:] for _, errors in told]
    lines = [out.split("\n")[-2].split() for out, _ in told]
    assert lines[0] == lines[1]
    assert lines[0][1:] == ["12", "3"]
    train(tmp_path / "one", devices=jax.devices()[:2])
    texts = [(tmp_path / k / "metrics.csv").read_text().splitlines() for k in ("one", "two")]
    assert len(texts[0]) == len(texts[1]) == 13
    numbers = [np.array([line.split(",")[:7] for line in t[1:]], float) for t in texts]
    np.testing.assert_allclose(*numbers, rtol=1e-5)
