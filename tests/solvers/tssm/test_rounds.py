"""Workers along pc that train a cut network and meet: against streams that are run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, sharding, solvers, testing
from jtssm.data import synthetic
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from tests.solvers.tssm import twins

NET = jtssm.mlp([5, 7, 6, 4, 3])
MOMENTUM = optax.sgd(0.05, momentum=0.9)
NESTEROV = optax.sgd(0.7, momentum=0.9, nesterov=True)
N, R, B, ROUNDS = 2, 2, 4, 2
KEY = jax.random.key(0)
X, Y = synthetic.separable(0, 240, 5, 3, np.float64)
PARAMS = NET.init(jax.random.key(3), jnp.float64)


def gsadmm(net=NET, **changes):
    ways = {"subnets": 2, "optimizer": MOMENTUM, "workers": N, "rho": 0.6, "alpha": 1.7}
    ways |= {"microbatches": 1} | changes
    return solvers.gsadmm(net, batch_size=B, local_steps=R, **ways)


def sgd(net=NET, **changes):
    ways = {"optimizer": MOMENTUM, "workers": 4, "local_steps": R} | changes
    return solvers.sgd(net, batch_size=B, **ways)


def trained(method, rounds=ROUNDS, params=PARAMS):
    """(state, infos, minibatches [rounds, R, N, b, ...]) after some rounds."""
    state, step = method.init(KEY, X, Y, params), jax.jit(method.step)
    batches = [testing.minibatch(method, X, Y, i) for i in range(rounds)]
    infos = []
    for x, y in batches:
        state, info = step(state, x, y)
        infos.append(info)
    return state, infos, batches


def of_worker(batches, w):
    """A worker's minibatches, one after the other."""
    return [(np.asarray(x[r, w]), np.asarray(y[r, w])) for x, y in batches for r in range(R)]


def nesterov():
    """The outer step written out: v <- 0.9 v + d; W <- W - 0.7 (d + 0.9 v), d = W - mean."""
    v = None

    def update(start, mean):
        nonlocal v
        d = jax.tree.map(jnp.subtract, start, mean)
        v = d if v is None else jax.tree.map(lambda v, d: 0.9 * v + d, v, d)
        return jax.tree.map(lambda w, d, v: w - 0.7 * (d + 0.9 * v), start, d, v)

    return update


def close(a, b, atol=1e-10):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, atol=atol)


def check_against_a_twin(method, mesh, update, sweeps, **numbers):
    """Weights after the rounds, and after what is in flight has come to its end."""
    how = method if mesh is None else sharding.place(method, sharding.make_mesh(*mesh))
    state, infos, batches = trained(how)
    starts = method.program.stages.starts
    crew = [twins.Pieces(NET, PARAMS, starts, MOMENTUM, losses.cross_entropy()) for _ in range(N)]
    own = [of_worker(batches, w) for w in range(N)]
    expected = twins.rounds(crew, own, R, update, sweeps=sweeps, **numbers)
    drained = jax.jit(how.drain)(state)
    close(how.params(drained), expected)
    assert not np.allclose(how.params(drained)[0]["W"], how.params(state)[0]["W"])
    return infos


def test_gsadmm_on_2_1_2_is_two_streams_whose_weights_meet_by_nesterovs_rule():
    schedule = solvers.Streaming(sweeps=2, delay_power=0)
    method = gsadmm(schedule=schedule, outer_optimizer=NESTEROV, eta=0.3)
    numbers = {"rho": 0.6, "alpha": 1.7, "eta": 0.3}
    infos = check_against_a_twin(method, (2, 1, 2), nesterov(), 2, **numbers)
    # a minibatch reaches the last subnetwork one tick after it enters, and again two ticks later
    assert [info.samples for info in infos] == [1 * N * B, 3 * N * B]


@pytest.mark.slow
def test_gsam_on_one_device_and_the_mean():
    schedule = solvers.Streaming(delay_power=0)
    method = solvers.gsam(
        NET,
        subnets=3,
        optimizer=MOMENTUM,
        schedule=schedule,
        batch_size=B,
        microbatches=1,
        workers=N,
        local_steps=R,
    )
    check_against_a_twin(method, None, lambda start, mean: mean, 1, rho=None, alpha=1.0, eta=1.0)


