"""Whatever comes in, it works or a named error comes out: nothing from inside jax, and nothing hangs."""

import math
import signal
import traceback
from collections.abc import Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jtssm
from jtssm import architectures, images, network, sharding, solvers
from jtssm.network import Network
from jtssm.protocol import Method

ROOT = str(Path(jtssm.__file__).parent)
NET, SGD = jtssm.mlp([4, 8, 8, 3]), optax.sgd(0.1)
X = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)
Y = np.arange(12, dtype=np.int32) % 3
KEY = jax.random.key(0)


def examples(num):
    """The same examples in every run; no deadline of hypothesis' own, since a first call compiles."""
    return settings(derandomize=True, database=None, deadline=None, max_examples=num)


@contextmanager
def limit(seconds=30):
    """No hang: an exception after so many seconds."""

    def stop(*_):
        raise RuntimeError(f"took over {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(call):
    """What the call returns; None after an error of ours that says what it expected and what it got."""
    try:
        with limit():
            return call()
    except (ValueError, TypeError) as error:
        raised = error
    last = traceback.extract_tb(raised.__traceback__)[-1].filename
    assert last.startswith(ROOT), f"raised in {last}: {raised}"
    assert "expected" in str(raised), raised
    assert "got" in str(raised), raised
    return None


OBJECTS = [
    None, (), [], {}, {"a": 1}, {1, 2}, object(), float, len, (lambda a: a), (lambda a: a.sum()), 1j, b"x",
    range(3), Fraction(1, 2), "relu", "auto", "batch", "sgd", "host", np.array(2), np.array([1, 2]), np.array([]),
    np.array(["a", "b"]), np.array([None]), np.datetime64("2020-01-01"), jnp.arange(3), jnp.float32(1.0), jax.nn.relu,
    jax.ShapeDtypeStruct((2,), np.float32), SGD, [SGD], [SGD, SGD], NET, jax.devices(), [2.5], ["a"], [None], [[1], [2, 3]],
]  # fmt: skip
INTEGERS = st.one_of(
    st.integers(-2, 13),
    st.sampled_from([10**5, 10**9, 10**12, 2**62, 2**63, 10**30, -(10**30), 10**400]),
    st.builds(lambda kind, a: kind(a), st.sampled_from([np.int8, np.uint8, np.int64]), st.integers(0, 13)),
)  # fmt: skip
REALS = st.one_of(
    st.floats(), st.floats(0.0, 2.0), st.builds(np.float32, st.floats(0.0, 2.0)), st.builds(np.float16, st.floats(width=16))
)  # fmt: skip
WILD = st.one_of(
    INTEGERS, REALS, st.booleans(), st.builds(np.bool_, st.booleans()), st.text(max_size=3), st.sampled_from(OBJECTS),
    st.lists(INTEGERS, max_size=3), st.lists(INTEGERS, max_size=3).map(tuple),
)  # fmt: skip


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
    size = method.parts.batch_size
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
    if method.parts.loss.name == "squared_error":
        y = jax.ShapeDtypeStruct((*lead, 3), np.float32)
    samples = [jax.ShapeDtypeStruct((12, *a.shape[len(lead) :]), a.dtype) for a in (x, y)]
    state = jax.eval_shape(method.init, KEY, *samples)
    new, info = jax.eval_shape(method.step, state, x, y)
    assert jax.tree.map(lambda a: a.shape, new) == jax.tree.map(lambda a: a.shape, state)
    assert info.loss.shape == ()


LAYERS = {
    "mlp": (jtssm.mlp, {"widths": [4, 8, 3], "activation": jax.nn.relu, "normalisation": None, "dropout": 0.0}),
    "convnet": (
        images.convnet,
        {"in_shape": (8, 8, 1), "classes": 3, "channels": (2,), "hidden": (4,), "size": 3, "activation": jax.nn.relu,
         "normalisation": None, "dropout": 0.0},
    ),
    "sequence": (jtssm.sequence, {"layers": [network.dense(3)], "in_shape": (4,)}),
    "dense": (
        lambda **given: jtssm.sequence([network.dense(**given)], (4,)),
        {"width": 3, "activation": None, "normalisation": None, "affine": True},
    ),
    "dropout": (lambda **given: jtssm.sequence([network.dropout_layer(**given)], (4,)), {"rate": 0.5}),
    "convolution": (
        lambda **given: jtssm.sequence([images.convolution(**given)], (6, 6, 2)),
        {"channels": 4, "size": 3, "stride": 1, "padding": "SAME", "activation": None, "normalisation": None, "groups": 1},
    ),
    "max_pool": (lambda **given: jtssm.sequence([images.max_pool(**given)], (6, 6, 2)), {"size": 2, "stride": None, "padding": "VALID"}),
    "mean_pool": (lambda **given: jtssm.sequence([images.mean_pool(**given)], (6, 6, 2)), {"size": 2, "stride": None, "padding": "VALID"}),
    "resnet": (
        architectures.resnet,
        {"blocks": (1,), "classes": 3, "size": 8, "channels": 2, "normalisation": "batch"},
    ),
    "transformer": (
        architectures.transformer,
        {"blocks": 1, "width": 4, "heads": 2, "sequence": 3, "hidden": None, "classes": 3},
    ),
}  # fmt: skip
SHARED = {"net": NET, "optimizer": SGD, "batch_size": 6, "loss": "cross_entropy", "precision": None}
SPLIT = SHARED | {
    "subnets": 2, "cuts": None, "alpha": 1.0, "eta": None, "schedule": "streaming", "sweeps": 1, "weight_steps": None,
    "delay_power": None,
}  # fmt: skip
STORED = {"schedule": "stored", "weight_steps": 1}
ROUND = SHARED | {"batch_size": 2, "local_steps": 2}
METHODS = {
    "gsadmm": (solvers.gsadmm, SPLIT | {"rho": 1.0}),
    "gsadmm stored": (solvers.gsadmm, SPLIT | STORED | {"rho": 1.0}),
    "gsam": (solvers.gsam, SPLIT),
    "gsam stored": (solvers.gsam, SPLIT | STORED | {"order": "parallel"}),
    "pdadmm": (
        solvers.pdadmm,
        {"net": NET, "rho": 1.0, "nu": 0.1, "damping": None, "t0": None, "weight_decay": 0.0, "grid": None,
         "float_q": False, "steps": "damped", "loss": "cross_entropy", "precision": None},
    ),
    "pdadmm gradient": (solvers.pdadmm, {"net": NET, "steps": "gradient", "t0": 0.5, "grid": 8, "float_q": True}),
    "sgd": (solvers.sgd, SHARED),
    "ist": (solvers.ist, ROUND | {"subnets": 2, "deal": "stratified", "scale": None}),
    "local_sgd": (solvers.local_sgd, ROUND | {"workers": 2}),
    "ensemble": (solvers.ensemble, ROUND | {"members": 2}),
}  # fmt: skip


def changed(draw, given: Mapping, values=WILD):
    """One or two of the arguments are wild."""
    names = draw(st.lists(st.sampled_from(sorted(given)), min_size=1, max_size=2, unique=True))
    return {**given, **{name: draw(values) for name in names}}


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
ARRAYS = st.one_of(
    WILD,
    st.builds(
        lambda shape, kind, fill: np.full(shape, fill).astype(kind),
        st.sampled_from([(12, 4), (12, 2, 2), (12, 3), (0, 4), (4,), (), (12,), (0,), (12, 3, 1), (2, 2, 2, 4)]),
        st.sampled_from(["float32", "float16", "int32", "uint8", "bool", "complex64", "U1", "O"]),
        st.sampled_from([0, 1, 3, 200]),
    ),
    st.sampled_from([
        np.where(np.eye(12, 4) > 0, np.nan, X), np.where(X > 1, np.inf, X), jnp.asarray(X) * np.nan, X.tolist(), Y - 1, Y + 1,
        Y.tolist(), -Y, Y.astype(float), X[:11], Y[:11], jnp.asarray(X[:, :3]), np.full(12, 2**63, np.uint64),
    ]),
)  # fmt: skip
KEYS = st.sampled_from([
    KEY, jax.random.key(1, impl="rbg"), jax.random.split(KEY), jax.random.PRNGKey(3), np.array([0, 7], np.uint32),
    np.array([0, 7]), np.zeros(4, np.uint32), jnp.zeros((2, 2), np.uint32), 0, "0",
]) | WILD  # fmt: skip
GOOD_PARAMS = jax.tree.map(np.asarray, NET.init(KEY))
EACH = lambda change: [p | change(p) for p in GOOD_PARAMS]
GIVEN = {
    "good": GOOD_PARAMS, "tuple": tuple(GOOD_PARAMS), "few": GOOD_PARAMS[:2], "many": [*GOOD_PARAMS, {}],
    "reversed": list(reversed(GOOD_PARAMS)), "empty": [{}, {}, {}], "turned": EACH(lambda p: {"W": p["W"].T}),
    "words": EACH(lambda p: {"b": "b"}), "texts": EACH(lambda p: {"b": p["b"].astype("U1")}),
    "complex": EACH(lambda p: {"b": p["b"] + 1j}), "lists": EACH(lambda p: {"W": p["W"].tolist()}),
    "nan": EACH(lambda p: {"b": p["b"] * np.nan}), "integers": EACH(lambda p: {"b": p["b"].astype(int)}),
    "doubled": jax.tree.map(lambda a: np.stack([a, a]), GOOD_PARAMS), "mapping": dict(enumerate(GOOD_PARAMS)),
}  # fmt: skip
PARAMS = st.sampled_from(sorted(GIVEN)) | WILD


def by_name(params):
    """Parameters by their name in the table, so that a report stays short."""
    return GIVEN.get(params, params) if isinstance(params, str) else params


@pytest.mark.parametrize(
    ("name", "placed"), [*((n, False) for n in NAMES), *((n, True) for n in PLACED)]
)
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


@pytest.mark.parametrize(
    ("name", "placed"), [*((n, False) for n in NAMES), *((n, True) for n in PLACED)]
)
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
        {"x": x[:-1]}, {"y": y[:-1]}, {"x": x[..., :3]}, {"x": x.astype(np.float64)}, {"x": x.astype(int)},
        {"y": y.astype(np.float32)}, {"y": y[..., None]}, {"x": x[None]}, {"x": x[:0], "y": y[:0]}, {},
    ]  # fmt: skip


