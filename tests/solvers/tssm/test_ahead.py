"""Microbatches, forward passes at predicted weights, and what they leave for the gradients."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, nn, sharding, solvers
from jtssm.solvers.tssm import ahead, residuals
from jtssm.solvers.tssm.delayed import delays
from tests.solvers.tssm import twins

NET = jtssm.mlp([5, 8, 6, 8, 4, 3])
BATCH = 8
NADAM = optax.nadam(1e-2)


def minibatches(num, net_inputs=(5,)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, BATCH, *net_inputs))
    return list(zip(x, rng.integers(0, 3, (num, BATCH)).astype(np.int32), strict=True))


DATA = minibatches(8)


def method_of(n, M, c, optimizer=NADAM, net=NET, build=solvers.gsadmm, **more):
    more = {"schedule": solvers.Streaming(delay_power=0)} | more
    ways = {"microbatches": M, "prediction": c, "optimizer": optimizer, "batch_size": BATCH}
    return build(net, subnets=n, **ways, **more)


def trained(method, params, batches=DATA, pause=5):
    """Parameters after all minibatches, with a drain in between; and the losses that were shown."""
    state = method.init(jax.random.key(0), *batches[0], params)
    step, drain, shown = jax.jit(method.step), jax.jit(method.drain), []
    for i, (x, y) in enumerate(batches):
        if i == pause:
            state = drain(state)
        state, info = step(state, x, y)
        shown.append(info.loss)
    return method.params(drain(state)), np.asarray(shown)


def assert_close(a, b, atol=1e-11):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.fixture
def params():
    return NET.init(jax.random.key(3), jnp.float64)


CASES = [(2, 4, 0.0), (3, 2, 1.0)]
MORE = [
    (n, M, c) for n in (2, 3) for M in (1, 2, 4) for c in (0.0, 0.7, 1.0) if (n, M, c) not in CASES
]


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize(
    ("n", "M", "c"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_equals_the_twin_that_knows_the_recipe_alone(params, n, M, c, recompute):
    if not (c or recompute):
        pytest.skip("refused: gradients at other weights than the forward pass saw")
    method = method_of(n, M, c, recompute=recompute, alpha=1.7, rho=0.6)
    twin = twins.Pieces(NET, params, method.program.stages.starts, NADAM, losses.cross_entropy())
    first, rest = DATA[:5], DATA[5:]
    twins.predicted(twin, first, M, c)
    twins.predicted(twin, rest, M, c)  # after a drain nothing is in flight
    assert_close(trained(method, params)[0], twin.params())


def test_weights_that_are_copied_cheaply_have_one_program(params, monkeypatch):
    """The numbers of two programs, and half the products but for the last piece's, which predicts none."""

    def products(method):
        text = jax.make_jaxpr(method.step)(
            method.init(jax.random.key(0), *DATA[0], params), *DATA[0]
        )
        return str(text).count("dot_general")

    twice = method_of(3, 4, 1.0)
    expected, many = trained(twice, params)[0], products(twice)
    monkeypatch.setattr(ahead, "ENOUGH", 0)
    once = method_of(3, 4, 1.0)
    assert_close(trained(once, params)[0], expected)
    *_, first, end = once.program.stages.starts
    last = 3 * (end - first)  # forward, and two back, of each of its layers
    assert many - last == 2 * (products(once) - last) > 0


@pytest.mark.parametrize("kind", ["transformer", pytest.param("decoder", marks=pytest.mark.slow)])
def test_networks_of_tokens_run_forward_once(kind):
    ways = {"width": 8, "heads": 2, "sequence": 4}
    if kind == "transformer":
        net = nn.transformer(2, classes=3, **ways)
        batches = minibatches(3, net.shapes[0])
    else:
        net = nn.decoder(2, vocabulary=5, **ways)
        ids = np.random.default_rng(0).integers(0, 5, (3, BATCH, 4)).astype(np.int32)
        batches = [(each, each) for each in ids]
    again, once = (
        trained(method_of(2, 2, 1.0, net=net, recompute=flag), None, batches, pause=None)
        for flag in (True, False)
    )
    assert_close(once, again)


