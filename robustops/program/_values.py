"""The values mode of `robustify`: the same program with total values.

The program is interpreted and traced again. Each equation is applied as it is, and its result goes
through the rule of its primitive (`_values_rules`), which may use what else is known of the
operands (`_represent`). Control flow is rebuilt around the same treatment of its bodies; the rules
of custom_jvp and custom_vjp stay.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer

from .. import _jax, _spec
from .._spec import OPS
from ._represent import Representations
from ._represent_bounds import UNKNOWN, beyond, clipped, of_dtype, union, within
from ._represent_logspace import plain_log
from ._represent_nodes import Node
from ._values_rules import HAZARDS, note_bounds, questioned, repaired


def rewrite(closed: Any) -> Any:
    """Return the closed jaxpr with total values, with inputs and outputs of the same types."""

    def flat(*args):
        return _run(closed, [Node(a) for a in args])

    return _jax.prune(_jax.retrace(flat, closed))


def _run(closed, nodes):
    return _typed(closed, _interpret(closed, nodes, Representations()))


def _typed(closed, outs):
    return [
        n.value if n.value.dtype == v.aval.dtype else n.value.astype(v.aval.dtype)
        for n, v in zip(outs, closed.jaxpr.outvars, strict=True)
    ]


def _interpret(closed: Any, nodes: list[Node], rep: Representations) -> list[Node]:
    """Run `closed` on `nodes` with repaired values; the results know what they came from."""
    env = dict(zip(closed.jaxpr.constvars, map(_constant, closed.consts), strict=True))
    env |= dict(zip(closed.jaxpr.invars, nodes, strict=True))
    read = lambda v: _constant(v.val, v.aval) if isinstance(v, _jax.Literal) else env[v]
    for eqn in closed.jaxpr.eqns:
        with _jax.context(eqn):
            outs = _equation(eqn, tuple(map(read, eqn.invars)), rep)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


def _constant(value, aval=None):
    if isinstance(value, Tracer) or (not hasattr(value, "dtype") and not np.isscalar(value)):
        return Node(value)
    if jnp.issubdtype(jnp.result_type(value), jax.dtypes.extended):
        return Node(value)
    if not getattr(value, "is_fully_addressable", True):
        return Node(value, bounds=UNKNOWN, known=True)
    array = np.asarray(value, None if aval is None else aval.dtype)
    if not array.size or not (array.dtype.kind in "fiub" or array.dtype == jnp.bfloat16):
        return Node(value)
    low, high = float(array.min()), float(array.max())
    known = math.isfinite(low) and math.isfinite(high)
    return Node(
        jnp.asarray(value) if np.isscalar(value) else value,
        scalar=low if low == high or np.isnan(array).all() else None,
        bounds=(low, high) if known or low == high else UNKNOWN,
        known=True,
    )


def _equation(eqn, inputs, rep):
    values = [n.value for n in inputs]
    if (closed := _jax.inlined(eqn)) is not None:
        return _inlined(eqn, closed, inputs, values, rep)
    special = CONTROL.get(eqn.primitive.name)
    if special is not None:
        rep.repaired |= any(_has_hazard(c) for cs in _jax.subjaxprs(eqn).values() for c in cs)
        outs = special(eqn, inputs, values)
        for n in outs:
            n.opaque = True
        return outs
    outs = []
    for i, value in enumerate(_jax.bind(eqn, *values)):
        node = Node(value, eqn, inputs, i)
        node.value = repaired(rep, node)
        rep.repaired |= node.value is not value
        note_bounds(node)
        outs.append(node)
    return outs


def _inlined(eqn, closed, inputs, values, rep):
    """A library's function: taken apart, but called as before if nothing in it is repaired."""
    before, rep.repaired = rep.repaired, False
    outs = _interpret(closed, list(inputs), rep)
    if not rep.repaired:
        for n, value in zip(outs, _jax.bind(eqn, *values), strict=True):
            if not any(n is i for i in inputs):
                n.value = n.raw = value
    rep.repaired |= before
    return outs


def _bounds(closed, given):
    """Return the bounds of the results of `closed`, without tracing.

    `given` has the bounds of each input, or the node that it is.
    """

    def entered(v, g):
        if isinstance(g, Node):
            return Node(None, aval=v.aval, bounds=g.bounds, known=g.known, body=lambda: g)
        return Node(None, aval=v.aval, bounds=g)

    env = {v: entered(v, g) for v, g in zip(closed.jaxpr.invars, given, strict=True)}
    env |= dict(zip(closed.jaxpr.constvars, map(_constant, closed.consts), strict=True))
    read = lambda v: _constant(v.val, v.aval) if isinstance(v, _jax.Literal) else env[v]
    for eqn in closed.jaxpr.eqns:
        inputs = tuple(map(read, eqn.invars))
        within = _inner_bounds(eqn, inputs)
        for i, v in enumerate(eqn.outvars):
            if within is not None:
                env[v] = Node(None, aval=v.aval, bounds=within[i])
            elif eqn.primitive.name in CONTROL:
                env[v] = Node(None, aval=v.aval, bounds=UNKNOWN)
            else:
                env[v] = node = Node(None, eqn, inputs, i)
                note_bounds(node)
    return [read(v).bounds for v in closed.jaxpr.outvars]


