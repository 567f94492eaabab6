"""Wild arguments, good ones beside them, and what may come of a call."""

import math
import signal
import traceback
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import settings
from hypothesis import strategies as st

import jtssm
from jtssm import solvers
from jtssm.nn import architectures, images, perceptrons
from jtssm.nn.dropout import dropout_layer

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
    None,
    (),
    [],
    {},
    {"a": 1},
    {1, 2},
    object(),
    float,
    len,
    (lambda a: a),
    (lambda a: a.sum()),
    1j,
    b"x",
    range(3),
    Fraction(1, 2),
    "relu",
    "auto",
    "batch",
    "sgd",
    "host",
    np.array(2),
    np.array([1, 2]),
    np.array([]),
    np.array(["a", "b"]),
    np.array([None]),
    np.datetime64("2020-01-01"),
    jnp.arange(3),
    jnp.float32(1.0),
    jax.nn.relu,
    jax.ShapeDtypeStruct((2,), np.float32),
    SGD,
    [SGD],
    [SGD, SGD],
    NET,
    jax.devices(),
    [2.5],
    ["a"],
    [None],
    [[1], [2, 3]],
]
INTEGERS = st.one_of(
    st.integers(-2, 13),
    st.sampled_from([10**5, 10**9, 10**12, 2**62, 2**63, 10**30, -(10**30), 10**400]),
    st.builds(
        lambda kind, a: kind(a), st.sampled_from([np.int8, np.uint8, np.int64]), st.integers(0, 13)
    ),
)
REALS = st.one_of(
    st.floats(),
    st.floats(0.0, 2.0),
    st.builds(np.float32, st.floats(0.0, 2.0)),
    st.builds(np.float16, st.floats(width=16)),
)
NUMBERS = [
    -1,
    0,
    1,
    2,
    10**12,
    2**63,
    10**400,
    0.0,
    0.5,
    -1.5,
    1e300,
    5e-324,
    math.nan,
    math.inf,
    True,
    np.bool_(True),
    np.int8(2),
    np.uint8(3),
    np.int64(4),
    np.float16(np.nan),
    np.float32(0.5),
    [2],
    [2, 1],
    [1, 2],
    [10**12],
    (4, 4, 1),
    [True],
]
WILD = st.one_of(
    INTEGERS,
    REALS,
    st.booleans(),
    st.builds(np.bool_, st.booleans()),
    st.text(max_size=3),
    st.sampled_from(OBJECTS),
    st.lists(INTEGERS, max_size=3),
    st.lists(INTEGERS, max_size=3).map(tuple),
)


