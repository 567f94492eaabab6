"""Local SGD and ensembles against loops of plain training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.data import synthetic

X, Y = synthetic.separable(0, 240, 5, 3, np.float64)
NET = jtssm.mlp([5, 8, 3], normalisation="batch")
KEY = jax.random.key(1)
ADAM = optax.adam(optax.cosine_decay_schedule(0.1, 10))
STEPS, SIZE = 3, 10


def batches(rounds, workers):
    shape = (rounds, STEPS, workers, SIZE)
    ids = np.random.default_rng(0).choice(len(X), shape)
    return X[ids], Y[ids]


def run(method, xs, ys, params=None):
    state = method.init(KEY, X, Y, params)
    step = jax.jit(method.step)
    for x, y in zip(xs, ys, strict=True):
        state, info = step(state, x, y)
    return state, info


def alone(x, y, state):
    """Plain training on x [R, b, ...], going on from a state of sgd."""
    plain = solvers.sgd(NET, optimizer=ADAM, batch_size=SIZE)
    for xb, yb in zip(x, y, strict=True):
        state, _ = plain.step(state, xb, yb)
    return state


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), list(one), list(other))


def first(params):
    return solvers.sgd(NET, optimizer=ADAM, batch_size=SIZE).init(KEY, X, Y, params)


def test_local_sgd_is_the_mean_of_plain_trainings_which_keep_their_optimizer():
    xs, ys = batches(2, 3)
    method = solvers.local_sgd(NET, workers=3, optimizer=ADAM, local_steps=STEPS, batch_size=SIZE)
    params = NET.init(jax.random.key(4), jnp.float64)
    state, info = run(method, xs, ys, params)
    workers = [first(params)] * 3
    for x, y in zip(xs, ys, strict=True):
        workers = [alone(x[:, w], y[:, w], s) for w, s in enumerate(workers)]
        mean = jax.tree.map(lambda *a: sum(a) / 3, *(s.weights[0].params for s in workers))
        workers = [s._replace(weights=(s.weights[0]._replace(params=mean),)) for s in workers]
    close(method.params(state), mean)
    assert info.samples == STEPS * 3 * SIZE


def test_one_local_step_of_plain_sgd_is_data_parallelism():
    net = jtssm.mlp([5, 8, 3])
    method = solvers.local_sgd(
        net, workers=4, optimizer=optax.sgd(0.2), local_steps=1, batch_size=SIZE
    )
    plain = solvers.sgd(net, optimizer=optax.sgd(0.2), batch_size=4 * SIZE)
    params = net.init(jax.random.key(4), jnp.float64)
    xs, ys = (a[:, :1] for a in batches(3, 4))
    state, info = run(method, xs, ys, params)
    other = plain.init(KEY, X, Y, params)
    for x, y in zip(xs, ys, strict=True):
        other, seen = plain.step(other, x.reshape(-1, 5), y.ravel())
    close(method.params(state), plain.params(other))
    np.testing.assert_allclose(info.loss, seen.loss)
    np.testing.assert_allclose(info.accuracy, seen.accuracy)


def test_an_ensemble_is_members_that_never_talk():
    xs, ys = batches(2, 3)
    method = solvers.ensemble(NET, members=3, optimizer=ADAM, local_steps=STEPS, batch_size=SIZE)
    start = method.params(method.init(KEY, X, Y))
    assert start[0]["W"].shape == (3, 5, 8)
    assert not np.allclose(start[0]["W"][0], start[0]["W"][1])
    state, _ = run(method, xs, ys)
    members = []
    for w in range(3):
        own = first(jax.tree.map(lambda a, w=w: a[w], start))
        for x, y in zip(xs, ys, strict=True):
            own = alone(x[:, w], y[:, w], own)
        members.append(own.weights[0].params)
    close(method.params(state), jax.tree.map(lambda *a: np.stack(a), *members))
    chances = np.mean([jax.nn.softmax(NET.apply(p, X)) for p in members], axis=0)
    np.testing.assert_allclose(np.exp(method.predict(state, X)), chances, atol=1e-12)


def test_an_ensemble_for_targets_is_the_mean_of_outputs():
    net, targets = jtssm.mlp([5, 8, 2]), X[:, :2]
    method = solvers.ensemble(
        net, members=2, optimizer=ADAM, local_steps=1, batch_size=SIZE, loss="squared_error"
    )
    state = method.init(KEY, X, targets)
    params = method.params(state)
    outputs = [net.apply(jax.tree.map(lambda a, w=w: a[w], params), X) for w in range(2)]
    np.testing.assert_allclose(method.predict(state, X), np.mean(outputs, axis=0), atol=1e-12)


@pytest.mark.parametrize("builder", [solvers.local_sgd, solvers.ensemble])
def test_statistics_are_estimated_under_the_trained_network(builder):
    net = jtssm.mlp([5, 8, 3], normalisation="running")
    count = {"workers" if builder is solvers.local_sgd else "members": 2}
    method = builder(net, optimizer=ADAM, local_steps=STEPS, batch_size=SIZE, **count)
    state, _ = run(method, *batches(1, 2))
    found = method.params(method.estimate(state, X))
    kept = method.params(state)
    if builder is solvers.local_sgd:
        close(found, net.estimate(kept, X))
    else:
        for w in range(2):
            pick = lambda tree, w=w: jax.tree.map(lambda a: a[w], tree)
            close(pick(found), net.estimate(pick(kept), X))


NESTEROV = solvers.optimizer("sgd", 0.7, momentum=0.9, nesterov=True)


def diloco(net=NET, outer=NESTEROV, **changes):
    ways = {"workers": 3, "optimizer": ADAM, "local_steps": STEPS, "batch_size": SIZE} | changes
    return solvers.local_sgd(net, outer_optimizer=outer, **ways)


def test_diloco_moves_the_shared_weights_by_nesterovs_rule():
    """Algorithm 1 of arXiv 2311.08105, its momentum written out: v <- 0.9 v + d; W <- W - 0.7 (d + 0.9 v)."""
    xs, ys = batches(3, 3)
    params = NET.init(jax.random.key(4), jnp.float64)
    state, _ = run(diloco(), xs, ys, params)
    workers, W = [first(params)] * 3, params
    v = jax.tree.map(jnp.zeros_like, W)
    for x, y in zip(xs, ys, strict=True):
        workers = [s._replace(weights=(s.weights[0]._replace(params=W),)) for s in workers]
        workers = [alone(x[:, w], y[:, w], s) for w, s in enumerate(workers)]
        d = jax.tree.map(lambda w, *a: w - sum(a) / 3, W, *(s.weights[0].params for s in workers))
        v = jax.tree.map(lambda v, d: 0.9 * v + d, v, d)
        W = jax.tree.map(lambda w, v, d: w - 0.7 * (d + 0.9 * v), W, v, d)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(W), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-10), state.outer_opt_state[0].trace, v
    )


def test_an_outer_step_leaves_alone_what_no_worker_moved():
    """Frozen weights and statistics in spite of decay; everything, with the momentum, where nothing counts."""
    net = jtssm.mlp([5, 8, 3], normalisation="running")
    labels = lambda params: ["frozen" if i == 0 else "moving" for i in range(len(params))]
    some = optax.multi_transform({"frozen": optax.set_to_zero(), "moving": optax.sgd(0.1)}, labels)
    outer = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.7, momentum=0.9))
    loss = jtssm.losses.cross_entropy(ignore_index=-1)
    method = diloco(net, outer, optimizer=some, loss=loss)
    (xs,), (ys,) = batches(1, 3)
    start = method.init(KEY, X, Y)
    step = jax.jit(method.step)
    state, _ = step(start, xs, ys)
    jax.tree.map(np.testing.assert_array_equal, state.params[0], start.params[0])
    for name in net.layers[1].estimated:
        np.testing.assert_array_equal(state.params[1][name], start.params[1][name])
    assert not np.array_equal(state.params[-1]["W"], start.params[-1]["W"])
    still, info = step(state, xs, np.full_like(ys, -1))
    assert info.samples == 0
    for name in ("params", "outer_opt_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(still, name), getattr(state, name))


def test_an_outer_optimizer_is_checked_like_the_other_one():
    with pytest.raises(ValueError, match=r"outer_optimizer: expected an optax optimizer.*got 0.7"):
        diloco(outer=0.7)
    with pytest.raises(ValueError, match=r"outer_optimizer: expected one that a gradient.*raised"):
        diloco(outer=optax.lbfgs())
    told = diloco(outer=optax.contrib.reduce_on_plateau())
    assert told.program.stages.num == 1
    assert "outer_optimizer=sgd(learning_rate=0.7, momentum=0.9, nesterov=True)" in repr(diloco())
