"""`diagnose` names the line, and says nothing where nothing is wrong."""

import inspect
import json
import time
from pathlib import Path

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import robustops as ro
from robustops.program._diagnose_shards import without_shards
from tests import planted_operations  # noqa: F401  enters its programs below
from tests.planted_programs import PLANTED, SLOW, SOUND

HERE = Path(__file__)


def each(programs):
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in programs]


def origin_of(report):
    assert report.origin is not None, report
    return report.origin


def found(report):
    """Phase, primitive, iteration, and the source text from `# BUG` on."""
    at = origin_of(report)
    assert at.file == __file__
    assert at.source == HERE.read_text().splitlines()[at.line - 1].strip()
    return at.phase, at.primitive, at.iteration, at.source.partition("# ")[2]


@pytest.mark.parametrize("name", each(PLANTED))
def test_planted_fault_is_named(name):
    program = PLANTED[name]
    report = ro.diagnose(program.loss, *program.args)
    assert not report.ok
    origin = report.origin
    assert origin is not None
    assert (origin.phase, origin.primitive or "") == (program.phase, program.primitive), report
    assert origin.iteration == program.iteration
    assert report.consequences
    text = str(report)
    if program.phase == "input":
        assert origin.argument is not None
        assert origin.argument in text
    else:
        assert [origin.line] == program.lines, report
        assert origin.file == inspect.getfile(program.loss)
        assert "# BUG" in origin.source
        assert f"{Path(str(origin.file)).name}:{origin.line}" in text
        assert origin.operands
        assert [step.line for step in report.path if step.role == "origin"] == program.lines
    json.dumps(report.to_dict())


@pytest.mark.parametrize("name", each(SOUND))
def test_sound_program_is_no_alarm(name):
    program = SOUND[name]
    report = ro.diagnose(program.loss, *program.args)
    assert report.ok, report
    assert str(report) == "diagnose: everything is finite."


# ----------------------------------------------------------------------------------- the report


def test_report_of_a_value():
    def loss(w, x):
        p = jax.nn.sigmoid(x @ w["a"])
        return -jnp.mean(jnp.log(1 - p))  # BUG

    x = jnp.array([[1.0, 0.0], [40.0, 0.0], [2.0, 0.0]])
    report = ro.diagnose(loss, {"a": jnp.ones(2), "b": jnp.ones(2)}, x)
    assert found(report) == ("forward", "log", None, "BUG")
    assert origin_of(report).function == "test_report_of_a_value.<locals>.loss"
    assert origin_of(report).index == (1,)
    (operand,) = origin_of(report).operands
    assert (operand.shape, operand.dtype, operand.zero, operand.nan) == ((3,), "float32", 1, 0)
    assert operand.min == 0
    np.testing.assert_allclose(operand.max, 1 - 1 / (1 + np.exp(-1)), rtol=1e-5)
    assert report.consequences == ("output", "gradient of w['a']")
    assert "safe_log" in origin_of(report).remedy
    notes = [step.note for step in report.path if step.role == "before"]
    assert "logistic(40) was rounded to 1" in notes
    again = report.to_dict()
    assert again["origin"]["operands"][0]["zero"] == 1
    assert again["path"][-1]["role"] in ("origin", "after")


def test_constant_in_place_of_the_same_value_is_not_at_fault():
    def score(x, b):
        return jnp.where(x <= 0, -jnp.inf, jnp.log(x)) + b  # BUG

    assert found(ro.diagnose(score, 0.0, 1.0)) == ("forward", "log", None, "BUG")
    report = ro.diagnose(score, -3.0, 1.0)
    assert found(report) == ("forward", "select_n", None, "BUG")
    assert "outside of its domain" in origin_of(report).remedy
    assert str(origin_of(report).operands[2]).endswith("[]: 1 inf")


def test_report_of_an_absorbed_sum():
    def loss(x):
        y = x + 1e-9  # the term that is lost
        return jnp.sum(jnp.log(y - x))  # BUG

    report = ro.diagnose(loss, jnp.ones(2))
    assert found(report) == ("forward", "log", None, "BUG")
    (note,) = [step.note for step in report.path if step.note]
    assert note == "1 + 1e-09 is 1: 1e-09 was lost to rounding"


