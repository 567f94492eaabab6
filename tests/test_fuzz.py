"""Whatever comes in, it works or a named error comes out: nothing from inside jax, and nothing hangs."""

import math
from collections.abc import Mapping
from functools import cache, partial

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jtssm
from jtssm import sharding
from jtssm.nn.network import Network
from jtssm.protocol.method import Method
from tests.fuzz_cases import (
    ARRAYS,
    AXES,
    FORMS,
    GIVEN,
    KEY,
    KEYS,
    LAYERS,
    METHODS,
    NET,
    NUMBERS,
    OBJECTS,
    PARAMS,
    WILD,
    X,
    Y,
    by_name,
    examples,
    outcome,
)


def shapes_hold(net: Network):
    """The network's layers give what its shapes say, found without computing anything."""
    assert all(type(n) is int and n > 0 for shape in net.shapes for n in shape)
    assert all(type(cost) is int for cost in net.costs())
    if max(math.prod(shape) for shape in net.shapes) > 10**6:
        return
    x = jax.ShapeDtypeStruct((2, *net.shapes[0]), np.float32)
    out = jax.eval_shape(lambda x: net.apply(net.init(KEY), x), x)
    assert out.shape == (2, *net.shapes[-1])


def steps(method: Method):
    """A step of the method can be traced and keeps the state's shapes: nothing is computed."""
    size = method.program.batch.size
    shape = (method.batch_shape or (size or 12,)) if isinstance(method, Method) else ()
    if method.resident and size is not None and 12 % size:
        return
    lead = (12,) if method.resident else shape
    if math.prod(lead) > 10**6:
        return
    x, y = (
        jax.ShapeDtypeStruct((*lead, *rest), kind)
        for rest, kind in (((4,), "float32"), ((), "int32"))
    )
    if method.loss.name == "squared_error":
        y = jax.ShapeDtypeStruct((*lead, 3), np.float32)
    samples = [jax.ShapeDtypeStruct((12, *a.shape[len(lead) :]), a.dtype) for a in (x, y)]
    state = jax.eval_shape(method.init, KEY, *samples)
    new, info = jax.eval_shape(method.step, state, x, y)
    assert jax.tree.map(lambda a: a.shape, new) == jax.tree.map(lambda a: a.shape, state)
    assert info.loss.shape == ()


def changed(draw, given: Mapping, values=WILD):
    """One or two of the arguments are wild."""
    names = draw(st.lists(st.sampled_from(sorted(given)), min_size=1, max_size=2, unique=True))
    return {**given, **{name: draw(values) for name in names}}


def one_by_one(call, given: Mapping):
    """Every argument takes every object and number, the others being good."""
    for name in given:
        for value in [*OBJECTS, *NUMBERS]:
            outcome(partial(call, **{**given, name: value}))


def build(draw, table, name, check):
    make, good = table[name]
    given = changed(draw, good)
    found = outcome(lambda: make(**given))
    if found is not None:
        check(found)


@pytest.mark.parametrize("name", [*LAYERS, *METHODS])
def test_the_arguments_that_are_changed_are_good_ones(name):
    make, good = (LAYERS | METHODS)[name]
    (shapes_hold if name in LAYERS else steps)(make(**good))


@pytest.mark.parametrize("name", [*LAYERS, *METHODS])
def test_every_argument_of_a_constructor_takes_everything(name):
    one_by_one(*(LAYERS | METHODS)[name])


@pytest.mark.parametrize("name", LAYERS)
@examples(60)
@given(data=st.data())
def test_networks_take_wild_arguments(name, data):
    build(data.draw, LAYERS, name, shapes_hold)


@pytest.mark.parametrize("name", METHODS)
@examples(40)
@given(data=st.data())
def test_methods_take_wild_arguments(name, data):
    build(data.draw, METHODS, name, steps)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LAYERS, *METHODS])
@examples(400)
@given(data=st.data())
def test_constructors_take_many_more_wild_arguments(name, data):
    build(data.draw, LAYERS | METHODS, name, shapes_hold if name in LAYERS else steps)


@cache
def method_of(name: str, placed: bool = False) -> Method:
    make, good = METHODS[name]
    if not placed:
        return make(**good)
    return sharding.place(
        make(**good), sharding.make_mesh(1, 2, 1) if name == "sgd" else sharding.make_mesh(2)
    )


@cache
def first_state(name: str, placed: bool = False):
    return method_of(name, placed).init(KEY, X, Y)


