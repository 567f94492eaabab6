"""The form "gathered": a device stores its part of every parameter of any layer, and gets the same numbers."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen
from jax.sharding import AbstractMesh, PartitionSpec

import jtssm
from jtssm import nn, sharding, solvers
from jtssm.nn.network import run_layers
from jtssm.nn.ops import PLAIN, Hops
from jtssm.planning.trials import traced_bytes
from jtssm.protocol.device_memory import held
from jtssm.sharding import cost
from jtssm.sharding.cost import memory
from jtssm.sharding.cost.planner import propose
from jtssm.sharding.layers.regathered import regathering
from jtssm.sharding.layers.stored import FLAT, WHOLE, dimension_of, in_a_row, out_of_a_row
from jtssm.sharding.placement.flat import is_flat
from jtssm.train.checkpoint import Folder
from jtssm.train.fingerprint import abstract_state, fingerprint
from jtssm.train.fingerprint import samples as described
from jtssm.train.position import Checkpoint, Position

VOCABULARY, LENGTH, WIDTH = 13, 5, 8


class Embedding(linen.Module):
    """Tokens and their places."""

    vocabulary: int = VOCABULARY
    width: int = WIDTH

    @linen.compact
    def __call__(self, x):
        places = self.param("places", linen.initializers.normal(), (1, x.shape[1], self.width))
        return linen.Embed(self.vocabulary, self.width)(x) + places


class Block(linen.Module):
    """Attention and a perceptron as wide as no pr divides."""

    inner: int = 2 * WIDTH + 1
    dropout: float = 0.3

    @linen.compact
    def __call__(self, x, train: bool = False):
        y = linen.MultiHeadDotProductAttention(2)(linen.LayerNorm()(x))
        x = x + linen.Dropout(self.dropout, deterministic=not train)(y)
        y = linen.gelu(linen.Dense(self.inner)(linen.LayerNorm()(x)))
        return x + linen.Dense(x.shape[-1])(y)


class Normed(linen.Module):
    """Statistics of the minibatch, and draws."""

    @linen.compact
    def __call__(self, x, train: bool = False):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(9)(x))
        return linen.Dropout(0.2, deterministic=not train)(x)


class Head(linen.Module):
    """Classes of the mean."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3)(x.mean(axis=1))


TIED = linen.Dense(9)  # stands twice: one layer with what is between


def of(*modules):
    """A network of modules that takes tokens."""
    return nn.from_linen(list(modules), jnp.zeros((2, LENGTH), jnp.int32))


TEXT = of(Embedding(), Block(), Normed(), TIED, jnp.tanh, TIED, Head())
BARE = of(Embedding(), Block(), Head())
SHORT = of(Embedding(), Normed(), Head())
UNNORMED = of(Embedding(), Block(), linen.Dense(9), TIED, jnp.tanh, TIED, Head())
COLUMNS = PartitionSpec(None, "pr")
ODD = jtssm.mlp([7, 12, 9, 3], jnp.tanh)


def kernels(params):
    """A mask by rank, as of weight decay."""
    return jax.tree.map(lambda a: a.ndim > 1, params)


DECAYED = optax.chain(optax.add_decayed_weights(0.1, mask=kernels), optax.sgd(0.05, momentum=0.9))
# norms of all weights together, norms of each, moments by rows and columns
MIXING = optax.chain(
    optax.clip_by_global_norm(0.05),
    optax.scale_by_factored_rms(min_dim_size_to_factor=4),
    optax.scale_by_trust_ratio(),
    optax.scale(-0.1),
)


def samples(net, num):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, *net.shapes[0]))
    if net.integer:
        x = rng.integers(0, VOCABULARY, (num, *net.shapes[0])).astype(np.int32)
    return x, rng.integers(0, 3, num).astype(np.int32)


