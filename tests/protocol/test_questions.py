"""Every kind of program answers every question that somebody asks of it."""

from dataclasses import dataclass, fields
from functools import cache

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import protocol, sharding, solvers
from jtssm.data import synthetic
from jtssm.sharding import cost
from jtssm.sharding.cost.bytes_moved import sent_bytes
from jtssm.sharding.cost.demand import method_forms, step_demand
from jtssm.sharding.cost.memory import step_memory
from jtssm.sharding.cost.search import fastest_forms

NET = jtssm.mlp([4, 16, 12, 3])
X, Y = synthetic.separable(0, 96, 4, 3)
SHARED = {"optimizer": optax.adam(1e-3), "batch_size": 24}
ROUND = {"optimizer": optax.adam(1e-3), "batch_size": 12, "local_steps": 2}
METHODS = {
    "StageProgram, streaming": solvers.gsadmm(NET, subnets=2, **SHARED),
    "StageProgram, stored": solvers.gsam(NET, subnets=2, schedule="stored", **SHARED),
    "StageProgram, layers": solvers.pdadmm(NET),
    "StageProgram, flushed": solvers.pipeline(NET, subnets=2, microbatches=4, **SHARED),
    "WholeProgram": solvers.sgd(NET, **SHARED),
    "WorkerProgram": solvers.local_sgd(NET, workers=2, **ROUND),
    "WorkerProgram, dealt": solvers.ist(NET, subnets=2, **ROUND),
}
SIZES = dict.fromkeys(METHODS, (2, 1, 2))
SIZES |= {"WholeProgram": (1, 1, 2), "StageProgram, layers": (3, 1, 2)}
MACHINE = cost.MACHINES["tpu-v5e"]


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


@cache
def state_of(name):
    return METHODS[name].init(jax.random.key(0), X, Y)


def test_the_kinds_are_three_and_the_table_has_each(name):
    kinds = {kind.__name__ for kind in protocol.Program.__subclasses__()} - {"_Fourth"}
    assert kinds == {"StageProgram", "WholeProgram", "WorkerProgram"}
    assert type(METHODS[name].program).__name__ == name.partition(",")[0]


def test_what_its_state_holds(name):
    method, state = METHODS[name], state_of(name)
    program = method.program
    assert set(program.weight_fields) <= set(state._fields)
    assert set(program.kinds) <= set(state._fields)
    weights = sum(
        a.size for field in program.weight_fields for a in jax.tree.leaves(getattr(state, field))
    )
    trained = sum(a.size for a in jax.tree.leaves(method.params(state)))
    assert weights >= trained
    assert program.stages.by_piece(list(range(3)))[0][0] == 0


def test_on_one_device_it_is_the_method(name):
    method = METHODS[name]
    again = method.program.on_one_device()
    assert again.program is method.program
    for a, b in zip(
        jax.tree.leaves(again.init(jax.random.key(0), X, Y)),
        jax.tree.leaves(state_of(name)),
        strict=True,
    ):
        if not jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


def test_on_a_mesh_it_is_a_method_with_a_placement(name):
    mesh = sharding.make_mesh(*SIZES[name])
    placed = sharding.place(METHODS[name], mesh)
    assert placed.placement.mesh is mesh
    assert placed.program is METHODS[name].program
    assert (placed.forms is None) == (not placed.program.takes_forms)
    spread = placed.spread(state_of(name))
    assert len(spread.pace.sharding.device_set) == mesh.size


def test_what_a_step_asks_and_holds(name):
    method, sizes = METHODS[name], SIZES[name]
    forms = method_forms(method, sizes, "auto", len(X))
    assert len(forms) == (3 if method.program.takes_forms else 0)
    assert fastest_forms(method, sizes, MACHINE, samples=len(X)) == forms
    step = step_demand(method, sizes, forms, len(X))
    assert len(step.devices) == sizes[0]
    assert all(device.tasks for device in step.devices)
    memory = step_memory(method, sizes, step, samples=len(X))
    assert memory.weights > 0
    assert (memory.optimizer == 0) == (method.program.renews_optimizer or method.name == "pdadmm")
    assert (memory.copies > 0) == method.program.copies_state
    if not method.resident:
        assert sent_bytes(method, 2) > 0


def test_its_identity_tells_it_from_the_others(name):
    mine = METHODS[name].program.identity()
    others = [METHODS[other].program.identity() for other in METHODS if other != name]
    assert all(mine != other for other in others)
    assert mine["method"] == METHODS[name].name


def test_its_front_door(name):
    check = METHODS[name].program.check
    check(X, Y, "init")
    check(X[:5], Y[:5], "values")
    with pytest.raises(ValueError, match="y: expected labels"):
        check(X, Y + 3, "values")
    with pytest.raises(ValueError, match="x: expected"):
        check(X[:, :3], Y, "step")


def test_records_are_narrow():
    """Of each kind but the fields that all kinds have: at most seven; of a method eight."""
    shared = {f.name for f in fields(protocol.Program)}
    for kind in (protocol.StageProgram, protocol.WholeProgram, protocol.WorkerProgram):
        assert len({f.name for f in fields(kind)} - shared) <= 7
    assert len(shared) <= 6
    assert protocol.Method._fields == (
        "init",
        "step",
        "predict",
        "params",
        "drain",
        "estimate",
        "program",
        "placement",
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Fourth(protocol.Program):
    """A kind that nobody knows."""

    weight_fields = ()

    def on_one_device(self):
        return METHODS["WholeProgram"]._replace(program=self)

    def check(self, x, y, stage, weights=()):
        pass


def test_a_kind_that_nobody_knows_is_named():
    known = {
        f.name: getattr(METHODS["WholeProgram"].program, f.name) for f in fields(protocol.Program)
    }
    method = _Fourth(**known).on_one_device()
    for ask in (
        lambda: sharding.place(method, sharding.make_mesh(pc=2)),
        lambda: step_demand(method, (1, 1, 1), ("batch",) * 3, None),
    ):
        with pytest.raises(NotImplementedError, match="_Fourth"):
            ask()