NAMES = ["gsadmm", "gsam stored", "pdadmm", "sgd", "ist", "ensemble"]
PLACED = ["gsadmm", "sgd", "ist"]
CASES = [*((name, False) for name in NAMES), *((name, True) for name in PLACED)]


@pytest.mark.parametrize(("name", "placed"), CASES)
def test_every_argument_of_init_takes_everything(name, placed):
    method = method_of(name, placed)
    one_by_one(method.init, {"key": KEY, "x": X, "y": Y, "params": None})
    fine = {"doubled"} if name == "ensemble" else {"good", "tuple", "integers"}
    for which, params in GIVEN.items():
        state = outcome(lambda params=params: method.init(KEY, X, Y, params))
        assert (state is not None) == (which in fine), which


@pytest.mark.parametrize(("name", "placed"), CASES)
@examples(40)
@given(data=st.data())
def test_init_takes_wild_samples_keys_and_parameters(name, placed, data):
    method = method_of(name, placed)
    which = data.draw(st.sampled_from(["key", "x", "y", "params"]))
    values = {"key": KEYS, "x": ARRAYS, "y": ARRAYS, "params": PARAMS}[which]
    given = {"key": KEY, "x": X, "y": Y, "params": None} | {which: data.draw(values)}
    given["params"] = by_name(given["params"])
    state = outcome(lambda: method.init(**given))
    if state is None:
        return
    weights = method.params(state)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(weights))
    lead = (2,) if name == "ensemble" else ()
    assert weights[0]["W"].shape == (*lead, 4, 8)


@pytest.mark.parametrize(("name", "placed"), CASES)
@examples(25)
@given(data=st.data())
def test_step_takes_wild_samples(name, placed, data):
    method, state = method_of(name, placed), first_state(name, placed)
    shape = (12,) if method.resident else method.batch_shape
    rows = lambda a: np.resize(a, (*shape, *a.shape[1:]))
    x, y = rows(X), rows(Y)
    strange = data.draw(st.sampled_from([*WRONG(x, y), None])) or {"x": data.draw(ARRAYS)}
    given = {"x": x, "y": y} | strange
    # traced as in a user's jit: the samples are constants of the program
    found = outcome(lambda: jax.eval_shape(lambda state: method.step(state, **given), state))
    assert found is None or found[1].loss.shape == ()


def WRONG(x, y):
    """Samples that differ from good ones in one thing."""
    return [
        {"x": x[:-1]},
        {"y": y[:-1]},
        {"x": x[..., :3]},
        {"x": x.astype(np.float64)},
        {"x": x.astype(int)},
        {"y": y.astype(np.float32)},
        {"y": y[..., None]},
        {"x": x[None]},
        {"x": x[:0], "y": y[:0]},
        {},
    ]


FIT = {
    "method": method_of("sgd"),
    "train": (X, Y),
    "epochs": 1,
    "key": KEY,
    "mesh": None,
    "machine": None,
    "forms": "auto",
    "validation": None,
    "callbacks": (),
    "params": None,
    "state": None,
    "progress": False,
    "evaluate_every": 1,
}
PAIRS = (
    st.tuples(ARRAYS, ARRAYS) | st.tuples(st.just(X), ARRAYS) | st.tuples(ARRAYS, st.just(Y)) | WILD
)
SPECIAL = {
    "train": PAIRS | st.just((X.tolist(), Y.tolist())),
    "validation": PAIRS | st.dictionaries(st.sampled_from(["a", "b", 1]), PAIRS, max_size=2),
    "key": KEYS,
    "params": PARAMS,
    "epochs": st.sampled_from(
        [0, -1, 1.0, "1", None, True, np.int64(2), np.uint8(1), [1], np.array(1), 2**63]
    ),
    "mesh": st.sampled_from(
        ["auto", sharding.make_mesh(1, 2, 1), sharding.make_mesh(5), jax.devices()[0]]
    )
    | WILD,
    # a callback's own errors are its own
    "callbacks": st.sampled_from([[print, 3], (lambda epoch: True,), [], None, 3, "ab", print]),
    "state": st.deferred(lambda: st.sampled_from([first_state(name) for name in NAMES]) | WILD),
}


def fit(data):
    which = data.draw(st.sampled_from(sorted(FIT)))
    given = FIT | {which: data.draw(SPECIAL.get(which, WILD))}
    given["params"] = by_name(given["params"])
    result = outcome(lambda: jtssm.fit(**given))
    if result is not None:
        assert math.isfinite(result.history[-1]["loss"])
        assert result.predict(X).shape == (12, 3)