def _inner_bounds(eqn, inputs):
    """The bounds of an equation that only groups others, else None."""
    name = GROUPS.get(eqn.primitive.name)
    if name is None:
        return None
    key = next(k for k in name if k in eqn.params)
    return _bounds(_jax.subjaxprs(eqn)[key][0], inputs)


def _has_hazard(closed) -> bool:
    return _jax.contains(closed, lambda eqn: eqn.primitive.name in HAZARDS)


def _lazily(closed, inputs):
    """A function from an output's index to its node in `closed` run in place, for its forms."""
    # Nothing is kept: it may be asked for in the trace of a branch or loop, and again outside.
    return lambda i: lambda: _interpret(closed, list(inputs), Representations())[i]


def _jit(eqn, inputs, values):
    (closed,) = _jax.subjaxprs(eqn)["jaxpr"]
    if eqn.params["name"] in OPS and _is_own(closed):
        return [Node(v) for v in _jax.bind(eqn, *values)]
    body = _lazily(closed, inputs)
    bounds = _bounds(closed, inputs)
    if not _has_hazard(closed) and not _asks(closed, inputs):
        outs = _jax.bind(eqn, *values)
    elif _is_plain(eqn):
        outs = jax.jit(_named(eqn, lambda *args: _run(closed, _beside(args, inputs))))(*values)
    else:
        outs = _jax.bind(_jax.with_subjaxprs(eqn, {"jaxpr": [rewrite(closed)]}), *values)
    known = all(n.known for n in inputs)
    return [Node(v, body=body(i), bounds=bounds[i], known=known) for i, v in enumerate(outs)]


def _asks(closed, inputs) -> bool:
    """Tell whether a jit chooses by whether what was repaired outside is finite."""
    chooses = lambda eqn: eqn.primitive.name == "select_n"
    if not _jax.contains(closed, chooses):
        return False
    if any(questioned(n) for n in inputs if n.aval.dtype == jnp.bool_):
        return True
    tests = lambda eqn: eqn.primitive.name in ("is_finite", "eq", "ne")
    rep = Representations()
    return _jax.contains(closed, tests) and any(
        rep.plain(n) is not n.value for n in inputs if n.floating
    )


def _is_own(closed) -> bool:
    """Tell whether a jit is one of the catalogue's ops, which are total already."""
    (file,) = {
        _file(e.params["call_jaxpr"]) for e in closed.jaxpr.eqns if "call_jaxpr" in e.params
    } or {""}
    return file == _spec.__file__


def _file(closed) -> str:
    return closed.jaxpr.debug_info.func_filename or ""


def _is_plain(eqn) -> bool:
    """Tell whether a jit only groups: no sharding, layout or donation is asked for."""
    unspecified = lambda x: type(x).__name__ == "UnspecifiedValue"
    p = eqn.params
    return (
        all(map(unspecified, (*p["in_shardings"], *p["out_shardings"])))
        and not any(p["donated_invars"])
        and all(x is None for x in (*p["in_layouts"], *p["out_layouts"]))
        and not p["compiler_options_kvs"]
    )


def _named(eqn, fn):
    fn.__name__ = fn.__qualname__ = eqn.params["name"]
    return fn


def _beside(args, inputs) -> list[Node]:
    """Nodes of a body's arguments that remember how the operands outside were made."""
    return [_alias(a, n) for a, n in zip(args, inputs, strict=True)]


def _alias(value, outer):
    return Node(
        value, scalar=outer.scalar, body=lambda: outer, bounds=outer.bounds, known=outer.known
    )


def _custom(eqn, inputs, values):
    """A function with its own derivative keeps it, and is replaced only where it is not finite."""
    name = next(k for k in ("call_jaxpr", "fun_jaxpr") if k in eqn.params)
    (closed,) = _jax.subjaxprs(eqn)[name]
    outs = _jax.bind(eqn, *values)
    body = _lazily(closed, inputs)
    bounds = _bounds(closed, [n.bounds for n in inputs])
    inside = Representations()
    others = _interpret(closed, list(inputs), inside) if _has_hazard(closed) else []
    loops = _jax.contains(closed, lambda eqn: eqn.primitive.name == "while")
    nodes = []
    for i, out in enumerate(outs):
        if inside.repaired and jnp.issubdtype(out.dtype, jnp.floating):
            other = others[i].value
            if loops:  # has no reverse derivative, which may be why the rule was written
                other = lax.stop_gradient(other)
            out = jnp.where(jnp.isfinite(out), out, other)
        nodes.append(Node(out, body=body(i) if _by_jax(closed) else None, bounds=bounds[i]))
    return nodes


