"""Methods of workers on a mesh: the numbers of one device, the bytes of the formula, shards of the model."""

from collections import Counter
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import jtssm
from jtssm import nn, sharding, solvers
from jtssm.data import synthetic
from jtssm.sharding import cost
from jtssm.sharding.count import hlo

X, Y = synthetic.separable(0, 480, 6, 3, np.float64)
KEY = jax.random.key(3)
ROUND = {
    "optimizer": optax.adam(optax.linear_schedule(0.1, 0.01, 20)),
    "local_steps": 3,
    "batch_size": 8,
}
PLAIN = jtssm.mlp([6, 16, 8, 3])
BATCH = jtssm.mlp([6, 16, 3], normalisation="batch")
IMAGES = jtssm.sequence(  # six numbers as an image of two rows
    [
        nn.convolution(5, 3, 1, "SAME", jax.nn.sigmoid, "layer"),
        nn.bottleneck(6, 1, "running", widen=True),
        nn.convolution(4, 1, 1, "SAME", jax.nn.sigmoid),
        nn.dense(9, jax.nn.sigmoid),
        nn.dense(3),
    ],
    (2, 3, 1),
)
METHODS = {
    "ist": solvers.ist(PLAIN, subnets=8, **ROUND),
    "ist, uneven, running": solvers.ist(
        jtssm.mlp([6, 13, 10, 3], jax.nn.sigmoid, normalisation="running"), subnets=4, **ROUND
    ),
    "ist, layer, dropout": solvers.ist(
        jtssm.mlp([6, 10, 3], normalisation="layer", dropout=0.2),
        subnets=4,
        optimizer=optax.sgd(0.1),
        local_steps=2,
        batch_size=8,
    ),
    "ist, channels": solvers.ist(
        IMAGES, subnets=4, carry="moments", **ROUND | {"optimizer": optax.sgd(0.1, momentum=0.9)}
    ),
    "local_sgd": solvers.local_sgd(BATCH, workers=8, **ROUND),
    "diloco": solvers.local_sgd(
        BATCH, workers=8, outer_optimizer=optax.sgd(0.7, momentum=0.9, nesterov=True), **ROUND
    ),
    "ensemble": solvers.ensemble(BATCH, members=8, **ROUND),
}


def batch(method, i):
    shape = method.batch_shape
    ids = np.random.default_rng(i).choice(len(X), shape)
    return samples(method)[ids], Y[ids]


def samples(method):
    """X in the shape that the network takes."""
    return X.reshape(-1, *method.network.shapes[0])


def trained(method, rounds=3):
    x = samples(method)
    state = method.init(KEY, x, Y)
    step = jax.jit(method.step)
    for i in range(rounds):
        state, info = step(state, *batch(method, i))
    state = jax.jit(method.estimate)(state, x)
    return state, info


def numbers(method, state):
    return [np.asarray(a) for a in jax.tree.leaves(method.params(state))]


RARE = (
    "ensemble",
    "local_sgd",
    "diloco",
    "ist, uneven, running",
    "ist, layer, dropout",
)  # contract and normalisation have meshes too


# every method on one mesh of both axes; ist on all shapes
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *((name, (4, 1, 2)) for name in METHODS if name not in RARE),
        *(pytest.param(name, (4, 1, 2), marks=pytest.mark.slow) for name in RARE),
        ("ist", (8, 1, 1)),
        pytest.param("ist", (2, 1, 4), marks=pytest.mark.slow),
        *(pytest.param("ist", shape, marks=pytest.mark.slow) for shape in ((1, 1, 8), (2, 1, 1))),
        pytest.param("ist, uneven, running", (2, 1, 2), marks=pytest.mark.slow),
        pytest.param("ist, channels", (2, 1, 2), marks=pytest.mark.slow),
    ],
)
def test_sharded_equals_unsharded(name, shape):
    method = METHODS[name]
    placed = sharding.place(method, sharding.make_mesh(*shape))
    (state, info), (other, seen) = trained(method), trained(placed)
    for a, b in zip(numbers(method, state), numbers(placed, other), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-9)
    np.testing.assert_allclose(seen[:3], info[:3], atol=1e-10)
    x = samples(method)
    for rows in (
        x,
        x[:7],
    ):  # 7: not divided by pc, yet statistics of the samples at hand are theirs
        np.testing.assert_allclose(
            placed.predict(other, rows), method.predict(state, rows), atol=1e-9
        )