def test_products_alone_wait():
    """Of a block of width w with h heads on t tokens: what comes in, q, k and v, scores, what heads make
    of them, their projection, and 4 w neurons; what comes out needs no gradient of its own."""
    t, w, h = 3, 8, 2
    net = nn.transformer(2, width=w, heads=h, sequence=t, classes=3)  # places, blocks, classes
    method = method_of(None, 2, 1.0, net=net, recompute=False, cuts=(2,))
    state = jax.eval_shape(method.init, jax.random.key(0), *minibatches(1, net.shapes[0])[0])
    kept = sorted(a.shape[2] for a in jax.tree.leaves(state.inputs))
    assert kept == sorted([t * w, 3 * t * w, h * t * t, t * w, t * w, 4 * t * w])


@pytest.mark.slow
def test_gsam_is_the_same_with_one_sweep(params):
    ours = trained(method_of(2, 2, 1.0), params)
    assert_close(trained(method_of(2, 2, 1.0, build=solvers.gsam), params), ours)


@pytest.mark.parametrize(
    ("n", "M", "recompute", "shapes"),
    [
        (2, 4, False, [(2, 1, 2)]),
        pytest.param(3, 2, True, [(2, 2, 2)], marks=pytest.mark.slow),
        pytest.param(3, 4, True, [(3, 1, 2), (3, 2, 1), (1, 1, 2)], marks=pytest.mark.slow),
        pytest.param(3, 2, False, [(3, 1, 1), (2, 1, 2), (1, 1, 2)], marks=pytest.mark.slow),
        pytest.param(3, 1, True, [(3, 1, 2)], marks=pytest.mark.slow),
    ],
)
def test_a_mesh_gives_the_same_numbers(params, n, M, recompute, shapes):
    method = method_of(n, M, 1.0, recompute=recompute)
    alone, shown = trained(method, params)
    for shape in shapes:
        placed = sharding.place(method, sharding.make_mesh(*shape))
        found, losses_there = trained(placed, params)
        assert_close(found, alone)
        np.testing.assert_allclose(losses_there, shown, atol=1e-11)


def test_a_state_between_two_microbatches_goes_on_elsewhere(params):
    """Of a minibatch that has not come to its end every device of pc has the sum over its own samples."""
    method = method_of(2, 4, 1.0)
    steps = lambda method, state, batches: [
        state := jax.jit(method.step)(state, *b)[0] for b in batches
    ]
    start = method.init(jax.random.key(0), *DATA[0], params)
    *_, alone = steps(method, start, DATA[:3])
    assert max(float(jnp.abs(a).max()) for a in jax.tree.leaves(alone.summed)) > 0.1
    there = sharding.place(method, sharding.make_mesh(2, 2, 2))
    *_, placed = steps(there, there.spread(start), DATA[:3])
    assert_close(sharding.gathered(placed), alone)
    bytes_ = sharding.count_bytes(there.step, placed, *DATA[0])
    assert bytes_ == sharding.step_bytes(method, sharding.make_mesh(2, 2, 2), word=8)
    *_, last = steps(method, sharding.gathered(placed), DATA[3:5])
    *_, expected = steps(method, alone, DATA[3:5])
    assert_close(last.weights, expected.weights)


@pytest.mark.parametrize("shape", [None, (2, 1, 1)])
def test_a_step_copies_no_large_array(shape):
    """Where weights that are predicted, gradients so far and leaves of unequal pieces change in place."""
    net = jtssm.mlp([48, 64, 64, 64, 64, 5])
    method = method_of(2, 2, 1.0, optimizer=optax.sgd(0.1, momentum=0.9), net=net)
    if shape:
        method = sharding.place(method, sharding.make_mesh(*shape))
    x, y = np.zeros((BATCH, 48)), np.zeros(BATCH, np.int32)
    state = method.init(jax.random.key(0), x, y)
    compiled = jax.jit(method.step, donate_argnums=0).lower(state, x, y).compile().as_text()
    copied = re.findall(r"= f64\[([\d,]+)\]\S* copy\(", compiled)
    large = [a for a in copied if np.prod([int(n) for n in a.split(",")]) >= 48 * 64]
    assert len(large) <= (1 if shape else 0)


def test_one_subnetwork_sums_the_gradients_of_its_minibatch(params):
    """With weights, dropout by sample, and an optimizer that is told the loss."""
    net = nn.sequence([nn.dense(6), nn.dropout_layer(0.4), nn.dense(3)], (5,))
    told = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=2))
    ways = {"optimizer": told, "net": net, "loss": losses.cross_entropy(ignore_index=0)}
    batches = [*DATA[:2], (DATA[2][0], np.zeros(BATCH, np.int32)), *DATA[3:]]
    whole = trained(method_of(1, 1, 0.0, **ways), None, batches)
    apart = trained(method_of(1, 4, 0.0, **ways), None, batches)
    assert_close(apart, whole)
    still = ways | {"net": nn.sequence([nn.dense(6), nn.dense(3)], (5,))}
    shown = trained(method_of(1, 4, 0.0, **still), None, batches)[1]
    assert np.nanmax(np.abs(shown - whole[1])) > 1e-3  # something was dropped above