def _by_jax(closed) -> bool:
    """Tell whether the rule of a custom_jvp is jax's own, so the derivative of its function."""
    return "/jax/_src/" in _file(closed)


def _rebuilt(eqn, inputs, values):
    """An equation with bodies that are rewritten by themselves."""
    subs = _jax.subjaxprs(eqn)
    if "branches" in subs:  # by platform: all compute the same, the last one anywhere
        inside, operands = subs["branches"][-1], inputs[1:]
    else:
        inside, operands = subs.get("jaxpr", [None])[0], inputs
    if inside is None:
        body, bounds = lambda i: None, [UNKNOWN] * len(eqn.outvars)
    else:
        body, bounds = _lazily(inside, operands), _bounds(inside, [n.bounds for n in operands])
    eqn = _jax.with_subjaxprs(eqn, {k: [rewrite(c) for c in cs] for k, cs in subs.items()})
    outs = _jax.bind(eqn, *values)
    return [Node(v, body=body(i), bounds=bounds[i]) for i, v in enumerate(outs)]


def _linear_solve(eqn, inputs, values):
    """The solvers are rewritten; the products, which have to stay linear, are not."""
    (kinds,) = _jax.subjaxprs(eqn).values()
    names = eqn.params["jaxprs"]._fields
    new = [rewrite(c) if "solve" in n else c for n, c in zip(names, kinds, strict=True)]
    return [Node(v) for v in _jax.bind(_jax.with_subjaxprs(eqn, {"jaxprs": new}), *values)]


def _shard_map(eqn, inputs, values):
    (closed,), p = _jax.subjaxprs(eqn)["jaxpr"], eqn.params
    bounds = [n.bounds for n in inputs]

    def body(*args):
        return tuple(_run(closed, [Node(a, bounds=b) for a, b in zip(args, bounds, strict=True)]))

    mapped = jax.shard_map(
        body,
        mesh=p["mesh"],
        in_specs=tuple(p["in_specs"]),
        out_specs=tuple(p["out_specs"]),
        axis_names=set(p["newly_manual_axes"]),
        check_vma=p["check_vma"],
    )
    return [
        Node(v, bounds=b) for v, b in zip(mapped(*values), _bounds(closed, bounds), strict=True)
    ]


def _invariant(closed, bounds, start, stop):
    """Return bounds of all inputs of a loop's body that hold in every turn, as far as easy to see.

    `start` to `stop` is the state. Each part of it stays within what it starts from and the first
    two turns make of it, or else counts as any finite number, or at last as unknown.
    """
    avals = [v.aval for v in closed.jaxpr.invars[start:stop]]
    any_finite = [clipped(UNKNOWN, v.dtype) if _floats(v) else of_dtype(v.dtype) for v in avals]
    held = list(bounds[start:stop])
    for turn in range(6):
        after = _bounds(closed, [*bounds[:start], *held, *bounds[stop:]])[: stop - start]
        if all(map(within, after, held)):
            return [*bounds[:start], *held, *bounds[stop:]]
        parts = zip(after, held, any_finite, strict=True)
        held = [union(h, a if turn < 2 else beyond(h, a, f)) for a, h, f in parts]
    return [*bounds[:start], *[UNKNOWN] * (stop - start), *bounds[stop:]]


def _floats(aval) -> bool:
    return jnp.issubdtype(aval.dtype, jnp.floating)