def test_report_of_the_input():
    x = {"image": jnp.ones((3, 4)).at[2, 1].set(jnp.nan), "label": jnp.arange(3)}
    report = ro.diagnose(lambda w, batch: jnp.sum(batch["image"] @ w), jnp.ones(4), x)
    at = origin_of(report)
    assert (at.phase, at.argument, at.index) == ("input", "batch['image']", (2, 1))
    assert (at.primitive, at.line, at.operands[0].nan) == (None, None, 1)
    assert "batch['image']" in str(report)


def test_infinity_in_an_argument_is_at_fault_and_a_mask_is_not():
    x = jnp.array([1.0, jnp.inf])
    report = ro.diagnose(lambda w, x: jnp.sum(w * x), jnp.ones(2), x)
    assert origin_of(report).phase == "input"

    def attend(scores, mask):
        return jnp.sum(jax.nn.softmax(scores + mask)[..., 0])  # BUG

    mask = jnp.array([[0.0, -jnp.inf], [0.0, 0.0]])
    assert ro.diagnose(attend, jnp.ones((2, 2)), mask).ok
    report = ro.diagnose(attend, jnp.ones((2, 2)), jnp.full((2, 2), -jnp.inf))
    assert found(report) == ("forward", "sub", None, "BUG")


def test_only_what_arrives_counts():
    def loss(x):
        unused = jnp.log(x - x)
        root = jnp.sqrt(x)  # BUG
        return jnp.where(x > 0, unused, root)[0]

    assert found(ro.diagnose(loss, jnp.array([-1.0, 4.0]))) == ("forward", "sqrt", None, "BUG")


def test_derivative_of_a_value_that_does_not_count_is_backward():
    def loss(x, y):
        return jnp.sum(jnp.where(y > 0, x / y, 0.0))  # BUG

    zero = jnp.array([0.0, 1.0])
    assert found(ro.diagnose(loss, zero, zero)) == ("backward", "div", None, "BUG")
    assert ro.diagnose(loss, zero, zero, grad=False).ok


def test_infinity_that_only_the_gradient_meets_is_forward():
    def loss(x):
        return jnp.sum(1 / (1 + jnp.exp(x)))  # BUG

    report = ro.diagnose(loss, jnp.array([1.0, 200.0]))
    assert found(report) == ("forward", "exp", None, "BUG")
    assert report.consequences == ("gradient of x",)


# ------------------------------------------------------------------------------ where it goes in


def test_nested_loops_give_both_iterations():
    def loss(x):
        def outer(total, i):
            def inner(total, v):
                return total + jnp.sqrt(v * jnp.where((i == 1) & (v == 2), 0, 1)), None  # BUG

            return lax.scan(inner, total, x)[0], None

        return lax.scan(outer, 0.0, jnp.arange(3))[0]

    report = ro.diagnose(loss, jnp.array([1.0, 3.0, 2.0]))
    assert found(report) == ("backward", "sqrt", (1, 2), "BUG")


def test_iteration_of_a_reversed_scan_is_the_index_of_its_input():
    def loss(x):
        step = lambda total, v: (total + jnp.log(v), None)  # BUG
        return lax.scan(step, 0.0, x, reverse=True)[0]

    report = ro.diagnose(loss, jnp.array([1.0, 0.0, 2.0]))
    assert found(report) == ("forward", "log", 1, "BUG")


def test_a_step_that_takes_its_own_gradient():
    @jax.jit
    def step(params, x):
        def loss(params):
            return jnp.sum(jnp.linalg.norm(x @ params, axis=-1))  # BUG

        return params - 0.1 * jax.grad(loss)(params)

    report = ro.diagnose(step, jnp.ones((3, 2)), jnp.eye(3).at[1, 1].set(0), grad=False)
    assert found(report) == ("backward", "sqrt", None, "BUG")
    assert origin_of(report).operands[0].zero == 1


def test_a_gradient_taken_inside_runs_forward():
    def penalty(w, x):
        inner = lambda v: jnp.sum(jax.nn.sigmoid(v * w) * jnp.log(1 - jax.nn.sigmoid(v * w)))  # BUG
        return jnp.sum(jax.grad(inner)(x) ** 2)

    for grad in (True, False):
        report = ro.diagnose(penalty, 2.0, jnp.array([1.0, 30.0]), grad=grad)
        assert found(report) == ("forward", "log", None, "BUG")


