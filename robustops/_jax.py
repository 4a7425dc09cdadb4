"""All that robustops uses of jax's internals, and the walk over jaxprs that it is for.

A *closed* jaxpr is a jaxpr with its constants: `ClosedJaxpr` on jax 0.10, `Jaxpr` itself on 0.12,
where `closed.jaxpr is closed`. Every function here takes and returns closed ones.
"""

import contextvars
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
from jax import core, lax
from jax._src import api_util, dispatch, source_info_util
from jax._src import linear_util as lu
from jax._src.core import trace_ctx
from jax._src.interpreters import partial_eval as pe
from jax._src.pjit import jit_p
from jax._src.util import cache as cache
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0
from jax.interpreters import ad as ad
from jax.interpreters import batching as batching
from jax.interpreters import mlir as mlir

if TYPE_CHECKING:
    from jax.extend.core import ClosedJaxpr as ClosedJaxpr
    from jax.extend.core import DropVar as DropVar
    from jax.extend.core import Jaxpr as Jaxpr
    from jax.extend.core import JaxprEqn as JaxprEqn
    from jax.extend.core import Literal as Literal
    from jax.extend.core import Primitive as Primitive
    from jax.extend.core import Var as Var
else:
    # The same classes without the package jax.extend, which loads Pallas: 3% of `import jax`.
    from jax._src import core as _core
    from jax._src.core import DropVar as DropVar
    from jax._src.core import Jaxpr, JaxprEqn, Literal, Primitive
    from jax._src.core import Var as Var

    ClosedJaxpr = getattr(_core, "ClosedJaxpr", Jaxpr)  # one class since jax 0.12

_OWN = os.path.dirname(os.path.abspath(__file__)) + os.sep
_TOOLS = os.path.join(_OWN, "program") + os.sep
_INSTALLED = tuple(f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))

# Primitives that just run the one jaxpr that they hold on their operands.
CALLS = frozenset({"jit", "call", "closed_call", "eval_jaxpr", "remat2", "shard_map"})

# Comparisons, and what holds where they do not.
NEGATED = {"lt": "ge", "ge": "lt", "gt": "le", "le": "gt", "eq": "ne", "ne": "eq"}


class Traced(NamedTuple):
    """A function's jaxpr for given arguments.

    Attributes:
      jaxpr: The closed jaxpr, a function of `leaves`.
      leaves: The arguments' array leaves, flat. Other leaves (strings, functions) are static.
      paths: For each leaf its path in `(args, kwargs)`, as `jax.tree_util` spells it.
      out_tree: The structure of the result.
      mutated: The paths of leaves that the function replaced in its arguments (a module's state).
    """

    jaxpr: Any
    leaves: list[Any]
    paths: list[str]
    out_tree: Any
    mutated: list[str]

    def unflatten(self, outs: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.out_tree, outs)


class Frame(NamedTuple):
    """A place in the user's code."""

    file: str
    line: int
    function: str


# The trace in which library calls that jax would take apart stay whole; see `trace`.
_whole: contextvars.ContextVar[Any] = contextvars.ContextVar("robustops_whole", default=None)
_stage_jit = pe.custom_staging_rules[jit_p]


def _stage_whole_jit(trace, source_info, *args, **params):
    if trace is _whole.get() and _is_inline(params) and _rounds_as_one(params["jaxpr"]):
        return trace.default_process_primitive(jit_p, args, params, source_info=source_info)
    return _stage_jit(trace, source_info, *args, **params)


pe.custom_staging_rules[jit_p] = _stage_whole_jit


_EXACT = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims transpose slice convert_element_type copy "
    "stop_gradient".split()
)


def _rounds_as_one(jaxpr) -> bool:
    """Tell whether compiled as one `jaxpr` may round otherwise than equation by equation."""
    rounding = [eqn for eqn in jaxpr.eqns if eqn.primitive.name not in _EXACT]
    # XLA makes a selection of the product with a boolean mask: 0 times NaN is 0 there.
    masks = any(
        eqn.primitive.name == "convert_element_type" and eqn.invars[0].aval.dtype == bool
        for eqn in jaxpr.eqns
    )
    several = len(rounding) > 1 or (bool(rounding) and masks)
    return not jaxpr.consts and (several or any(map(subjaxprs, rounding)))


