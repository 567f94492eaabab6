"""What optimizers see: the layers of the network whatever n is, and the loss that their piece minimises."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic

NET = jtssm.mlp([6, 8, 8, 8, 3])
LAYERS = range(4)
BATCH = 24
X, Y = synthetic.separable(0, BATCH, 6, 3, np.float64)
STORED = solvers.Stored(weight_steps=2)
KINDS = {
    "sgd": (solvers.sgd, {}),
    "gsadmm, n = 2": (solvers.gsadmm, {"subnets": 2}),
    "gsadmm, n = 4": (solvers.gsadmm, {"subnets": 4}),
    "gsadmm, 2 sweeps": (solvers.gsadmm, {"subnets": 3, "schedule": solvers.Streaming(sweeps=2)}),
    "gsadmm, stored": (solvers.gsadmm, {"subnets": 4, "schedule": STORED}),
    "gsam": (solvers.gsam, {"cuts": [1]}),
    "gsam, stored": (solvers.gsam, {"cuts": [3], "schedule": STORED}),
    "local_sgd": (solvers.local_sgd, {"workers": 2, "local_steps": 2}),
    "ensemble": (solvers.ensemble, {"members": 2, "local_steps": 2}),
    "ist": (solvers.ist, {"subnets": 2, "local_steps": 2}),
}


def made(kind, optimizer, **more):
    make, own = KINDS[kind]
    size = BATCH // 4 if "local_steps" in own else BATCH
    return make(NET, optimizer=optimizer, batch_size=size, **own | more)


def step_samples(method):
    shape = method.program.batch.shape or (BATCH,)
    return X.reshape(*shape, *X.shape[1:]), Y.reshape(shape)


def stepped(method, steps):
    """(first state, the last one, the last Info)."""
    first = state = method.init(jax.random.key(0), X, Y)
    step, (x, y) = jax.jit(method.step), step_samples(method)
    for _ in range(steps):
        state, info = step(state, x, y)
    return first, state, info


def still(method, steps=9):
    """The layers whose every array stays as it is, bit for bit."""
    first, last, _ = stepped(method, steps)
    before, after = (method.params(state) for state in (first, last))
    same = lambda i: jax.tree.map(np.array_equal, before[i], after[i])
    return [i for i in LAYERS if all(jax.tree.leaves(same(i)))]


def moving(labels):
    """SGD of what is labelled so, nothing of what is "frozen"."""
    return optax.multi_transform({"frozen": optax.set_to_zero(), "moving": optax.sgd(0.1)}, labels)


def of_layer(i):
    return "frozen" if i in (0, 2) else "moving"


def by_function(params):
    return [jax.tree.map(lambda _, i=i: of_layer(i), layer) for i, layer in enumerate(params)]


def by_path(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: of_layer(path[0].idx), params)


def by_shape(params):
    """Of a function that looks at arrays itself: the first layer and whatever has 3 outputs."""
    last = len(params) - 1
    return [
        dict.fromkeys(layer, "frozen" if i == 0 or (i < last and i == 2) else "moving")
        if layer["W"].ndim == 2
        else None
        for i, layer in enumerate(params)
    ]


FREEZING = {
    "labels by a function": moving(by_function),
    "labels by path": moving(by_path),
    "labels of what has a shape": moving(by_shape),
    "a tree of labels": moving([{"W": of_layer(i), "b": of_layer(i)} for i in LAYERS]),
    "a label a layer": moving([of_layer(i) for i in LAYERS]),
    "a mask a layer": optax.chain(
        optax.sgd(0.1), optax.masked(optax.set_to_zero(), [i in (0, 2) for i in LAYERS])
    ),
    "a rate a layer": optax.chain(
        optax.sgd(0.1),
        optax.stateless(
            lambda updates, _: [
                jax.tree.map(lambda a, r=rate: r * a, layer)
                for rate, layer in zip((0.0, 1.0, 0.0, 2.0), updates, strict=True)
            ]
        ),
    ),
}


@pytest.mark.parametrize("how", FREEZING)
def test_however_layers_are_named_the_same_ones_stand_still_in_a_cut_network(how):
    assert still(made("gsadmm, n = 4", FREEZING[how])) == [0, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_layers_stand_still_whatever_the_method(kind):
    assert still(made(kind, FREEZING["labels by a function"])) == [0, 2]


def bias_and_first(params):
    """Labels that freeze the first layer and the last one's bias, which subnets share."""
    last = len(params) - 1
    name = lambda i, n: "frozen" if i == 0 or (i == last and n == "b") else "moving"
    return [{n: name(i, n) for n in layer} for i, layer in enumerate(params)]