FIT = {
    "method": method_of("sgd"), "train": (X, Y), "epochs": 1, "key": KEY, "mesh": None, "machine": None, "forms": "auto",
    "validation": None, "callbacks": (), "params": None, "state": None, "progress": False, "evaluate_every": 1,
}  # fmt: skip
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


AXES = st.dictionaries(
    st.sampled_from(["subnet", "pr", "pc", "x", 1]),
    st.sampled_from(["subnet", "pr", "pc", "y", None, 2]),
)
FORMS = st.lists(
    st.sampled_from(["batch", "model", "row", "domain", "paired", "rows", 3]),
    min_size=2,
    max_size=4,
)
MESHES = st.sampled_from([
    sharding.make_mesh(), sharding.make_mesh(1, 2, 1), sharding.make_mesh(2, 1, 2), sharding.make_mesh(1, 1, 5), sharding.make_mesh(4),
    jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,)), jax.devices()[0],
])  # fmt: skip


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


@examples(100)
@given(data=st.data())
def test_make_mesh_takes_wild_arguments(data):
    given = changed(data.draw, {"subnet": 1, "pr": 1, "pc": 1, "devices": None})
    mesh = outcome(lambda: sharding.make_mesh(**given))
    assert mesh is None or mesh.devices.shape == tuple(
        given[axis] for axis in ("subnet", "pr", "pc")
    )


PLAN = {
    "net": NET, "num_devices": 2, "batch": 6, "machine": "host", "method": "sgd", "optimizer": None, "memory_limit": None,
    "overlap": 0.0, "samples": None, "runners_up": 1,
}  # fmt: skip
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