def method(name, net=TEXT, optimizer=DECAYED, batch=8, **more):
    more |= {} if name == "sgd" else {"cuts": [len(net.layers) // 2]}
    return getattr(solvers, name)(
        net, optimizer=optimizer, batch_size=batch, precision="highest", **more
    )


def trained(method, state, x, y, steps=3):
    """Weights after some steps and an estimate, losses, predictions."""
    step, shown = jax.jit(method.step), []
    for _ in range(steps):
        state, info = step(state, x, y)
        shown.append(info.loss)
    state = jax.jit(method.estimate)(state, x)
    outputs = jax.jit(method.predict)(state, x)
    return sharding.gathered((state.weights, shown, outputs)), state


@functools.cache
def alone(name, net=TEXT, optimizer=DECAYED):
    plain = method(name, net, optimizer)
    x, y = samples(net, 8)
    start = plain.init(jax.random.key(0), x, y)
    return plain, start, trained(plain, start, x, y)[0]


def assert_same(name, shape, net=TEXT, optimizer=DECAYED, tol=1e-10):
    plain, start, expected = alone(name, net, optimizer)
    x, y = samples(net, 8)
    forms = ["gathered"] * len(net.layers)
    placed = sharding.place(plain, sharding.make_mesh(*shape), forms=forms)
    state = placed.spread(start)
    got, end = trained(placed, state, x, y)
    close = lambda a, b: np.testing.assert_allclose(b, a, atol=tol, rtol=tol)
    jax.tree.map(close, expected, got)
    fresh = sharding.gathered(placed.init(jax.random.key(0), x, y))
    near = lambda a, b: np.testing.assert_allclose(b, a, atol=1e-6)  # flax draws in float32
    jax.tree.map(near, start.weights, fresh.weights)
    return placed, state, end


@pytest.mark.parametrize(
    ("name", "shape", "net"),
    [
        ("sgd", (1, 4, 2), BARE),
        ("gsadmm", (2, 2, 2), SHORT),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("sgd", (1, 4, 2), TEXT),
                ("sgd", (1, 2, 1), TEXT),
                ("sgd", (1, 3, 2), TEXT),  # pr divides neither samples nor most arrays
                ("gsadmm", (1, 2, 1), TEXT),
                ("gsadmm", (1, 4, 2), TEXT),
                ("gsadmm", (2, 2, 1), TEXT),
                ("gsadmm", (2, 2, 2), TEXT),
                ("gsam", (2, 2, 2), SHORT),
            )
        ),
    ],
    ids=lambda value: f"{len(value.layers)} layers" if isinstance(value, nn.Network) else None,
)
def test_modules_of_any_kind_give_the_numbers_of_one_device(name, shape, net):
    """Embedding, attention, dropout, batch statistics, tied modules, weight decay by rank; a state that
    was gathered goes on on another mesh."""
    placed, _, end = assert_same(name, shape, net)
    back = placed.spread(sharding.gathered(end))
    same = lambda a, b: np.testing.assert_array_equal(a, b)
    jax.tree.map(same, sharding.gathered(end).weights, sharding.gathered(back).weights)
    mesh, forms = sharding.make_mesh(pr=8), ["gathered"] * len(net.layers)
    other = sharding.place(placed.program.on_one_device(), mesh, forms=forms)
    moved = sharding.gathered(other.spread(sharding.gathered(end)))
    jax.tree.map(same, sharding.gathered(end).weights, moved.weights)