@pytest.mark.parametrize("kind", ["local_sgd", "ist"])
def test_frozen_weights_of_three_workers_do_not_wander(kind):
    """The mean of three equal numbers differs from them in a third of all cases."""
    more = {"local_sgd": "workers", "ist": "subnets"}[kind]
    net = jtssm.mlp([6, 9, 9, 3])
    ways = {more: 3, "local_steps": 2, "batch_size": 4, "optimizer": moving(bias_and_first)}
    method = KINDS[kind][0](net, **ways)
    start = jax.tree.map(lambda a: a + 0.1, net.init(jax.random.key(1), np.float64))
    state = method.init(jax.random.key(0), X, Y, params=start)
    step, (x, y) = jax.jit(method.step), step_samples(method)
    for _ in range(3):
        state, _ = step(state, x, y)
    found = method.params(state)
    for i, name in ((0, "W"), (0, "b"), (2, "b")):
        np.testing.assert_array_equal(found[i][name], start[i][name])
    assert not np.array_equal(found[2]["W"], start[2]["W"])


MESHES = {
    "sgd": (1, 2, 2),
    "gsadmm, n = 2": (2, 2, 2),
    "gsadmm, stored": (2, 1, 2),
    "local_sgd": (2, 1, 2),
    "ist": (2, 1, 2),
}


