"""Sums as processes on CPUs take them: the same numbers in fewer messages, and as many bytes."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jtssm
from jtssm import nn, sharding, solvers
from jtssm.sharding import gloo
from jtssm.sharding.count.routes import ring_bytes
from jtssm.sharding.placement import workers

BATCH = 8
KINDS = {"psum", "psum_invariant", "reduce_scatter", "ppermute", "all_gather", "pmax"}


@pytest.fixture
def between_processes(monkeypatch):
    """As if the virtual devices were processes'."""
    monkeypatch.setattr(gloo, "meet", lambda mesh: True)


def messages(fn, *args):
    """How many collectives of each kind stand in a traced program; casts in disguise are none."""
    return Counter(_collectives(jax.make_jaxpr(fn)(*args).jaxpr))


def _collectives(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in KINDS and not eqn.params.get("axis_index_groups"):
            yield eqn.primitive.name.removesuffix("_invariant")
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda a: hasattr(a, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _collectives(inner)


def test_small_arrays_are_summed_together_and_known_to_be_the_same():
    """Of each dtype a message; large arrays go alone."""
    mesh = sharding.make_mesh(2, 1, 3)
    large = np.arange(gloo.JOINED // 4, dtype=np.float32)

    def work(rank):
        mine = rank[0] + 1.0
        tree = {
            "a": mine,
            "b": mine * jnp.arange(6.0).reshape(2, 3),
            "i": rank + 7,
            "l": mine * large,
        }
        return gloo.totals(tree, ("subnet", "pc"))

    spec = P(("subnet", "pc"))
    run = jax.shard_map(work, mesh=mesh, in_specs=spec, out_specs=P())
    ranks = np.arange(6, dtype=np.int32)
    found, factor = jax.jit(run)(ranks), (ranks + 1).sum()
    np.testing.assert_array_equal(found["a"], factor)
    np.testing.assert_array_equal(found["b"], factor * np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(found["i"], [(ranks + 7).sum()])
    np.testing.assert_allclose(found["l"], factor * large, rtol=1e-6)
    assert messages(run, ranks) == {"psum": 3}


def test_messages_of_several_arrays_end_before_they_are_too_long(monkeypatch):
    monkeypatch.setattr(gloo, "LONGEST", 40)
    mesh = sharding.make_mesh(pc=2)
    work = lambda x: gloo.totals([x, 2 * x, 3 * x, x[:1]], ("pc",))
    run = jax.shard_map(work, mesh=mesh, in_specs=P("pc"), out_specs=P())
    x = np.arange(8, dtype=np.float32)  # 16 bytes a device: two and two go together
    for k, a in enumerate(jax.jit(run)(x)[:3], 1):
        np.testing.assert_array_equal(a, k * (x[:4] + x[4:]))
    assert messages(run, x) == {"psum": 2}


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "uint8", "uint16", "bool", "int32", "float64"]
)
def test_two_devices_tell_each_other_to_the_bit(dtype):
    mesh = sharding.make_mesh(2)
    run = jax.shard_map(
        lambda x: gloo.of_the_other(x, "subnet"),
        mesh=mesh,
        in_specs=P("subnet"),
        out_specs=P("subnet"),
    )
    special = [0.0, -0.0, 1e30, -3.5, np.inf, 1 / 3, 1e-40, 255.0, 1e30, -1e30]
    x = np.asarray(special if "float" in dtype else np.arange(10) % 3).astype(jnp.dtype(dtype))
    found = np.asarray(jax.jit(run)(x))
    assert found.dtype == x.dtype
    assert found.tobytes() == np.concatenate([x[5:], x[:5]]).tobytes()
    counted = sharding.count_bytes(run, x)
    (route,) = counted
    assert route.collective == "all_reduce"
    assert ring_bytes(counted, mesh.shape) == x.nbytes // 2


def test_two_devices_deal_as_an_all_to_all_does():
    mesh = sharding.make_mesh(2)
    x = np.random.default_rng(0).normal(size=(6, 4, 3))
    run = lambda turned: jax.shard_map(
        lambda a: turned(a, "subnet"), mesh=mesh, in_specs=P("subnet"), out_specs=P("subnet")
    )
    expected = jax.jit(run(lambda a, axis: workers._turned(a, axis=axis)))(x)
    found = jax.jit(run(gloo.turned))(x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found, x.swapaxes(0, 1))
    assert ring_bytes(sharding.count_bytes(run(gloo.turned), x), mesh.shape) == x.nbytes // 4


PERCEPTRON = jtssm.mlp([6, 8, 8, 8, 4])
IMAGES = nn.sequence(
    [
        nn.convolution(4, 3, 1, "SAME", jnp.tanh),
        nn.bottleneck(1),
        nn.dense(8, jnp.tanh, "layer"),
        nn.dense(6, jnp.tanh, "running"),
        nn.dense(4),
    ],
    (5, 4, 4),
)
MOMENTUM = optax.sgd(0.1, momentum=0.9)
# all but the weights of one layer stay as they are
FROZEN = optax.partition(
    {"moves": MOMENTUM, "stays": optax.set_to_zero()},
    lambda params: [
        jax.tree.map(lambda _, i=i: "moves" if i != 1 else "stays", p) for i, p in enumerate(params)
    ],
)


def ran(method, shape):
    """(weights, info) after some steps."""
    rng = np.random.default_rng(0)
    size = method.batch_shape or (BATCH,)  # of a resident method: all its samples
    x = rng.normal(size=(*size, *method.network.shapes[0]))
    y = rng.integers(0, 4, size).astype(np.int32)
    flat = x.reshape(-1, *method.network.shapes[0]), y.reshape(-1)
    state, step = method.init(jax.random.key(0), *flat), jax.jit(method.step)
    for _ in range(5):
        state, info = step(state, x, y)
    return (method.params(state), info), (method.step, state, x, y)


TRAINED = {"optimizer": MOMENTUM, "batch_size": BATCH}
CASES = [
    # the gradients that are read and the sums; the others' two jax adds, and they are dead
    (
        solvers.sgd(PERCEPTRON, optimizer=FROZEN, batch_size=BATCH),
        (1, 1, 2),
        {"psum": 4},
    ),
    # gradients of the last piece and of the first, in branches; the boundary; sums along subnet and pc
    (
        solvers.gsadmm(PERCEPTRON, subnets=2, alpha=1.3, **TRAINED),
        (2, 1, 2),
        {"psum": 4},
    ),
]
SLOW = [
    (solvers.sgd(IMAGES, **TRAINED), (1, 1, 2), None),
    (solvers.sgd(PERCEPTRON, **TRAINED), (1, 2, 2), None),
    (
        solvers.local_sgd(PERCEPTRON, workers=2, local_steps=2, **TRAINED),
        (2, 1, 1),
        {"psum": 2},
    ),
    (
        solvers.gsam(PERCEPTRON, workers=2, local_steps=4, subnets=1, **TRAINED),
        (1, 1, 2),
        {"psum": 2},
    ),
    (
        solvers.gsadmm(
            PERCEPTRON, schedule="stored", subnets=2, optimizer=MOMENTUM, batch_size=BATCH
        ),
        (1, 1, 2),
        None,
    ),
]


@pytest.mark.parametrize(
    ("method", "shape", "sent"),
    [CASES[0], *(pytest.param(*case, marks=pytest.mark.slow) for case in (*CASES[1:], *SLOW))],
)
def test_methods_train_the_same_in_fewer_messages(method, shape, sent, between_processes):
    mesh = sharding.make_mesh(*shape)
    expected, _ = ran(method, shape)
    found, step = ran(sharding.place(method, mesh), shape)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10), expected, found)
    if sent is not None:
        assert messages(*step) == sent
    if shape.count(2) == 1 and method.name != "gsadmm":
        formula = ring_bytes(sharding.step_bytes(method, mesh), mesh.shape)
        unread = 8 * (8 * 8 + 8) if sent and method.name == "sgd" else 0  # of the layer that stays
        assert 2 * formula - unread == ring_bytes(sharding.count_bytes(*step), mesh.shape)