def test_a_users_mesh_a_warm_start_and_a_spread_state_give_the_same_numbers():
    method = METHODS["ist, uneven, running"]
    mesh = jax.make_mesh((2, 4), ("data", "stage"), axis_types=(AxisType.Explicit,) * 2)
    placed = sharding.place(method, mesh, axes={"subnet": "stage", "pc": "data"})
    given = method.network.init(jax.random.key(9), jnp.float64)
    warm = placed.init(KEY, X, Y, given)
    jax.tree.map(np.testing.assert_array_equal, placed.params(warm), given)
    first, _ = trained(method, rounds=1)
    results = []
    for m, state in ((method, first), (placed, placed.spread(first))):
        state, _ = jax.jit(m.step)(state, *batch(m, 1))
        results.append(numbers(m, state))
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-9)


def compiled(method, shape, width=6):
    placed = sharding.place(method, sharding.make_mesh(*shape))
    x, y = np.zeros((40, width), np.float32), np.zeros(40, np.int32)
    state = placed.init(KEY, x, y)
    rows = [
        np.zeros((*method.batch_shape, width), np.float32),
        np.zeros(method.batch_shape, np.int32),
    ]
    return jax.jit(placed.step, donate_argnums=0).lower(state, *rows).compile()


def along_subnet(collective, pc):
    return any(len({device // pc for device in group}) > 1 for group in collective.groups)


def subnet_size(widths, n, biases=True):
    """S of the paper with its empty places: N ceil(ceil(M / N) / N) of M neurons."""
    places = [widths[0], *(n * -(-(-(-w // n)) // n) for w in widths[1:-1]), widths[-1]]  # noqa: B002
    sizes = [a * b for a, b in pairwise(places)]
    return sum(sizes) + (sum(places[1:-1]) if biases else 2 * sum(places[1:-1]))


@pytest.mark.parametrize(
    ("widths", "normalisation", "shape"),
    [
        ([6, 64, 128, 3], None, (8, 1, 1)),
        ([6, 20, 3], None, (4, 1, 2)),  # 20 neurons, 8 places each: padded
        ([6, 64, 3], "batch", (2, 1, 4)),
    ],
)
def test_a_deal_moves_a_pull_and_a_push_and_local_steps_nothing(widths, normalisation, shape):
    net = jtssm.mlp(widths, normalisation=normalisation)
    options = {"optimizer": optax.sgd(0.1), "local_steps": 4, "batch_size": 8}
    method = solvers.ist(net, subnets=8, **options)
    found = hlo.collectives(compiled(method, shape).as_text())
    subnet, _, pc = shape
    between = [c for c in found if along_subnet(c, pc)]
    assert {c.times for c in between} == {1}  # none within the loop of local steps
    moved = Counter()
    for c in between:
        moved[c.kind] += c.bytes
    size = 8 // subnet * subnet_size(widths, 8, normalisation is None)
    shared = 3 if normalisation is None else 0  # the output layer's bias
    assert moved == {"all_to_all": 2 * size * 4, "all_reduce": 4 * (shared + 2)}  # loss, accuracy
    declared = cost.exchanged_bytes(method, subnet)
    assert declared == {"all_to_all": moved["all_to_all"], "all_reduce": 4 * shared}
    np.testing.assert_allclose(
        cost.sent_bytes(method, 8), 7 / 8 * 8 * subnet * size / 8 + 2 * 7 / 8 * 4 * shared
    )
    within = [c for c in found if c.times > 1]
    assert bool(within) == (pc > 1)
    if normalisation is None and pc > 1:  # the gradient's sum: R times, and nothing else
        gradient = [m for m in method.moves(0) if m.axis == "pc"]
        assert sum(c.bytes * c.times for c in within) == 8 // subnet * sum(
            m.times * m.shape[0] * 4 for m in gradient
        )
        assert {c.times for c in within} == {4}


def test_local_sgd_moves_one_mean_a_round_and_an_ensemble_nothing():
    options = {"optimizer": optax.sgd(0.1), "local_steps": 4, "batch_size": 8}
    size = sum(a.size for a in jax.tree.leaves(PLAIN.init(KEY)))
    for method, expected in (
        (solvers.local_sgd(PLAIN, workers=8, **options), size),
        (solvers.ensemble(PLAIN, members=8, **options), 0),
    ):
        found = hlo.collectives(compiled(method, (8, 1, 1)).as_text())
        assert sum(c.bytes * c.times for c in found) == 4 * (expected + 2)
        assert cost.exchanged_bytes(method, 8)["all_reduce"] == 4 * expected
        assert cost.exchanged_bytes(method, 1) == {"all_to_all": 0, "all_reduce": 0}


def test_the_model_is_never_whole_on_a_device():
    """8 subnets on 8 devices: a device holds, and works in, about an eighth of what one device does."""
    net = jtssm.mlp([64, 512, 512, 10], normalisation="batch")
    method = solvers.ist(net, subnets=8, optimizer=optax.sgd(0.1), local_steps=2, batch_size=4)
    whole = 4 * sum(a.size for a in jax.tree.leaves(net.init(KEY)))
    one, eight = (compiled(method, (d, 1, 1), 64).memory_analysis() for d in (1, 8))
    assert one.argument_size_in_bytes > whole
    assert eight.argument_size_in_bytes < 1.02 * one.argument_size_in_bytes / 8
    assert eight.temp_size_in_bytes < 1.15 * one.temp_size_in_bytes / 8
    assert eight.argument_size_in_bytes + eight.temp_size_in_bytes < whole / 3
    placed = sharding.place(method, sharding.make_mesh(8))
    state = placed.init(KEY, np.zeros((8, 64), np.float32), np.zeros(8, np.int32))
    run = jax.jit(placed.predict).lower(state, np.zeros((8, 64), np.float32)).compile()
    memory = run.memory_analysis()
    assert memory.argument_size_in_bytes + memory.temp_size_in_bytes < whole / 6
    assert {a.sharding.spec[0] for a in jax.tree.leaves(state.homes)} == {"subnet"}


def test_random_weights_are_drawn_where_they_are_stored():
    """No collective and no whole layer in the program that draws the homes."""
    net = jtssm.mlp([64, 512, 512, 10])
    method = solvers.ist(net, subnets=8, optimizer=optax.sgd(0.1), local_steps=2, batch_size=4)
    placed = sharding.place(method, sharding.make_mesh(8))
    x, y = np.zeros((8, 64), np.float32), np.zeros(8, np.int32)
    run = jax.jit(lambda key: placed.init(key, x, y)).lower(KEY).compile()
    assert not hlo.collectives(run.as_text())
    assert run.memory_analysis().temp_size_in_bytes < 4 * 512 * 512


def test_rounds_of_fit_are_the_same_on_a_mesh():
    method = METHODS["ist"]
    results = [
        jtssm.fit(method, (X, Y), epochs=3, key=KEY, mesh=mesh, validation=(X, Y))
        for mesh in (None, sharding.make_mesh(4, 1, 2))
    ]
    for one, other in zip(*(r.history for r in results), strict=True):
        # Adam makes 1e-9 of rounding where a gradient is nearly nothing; the first epoch is equal
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-7)
        assert other["validation_accuracy"] == one["validation_accuracy"]
        assert other["step"] == one["step"]
    losses = [r.history[0]["loss"] for r in results]
    np.testing.assert_allclose(*losses, rtol=1e-12)


def test_forms_of_layers_are_refused():
    with pytest.raises(ValueError, match="forms: expected 'auto', ist splits no layer; got"):
        sharding.place(METHODS["ist"], sharding.make_mesh(2), forms=["batch"] * 2)


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        (
            "ist",
            (3, 1, 1),
            r"mesh: expected a 'subnet' axis of one of \[1, 2, 4, 8\], which divide the 8 workers of ist; got 3",
        ),
        (
            "ist",
            (2, 3, 1),
            r"mesh: expected 'pr' and 'pc' axes whose product divides batch_size=8, ist splits .*got 3 \* 1",
        ),
        ("local_sgd", (1, 1, 3), r"mesh: expected 'pr' and 'pc' axes .*batch_size=8.*; got 1 \* 3"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(method, shape, message):
    with pytest.raises(ValueError, match=message):
        sharding.place(METHODS[method], sharding.make_mesh(*shape))


def test_a_uniform_deal_is_refused_on_a_mesh():
    method = solvers.ist(PLAIN, subnets=8, deal="uniform", **ROUND)
    with pytest.raises(
        ValueError, match=r"mesh: expected deal='stratified' with subnet=2.*'uniform'"
    ):
        sharding.place(method, sharding.make_mesh(2))
    sharding.place(method, sharding.make_mesh(pc=2))  # minibatches may be split