def test_sgd_on_1_1_4_is_four_plain_trainings_whose_weights_are_averaged():
    how = sharding.place(sgd(), sharding.make_mesh(1, 1, 4))
    state, infos, batches = trained(how, rounds=2)
    loss = lambda p, x, y: losses.cross_entropy().value(NET.apply(p, x), y).mean()
    step = jax.jit(jax.value_and_grad(loss))
    W, states, seen = PARAMS, [MOMENTUM.init(PARAMS)] * 4, []
    for x, y in batches:
        ends = []
        for w in range(4):
            own, x_, y_ = W, np.asarray(x[:, w]), np.asarray(y[:, w])
            for r in range(R):
                value, gradient = step(own, x_[r], y_[r])
                updates, states[w] = MOMENTUM.update(gradient, states[w], own)
                own = optax.apply_updates(own, updates)
                seen.append(value)
            ends.append(own)
        W = jax.tree.map(lambda *a: sum(a) / 4, *ends)
    close(how.params(state), W)
    close([sharding.gathered(state).opt_states[0][0].trace], [stacked(states)])
    np.testing.assert_allclose(infos[-1].loss, np.mean(seen[len(seen) // 2 :]))
    drained = how.drain(state)  # nothing is in flight: no meeting, no step of an outer optimizer
    jax.tree.map(np.testing.assert_array_equal, how.params(drained), how.params(state))


def stacked(states):
    return jax.tree.map(lambda *a: np.stack(a), *(s[0].trace for s in states))


WEIGHTED = losses.cross_entropy(ignore_index=-1)


@pytest.mark.slow
@pytest.mark.parametrize("build", [gsadmm, sgd])
def test_a_round_without_weight_moves_nothing_in_spite_of_momentum(build):
    method = build(outer_optimizer=NESTEROV, loss=WEIGHTED)
    state, infos, ((x, y), *_) = trained(method, rounds=2)
    assert infos[-1].samples > 0
    state, step = method.drain(state), jax.jit(method.step)
    still, info = step(state, x, np.full_like(y, -1))
    assert info.samples == 0
    for name in ("weights", "opt_states"):
        close(getattr(still, name), getattr(state, name), atol=0)
    # one worker has weight, the next none: its steps count
    half = np.array(y)
    half[:, 1] = -1
    moved, info = step(state, x, half)
    assert 0 < info.samples < y.size
    first, last = (
        np.array_equal(method.params(moved)[i]["W"], method.params(state)[i]["W"]) for i in (0, -1)
    )
    # what enters comes to the first of two subnetworks again after this round: no outer step of it
    assert (first, last) == (build is gsadmm, False)


MESHES = {
    "statistics, dropout, weights": (
        lambda: gsadmm(
            jtssm.mlp([5, 8, 6, 3], normalisation="batch", dropout=0.2),
            optimizer=optax.adam(1e-2),
            loss=WEIGHTED,
            outer_optimizer=NESTEROV,
        ),
        [(2, 1, 2), (1, 1, 2), (2, 1, 1)],
    ),
    "rounded boundaries": (lambda: gsadmm(grid=8, outer_optimizer=NESTEROV), [(2, 1, 2)]),
    "one worker": (lambda: gsadmm(workers=1), [(2, 1, 1)]),
    "two slots, four workers": (
        lambda: solvers.gsam(
            NET, subnets=4, optimizer=MOMENTUM, batch_size=B, workers=4, local_steps=2
        ),
        [(2, 1, 2), (1, 1, 4)],
    ),
    "sgd": (lambda: sgd(outer_optimizer=optax.adam(1e-3)), [(1, 1, 4), (1, 1, 2)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_on_meshes_the_numbers_and_bytes_are_those_that_are_told(name):
    build, shapes = MESHES[name]
    method = build()
    testing.check_method(method, X, Y)
    for shape in shapes:
        mesh = sharding.make_mesh(*shape)
        testing.check_placed(method, X, Y, mesh)
        testing.check_bytes(method, X, Y, mesh)


ARGUMENTS = [
    ({"workers": None}, r"workers: expected how many train apart, .*e.g. 2, with local_steps; got"),
    (
        {"workers": None, "local_steps": None, "outer_optimizer": NESTEROV},
        "workers: expected how many train apart, .* with outer_optimizer; got None",
    ),
    ({"local_steps": None}, r"local_steps: expected how many steps workers=2 take .*e.g. 20; got"),
    ({"schedule": "stored"}, "workers: expected None with schedule='stored', .*; got 2: use"),
    ({"outer_optimizer": [NESTEROV] * 3}, "outer_optimizer: expected .* a list of 2"),
    (
        {"outer_optimizer": optax.contrib.reduce_on_plateau()},
        "outer_optimizer: expected one that .* wants value=.* use it with local_sgd",
    ),
]


@pytest.mark.parametrize(("changes", "message"), ARGUMENTS)
def test_arguments_that_do_not_go_together_are_refused(changes, message):
    ways = {"optimizer": MOMENTUM, "batch_size": B, "workers": 2, "local_steps": R} | changes
    with pytest.raises(ValueError, match=message):
        solvers.gsadmm(NET, subnets=2, **ways)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 3), "mesh: expected a 'pc' axis that divides workers=2; got 3"),
        ((1, 2, 2), "mesh: expected pr=1, gsadmm with workers does not split layers; got 2"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        sharding.place(gsadmm(), sharding.make_mesh(*shape))


def test_a_round_of_another_shape_is_refused():
    method = gsadmm()
    x, y = testing.minibatch(method, X, Y)
    state = jax.eval_shape(lambda: method.init(KEY, X, Y))
    with pytest.raises(ValueError, match=r"x: expected \[local_steps, workers, batch_size, ...\]"):
        method.step(state, x[:, :1], y)


def test_what_a_round_sends_is_declared():
    """Boundaries R times, whole; of the weights one mean a piece, but for the frozen first layer."""
    labels = lambda params: ["still" if i == 0 else "moving" for i in range(len(params))]
    some = optax.multi_transform({"still": optax.set_to_zero(), "moving": MOMENTUM}, labels)
    net = sequence([dense(n) for n in (7, 6, 3)], (5,))
    method = gsadmm(net, optimizer=some, cuts=[1], subnets=None, outer_optimizer=NESTEROV)
    sent = [(m.what, m.shape, m.axis, m.times) for m in method.moves(0)]
    assert sent == [
        ("f", (N * B, 7), "subnet", R),
        ("q - f", (N * B, 7), "subnet", R),
        ("mean of W", (0,), "pc", 1),
        ("mean of W", (7 * 6 + 6 + 6 * 3 + 3,), "pc", 1),
    ]
