"""Checkpoints: killed at any moment, damaged in any file, a run ends as if nothing had happened."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from flax import nnx

from robustops import losses, optim
from robustops.train import Checkpoints, fit
from robustops.train._checkpoints import Store

from .training_child import digest, train

CHILD = Path(__file__).with_name("training_child.py")


def start(directory: Path, pause: float, epochs: int) -> Any:
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = str(CHILD.parents[1])
    command = [sys.executable, str(CHILD), str(directory), str(pause), str(epochs)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: Any) -> str:
    """The digest that a child prints at its end."""
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return told.split()[-1]


def contents(directory: Path) -> list[bytes]:
    return [(directory / f"metrics.{suffix}").read_bytes() for suffix in ("csv", "jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    return directory, digest(*train(directory))


@pytest.fixture
def collected():
    """What Orbax dropped is collected here, not in a later test."""
    yield
    gc.collect()


def test_killed_run_ends_as_if_it_had_not_been(whole, tmp_path):
    """SIGKILL in the middle, the rest in this process: bit-identical variables, optimizer state,
    history and metrics files; steps that the guard refused included."""
    process = start(tmp_path, 0.3, 12)
    try:
        for line in process.stdout:
            if line == "epoch 4\n":
                break
        time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    left = Checkpoints(tmp_path / "checkpoints").steps()
    assert left
    assert max(left) < 40
    assert digest(*train(tmp_path)) == whole[1]
    assert contents(tmp_path) == contents(whole[0])
    assert len(contents(tmp_path)[0].splitlines()) == 61


@pytest.mark.slow
def test_killed_at_ten_random_moments(tmp_path):
    """Ten times SIGKILL, at moments from a fixed seed: it compiles, trains, saves or restores."""
    rng = np.random.default_rng(2026)
    epochs, reached = 60, []
    undisturbed = finish(start(tmp_path / "whole", 0.0, epochs))
    for kill in range(10):
        process = start(tmp_path / "killed", 0.05, epochs)
        try:
            # Half of them after some epochs, so that the run comes on.
            told = 1 if kill % 2 else int(rng.integers(2, 11))
            for _ in range(told):
                process.stdout.readline()
            time.sleep(rng.uniform(0, 4.0 if kill % 2 else 0.3))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        steps = Checkpoints(tmp_path / "killed" / "checkpoints").steps()
        reached.append(max(steps, default=0))
    print("last checkpoint at each kill:", reached)
    assert 0 < reached[-1] < 5 * epochs
    assert reached == sorted(reached)
    assert finish(start(tmp_path / "killed", 0.0, epochs)) == undisturbed
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_finished_run_returns_at_once_and_goes_on_with_more_epochs(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    before = contents(tmp_path / "run")
    assert digest(*train(tmp_path / "run")) == whole[1]
    assert contents(tmp_path / "run") == before
    _, history = train(tmp_path / "run", epochs=13)
    assert history.loss.shape == (13,)
    assert history.steps == 65
    assert contents(tmp_path / "run")[0].startswith(before[0])


def damage(file: Path, how: str) -> None:
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif data:
        data[len(data) // 2] ^= 0x10
        file.write_bytes(data)


# Orbax drops a coroutine when it meets a damaged file.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("collected")
def test_any_damaged_file_is_found(whole, tmp_path):
    """Each file of the last checkpoint in turn, cut short, with a byte changed, or gone: either the
    checkpoint is whole without it, or a warning names it and the one before it is used."""
    before, newest = Checkpoints(whole[0] / "checkpoints").steps()[-2:]
    last = whole[0] / "checkpoints" / f"step_{newest}"
    good: Any = Store(Checkpoints(whole[0] / "checkpoints")).last()
    files = [p.relative_to(last) for p in sorted(last.rglob("*")) if p.is_file()]
    assert len(files) > 5
    named = set()
    for case, (file, how) in enumerate(product(files, ("cut", "changed", "gone"))):
        directory = tmp_path / str(case)
        shutil.copytree(whole[0] / "checkpoints", directory)
        damage(directory / last.name / file, how)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            arrays, facts = Store(Checkpoints(directory)).last()  # pyright: ignore[reportGeneralTypeIssues]
        if caught:
            named.add(file)
            assert f"step_{newest} is damaged" in str(caught[0].message)
            assert f"step {before} is tried" in str(caught[0].message)
            assert facts["step"] == before
            assert (directory / f"damaged_step_{newest}").is_dir()
        else:
            assert facts == good[1]
            assert all(np.array_equal(arrays[k], good[0][k], equal_nan=True) for k in good[0])
    assert {Path("facts/metadata"), Path("state/manifest.ocdbt")} <= named
    assert any(file.parent.name == "d" for file in named), "no damage to the values was found"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("collected")
def test_run_goes_on_from_before_the_damage(whole, tmp_path):
    """With its last checkpoint damaged and a half-written one beside it, the run ends the same."""
    shutil.copytree(whole[0], tmp_path / "run")
    directory = tmp_path / "run" / "checkpoints"
    newest = Checkpoints(directory).steps()[-1]
    for file in (directory / f"step_{newest}").rglob("*"):
        if file.is_file():
            damage(file, "changed")
    (directory / "step_61").mkdir()
    (directory / "step_61" / "state").write_text("half")
    (directory / "step_62.orbax-checkpoint-tmp").mkdir()
    with pytest.warns(UserWarning, match="damaged") as caught:
        assert digest(*train(tmp_path / "run")) == whole[1]
    assert [f"step_{step}" in str(w.message) for step, w in zip((61, newest), caught, strict=True)]
    assert contents(tmp_path / "run") == contents(whole[0])
    assert not list(directory.glob("*tmp*"))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.usefixtures("collected")
def test_all_damaged_is_an_error(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "run")
    for file in (tmp_path / "run").rglob("*"):
        if file.is_file():
            damage(file, "cut")
    with pytest.warns(UserWarning, match="damaged") as caught:
        with pytest.raises(ValueError, match=r"all checkpoints in .* are damaged .* remove them"):
            Store(Checkpoints(tmp_path / "run")).last()
    assert "none is left before it" in str(caught[-1].message)


def small(directory: Any = None, **options: Any) -> Any:
    x = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    model: Any = nnx.Linear(4, 4, rngs=nnx.Rngs(options.pop("init", 0)))
    chosen = {"epochs": 4, "batch_size": 8, "progress": False, "checkpoints": directory, **options}
    tx = chosen.pop("tx", optax.adam(1e-2))
    return model, fit(model, tx, (x, x), losses.squared_error, **chosen)


def test_best_and_last_are_kept(tmp_path):
    """Of eight epochs whose best is not among the last, keep_best=1 and keep_last=2 leave three,
    and `restore` brings back the model of the best, as a callback saw it."""
    seen = {}

    def watch(epoch):
        seen[epoch.step] = (epoch.loss, np.asarray(epoch.model().kernel[...]))

    # A rate that rises: the loss falls, and then rises.
    rising = optax.sgd(lambda count: 0.02 * 1.6**count)
    _, history = small(
        Checkpoints(tmp_path), epochs=8, callbacks=[watch], tx=optim.guard(rising, max_norm=None)
    )
    best = 4 * (1 + int(history.loss.argmin()))
    assert best < 28
    kept = Checkpoints(tmp_path)
    assert kept.steps() == [best, 28, 32]
    model: Any = nnx.Linear(4, 4, rngs=nnx.Rngs(1))
    assert kept.restore(model, "best") == best
    np.testing.assert_array_equal(model.kernel[...], seen[best][1])
    assert kept.restore(model) == 32
    np.testing.assert_array_equal(model.kernel[...], seen[32][1])
    assert kept.restore(model, 28) == 28
    with pytest.raises(ValueError, match=rf"no checkpoint 5 in .*, which has {best}, 28, 32"):
        kept.restore(model, 5)
    with pytest.raises(ValueError, match=r"it holds .*4. for params.bias, and this one has .*5"):
        kept.restore(nnx.Linear(4, 5, rngs=nnx.Rngs(1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 16}, "with batch_size=8, this one has batch_size=16; give this run a dir"),
        ({"seed": 1}, "with seed=0, this one has seed=1"),
        ({"tx": optax.sgd(0.1)}, "another model or optimizer: it holds .* for opt_state"),
    ],
)
def test_checkpoint_of_another_run(tmp_path, options, message):
    small(tmp_path, epochs=1)
    with pytest.raises(ValueError, match=message):
        small(tmp_path, **options)


def test_bad_checkpoint_options(tmp_path):
    with pytest.raises(ValueError, match="keep_last must be an integer >= 1, got 0"):
        Checkpoints(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match=r"every_steps must be an integer >= 1, got 2.5"):
        Checkpoints(tmp_path, every_steps=2.5)  # pyright: ignore[reportArgumentType]
    assert Checkpoints(tmp_path / "absent").steps() == []