@pytest.mark.parametrize(
    "how", ["a tree of labels", pytest.param("labels by a function", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", MESHES)
def test_on_a_mesh_too(kind, how):
    method = made(kind, FREEZING[how])
    placed = sharding.place(method, sharding.make_mesh(*MESHES[kind]))
    assert still(placed) == [0, 2]


def remembering():
    """SGD whose state is the loss it was told last."""

    def update(gradient, state, params=None, *, value, **_):
        return jax.tree.map(lambda g: -0.1 * g, gradient), value.astype(state.dtype)

    return optax.GradientTransformationExtraArgs(lambda params: jnp.zeros(()), update)


def told(method, state):
    """The losses that a state remembers, piece by piece or worker by worker."""
    held = getattr(state, "weights", None)
    return np.ravel(state.opt_state if held is None else [w.opt_state for w in held])


def test_sgd_tells_the_loss_of_the_minibatch():
    method = made("sgd", remembering())
    _, state, info = stepped(method, 3)
    np.testing.assert_allclose(told(method, state), [info.loss], rtol=1e-12)


def test_a_streaming_subnetwork_is_told_what_it_minimises():
    method = made("gsadmm, n = 2", remembering(), alpha=3.0, rho=0.5, microbatches=1)
    _, state, info = stepped(method, 5)
    coupling = float(info.shown["coupling"])  # of the boundary, one tick later
    step, (x, y) = jax.jit(method.step), step_samples(method)
    state, info = step(state, x, y)
    assert coupling > 1e-3
    np.testing.assert_allclose(told(method, state), [3.0 / 2 * coupling**2, info.loss], rtol=1e-10)


def test_a_stored_subnetwork_is_told_what_it_minimises():
    ways = {"schedule": solvers.Stored(weight_steps=1)}
    method = made("gsadmm, stored", remembering(), **ways, alpha=3.0)
    first = method.init(jax.random.key(0), X, Y)  # where q = f: nothing to gain but in the last
    state, _ = jax.jit(method.step)(first, X, Y)
    values = told(method, state)
    np.testing.assert_allclose(values[:-1], 0, atol=1e-20)
    np.testing.assert_allclose(
        values[-1], method.loss.value(method.predict(first, X), Y).mean(), rtol=1e-12
    )
    for _ in range(4):  # what the last one asks for reaches the first
        state, _ = jax.jit(method.step)(state, X, Y)
    assert (told(method, state) > 1e-9).all()


def test_workers_are_told_the_loss_of_their_minibatch():
    method = solvers.local_sgd(
        NET, workers=2, optimizer=remembering(), local_steps=1, batch_size=BATCH // 2
    )
    _, state, info = stepped(method, 2)
    values = told(method, state)
    assert values[0] != values[1]
    np.testing.assert_allclose(values.mean(), info.loss, rtol=1e-12)


@pytest.mark.parametrize("kind", [kind for kind in MESHES if kind != "ist"])
def test_on_a_mesh_the_loss_is_that_of_the_whole_minibatch(kind):
    method = made(kind, remembering())
    placed = sharding.place(method, sharding.make_mesh(*MESHES[kind]))
    one, many = stepped(method, 4)[1], stepped(placed, 4)[1]
    if kind.startswith("gsadmm"):
        many = sharding.placement.on_host.gathered(many)
    np.testing.assert_allclose(told(placed, many), told(method, one), rtol=1e-9)


def test_a_plateau_makes_the_steps_smaller():
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, min_scale=1e-3)
    optimizer = optax.chain(optax.sgd(1e-9), plateau)  # no loss falls
    method = made("gsadmm, n = 2", optimizer, microbatches=1)
    _, state, _ = stepped(method, 12)
    scales = [float(w.opt_state[-1].scale) for w in state.weights]
    assert all(scale <= 0.25 for scale in scales)


def test_clipping_by_the_global_norm_clips_each_subnetwork():
    """At a norm of c the network moves by up to sqrt(n) c: 2 c for n = 4."""
    clip, start = 1e-4, NET.init(jax.random.key(3), np.float64)
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(1.0))
    moved = {}
    fresh = {"schedule": solvers.Streaming(delay_power=0)}
    for kind, more in {"sgd": {}, "gsadmm, n = 2": fresh, "gsadmm, n = 4": fresh}.items():
        method = made(kind, optimizer, **more)
        step, (x, y) = jax.jit(method.step), step_samples(method)
        state = method.init(jax.random.key(0), X, Y, params=start)
        for _ in range(8):
            before, (state, _) = method.params(state), step(state, x, y)
        moves = jax.tree.map(jnp.subtract, method.params(state), before)
        moved[kind] = optax.tree.norm(moves) / clip
    expected = {"sgd": 1, "gsadmm, n = 2": 2**0.5, "gsadmm, n = 4": 2}
    for kind, norm in expected.items():
        np.testing.assert_allclose(moved[kind], norm, rtol=1e-6)


BRANCHING = {
    "several steps": optax.MultiSteps(optax.adam(1e-2), 2),
    "plateau": optax.chain(
        optax.sgd(1e-9), optax.contrib.reduce_on_plateau(factor=0.5, cooldown=2, patience=1)
    ),
    "finite": optax.apply_if_finite(optax.sgd(0.1), 2),
}


FAST = [("gsadmm, n = 2", "plateau"), ("sgd", "several steps"), ("sgd", "finite")]
ALL = product(["sgd", "gsadmm, n = 2", "gsadmm, stored", "local_sgd"], BRANCHING)


@pytest.mark.parametrize(
    ("kind", "name"),
    [pytest.param(*c, marks=[] if c in FAST else pytest.mark.slow) for c in ALL],
)
def test_optimizers_that_branch_give_the_numbers_of_one_device_on_a_mesh(kind, name):
    method = made(kind, BRANCHING[name])
    placed = sharding.place(method, sharding.make_mesh(*MESHES[kind]))
    one, many = stepped(method, 5), stepped(placed, 5)
    pairs = zip(*map(jax.tree.leaves, (method.params(one[1]), placed.params(many[1]))), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    moved = np.abs(method.params(one[1])[3]["W"] - method.params(one[0])[3]["W"]).max()
    assert moved > (1e-12 if name == "plateau" else 1e-3)