@pytest.mark.parametrize(
    "shape", [(1, 4, 2), pytest.param((1, 8, 1), marks=pytest.mark.slow)], ids=str
)
def test_optimizers_see_every_array_in_its_own_shape(shape):
    """Global norms, trust ratios and factored moments of arrays that are stored in a row."""
    _, state, end = assert_same("sgd", shape, ODD, MIXING, tol=1e-9)
    for each in (state, end):
        assert any(map(is_flat, jax.tree.leaves(each.weights[0].params, is_leaf=is_flat)))
        assert shape[1] != 4 or each.weights[0].params[0]["W"].sharding.spec == COLUMNS


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of orbax
@pytest.mark.parametrize("name", ["sgd", pytest.param("gsadmm", marks=pytest.mark.slow)])
def test_a_checkpoint_goes_on_on_another_mesh(name, tmp_path):
    """From parts of four to parts of two, to one device and back: the same bits."""
    plain, key, (x, y) = method(name, ODD, optax.adam(1e-2)), jax.random.key(0), samples(ODD, 8)
    shapes, rng = abstract_state(plain, key, x, y), np.random.default_rng(1)
    noisy = lambda a: a + rng.normal(size=a.shape) if a.dtype == np.float64 else a
    state = jax.tree.map(noisy, plain.init(key, x, y))
    run = fingerprint(plain, shapes, described((x, y)), len(x), key, None)
    on = lambda *sizes: sharding.place(plain, sharding.make_mesh(*sizes), forms=["gathered"] * 3)
    places = [on(1, 4, 2), on(1, 2, 1), plain, on(1, 4, 2)]
    for i, (one, other) in enumerate(pairwise(places)):
        folder = Folder(tmp_path / str(i), 3, run)
        at = Position(1, 1, 0, 6, 0, {})
        folder.save(Checkpoint(one.spread(state), at, None, [], (), 0, 0), one)
        folder.wait()
        found = sharding.gathered(folder.load(other, shapes, None).state)
        folder.close()
        jax.tree.map(np.testing.assert_array_equal, found, sharding.gathered(state))


def test_arrays_are_stored_along_a_dimension_or_in_a_row():
    shapes = {(7, 12): 1, (12, 7): 0, (4, 8): 1, (9, 3): FLAT, (3,): WHOLE, (5,): FLAT, (): WHOLE}
    assert {shape: dimension_of(shape, 4) for shape in shapes} == shapes
    for a in (np.arange(1.0, 28).reshape(9, 3), jnp.arange(1.0, 28).reshape(9, 3)):
        row = in_a_row(a, 4)
        assert row.shape == (28, 1)  # as many dimensions: masks by rank are the same
        np.testing.assert_array_equal(row[:, 0], [*range(1, 28), 0])
        np.testing.assert_array_equal(out_of_a_row(row, (9, 3)), a)


@functools.cache
def wide(layers=2, width=48):
    """A transformer of flax modules."""
    return of(Embedding(65, width), *[Block(4 * width, 0.0) for _ in range(layers)], Head())


def test_a_device_of_eight_holds_an_eighth():
    """State and samples by shapes; of pr = 8 the compiled program's arguments too, to the byte."""
    net, sizes = wide(), (1, 8, 1)
    plain, forms = method("sgd", net, optax.adam(1e-3)), ["gathered"] * len(net.layers)
    with jax.enable_x64(False):
        mesh = sharding.make_mesh(*sizes)
        everywhere = memory.placed_step(plain, (1, 1, 8), forms, None)[1:]
        placed, *split = memory.placed_step(plain, sizes, forms, None, mesh)
        step = jax.jit(placed.step, donate_argnums=0).lower(split[0], *split[1])
        found = step.compile().memory_analysis()
    assert held(split) <= 1.1 / 8 * held(everywhere)
    numbers = sum(a.size for a in jax.tree.leaves(net.parameter_shapes()))
    assert held(everywhere[0].weights) == 4 * (3 * numbers + 1)  # two moments, the count of steps
    assert found.argument_size_in_bytes == held(split)
    demand = cost.step_demand(plain, sizes, forms, None)
    told = memory.step_memory(plain, sizes, demand, forms=forms)
    assert told.arguments == found.argument_size_in_bytes
    assert found.temp_size_in_bytes <= told.temporaries <= 4 * found.temp_size_in_bytes


