"""Networks whose layers hand each other trees of arrays, trained whole, cut and by workers.

Each is compared with plain flax and optax, with a slow twin, or with itself on one device.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jtssm import losses, nn, sharding, solvers
from jtssm.nn.boundary import cast
from jtssm.nn.ops import PLAIN
from jtssm.sharding.cost.bytes_moved import step_bytes
from jtssm.sharding.count.jaxpr import count_bytes
from tests.solvers.tssm import twins
from tests.tree_networks import (
    ENCODER,
    double,
    encoder,
    images,
    sentences,
    unet,
    unet_modules,
)

BATCH, STEPS = 8, 3
ADAM, MOMENTUM = optax.adam(1e-2), optax.sgd(0.05, momentum=0.9)
NETS = {"encoder": (encoder, sentences), "unet": (unet, images)}


@functools.cache
def network(name):
    return NETS[name][0]()


def batches(name, num=STEPS):
    return [NETS[name][1](BATCH, seed) for seed in range(num)]


def weights(name):
    return double(network(name).init(jax.random.key(3), jnp.float64))


def trained(method, given, params, drain=False):
    """The state and what each step showed."""
    state = method.init(jax.random.key(0), *given[0], params)
    step, infos = jax.jit(method.step), []
    for x, y in given:
        state, info = step(state, x, y)
        infos.append(info)
    return (jax.jit(method.drain)(state) if drain else state), infos


def assert_close(a, b, atol=1e-10):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10, atol=atol)


def of_linen(params, x):
    for module, p in zip(ENCODER, params, strict=True):
        x = module.apply({"params": p["params"]}, x)
    return x


def of_nnx(params, x):
    for module, p in zip(unet_modules(), params, strict=True):
        graph, state = nnx.split(module)
        nnx.replace_by_pure_dict(state, p["params"])
        x = nnx.merge(graph, state)(x)
    return x


@functools.cache
def by_optax(name, optimizer, num=STEPS):
    """Weights and losses of plain descent."""
    forward, params, given = FORWARD[name], weights(name), batches(name, num)

    @jax.jit
    def step(params, state, x, y):
        def mean_loss(params):
            return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()

        loss, gradient = jax.value_and_grad(mean_loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, seen = optimizer.init(params), []
    for x, y in given:
        params, state, loss = step(params, state, x, y)
        seen.append(loss)
    return params, seen


MESHES = [("encoder", None), ("encoder", (1, 1, 4)), ("encoder", (1, 2, 1)), ("unet", None)]
LARGER = [("encoder", (1, 2, 2)), ("unet", (1, 1, 4)), ("unet", (1, 2, 1))]


@pytest.mark.parametrize(
    ("name", "shape"), [*MESHES, *(pytest.param(*case, marks=pytest.mark.slow) for case in LARGER)]
)
def test_sgd_is_plain_flax_and_optax_on_any_mesh(name, shape):
    given = batches(name)
    run = solvers.sgd(network(name), optimizer=ADAM, batch_size=BATCH)
    if shape is not None:
        run = sharding.place(run, sharding.make_mesh(*shape))
    params, seen = by_optax(name, ADAM)
    state, infos = trained(run, given, weights(name))
    assert_close([info.loss for info in infos], seen)
    assert_close(run.params(state), params)
    x = given[0][0]
    assert_close(jax.jit(run.predict)(state, x), jax.jit(FORWARD[name])(params, x))


FORWARD = {"encoder": of_linen, "unet": of_nnx}


class Flat(twins.Pieces):
    """Pieces that hand each other one array of floats: a tree in a row, booleans as 0 and 1.

    Their columns have no gradient, so that p = q = f there and u = 0.
    """

    @functools.cached_property
    def _compiled(self):
        return jax.jit(self._f, static_argnums=0)

    def f(self, l, W, p):
        return self._compiled(l, W, p)

    def _f(self, l, W, p):
        x = p if l == 0 else self._tree(l, p)
        for i, layer in zip(self.layers[l], W, strict=True):
            x = self.net.layers[i].apply(layer, x, PLAIN)
        return x if l == self.num - 1 else self._row(x)

    def _row(self, tree):
        rows = [a.reshape(len(a), -1).astype(np.float64) for a in jax.tree.leaves(tree)]
        return jnp.concatenate(rows, axis=1)

    def _tree(self, l, row):
        leaves, structure = jax.tree.flatten(self.net.boundaries[self.layers[l][0]])
        ends = np.cumsum([0, *(int(np.prod(a.shape)) for a in leaves)])
        parts = [row[:, a:b] for a, b in itertools.pairwise(ends)]
        taken = [
            part.reshape(-1, *a.shape)
            if a.dtype == np.float32
            else part.reshape(-1, *a.shape) > 0.5
            for part, a in zip(parts, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, taken)


def twin(name, method, optimizer, start):
    starts = method.program.stages.starts
    return Flat(network(name), start, starts, optimizer, losses.cross_entropy())


def test_gsadmm_with_one_subnetwork_is_plain_training():
    given, start = batches("encoder"), weights("encoder")
    method = solvers.gsadmm(network("encoder"), optimizer=ADAM, batch_size=BATCH)
    params, seen = by_optax("encoder", ADAM)
    state, infos = trained(method, given, start)
    assert_close([info.loss for info in infos], seen)
    assert_close(method.params(state), params)


CASES = [
    ("encoder", solvers.gsadmm, 2, 2, {"rho": 0.6}),
]
MORE = [
    ("unet", solvers.gsadmm, 3, 1, {"rho": 0.6}),
    ("encoder", solvers.gsadmm, 3, 1, {"rho": 0.6}),
    ("unet", solvers.gsadmm, 2, 1, {"rho": 0.6}),
    ("encoder", solvers.gsadmm, 3, 2, {"rho": 0.6}),
    ("encoder", solvers.gsam, 3, 2, {}),
    ("unet", solvers.gsadmm, 3, 2, {"rho": 0.6}),
    ("unet", solvers.gsam, 2, 1, {}),
]


@pytest.mark.parametrize(
    ("name", "build", "n", "sweeps", "numbers"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
)
def test_p_q_and_u_of_trees_are_those_of_their_floats(name, build, n, sweeps, numbers):
    schedule = solvers.Streaming(sweeps=sweeps, delay_power=0)
    ways = {"optimizer": MOMENTUM, "batch_size": BATCH, "alpha": 1.7, "eta": 0.3}
    ways |= {"microbatches": 1}
    method = build(network(name), subnets=n, schedule=schedule, **ways, **numbers)
    given, start = batches(name, 4), weights(name)
    state, _ = trained(method, given, start, drain=True)
    pieces = twin(name, method, MOMENTUM, start)
    samples = np.prod(given[0][1].shape)  # of positions, of which a loss takes the mean
    scale = BATCH / samples
    pieces.loss = losses.cross_entropy()._replace(
        value=lambda outputs, y: scale * losses.cross_entropy().value(outputs, y)
    )
    found = twins.streaming(pieces, given, sweeps, numbers.get("rho"), 1.7, 0.3)
    assert_close(method.params(state), found)


@pytest.mark.parametrize(
    ("name", "sweeps", "shape", "grid"),
    [
        ("encoder", 1, (2, 1, 2), None),
        pytest.param("encoder", 2, (2, 1, 2), None, marks=pytest.mark.slow),
        pytest.param("unet", 1, (2, 2, 1), None, marks=pytest.mark.slow),
        pytest.param("encoder", 1, (3, 2, 1), None, marks=pytest.mark.slow),
        pytest.param("unet", 2, (3, 1, 2), None, marks=pytest.mark.slow),
        pytest.param("encoder", 2, (2, 1, 2), 8, marks=pytest.mark.slow),
        pytest.param("unet", 2, (3, 1, 2), 16, marks=pytest.mark.slow),
    ],
)
def test_pieces_on_a_mesh_have_the_numbers_of_one_device_and_send_what_they_declare(
    name, sweeps, shape, grid
):
    n, given, start = shape[0], batches(name, 4), weights(name)
    schedule = solvers.Streaming(sweeps=sweeps)
    ways = {"optimizer": ADAM, "batch_size": BATCH, "rho": 0.6, "schedule": schedule}
    method = solvers.gsadmm(network(name), subnets=n, grid=grid, **ways)
    mesh = sharding.make_mesh(*shape)
    placed = sharding.place(method, mesh)
    state, infos = trained(method, given, start)
    other, seen = trained(placed, given, start)
    assert_close(seen, infos)
    assert_close(placed.params(other), method.params(state))
    found, wanted = (jax.jit(run.predict) for run in (placed, method))
    assert_close(found(other, given[0][0]), wanted(state, given[0][0]))
    assert_close(sharding.gathered(other).kept, state.kept)

    x, y = cast(given[0][0], np.float32), given[0][1]
    narrow = jax.eval_shape(placed.init, jax.random.key(0), x, y)
    counts = count_bytes(placed.step, narrow, x, y, by_device=True)
    counted = max(counts, key=lambda count: sum(count.values()))
    # of integers and booleans alone, weights have jax's own dtype
    assert counted == step_bytes(method, mesh, word=8 if name == "encoder" else 4)


def test_floats_alone_come_back_and_the_bytes_are_those_of_each_dtype():
    ways = {"optimizer": ADAM, "batch_size": BATCH, "microbatches": 1}
    method = solvers.gsadmm(network("encoder"), subnets=2, **ways)
    sent = {m.what: (m.shape, m.itemsize, m.source) for m in method.moves(BATCH) if m.axis != "pc"}
    assert sent == {
        "f": ((BATCH, 16), None, 0),
        "q - f": ((BATCH, 16), None, 1),
        "f of bool": ((BATCH, 4), 1, 0),
    }
    assert "f of bool, 8 x 4, along subnet from piece 0 to 1 (permute), once" in method.summary()


def a_round(num):
    """Two steps of so many workers, each on the same two minibatches."""
    steps = [jax.tree.map(lambda a: np.stack([a] * num), each) for each in batches("encoder", 2)]
    return jax.tree.map(lambda *a: np.stack(a), *steps)


@pytest.mark.parametrize("shape", [None, (2, 1, 2)])
def test_workers_that_see_the_same_are_plain_descent(shape):
    given, ways = batches("encoder"), {"optimizer": MOMENTUM, "batch_size": BATCH}
    params, _ = by_optax("encoder", MOMENTUM, 2)
    num = 1 if shape is None else 2
    run = solvers.local_sgd(network("encoder"), workers=num, local_steps=2, **ways)
    if shape is not None:
        run = sharding.place(run, sharding.make_mesh(*shape))
    state = run.init(jax.random.key(0), *given[0], weights("encoder"))
    state, _ = jax.jit(run.step)(state, *a_round(num))
    assert_close(run.params(state), params)
    x = given[0][0]
    assert_close(jax.jit(run.predict)(state, x), jax.jit(of_linen)(params, x))


def drawn(params, x, *, training=False, key=None):
    """A product with dropout, of a tree that also holds integers."""
    h = x["h"] @ params["W"]
    if training:
        h = h * jax.random.bernoulli(key, 0.5, h.shape) if key is not None else h
    return {"h": h, "at": x["at"]}


def test_draws_of_a_layer_of_trees_are_the_same_on_any_mesh():
    init = lambda key, x: {"W": jax.random.normal(key, (4, 4))}
    last = lambda x: x["h"] * (1 + x["at"][:, None])
    x = {"h": np.random.default_rng(0).normal(size=(BATCH, 4)), "at": np.arange(BATCH) % 3}
    y = np.arange(BATCH) % 4
    net = nn.layers(
        [(init, drawn), (init, drawn), last], {"h": jnp.zeros((1, 4)), "at": x["at"][:1]}
    )
    assert net.random
    method = solvers.sgd(net, optimizer=ADAM, batch_size=BATCH)
    placed = sharding.place(method, sharding.make_mesh(1, 2, 2))
    start = double(net.init(jax.random.key(1), jnp.float64))
    assert_close(trained(placed, [(x, y)] * 2, start)[1], trained(method, [(x, y)] * 2, start)[1])


def test_floats_that_cross_are_as_wide_as_the_weights():
    """Whatever width a layer gives them, so that a state keeps its dtypes."""
    init = lambda key, x: {"W": jax.random.normal(key, (4, 4))}
    narrow = lambda p, x: {
        "h": x @ p["W"],
        "at": jnp.broadcast_to(jnp.arange(4.0), x.shape).astype("float16"),
    }
    last = lambda p, x: x["h"] @ p["W"] + x["at"].astype(x["h"].dtype)
    net = nn.layers([(init, narrow), (init, last)], jnp.zeros((1, 4)))
    method = solvers.gsadmm(net, subnets=2, optimizer=ADAM, batch_size=BATCH)
    given = jnp.ones((BATCH, 4)), jnp.zeros(BATCH, int)
    state = jax.eval_shape(method.init, jax.random.key(0), *given)
    assert jax.eval_shape(method.step, state, *given)[0] == state
    assert {a.dtype.name for a in jax.tree.leaves(state.forward)} == {"float64"}