@examples(60)
@given(data=st.data())
def test_fit_takes_wild_arguments(data):
    fit(data)


@pytest.mark.slow
@examples(200)
@given(data=st.data())
def test_fit_takes_many_more_wild_arguments(data):
    fit(data)


MESHES = st.sampled_from(
    [
        sharding.make_mesh(),
        sharding.make_mesh(1, 2, 1),
        sharding.make_mesh(2, 1, 2),
        sharding.make_mesh(1, 1, 5),
        sharding.make_mesh(4),
        jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)),
        jax.devices()[0],
    ]
)


@pytest.mark.parametrize("name", PLACED)
@examples(60)
@given(data=st.data())
def test_place_takes_wild_meshes_axes_and_forms(name, data):
    good = {"method": method_of(name), "mesh": data.draw(MESHES), "axes": None, "forms": "auto"}
    which = data.draw(st.sampled_from(sorted(good)))
    values = {"axes": AXES | WILD, "forms": FORMS | WILD, "mesh": MESHES | WILD, "method": WILD}[
        which
    ]
    given = good | {which: data.draw(values)}
    placed = outcome(lambda: sharding.place(**given))
    assert placed is None or placed.mesh is given["mesh"]


def test_every_argument_of_place_make_mesh_plan_and_load_takes_everything():
    mesh = sharding.make_mesh(1, 2, 1)
    for name in ("sgd", "ist"):
        placed = {"method": method_of(name), "mesh": mesh, "axes": None, "forms": "auto"}
        one_by_one(sharding.place, placed)
    one_by_one(sharding.make_mesh, {"subnet": 1, "pr": 1, "pc": 1, "devices": None})
    one_by_one(jtssm.plan, PLAN)
    one_by_one(jtssm.data.load, {"name": "digits", "size": None, "flat": False, "data_dir": None})


@examples(100)
@given(data=st.data())
def test_make_mesh_takes_wild_arguments(data):
    given = changed(data.draw, {"subnet": 1, "pr": 1, "pc": 1, "devices": None})
    mesh = outcome(lambda: sharding.make_mesh(**given))
    assert mesh is None or mesh.devices.shape == tuple(
        given[axis] for axis in ("subnet", "pr", "pc")
    )


PLAN = {
    "net": NET,
    "num_devices": 2,
    "batch": 6,
    "machine": "host",
    "method": "sgd",
    "optimizer": None,
    "memory_limit": None,
    "overlap": 0.0,
    "samples": None,
    "runners_up": 1,
}
SWEEP = PLAN | {
    "count": False,
    "measure": False,
    "topology": None,
    "resume": None,
    "progress": False,
}
del SWEEP["runners_up"]


def test_plan_and_sweep_take_the_arguments_that_are_changed():
    assert jtssm.plan(**PLAN).best.shape in [(1, 1, 2), (1, 2, 1)]
    records = jtssm.sweep(**SWEEP)
    assert [r["best"] for r in records].count(True) == 1
    assert sum("error" in r for r in records) == 1  # sgd has one piece


@examples(150)
@given(data=st.data())
def test_plan_takes_wild_arguments(data):
    given = changed(data.draw, PLAN | {"precision": None})
    found = outcome(lambda: jtssm.plan(**given))
    if found is not None:
        assert math.prod(found.best.shape) == given["num_devices"]
        assert 0 < found.best.seconds.total < math.inf


@examples(80)
@given(data=st.data())
def test_sweep_takes_wild_arguments(data, tmp_path_factory):
    given = changed(data.draw, {**SWEEP, "count": False})
    if given["count"] is True or given["measure"] is True or isinstance(given["resume"], str):
        given |= {
            "count": False,
            "measure": False,
            "resume": tmp_path_factory.mktemp("sweep") / "a",
        }
    records = outcome(lambda: jtssm.sweep(**given))
    assert records is None or all(
        math.prod(r[a] for a in ("subnet", "pr", "pc")) == given["num_devices"] for r in records
    )


@examples(80)
@given(data=st.data())
def test_load_takes_wild_arguments(data):
    given = changed(data.draw, {"name": "digits", "size": None, "flat": False, "data_dir": None})
    splits = outcome(lambda: jtssm.data.load(**given))
    assert splits is None or [len(s.y) for s in splits] == [1200, 237, 360]