def _scan(eqn, inputs, values):
    (closed,) = _jax.subjaxprs(eqn)["jaxpr"]
    consts, carry = _jax.scan_split(eqn)
    p = eqn.params
    bounds = _invariant(closed, [n.bounds for n in inputs], consts, consts + carry)
    after = _bounds(closed, bounds)

    scan = functools.partial(
        lax.scan,
        init=values[consts : consts + carry],
        xs=(values[consts + carry :], [_sliced_log(n) for n in inputs[consts + carry :]]),
        length=p["length"],
        reverse=p["reverse"],
        unroll=p["unroll"],
        _split_transpose=p.get("_split_transpose", False),
    )

    def turn(state, xs, logs=(None,) * carry):
        moving = [
            Node(v, bounds=b, given=log)
            for v, b, log in zip(state, bounds[consts:], logs, strict=False)
        ]
        for v, b, log in zip(xs[0], bounds[consts + carry :], xs[1], strict=True):
            moving.append(Node(v, bounds=b, given=log))
        return _interpret(
            closed, [*_beside(values[:consts], inputs[:consts]), *moving], Representations()
        )

    def body(state, xs):
        outs = _typed(closed, turn(state, xs))
        return outs[:carry], outs[carry:]

    state, ys = scan(body)

    def again(i, form):
        def body(state, xs):
            outs = turn(state, xs)
            return _typed(closed, outs)[:carry], form(outs[i])

        return scan(body)[1]

    held = [union(a, b) for a, b in zip(after, bounds[consts : consts + carry], strict=False)]

    @functools.cache
    def logs():
        """The logarithms of the carried values in the end, from a scan that carries them, too."""
        has_log = [b[0] >= 0 and _floats(v.aval) for b, v in zip(held, eqn.outvars, strict=False)]
        better = []

        def step(rep, n):
            known = rep.log(n)
            if known is None or known.negative is not None:
                return plain_log(0.0, 1.0, n).value
            better.append(n)
            return known.value

        def body(state, xs):
            outs = turn(state[0], xs, state[1])
            rep = Representations()
            kept = [step(rep, n) if h else None for h, n in zip(has_log, outs, strict=False)]
            return (_typed(closed, outs)[:carry], kept), None

        rep = Representations()
        start = inputs[consts : consts + carry]
        kept = [rep.any_log(n).value if h else None for h, n in zip(has_log, start, strict=True)]
        kept = scan(body, init=(values[consts : consts + carry], kept))[0][1]
        return kept if better else [None] * carry

    return [
        Node(v, bounds=held[i], carried=functools.partial(lambda i: logs()[i], i))
        if i < carry
        else Node(v, bounds=after[i], again=functools.partial(again, i))
        for i, v in enumerate((*state, *ys))
    ]


def _sliced_log(n: Node):
    """The logarithm of what is scanned over, if it has one of its own."""
    known = Representations().log(n) if n.floating else None
    return None if known is None or known.negative is not None else known.value


def _while(eqn, inputs, values):
    subs, p = _jax.subjaxprs(eqn), eqn.params
    (cond,), (body,) = subs["cond_jaxpr"], subs["body_jaxpr"]
    n, m = p["cond_nconsts"], p["cond_nconsts"] + p["body_nconsts"]

    bounds = _invariant(body, [i.bounds for i in inputs[n:]], m - n, len(inputs) - n)[m - n :]

    def step(state):
        nodes = [Node(v, bounds=b) for v, b in zip(state, bounds, strict=True)]
        return _run(body, [*_beside(values[n:m], inputs[n:m]), *nodes])

    # The condition is control, not a value: it stays.
    holds = lambda state: _jax.evaluate(cond, [*values[:n], *state])[0]
    outs = lax.while_loop(holds, step, values[m:])
    return [Node(v, bounds=b) for v, b in zip(outs, bounds, strict=True)]


def _cond(eqn, inputs, values):
    if eqn.params.get("branches_platforms") is not None:
        return _rebuilt(eqn, inputs, values)
    branches = [
        lambda *args, branch=branch: _run(branch, _beside(args, inputs[1:]))
        for branch in _jax.subjaxprs(eqn)["branches"]
    ]
    given = [n.bounds for n in inputs[1:]]
    parts = [_bounds(b, given) for b in _jax.subjaxprs(eqn)["branches"]]
    outs = lax.switch(values[0], branches, *values[1:])

    def again(i, form):
        forms = [
            lambda *args, branch=branch: form(
                _interpret(branch, _beside(args, inputs[1:]), Representations())[i]
            )
            for branch in _jax.subjaxprs(eqn)["branches"]
        ]
        return lax.switch(values[0], forms, *values[1:])

    return [
        Node(v, bounds=union(*b), again=functools.partial(again, i))
        for i, (v, *b) in enumerate(zip(outs, *parts, strict=True))
    ]


CONTROL = {
    "jit": _jit,
    "pjit": _jit,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_jvp_call": _custom,
    "custom_vjp_call": _custom,
    "closed_call": _rebuilt,
    "core_call": _rebuilt,
    "eval_jaxpr": _rebuilt,
    "custom_linear_solve": _linear_solve,
    "remat2": _rebuilt,
    "shard_map": _shard_map,
    "checkpoint": _rebuilt,
}

# Equations that only group others, and the parameter that holds these.
GROUPS = {
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr", "fun_jaxpr"),
    "custom_vjp_call": ("call_jaxpr", "fun_jaxpr"),
    "eval_jaxpr": ("call_jaxpr",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
}