def test_rule_inside_a_scan():
    @jax.custom_vjp
    def square(v):
        return v * v

    def backward(v, g):
        return (g * v / (2 - v),)  # BUG

    square.defvjp(lambda v: (v * v, v), backward)

    def loss(x):
        return lax.scan(lambda total, v: (total + square(v), None), 0.0, x)[0]

    report = ro.diagnose(loss, jnp.arange(4.0))
    assert found(report) == ("backward", "div", 2, "BUG")


def test_modules_and_their_state():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.BatchNorm(4, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(self.norm(self.dense(x)))

    def loss(net, x):
        h = net(x)
        return jnp.sum(jnp.sqrt(jnp.sum(h * h, -1)))  # BUG

    net = Net(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(net, nnx.Param, nnx.BatchStat))
    report = ro.diagnose(loss, net, jnp.zeros((2, 3)))
    assert found(report) == ("backward", "sqrt", None, "BUG")
    assert any("kernel" in c for c in report.consequences)
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(net, nnx.Param, nnx.BatchStat))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_dtypes_and_other_arguments(dtype):
    def loss(params, key, *, mode, scale):
        assert mode == "train"
        keep = jax.random.bernoulli(key, 0.5, (8,))
        return jnp.sum(jnp.log(jnp.where(keep, params["w"], 0) * scale)), keep  # BUG

    params = {"w": jnp.ones(8, dtype), "step": jnp.int32(3), "name": "model"}
    report = ro.diagnose(loss, params, jax.random.key(0), mode="train", scale=2.0)
    assert found(report) == ("forward", "log", None, "BUG")
    assert origin_of(report).operands[0].dtype == jnp.dtype(dtype).name


def test_sharded_arguments():
    mesh, spec = Mesh(np.array(jax.devices()[:4]), ("data",)), PartitionSpec("data")
    x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, spec))

    def loss(x):
        return jnp.sum(jnp.log(x))  # BUG

    assert found(ro.diagnose(loss, x)) == ("forward", "log", None, "BUG")


def test_inside_of_shard_map():
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ("i", "j"), axis_types=auto)
    spec = PartitionSpec("i", "j")

    def local(w, x):
        def cell(carry, v):
            return jnp.tanh(carry * w + v), jnp.log(v)  # BUG

        carry = lax.pcast(jnp.zeros(x.shape[1:]), ("i", "j"), to="varying")
        logs = jax.nn.relu(lax.scan(cell, carry, x)[1])
        logs = logs - lax.pmean(logs, "i")
        return lax.psum(jnp.sum(logs), ("i", "j")), logs * lax.axis_index("j")

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=(PartitionSpec(), spec)
    )

    def loss(w, x):
        total, logs = mapped(w, x)
        return total + jnp.sum(jnp.sin(logs))

    x = jnp.arange(1.0, 33.0).reshape(8, 4)
    one_device = without_shards(jax.make_jaxpr(loss)(2.0, x))
    got = jax.jit(jax.extend.core.jaxpr_as_fun(one_device))(2.0, x)
    np.testing.assert_allclose(got[0], loss(2.0, x), rtol=1e-4)
    assert ro.diagnose(loss, 2.0, x).ok

    report = ro.diagnose(loss, 2.0, x.at[5, 3].set(-1.0))
    assert found(report) == ("forward", "log", 1, "BUG")
    assert origin_of(report).index == (2, 1, 1)  # place in the mesh, and among its elements


@pytest.mark.parametrize("explicit", [False, True])
def test_collectives_of_a_shard_map(explicit):
    types = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh, spec = jax.make_mesh((8,), ("i",), axis_types=(types,)), PartitionSpec("i")

    def local(x):
        after = lax.ppermute(x, "i", [(k, (k + 1) % 8) for k in range(8)])
        everything = lax.all_gather(x, "i", tiled=True)
        return jnp.sum(everything) / after  # BUG

    def loss(w, x):
        return jnp.sum(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec)(w * x))

    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, spec))
        report = ro.diagnose(loss, 2.0, x)
    assert found(report) == ("forward", "div", None, "BUG")
    assert origin_of(report).index == (1, 0)