def _is_inline(params) -> bool:
    inline = params["inline"]  # a bool on jax 0.10
    return getattr(inline, "value", inline) in (True, "jax_early")


def inlined(eqn: JaxprEqn) -> Any:
    """Return the jaxpr of a call that jax's tracing would replace by its equations, else None."""
    if eqn.primitive is not jit_p or not _is_inline(eqn.params):
        return None
    closed = eqn.params["jaxpr"]
    return with_eqns(closed, [e.replace(source_info=eqn.source_info) for e in closed.jaxpr.eqns])


def trace(
    fn: Callable,
    *args: Any,
    is_traced: Callable[[Any], bool] | None = None,
    whole_calls: bool = False,
    **kwargs: Any,
) -> Traced:
    """Trace `fn(*args, **kwargs)`; arguments are pytrees of arrays, flax's modules among them.

    `is_traced` tells which leaves of the arguments become inputs, by default all numbers and
    arrays; the others reach `fn` as they are. With `whole_calls`, functions such as `jnp.mean`,
    which called by themselves are compiled as one, are calls in the jaxpr: run equation by
    equation, it then gives what `fn` does, bit for bit.
    """
    with_paths, in_tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    everything = [leaf for _, leaf in with_paths]
    dynamic = [i for i, leaf in enumerate(everything) if (is_traced or _is_array)(leaf)]
    out_tree, mutated = None, []

    def flat(*leaves):
        nonlocal out_tree
        merged = list(everything)
        for i, leaf in zip(dynamic, leaves, strict=True):
            merged[i] = leaf
        new_args, new_kwargs = jax.tree.unflatten(in_tree, merged)
        token = _whole.set(trace_ctx.trace if whole_calls else None)
        try:
            outs, out_tree = jax.tree.flatten(fn(*new_args, **new_kwargs))
        finally:
            _whole.reset(token)
        now = jax.tree.leaves((new_args, new_kwargs))
        if len(now) == len(merged):
            mutated[:] = [
                jax.tree_util.keystr(path)
                for (path, _), old, new in zip(with_paths, merged, now, strict=True)
                if old is not new
            ]
        return outs

    leaves = [everything[i] for i in dynamic]
    closed = opened(jax.make_jaxpr(flat)(*leaves))
    paths = [jax.tree_util.keystr(with_paths[i][0]) for i in dynamic]
    return Traced(closed, leaves, paths, out_tree, mutated)


def _is_array(leaf):
    return isinstance(leaf, bool | int | float | complex) or hasattr(leaf, "dtype")


def retrace(fn: Callable, closed: Any) -> Any:
    """Trace `fn`, from the flat inputs of `closed` to a list, with the types of those inputs."""
    return trace_flat(fn, [v.aval for v in closed.jaxpr.invars])


def trace_flat(fn: Callable, avals: Sequence[Any]) -> Any:
    """Trace `fn`, of values with exactly the types `avals` (weak, sharded, varying) to a list."""
    # Not by `make_jaxpr`, which forgets weak types.
    info = api_util.debug_info("robustops", fn, tuple(avals), {})
    jaxpr, _, consts = pe.trace_to_jaxpr_dynamic(lu.wrap_init(fn, debug_info=info), avals)
    return ClosedJaxpr(jaxpr, consts)