LAYERS = {
    "mlp": (
        jtssm.mlp,
        {"widths": [4, 8, 3], "activation": jax.nn.relu, "normalisation": None, "dropout": 0.0},
    ),
    "convnet": (
        images.convnet,
        {
            "in_shape": (8, 8, 1),
            "classes": 3,
            "channels": (2,),
            "hidden": (4,),
            "size": 3,
            "activation": jax.nn.relu,
            "normalisation": None,
            "dropout": 0.0,
        },
    ),
    "sequence": (jtssm.sequence, {"layers": [perceptrons.dense(3)], "in_shape": (4,)}),
    "dense": (
        lambda **given: jtssm.sequence([perceptrons.dense(**given)], (4,)),
        {"width": 3, "activation": None, "normalisation": None, "affine": True},
    ),
    "dropout": (lambda **given: jtssm.sequence([dropout_layer(**given)], (4,)), {"rate": 0.5}),
    "convolution": (
        lambda **given: jtssm.sequence([images.convolution(**given)], (6, 6, 2)),
        {
            "channels": 4,
            "size": 3,
            "stride": 1,
            "padding": "SAME",
            "activation": None,
            "normalisation": None,
            "groups": 1,
        },
    ),
    "max_pool": (
        lambda **given: jtssm.sequence([images.max_pool(**given)], (6, 6, 2)),
        {"size": 2, "stride": None, "padding": "VALID"},
    ),
    "mean_pool": (
        lambda **given: jtssm.sequence([images.mean_pool(**given)], (6, 6, 2)),
        {"size": 2, "stride": None, "padding": "VALID"},
    ),
    "resnet": (
        architectures.resnet,
        {"blocks": (1,), "classes": 3, "size": 8, "channels": 2, "normalisation": "batch"},
    ),
    "transformer": (
        architectures.transformer,
        {"blocks": 1, "width": 4, "heads": 2, "sequence": 3, "hidden": None, "classes": 3},
    ),
}
SHARED = {"net": NET, "optimizer": SGD, "batch_size": 6, "loss": "cross_entropy", "precision": None}
SPLIT = SHARED | {
    "subnets": 2,
    "cuts": None,
    "alpha": 1.0,
    "eta": None,
    "schedule": "streaming",
}
STORED = {"schedule": solvers.Stored(weight_steps=1)}
ROUND = SHARED | {"batch_size": 2, "local_steps": 2}
METHODS = {
    "gsadmm": (solvers.gsadmm, SPLIT | {"rho": 1.0}),
    "gsadmm stored": (solvers.gsadmm, SPLIT | STORED | {"rho": 1.0}),
    "gsam": (solvers.gsam, SPLIT),
    "gsam stored": (
        solvers.gsam,
        SPLIT | {"schedule": solvers.Stored(weight_steps=1, order="parallel")},
    ),
    "streaming": (
        lambda **given: solvers.gsadmm(**SHARED, subnets=2, schedule=solvers.Streaming(**given)),
        {"sweeps": 1, "delay_power": 1.0},
    ),
    "stored": (
        lambda **given: solvers.gsam(**SHARED, subnets=2, schedule=solvers.Stored(**given)),
        {"sweeps": 1, "weight_steps": None, "order": None},
    ),
    "pdadmm": (
        solvers.pdadmm,
        {
            "net": NET,
            "rho": 1.0,
            "nu": 0.1,
            "damping": None,
            "t0": None,
            "weight_decay": 0.0,
            "grid": None,
            "float_q": False,
            "steps": "damped",
            "loss": "cross_entropy",
            "precision": None,
        },
    ),
    "pdadmm gradient": (
        solvers.pdadmm,
        {"net": NET, "steps": "gradient", "t0": 0.5, "grid": 8, "float_q": True},
    ),
    "sgd": (solvers.sgd, SHARED),
    "ist": (solvers.ist, ROUND | {"subnets": 2, "deal": "stratified", "scale": None}),
    "local_sgd": (solvers.local_sgd, ROUND | {"workers": 2}),
    "ensemble": (solvers.ensemble, ROUND | {"members": 2}),
}
ARRAYS = st.one_of(
    WILD,
    st.builds(
        lambda shape, kind, fill: np.full(shape, fill).astype(kind),
        st.sampled_from(
            [(12, 4), (12, 2, 2), (12, 3), (0, 4), (4,), (), (12,), (0,), (12, 3, 1), (2, 2, 2, 4)]
        ),
        st.sampled_from(["float32", "float16", "int32", "uint8", "bool", "complex64", "U1", "O"]),
        st.sampled_from([0, 1, 3, 200]),
    ),
    st.sampled_from(
        [
            np.where(np.eye(12, 4) > 0, np.nan, X),
            np.where(X > 1, np.inf, X),
            jnp.asarray(X) * np.nan,
            X.tolist(),
            Y - 1,
            Y + 1,
            Y.tolist(),
            -Y,
            Y.astype(float),
            X[:11],
            Y[:11],
            jnp.asarray(X[:, :3]),
            np.full(12, 2**63, np.uint64),
        ]
    ),
)
KEYS = (
    st.sampled_from(
        [
            KEY,
            jax.random.key(1, impl="rbg"),
            jax.random.split(KEY),
            jax.random.PRNGKey(3),
            np.array([0, 7], np.uint32),
            np.array([0, 7]),
            np.zeros(4, np.uint32),
            jnp.zeros((2, 2), np.uint32),
            0,
            "0",
        ]
    )
    | WILD
)
GOOD_PARAMS = jax.tree.map(np.asarray, NET.init(KEY))
EACH = lambda change: [p | change(p) for p in GOOD_PARAMS]
GIVEN = {
    "good": GOOD_PARAMS,
    "tuple": tuple(GOOD_PARAMS),
    "few": GOOD_PARAMS[:2],
    "many": [*GOOD_PARAMS, {}],
    "reversed": list(reversed(GOOD_PARAMS)),
    "empty": [{}, {}, {}],
    "turned": EACH(lambda p: {"W": p["W"].T}),
    "words": EACH(lambda p: {"b": "b"}),
    "texts": EACH(lambda p: {"b": p["b"].astype("U1")}),
    "complex": EACH(lambda p: {"b": p["b"] + 1j}),
    "lists": EACH(lambda p: {"W": p["W"].tolist()}),
    "nan": EACH(lambda p: {"b": p["b"] * np.nan}),
    "integers": EACH(lambda p: {"b": p["b"].astype(int)}),
    "doubled": jax.tree.map(lambda a: np.stack([a, a]), GOOD_PARAMS),
    "mapping": dict(enumerate(GOOD_PARAMS)),
}
PARAMS = st.sampled_from(sorted(GIVEN)) | WILD


def by_name(params):
    """Parameters by their name in the table, so that a report stays short."""
    return GIVEN.get(params, params) if isinstance(params, str) else params


AXES = st.dictionaries(
    st.sampled_from(["subnet", "pr", "pc", "x", 1]),
    st.sampled_from(["subnet", "pr", "pc", "y", None, 2]),
)
FORMS = st.lists(
    st.sampled_from(["batch", "model", "row", "domain", "paired", "rows", 3]),
    min_size=2,
    max_size=4,
)