def test_no_layer_keeps_its_whole_parameters_for_its_backward_pass():
    """What a block keeps are its parts, its inputs and what products gave."""
    layer, params = wide().layers[1], wide().parameter_shapes()[1]
    parts = jax.tree.map(lambda a: jnp.ones((a.shape[0] // 2, *a.shape[1:]), a.dtype), params)
    both = lambda parts: jax.tree.map(lambda a: jnp.concatenate([a, a]), parts)
    x = jnp.ones((3, LENGTH, 48), jnp.float32)

    def kept(again):
        given = PLAIN.to_train()._replace(hops=Hops(whole=both, again=again))
        run = lambda parts, x: run_layers([layer], [parts], x, lambda _: given)
        return {a.shape for a in jax.tree.leaves(jax.vjp(run, parts, x)[1])}

    wholes = {a.shape for a in jax.tree.leaves(params) if len(a.shape) > 1}
    assert wholes & kept(lambda run: run)
    assert not wholes & kept(regathering)


@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((2, 2, 2), None),
        ((1, 4, 2), "bfloat16"),
        pytest.param((1, 3, 2), None, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_bytes_by_formula_are_those_of_the_trace(sizes, dtype):
    name, forms = "sgd" if sizes[0] == 1 else "gsadmm", ["gathered"] * len(UNNORMED.layers)
    plain = method(name, UNNORMED, batch=8, compute_dtype=dtype)
    with jax.enable_x64(False):
        mesh = sharding.make_mesh(*sizes)
        placed, state, given = memory.placed_step(plain, sizes, forms, None, mesh)
        traced = traced_bytes(placed.step, state, *given)
    assert traced == cost.step_bytes(plain, mesh, forms=forms)


def test_bytes_of_wide_parameters_and_statistics():
    """Norms are gathered in float32 where layers compute in bfloat16; a gathered gamma is each device's."""
    for normalisation in ("batch", "layer"):
        net, sizes = jtssm.mlp([8, 12, 9, 3], normalisation=normalisation), (1, 4, 2)
        plain = method("sgd", net, compute_dtype="bfloat16")
        with jax.enable_x64(False):
            mesh, forms = sharding.make_mesh(*sizes), ["gathered"] * 3
            placed, state, given = memory.placed_step(plain, sizes, forms, None, mesh)
            traced = traced_bytes(placed.step, state, *given)
        assert traced == cost.step_bytes(plain, mesh, forms=forms)


def test_bytes_by_hand():
    """Two layers of 6 x 8 and 8 x 3, 4 samples on (4, 2): of the second one W goes twice, b (3 numbers,
    fewer than devices) never; nothing needs the first W again, whose bias tanh's gradient does."""
    net = jtssm.mlp([6, 8, 3], jnp.tanh)
    plain = method("sgd", net, optax.sgd(0.1))
    found = cost.step_bytes(plain, AbstractMesh((4, 2), ("pr", "pc")), forms=["gathered"] * 2)
    first, bias, second = 6 * 8, 8, 8 * 3
    routes = {(route.collective, route.axes): size // 4 for route, size in found.items()}
    assert routes == {
        ("all_gather", ("pr",)): (first + 2 * bias + 2 * second) // 4,
        ("reduce_scatter", ("pr",)): first + bias + second,
        ("all_reduce", ("pc",)): (first + bias + second) // 4,
        ("all_reduce", ("pr", "pc")): 3 + 2,  # the second bias, and what a step shows
    }


def test_memory_is_what_makes_the_planner_gather():
    net = wide()
    plain = method("sgd", net, optax.adam(1e-3))
    free = propose(plain, (1, 8, 1), cost.MACHINES["h100-nvlink"])
    assert set(free.forms) == {"batch"}
    tight = propose(plain, (1, 8, 1), cost.MACHINES["h100-nvlink"], limit=0.6 * free.memory.total)
    assert "gathered" in tight.forms
    assert tight.memory.total <= 0.6 * free.memory.total
    state = memory.placed_step(plain, (1, 8, 1), tight.forms, None)[1]
    assert tight.memory.weights + tight.memory.optimizer == held(state.weights)


def test_what_cannot_be_split_is_refused_by_name():
    factored = optax.scale_by_factored_rms(min_dim_size_to_factor=8)
    for optimizer in (optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), factored):
        plain = method("gsadmm", SHORT, optimizer)
        with pytest.raises(
            ValueError, match=r"optimizer: expected an elementwise one .* got .*; use pr=1"
        ):
            sharding.place(plain, sharding.make_mesh(pr=2), forms=["gathered"] * 3)
    local = solvers.local_sgd(SHORT, workers=2, local_steps=1, optimizer=DECAYED, batch_size=8)
    with pytest.raises(ValueError, match="forms: expected 'auto', local_sgd splits no layer"):
        sharding.place(local, sharding.make_mesh(pr=2), forms=["gathered"] * 3)