def evaluate(
    closed: Any, args: Sequence[Any], rule: Callable | None = None, mesh: bool = True
) -> list[Any]:
    """Run `closed` on `args`, each equation by `rule(eqn, *values) -> list` (default `bind`).

    Source lines, name stacks and, unless `mesh` is False, contexts (mesh, compute type) are those
    of the equations.
    """
    if rule is None:
        return core.eval_jaxpr(closed.jaxpr, closed.consts, *args)
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(closed.jaxpr.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else env[v]
    for eqn in closed.jaxpr.eqns:
        with context(eqn, mesh):
            outs = rule(eqn, *map(read, eqn.invars))
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


def inline(closed: Any, args: Sequence[Any]) -> list[Any]:
    """Run a rule's jaxpr in place: its equations get the current source line and mesh."""
    env = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env |= dict(zip(closed.jaxpr.invars, args, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else env[v]
    for eqn in closed.jaxpr.eqns:
        env.update(zip(eqn.outvars, bind(eqn, *map(read, eqn.invars)), strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


class context:
    """Within it, what is traced has the source line, name stack and mesh of `eqn`.

    The line stays that of the context around it where `eqn`, inside a library, has none.
    """

    def __init__(self, eqn: JaxprEqn, mesh: bool = True):
        stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
        traceback = eqn.source_info.traceback
        if source_info_util._source_info_context.context.traceback and frame(eqn) is None:
            traceback = None
        own = (eqn.ctx.manager,) if mesh else ()
        self._managers = source_info_util.user_context(traceback, name_stack=stack), *own

    def __enter__(self):
        for manager in self._managers:
            manager.__enter__()

    def __exit__(self, *exc):
        for manager in reversed(self._managers):
            manager.__exit__(*exc)


def bind(eqn: JaxprEqn, *values: Any) -> list[Any]:
    """Apply the primitive of `eqn`, with its parameters, to `values`; always a list of results."""
    outs = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(outs) if eqn.primitive.multiple_results else [outs]


def subjaxprs(eqn: JaxprEqn) -> dict[str, tuple[Any, ...]]:
    """Return the closed jaxprs among the parameters of `eqn`, by parameter name.

    That covers jit, scan, while, cond, remat, shard_map, closed_call and, for the primal function,
    custom_jvp_call and custom_vjp_call: every parameter that is a jaxpr or a tuple of them.
    """
    found = {}
    for name, value in eqn.params.items():
        items = value if isinstance(value, tuple | list) else (value,)
        if items and all(isinstance(item, ClosedJaxpr | Jaxpr) for item in items):
            found[name] = tuple(closed(item) for item in items)
    return found


def with_subjaxprs(eqn: JaxprEqn, new: Mapping[str, Sequence[Any]]) -> JaxprEqn:
    """Return `eqn` with other sub-jaxprs, given as `subjaxprs` returns them."""
    params = dict(eqn.params)
    for name, jaxprs in new.items():
        old = params[name]
        if isinstance(old, tuple | list):
            parts = (_like(o, j) for o, j in zip(old, jaxprs, strict=True))
            params[name] = getattr(old, "_make", type(old))(parts)  # of a named tuple, too
        else:
            params[name] = _like(old, jaxprs[0])
    return eqn.replace(params=params)


def closed(jaxpr: Any) -> Any:
    """Return `jaxpr` closed; an open one (as remat and shard_map hold) must have no constants."""
    return jaxpr if isinstance(jaxpr, ClosedJaxpr) else ClosedJaxpr(jaxpr, ())


def _like(old, new):
    if isinstance(old, ClosedJaxpr):
        return new
    if new.consts:
        raise ValueError("robustops: a rewritten sub-jaxpr of remat or shard_map has constants")
    return new.jaxpr


def with_eqns(closed: Any, eqns: Sequence[JaxprEqn]) -> Any:
    """Return `closed` with other equations between the same inputs and outputs."""
    return ClosedJaxpr(closed.jaxpr.replace(eqns=list(eqns)), closed.consts)


def contains(closed: Any, test: Callable[[JaxprEqn], bool]) -> bool:
    """Tell whether `test` holds for an equation of `closed` or of a jaxpr inside of it."""
    return any(
        test(eqn) or any(contains(sub, test) for subs in subjaxprs(eqn).values() for sub in subs)
        for eqn in closed.jaxpr.eqns
    )


def opened(closed: Any) -> Any:
    """Return `closed` with each `custom_root`, which jax 0.12 keeps shut, as what it computes.

    It becomes a function with a custom derivative, as jax 0.10 makes it.
    """
    if not contains(closed, _is_shut):
        return closed
    return retrace(lambda *args: evaluate(closed, args, _open), closed)


def _is_shut(eqn: JaxprEqn) -> bool:
    return type(eqn.params.get("_prim")).__name__ in ("CustomRoot", "_RootLinearMap")


def _open(eqn: JaxprEqn, *values: Any) -> list[Any]:
    if not _is_shut(eqn):
        new = {name: [opened(sub) for sub in subs] for name, subs in subjaxprs(eqn).items()}
        return bind(with_subjaxprs(eqn, new) if new else eqn, *values)
    primitive: Any = eqn.primitive
    inside = lambda *args: primitive.to_lojax(*args, **eqn.params)
    jvp = ad.primitive_jvps[primitive]

    @jax.custom_jvp
    def root(*args):
        return evaluate(opened(trace_flat(inside, list(map(jax.typeof, args)))), args)

    @root.defjvp
    def _(primals, tangents):
        def both(*leaves):
            given = iter(leaves[len(primals) :])
            tangents = [ad.Zero(t) if t.dtype == float0 else next(given) for t in tangent_avals]
            outs, out_tangents = jvp(leaves[: len(primals)], tangents, **eqn.params)
            return [*outs, *map(ad.instantiate_zeros, out_tangents)]

        tangent_avals = [jax.typeof(p).to_tangent_aval() for p in primals]
        leaves = [*primals, *(t for t in tangents if t.dtype != float0)]
        closed = opened(trace_flat(both, list(map(jax.typeof, leaves))))
        outs = evaluate(closed, leaves)
        n = len(outs) // 2
        return outs[:n], outs[n:]

    return root(*values)


def scalar_conditions(closed: Any) -> Any:
    """Return `closed` with one condition for each while loop, as XLA is given it.

    `vmap` makes one for each row: the loop goes on while any holds, and rows that are done stay.
    Itself if there is none such, since equations share jaxprs, which are compiled once.
    """
    if not contains(closed, _has_conditions):
        return closed
    eqns = []
    for eqn in closed.jaxpr.eqns:
        new = {k: list(map(scalar_conditions, v)) for k, v in subjaxprs(eqn).items()}
        eqn = with_subjaxprs(eqn, new)
        eqns.append(_with_scalar_condition(eqn) if _has_conditions(eqn) else eqn)
    return with_eqns(closed, eqns)


def _has_conditions(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name != "while":
        return False
    (cond,) = subjaxprs(eqn)["cond_jaxpr"]
    return cond.out_avals[0].shape != ()


def _with_scalar_condition(eqn: JaxprEqn) -> JaxprEqn:
    subs, p = subjaxprs(eqn), eqn.params
    (cond,), (body,) = subs["cond_jaxpr"], subs["body_jaxpr"]
    n = p["cond_nconsts"]

    def any_holds(*args):
        return [lax.reduce_or(evaluate(cond, args)[0], tuple(range(cond.out_avals[0].ndim)))]

    def step(*args):
        olds = args[len(args) - len(body.out_avals) :]
        (holds,) = evaluate(cond, [*args[:n], *olds])
        rows = tuple(range(holds.ndim))
        return [
            lax.select(lax.broadcast_in_dim(holds, new.shape, rows), new, old)
            for new, old in zip(evaluate(body, args[n:]), olds, strict=True)
        ]

    params = p | {
        "cond_jaxpr": retrace(any_holds, cond),
        "body_jaxpr": trace_flat(step, [*cond.in_avals[:n], *body.in_avals]),
        "body_nconsts": n + p["body_nconsts"],
    }
    return eqn.replace(params=params, invars=[*eqn.invars[:n], *eqn.invars])


def prune(closed: Any) -> Any:
    """Return `closed` without the equations that no output or effect needs."""
    jaxpr, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), True)
    return ClosedJaxpr(jaxpr, closed.consts)


def scan_split(eqn: JaxprEqn) -> tuple[int, int]:
    """Return how many of a scan's inputs are constants and how many are carried."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)


def is_total(eqn: JaxprEqn) -> bool:
    """Tell whether `eqn` calls a function whose derivative rule robustops' own `total` built."""
    rule = eqn.params.get("jvp_jaxpr_fun")
    return rule is not None and f"{_OWN}_spec.py:" in rule.debug_info.func_src_info


def function_name(eqn: JaxprEqn) -> str:
    """Return the name of the function that a custom_jvp_call or custom_vjp_call calls."""
    ((inner,),) = subjaxprs(eqn).values()
    return inner.jaxpr.debug_info.func_name


def library_name(eqn: JaxprEqn) -> str | None:
    """Return the name of jax's own function that a custom_jvp_call calls; None for others."""
    info = closed(eqn.params["call_jaxpr"]).jaxpr.debug_info
    own = os.path.dirname(os.path.abspath(jax.__file__)) + os.sep
    return info.func_name if own in info.func_src_info else None


def frame(eqn: JaxprEqn) -> Frame | None:
    """Return the user's place that made `eqn`: the innermost one outside installed packages.

    None for an equation of a cached library function: the place is then that of the enclosing
    equation, so who descends keeps the last one that was found.
    """
    for f in frames(eqn):
        return f
    return None


def frames(eqn: JaxprEqn) -> Iterator[Frame]:
    """Yield the user's places on the stack of `eqn`, innermost first."""
    for f in source_info_util.user_frames(eqn.source_info.traceback):
        if _is_users(f.file_name):
            yield Frame(f.file_name, f.start_line, f.function_name)


def _is_users(file: str) -> bool:
    return not file.startswith(_OWN) and not any(p in file for p in _INSTALLED)


def without_foreign_lines(closed: Any, foreign: bool = False) -> Any:
    """Return `closed` without the stacks of other programs, or if `foreign` without any.

    jax traces a library's jitted function once for all callers. If that happens within `context`,
    its equations have the stack of the one that was current, which is wrong for the next caller.
    """
    eqns = []
    for eqn in closed.jaxpr.eqns:
        is_jit = eqn.primitive is jit_p
        new = {
            k: [without_foreign_lines(c, foreign or (is_jit and _is_foreign(c))) for c in cs]
            for k, cs in subjaxprs(eqn).items()
        }
        eqn = with_subjaxprs(eqn, new) if new else eqn
        if foreign:
            info = source_info_util.SourceInfo(None, eqn.source_info.name_stack)
            eqn = eqn.replace(source_info=info)
        eqns.append(eqn)
    return with_eqns(closed, eqns)


def _is_foreign(closed) -> bool:
    """Tell whether one user's line is that of all equations of a library's function."""
    info = closed.jaxpr.debug_info
    file = info.func_filename or ""
    own = file.startswith(_OWN) and not file.startswith(_TOOLS)  # these trace the user's program
    if not own and not any(p in file for p in _INSTALLED):
        return False
    with_lines = [eqn for eqn in closed.jaxpr.eqns if frame(eqn) is not None]
    # Where the function calls one that a user gave to it, the line is its own.
    calls = (eqn.source_info.traceback.raw_frames()[0] for eqn in with_lines)
    return len({tuple(frames(eqn)) for eqn in with_lines}) == 1 and not any(
        _calls_users(codes, file, info.func_lineno) for codes in calls
    )


def _calls_users(codes, file, line) -> bool:
    """Tell whether in a stack, innermost first, the function at `line` of `file` calls a user's."""
    at = next(
        (i for i, c in enumerate(codes) if (c.co_filename, c.co_firstlineno) == (file, line)), 0
    )
    return any(_is_users(code.co_filename) for code in codes[:at])


def new_primitive(name: str, abstract_eval: Callable, value: Callable) -> Primitive:
    """Make a primitive of one result, computed by the jax function `value(*args, **params)`."""
    primitive = Primitive(name)
    primitive.def_impl(functools.partial(dispatch.apply_primitive, primitive))
    primitive.def_abstract_eval(abstract_eval)
    mlir.register_lowering(primitive, mlir.lower_fun(value, multiple_results=False))
    return primitive


def copy_primitive(original: Primitive, name: str, jvp: Callable, rewrite: Callable) -> Primitive:
    """Make a primitive that computes exactly what `original` does and differentiates by `jvp`.

    Args:
      original: The primitive to copy: abstract evaluation, implementation, lowering, batching.
      name: The copy's name.
      jvp: Its rule, `(primals, tangents, **params) -> (out, out_tangent)` as jax's own.
      rewrite: Maps the closed jaxpr of a batching rule, which binds the original, to one that
        binds the copy.
    """
    copy = Primitive(name)
    copy.multiple_results = original.multiple_results
    copy.impl = original.impl
    copy.abstract_eval = original.abstract_eval
    for table in (mlir._lowerings, *mlir._platform_specific_lowerings.values()):
        if original in table:
            table[copy] = table[original]
    ad.primitive_jvps[copy] = jvp
    batcher = batching.fancy_primitive_batchers[original]
    if isinstance(batcher, functools.partial) and batcher.args == (original,):
        batcher = functools.partial(batcher.func, copy, **batcher.keywords)
        batching.fancy_primitive_batchers[copy] = batcher
    else:
        batching.fancy_primitive_batchers[copy] = rewritten_batcher(original, rewrite)
    return copy


def rewritten_batcher(original: Primitive, rewrite: Callable) -> Callable:
    """Return the batching rule of `original` with its equations rewritten.

    `rewrite(closed)` is given the rule as a jaxpr of the batched operands.
    """

    def batcher(axis_data, args, dims, **params):
        out_dims = None

        def rule(*args):
            nonlocal out_dims
            own = batching.fancy_primitive_batchers[original]
            outs, out_dims = own(axis_data, args, dims, **params)
            return outs if original.multiple_results else [outs]

        outs = inline(rewrite(trace_flat(rule, list(map(jax.typeof, args)))), args)
        return (outs, out_dims) if original.multiple_results else (outs[0], out_dims)

    return batcher


def transpose_of(primitive: Primitive, linear: int, avals: Sequence[Any], params: dict) -> Any:
    """Trace the transpose of a binary `primitive` in its operand `linear`.

    Returns a closed jaxpr from the cotangent and the other operand to the operand's cotangent.
    """
    out_aval = primitive.abstract_eval(*avals, **params)[0]

    def transpose(ct, other):
        args: list[Any] = [other, other]
        args[linear] = ad.UndefinedPrimal(avals[linear])
        return [ad.primitive_transposes[primitive](ct, *args, **params)[linear]]

    return trace_flat(transpose, [out_aval.to_ct_aval(), avals[1 - linear]])


def has_jvp(primitive: Primitive) -> bool:
    return primitive in ad.primitive_jvps


def trace_jvp(
    primitive: Primitive,
    avals: Sequence[Any],
    nonzero: Sequence[bool],
    params: dict,
    jvp: Callable | None = None,
) -> tuple[Any, tuple[bool, ...]]:
    """Trace a JVP rule of a primitive, by default its own.

    Returns:
      A closed jaxpr from the primals and the nonzero tangents to the results and the nonzero
      tangents of these, and for each result whether it has one.
    """
    out_nonzero: list[bool] = []

    def rule(*values):
        primals, given = values[: len(avals)], iter(values[len(avals) :])
        zero = lambda p: ad.Zero(jax.typeof(p).to_tangent_aval())
        pairs = zip(primals, nonzero, strict=True)
        tangents = tuple(next(given) if nz else zero(p) for p, nz in pairs)
        outs, out_tangents = (jvp or ad.primitive_jvps[primitive])(primals, tangents, **params)
        if not primitive.multiple_results:
            outs, out_tangents = [outs], [out_tangents]
        out_nonzero[:] = [type(t) is not ad.Zero for t in out_tangents]
        return [*outs, *(t for t in out_tangents if type(t) is not ad.Zero)]

    tangent_avals = [a.to_tangent_aval() for a, nz in zip(avals, nonzero, strict=True) if nz]
    return trace_flat(rule, [*avals, *tangent_avals]), tuple(out_nonzero)


def with_jvp_rule(eqn: JaxprEqn, rewrite: Callable) -> JaxprEqn:
    """Return a custom_jvp_call whose rule is `rewrite(closed, linear)`, once it is traced.

    `linear` tells for each input of the rule's jaxpr whether it is a tangent.
    """
    thunk = eqn.params["jvp_jaxpr_fun"]
    n = len(eqn.invars) - eqn.params["num_consts"]

    def rewritten(*zeros):
        jaxpr, consts, out_zeros = thunk.call_wrapped(*zeros)
        rule = ClosedJaxpr(jaxpr, consts)
        rule = rewrite(rule, tuple(i >= n for i in range(len(rule.in_avals))))
        return rule.jaxpr, rule.consts, out_zeros

    fun = lu.wrap_init(rewritten, debug_info=thunk.debug_info)
    return eqn.replace(params=eqn.params | {"jvp_jaxpr_fun": fun})


def with_vjp_rules(eqn: JaxprEqn, forward: Callable, backward: Callable) -> JaxprEqn:
    """Return a custom_vjp_call with rewritten rules, `forward(closed)` and `backward(closed)`.

    `backward` gets the user's backward function as a jaxpr of residuals and cotangents, and
    which of them are cotangents, as `with_jvp_rule` does.
    """
    thunk, bwd, out_trees = (eqn.params[k] for k in ("fwd_jaxpr_thunk", "bwd", "out_trees"))

    def rewritten_fwd(*nonzero):
        rule = forward(ClosedJaxpr(*thunk.call_wrapped(*nonzero)))
        return rule.jaxpr, rule.consts

    def rewritten_bwd(*args):
        n = out_trees()[1].num_leaves  # of residuals; the cotangents follow
        # Zeros are no values: they pass by the jaxpr, on the way in and on the way out.
        is_value = [not _is_zero(a) for a in args]
        values = [a for a, v in zip(args, is_value, strict=True) if v]
        leaves, tree = [], None

        def flat(*values):
            nonlocal leaves, tree
            given = iter(values)
            merged = [next(given) if v else a for a, v in zip(args, is_value, strict=True)]
            result, tree = jax.tree.flatten(bwd.call_wrapped(*merged), is_leaf=_is_zero)
            leaves = [leaf if _is_zero(leaf) else None for leaf in result]
            return [leaf for leaf in result if not _is_zero(leaf)]

        linear = tuple(i >= n for i, v in enumerate(is_value) if v)
        rule = backward(trace_flat(flat, list(map(jax.typeof, values))), linear)
        outs = iter(evaluate(rule, values))
        return jax.tree.unflatten(tree, [next(outs) if z is None else z for z in leaves])

    params = eqn.params | {
        "fwd_jaxpr_thunk": lu.wrap_init(rewritten_fwd, debug_info=thunk.debug_info),
        "bwd": lu.wrap_init(rewritten_bwd, debug_info=bwd.debug_info),
    }
    return eqn.replace(params=params)


def _is_zero(x):
    return isinstance(x, ad.Zero | SymbolicZero)


def renamed(eqn: JaxprEqn, name: str) -> JaxprEqn:
    """Return `eqn` with `name` for its name stack.

    Whatever jax derives from it (its derivative rule, the transpose of that) has the name too.
    """
    stack = source_info_util.NameStack().extend(name)
    return eqn.replace(source_info=eqn.source_info.replace(name_stack=stack))


def name_stack(eqn: JaxprEqn) -> str:
    """Return the name stack of `eqn`: scopes, and the transformations it went through."""
    return str(eqn.source_info.name_stack)


def transformations(eqn: JaxprEqn) -> set[str]:
    """Return what jax derived `eqn` by, such as "jvp" or "transpose"; a scope's name is none."""
    stack = eqn.source_info.name_stack.stack
    return {entry.name for entry in stack if isinstance(entry, source_info_util.Transform)}


def with_rules_own_lines(eqn: JaxprEqn) -> JaxprEqn:
    """Return `eqn` so that what a custom rule traces keeps the lines of that rule.

    jax would otherwise give all of it the line of the call.
    """
    rules = {"jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd"} & eqn.params.keys()
    return eqn.replace(params=eqn.params | {k: _own_lines(eqn.params[k]) for k in rules})


@lu.transformation2
def _own_lines(rule, *args):
    # `user_context` cannot take a traceback away, only put another one in its place.
    state = source_info_util._source_info_context
    outside = state.context
    state.context = source_info_util.SourceInfo(None, outside.name_stack)
    try:
        return rule(*args)
    finally:
        state.context = outside


def call_site(eqn: JaxprEqn) -> tuple[Any, ...]:
    """Return what all equations have in common that jax made for one call of a primitive.

    That is the stack down to where a derivative took over, if one did, outermost frame first.
    """
    traceback = eqn.source_info.traceback
    if traceback is None:
        return ()
    codes, positions = traceback.raw_frames()
    stack = list(zip(codes, positions, strict=True))[::-1]
    for depth, (code, _) in enumerate(stack):
        if code.co_qualname in ("JVPTrace.process_primitive", "LinearizeTrace.process_primitive"):
            return tuple(stack[:depth])
    return tuple(stack)