# --------------------------------------------------------------------------------- bad arguments


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"argnums=2 for 1 positional argument"):
        ro.diagnose(jnp.sum, jnp.ones(2), argnums=2)
    with pytest.raises(TypeError, match=r"fn must be callable, got int; .*diagnose\(loss, params"):
        ro.diagnose(3, jnp.ones(2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="no floating array in the arguments 0"):
        ro.diagnose(jnp.sum, jnp.arange(2))
    assert ro.diagnose(jnp.sum, jnp.arange(2), grad=False).ok


def test_traced_argument_is_named():
    with pytest.raises(TypeError, match=r"diagnose: x is traced, .*; call it outside jit"):
        jax.jit(lambda x: ro.diagnose(jnp.log, x).ok)(1.0)


def test_donated_argument_is_named():
    x = jnp.ones(3)
    x.delete()
    with pytest.raises(ValueError, match=r"diagnose: .* was donated and is gone; keep a copy"):
        ro.diagnose(jnp.sum, x)


def test_function_without_a_gradient_says_how_to_go_on():
    def loss(x):
        return lax.while_loop(lambda v: v < 10, lambda v: v * 2, x)

    with pytest.raises(ValueError, match="Reverse-mode") as error:
        ro.diagnose(loss, 1.0)
    assert any("pass grad=False" in note for note in error.value.__notes__)


# ------------------------------------------------------------------------------------------ cost


@pytest.mark.slow
def test_costs_at_most_twenty_times_the_first_step():
    def loss(params, xs):
        def cell(h, x):
            h = h @ params["w"] + x @ params["u"]
            return h, jnp.sum(h * h)

        return jnp.mean(lax.scan(cell, jnp.zeros((32, 64)), xs)[1])

    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32), "u": jnp.ones((32, 64))}
    xs = jnp.asarray(rng.normal(size=(500, 32, 32)), jnp.float32)
    start = time.perf_counter()
    jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(params, xs))
    step = time.perf_counter() - start
    report = ro.diagnose(loss, params, xs)
    assert not report.ok
    assert time.perf_counter() - start - step < 20 * step


# ---------------------------------------------------------------------------------- check_finite


def test_check_finite():
    good = {"w": jnp.ones(3), "n": jnp.arange(2), "h": jnp.ones(2, jnp.bfloat16), "s": "text"}
    check = lambda tree: jax.jit(lambda: ro.check_finite(tree))()
    assert bool(check(good))
    assert check(good).shape == ()
    assert check(good).dtype == bool
    assert bool(ro.check_finite({}))
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        for name in ("w", "h"):
            tree = good | {name: good[name].at[1].set(bad)}
            assert not bool(check(tree))
    assert not bool(ro.check_finite((float("nan"), good)))


# ----------------------------------------------------------------------- programs kept elsewhere


def failing(module, case):
    """The first of the case's inputs for which it fails as it says it does."""
    step = jax.value_and_grad(case.fn)
    for seed in range(60):
        args = module.gen(case, seed)
        value, grads = step(*args)
        if case.kind == "fwd" and not jnp.isfinite(value):
            return args
        if not bool(ro.check_finite(grads)) and (case.kind == "bwd" or seed > 30):
            return args
    raise AssertionError(f"{case.id} does not fail")


def check_case(module, case):
    if case.kind == "safe":
        report = ro.diagnose(case.fn, *module.gen(case, 0))
        assert report.ok, report
        return
    report = ro.diagnose(case.fn, *failing(module, case))
    assert origin_of(report).primitive == case.prim, report
    assert origin_of(report).line in case.bug_lines, report


@pytest.mark.parametrize("name", ["G35a", "D19", "X03", "X04", "X09", "S18"])
def test_program(name, program_cases):
    check_case(program_cases, program_cases.CASES[name])


@pytest.mark.slow
def test_every_program(program_cases):
    for case in program_cases.CASES.values():
        check_case(program_cases, case)


def test_a_reversed_scan_begins_at_its_end():
    total = lambda x: lax.scan(lambda c, v: (c + jnp.log(v), None), 0.0, x, reverse=True)[0]
    origin = ro.diagnose(total, jnp.array([1.0, 0, 2, 3, 0, 1])).origin
    assert origin is not None
    assert (origin.phase, origin.primitive, origin.iteration) == ("forward", "log", 4)


def test_a_condition_may_close_over_a_value():
    def quotient(x, most):
        step = lambda s: (s[0] / (s[1] - 1), s[1] + 1)
        return lax.while_loop(lambda s: s[1] < most, step, (x, 0.0))[0]

    origin = ro.diagnose(quotient, jnp.float32(1), jnp.float32(3), grad=False).origin
    assert origin is not None
    assert (origin.primitive, origin.iteration) == ("div", 1)
