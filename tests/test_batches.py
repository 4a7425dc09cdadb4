"""Batches: every row in each epoch, resumable bit for bit, the same from both backends."""

import json
import pickle
from typing import Any, NamedTuple

import numpy as np
import pytest

from robustops.train import Batches

ROWS = 37
X = np.arange(ROWS * 2, dtype=np.float32).reshape(ROWS, 2)
Y = np.arange(ROWS)


class Rows(NamedTuple):
    inputs: np.ndarray
    targets: np.ndarray


def backends():
    return ["numpy", pytest.param("grain", marks=needs_grain)]


def _has_grain():
    try:
        import grain  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


needs_grain = pytest.mark.skipif(not _has_grain(), reason="grain is not installed")
each = pytest.mark.parametrize("backend", backends())


def same(a, b):
    for p, q in zip(a, b, strict=True):
        np.testing.assert_array_equal(p, q)


@each
def test_every_row_in_each_epoch(backend):
    """Each epoch has all rows, in another order, inputs beside their targets; 3 repeat."""
    batches = Batches((X, Y), 8, backend=backend)
    assert len(batches) == 5
    found = [*batches, *batches]
    assert len(found) == 10
    epochs = [np.concatenate([y for _, y in found[i : i + 5]]) for i in (0, 5)]
    for rows in epochs:
        assert len(rows) == 40
        np.testing.assert_array_equal(np.unique(rows), Y)
        np.testing.assert_array_equal(rows[-3:], rows[:3])
    assert not np.array_equal(epochs[0], epochs[1])
    for x, y in found:
        np.testing.assert_array_equal(x, X[y])
    next(batches)
    assert len(list(batches)) == 4  # What is left of the third pass.


@each
@pytest.mark.parametrize("taken", [0, 3, 5, 12])
def test_resumed_batches_are_the_same(backend, taken):
    """After a state went through JSON, or the iterator through pickle, the same batches follow."""
    batches = Batches((X, Y), 8, seed=3, backend=backend)
    for _ in range(taken):
        next(batches)
    state = json.loads(json.dumps(batches.get_state()))
    copied = pickle.loads(pickle.dumps(batches))
    resumed: Any = iter(Batches((X, Y), 8, seed=3, backend="numpy"))
    resumed.set_state(state)
    for want in batches:
        same(next(copied), want)
        same(next(resumed), want)
    with pytest.raises(StopIteration):
        next(resumed)


def test_any_step_can_be_read():
    """Indexing gives the batch of a step and leaves the iterator where it is."""
    batches = Batches((X, Y), 8)
    later = batches[7]
    for step in range(8):
        same(next(batches), batches[step])
    same(batches[7], later)


def test_structure_and_size_are_kept():
    """An array gives arrays, a NamedTuple NamedTuples; fewer rows than the size make one batch."""
    assert next(Batches(X, 8)).shape == (8, 2)
    batch = next(Batches(Rows(X, Y), 8))
    assert isinstance(batch, Rows)
    assert batch.targets.shape == (8,)
    whole = Batches((X, Y), 100)
    assert len(whole) == 1
    np.testing.assert_array_equal(np.sort(next(whole)[1]), Y)


def test_seeds_differ():
    first, same_seed, other = (next(Batches(Y, 8, seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same_seed)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ((X, Y[:-1]), {}, r"as many rows, >= 1; got \[37, 36\]"),
        (X[:0], {}, r"as many rows, >= 1; got \[0\]"),
        (np.float32(1), {}, "an array with rows"),
        ((), {}, "an array with rows"),
        (X, {"batch_size": 0}, "batch_size must be an integer >= 1, got 0"),
        (X, {"batch_size": 2.5}, r"batch_size must be an integer >= 1, got 2\.5"),
        (X, {"seed": -1}, "seed must be an integer >= 0, got -1"),
        (X, {"backend": "torch"}, "backend must be 'auto', 'grain' or 'numpy', got 'torch'"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(ValueError, match=message):
        Batches(data, **{"batch_size": 8, **options})


def test_a_state_of_another_run_is_refused():
    """Other rows, batch size or seed would give other batches: the error says which differs."""
    state = Batches((X, Y), 8).get_state()
    for other, message in (
        (Batches((X[:30], Y[:30]), 8), "rows=37, but these batches have rows=30"),
        (Batches((X, Y), 4), "batch_size=8, but these batches have batch_size=4"),
        (Batches((X, Y), 8, seed=1), "seed=0, but these batches have seed=1"),
    ):
        with pytest.raises(ValueError, match=message):
            other.set_state(state)
    bad: Any = {"step": 3}
    with pytest.raises(ValueError, match=r"a state has the keys \['batch_size', 'rows'"):
        Batches(X, 8).set_state(bad)


def test_missing_grain_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "grain", None)
    with pytest.raises(ImportError, match=r"pip install 'robustops\[data\]'"):
        Batches(X, 8, backend="grain")
    assert Batches(X, 8).backend == "numpy"


@each
def test_fit_takes_batches(backend):
    """The same parameters as from the arrays: fit shuffles by the same rule."""
    pytest.importorskip("flax")
    import optax
    from flax import nnx

    from robustops import losses
    from robustops.models import Classifier
    from robustops.train import fit

    def trained(data, **options):
        model = Classifier(2, (4,), 3, rngs=nnx.Rngs(0))
        fit(
            model,
            optax.adam(1e-2),
            data,
            losses.softmax_cross_entropy_with_integer_labels,
            epochs=3,
            progress=False,
            **options,
        )
        return model.layers[0].kernel[...]

    x, y = X / 100, (Y % 3).astype(np.int32)
    from_arrays = trained((x, y), batch_size=8, seed=5)
    from_batches = trained(Batches((x, y), 8, seed=5, backend=backend))
    np.testing.assert_array_equal(from_arrays, from_batches)