@pytest.mark.slow
def test_workers_run_the_same_recipe_each(params):
    """A worker of a crew of one that never averages is the method alone."""
    crew = method_of(2, 2, 1.0, workers=1, local_steps=4)
    state = crew.init(jax.random.key(0), *DATA[0], params)
    step = jax.jit(crew.step)
    for r in (0, 4):
        x, y = (np.stack(a)[:, None] for a in zip(*DATA[r : r + 4], strict=True))
        state, _ = step(state, x, y)
    found = crew.params(jax.jit(crew.drain)(state))
    assert_close(found, trained(method_of(2, 2, 1.0), params, pause=None)[0])


def test_delays_and_defaults():
    assert delays(4) == [6, 4, 2, 0]
    assert delays(4, 2) == [3, 2, 1, 0]
    assert delays(4, 6) == delays(4, 100) == [1, 1, 1, 0]
    recipe = lambda **ways: solvers.gsadmm(NET, optimizer=NADAM, **ways).program.batch.microbatches
    assert [recipe(subnets=n, batch_size=24) for n in (1, 2, 3, 4, 5)] == [1, 6, 4, 6, 8]
    assert [recipe(subnets=n, batch_size=100) for n in (2, 3, 4, 5)] == [10, 20, 20, 25]
    # a third of the microbatches at most, of four samples at least; with means over samples fewer
    means = jtssm.mlp([5, 8, 6, 3], normalisation="batch")
    assert (
        solvers.gsadmm(means, subnets=2, optimizer=NADAM, batch_size=100).program.batch.microbatches
        == 2
    )
    assert recipe(subnets=4, batch_size=10) == 10
    assert recipe(subnets=5, batch_size=7) == 7
    assert recipe(subnets=3, batch_size=24, schedule=solvers.Streaming(sweeps=2)) == 1


@pytest.mark.parametrize(
    ("ways", "word"),
    [
        (
            {"microbatches": 3},
            "microbatches: expected a number that divides batch_size=8, such as 2",
        ),
        ({"microbatches": 0}, "microbatches"),
        ({"microbatches": 2, "schedule": "stored"}, "microbatches: expected None or 1"),
        ({"prediction": -1.0}, "prediction"),
        (
            {"prediction": 1.0, "schedule": solvers.Streaming(sweeps=2)},
            "prediction: expected None or 0",
        ),
        ({"microbatches": 1, "recompute": False}, "recompute: expected True with prediction=0"),
        ({"recompute": False, "schedule": "stored"}, "recompute: expected True"),
    ],
)
def test_what_cannot_be_is_refused(ways, word):
    with pytest.raises(ValueError, match=word):
        solvers.gsadmm(NET, subnets=2, optimizer=NADAM, batch_size=BATCH, **ways)


def test_meshes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"'pc' axis that divides batch_size / microbatches=2"):
        sharding.place(method_of(2, 4, 1.0), sharding.make_mesh(pc=4))
    with pytest.raises(ValueError, match="gsadmm with recompute=False does not split layers"):
        sharding.place(method_of(2, 2, 1.0, recompute=False), sharding.make_mesh(pr=2))


def test_what_waits_for_twice_the_samples_must_be_alike_or_is_refused():
    """Where samples lie is seen by what twice as many leave: as many arrays."""
    rng = np.random.default_rng(0)
    params = [rng.normal(size=shape) for shape in ((5, 6), (6, 3))]
    long = lambda params, x: (jnp.tanh(jnp.tanh(x @ params[0]) @ params[1]), ())
    short = lambda params, x: (jnp.tanh(x @ params[0]), ())
    x = rng.normal(size=(BATCH, 5))
    found = residuals.traced(long, long, True, params, x, BATCH)
    assert {row.shape[row.axis] for row in found.rows} == {BATCH}
    with pytest.raises(ValueError, match=f"array of {BATCH} rows, as many as there are samples"):
        residuals.traced(long, short, True, params, x, BATCH)
