"""gsADMM and gsAM with minibatches in flight."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import data, losses, solvers
from tests.solvers.tssm import twins

NET = jtssm.mlp([5, 7, 6, 8, 4, 3])
BATCH = 6
GSADMM = functools.partial(solvers.gsadmm, NET, batch_size=BATCH, microbatches=1, rho=0.6)
GSAM = functools.partial(solvers.gsam, NET, batch_size=BATCH, microbatches=1)


def batches(num, dtype=np.float64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num, BATCH, 5)).astype(dtype)
    return list(zip(x, rng.integers(0, 3, (num, BATCH)).astype(np.int32), strict=True))


def trained(method, data, params, drain=True):
    state = method.init(jax.random.key(0), *data[0], params)
    step = jax.jit(method.step)
    infos = []
    for x, y in data:
        state, info = step(state, x, y)
        infos.append(info)
    return (jax.jit(method.drain)(state) if drain else state), infos


def assert_close(a, b, atol=1e-11):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.fixture
def params():
    return NET.init(jax.random.key(3), jnp.float64)


MOMENTUM, ADAM = optax.sgd(0.05, momentum=0.9), optax.adam(1e-2)
TOLD = ((GSADMM, 2, MOMENTUM), (GSADMM, 5, ADAM), (GSAM, 3, MOMENTUM))
MORE = (
    (GSADMM, 2, ADAM),
    (GSADMM, 5, MOMENTUM),
    (GSAM, 3, ADAM),
    (GSADMM, 3, MOMENTUM),
    (GSADMM, 3, ADAM),
)


@pytest.mark.parametrize(
    ("build", "n", "optimizer"),
    [*TOLD, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)],
    ids=lambda a: a if isinstance(a, int) else getattr(getattr(a, "func", None), "__name__", ""),
)
def test_one_sweep_is_training_with_delayed_gradients(params, n, build, optimizer):
    method = build(
        subnets=n, optimizer=optimizer, alpha=1.7, schedule=solvers.Streaming(delay_power=0)
    )
    data = batches(12)
    state, _ = trained(method, data, params)
    starts = method.program.stages.starts
    twin = twins.Pieces(NET, params, starts, optimizer, losses.cross_entropy())
    assert_close(method.params(state), twins.delayed_gradient(twin, data))


@pytest.mark.parametrize(
    ("optimizer", "given", "power"),
    [
        (optax.adam, {}, 1.0),
        (
            lambda rate: optax.sgd(rate, momentum=0.9),
            {"schedule": solvers.Streaming(delay_power=0.5)},
            0.5,
        ),
    ],
    ids=["adam", "sgd"],
)
def test_rates_fall_with_the_delay(params, optimizer, given, power):
    """Subnetwork l of 4 works on gradients 2(4 - l) minibatches old."""
    assert solvers.delays(4) == [6, 4, 2, 0]
    method = GSADMM(subnets=4, optimizer=optimizer(0.05), **given)
    data = batches(9)
    state, _ = trained(method, data, params)
    rates = [0.05 / d**power for d in (7, 5, 3, 1)]
    each = [optimizer(rate) for rate in rates]
    twin = twins.Pieces(NET, params, method.program.stages.starts, each, losses.cross_entropy())
    assert_close(method.params(state), twins.delayed_gradient(twin, data))


def test_a_minibatch_meets_a_subnetwork_again_after_its_delay(params):
    """The last subnetwork steps first for a minibatch; each is `delays` ticks after its forward."""
    method = GSADMM(subnets=4, optimizer=optax.sgd(0.05))
    state = method.init(jax.random.key(0), *batches(1)[0], params)
    first_step = [None] * 4
    for tick, (x, y) in enumerate(batches(8)):
        before = state
        state, _ = method.step(state, x, y)
        for l, (a, b) in enumerate(zip(state.weights, before.weights, strict=True)):
            if first_step[l] is None and (a.params[0]["W"] != b.params[0]["W"]).any():
                first_step[l] = tick
    assert [tick - l for l, tick in enumerate(first_step)] == solvers.delays(4)


@pytest.mark.parametrize(
    ("build", "n", "sweeps"),
    [
        (GSADMM, 1, 2),
        (GSADMM, 2, 3),
        (GSADMM, 4, 2),
        (GSAM, 2, 3),
        *(
            pytest.param(build, n, sweeps, marks=pytest.mark.slow)
            for build, n, sweeps in (
                (GSADMM, 2, 1),
                (GSADMM, 2, 2),
                (GSADMM, 4, 1),
                (GSADMM, 4, 3),
                (GSAM, 4, 2),
            )
        ),
    ],
    ids=lambda a: getattr(getattr(a, "func", None), "__name__", a),
)
def test_any_number_of_sweeps_equals_the_literal_twin(params, build, n, sweeps):
    numbers = {"alpha": 1.7, "eta": 0.21}
    optimizer = optax.sgd(0.05, momentum=0.9)
    method = build(
        subnets=n, optimizer=optimizer, schedule=solvers.Streaming(sweeps, delay_power=0), **numbers
    )
    data = batches(6)
    state, _ = trained(method, data, params)
    twin = twins.Pieces(
        NET, params, method.program.stages.starts, optimizer, losses.cross_entropy()
    )
    rho = 0.6 if build is GSADMM else None
    assert_close(method.params(state), twins.streaming(twin, data, sweeps, rho=rho, **numbers))


def test_with_one_sweep_gsam_and_gsadmm_are_the_same_method(params):
    data = batches(9)
    one, other = (build(subnets=4, optimizer=optax.adam(1e-2)) for build in (GSADMM, GSAM))
    states = [trained(method, data, params)[0] for method in (one, other)]
    assert_close(one.params(states[0]), other.params(states[1]))


def test_gsam_stores_and_reports_nothing_of_a_dual(params):
    method = GSAM(subnets=3, optimizer=optax.sgd(0.05), schedule=solvers.Streaming(sweeps=2))
    state, infos = trained(method, batches(9), params, drain=False)
    assert all(kept.u == () for line in state.kept for kept in line)
    assert list(infos[-1].shown) == ["coupling"]
    assert float(infos[-1].shown["coupling"]) > 0


def test_one_subnetwork_is_plain_training_step_for_step(params):
    optimizer = optax.adam(1e-2)
    one = solvers.gsadmm(NET, subnets=1, optimizer=optimizer, batch_size=BATCH)
    plain = solvers.sgd(NET, optimizer=optimizer, batch_size=BATCH)
    state, other = (m.init(jax.random.key(0), *batches(1)[0], params) for m in (one, plain))
    for x, y in batches(8):
        state, info = one.step(state, x, y)
        other, expected = plain.step(other, x, y)
        assert_close(one.params(state), plain.params(other), atol=1e-13)
        assert_close(info[:3], expected[:3], atol=1e-13)
        assert {float(a) for a in info.shown.values()} == {0.0}  # of a single piece: no boundary


def test_empty_minibatches_change_nothing(params):
    method = GSADMM(subnets=3, optimizer=optax.adam(1e-2))
    state = method.init(jax.random.key(0), *batches(1)[0], params)
    assert_close(jax.jit(method.drain)(state).weights, state.weights, atol=0)
    moved = []
    for x, y in batches(5):
        before = state
        state, info = method.step(state, x, y)
        change = [
            float(jnp.abs(a[0]["W"] - b[0]["W"]).max())
            for (a, _), (b, _) in zip(state.weights, before.weights, strict=True)
        ]
        moved.append([c > 0 for c in change])
        assert int(info.samples) == (BATCH if moved[-1][2] else 0)
        unknown = {bool(jnp.isnan(a)) for a in jax.tree.leaves(info._replace(samples=info.loss))}
        assert unknown == {not moved[-1][2]}  # not measured yet: nan, never 0
    # labels reach subnetwork 3 at tick 2, 2 at tick 3, 1 at tick 4
    assert moved == [
        [False, False, False],
        [False, False, False],
        [False, False, True],
        [False, True, True],
        [True, True, True],
    ]


def test_draining_lets_every_minibatch_reach_every_subnetwork_once(params):
    """Optimizer step counts say how many minibatches a subnetwork was trained on."""
    for sweeps in (1, 2):
        method = GSADMM(
            subnets=4, optimizer=optax.adam(1e-2), schedule=solvers.Streaming(sweeps, delay_power=0)
        )
        state, _ = trained(method, batches(7), params)
        assert [int(w.opt_state[0].count) for w in state.weights] == [7 * sweeps] * 4
        again = method.drain(state)
        assert_close(again.weights, state.weights, atol=0)


def test_training_goes_on_after_draining_as_with_a_pause(params):
    method = GSADMM(subnets=3, optimizer=optax.sgd(0.05), schedule=solvers.Streaming(delay_power=0))
    state, _ = trained(method, batches(4), params)
    for x, y in batches(3):
        state, _ = method.step(state, x, y)
    state = method.drain(state)
    twin = twins.Pieces(
        NET, params, method.program.stages.starts, optax.sgd(0.05), losses.cross_entropy()
    )
    twins.delayed_gradient(twin, batches(4))
    assert_close(method.params(state), twins.delayed_gradient(twin, batches(3)))


def test_loss_and_accuracy_are_those_of_the_minibatch_that_reaches_the_end(params):
    """With weights at rest (rate 0) they are the composed network's on the minibatch n - 1 back."""
    method = GSADMM(subnets=3, optimizer=optax.sgd(0.0))
    data = batches(6)
    _, infos = trained(method, data, params, drain=False)
    for t in range(2, 6):
        outputs = NET.apply(params, data[t - 2][0])
        loss = losses.cross_entropy().value(outputs, data[t - 2][1]).mean()
        right = (outputs.argmax(1) == data[t - 2][1]).mean()
        np.testing.assert_allclose(infos[t].loss, loss, rtol=1e-12)
        np.testing.assert_allclose(infos[t].accuracy, right, rtol=1e-6)


def test_residuals_are_those_of_the_written_sweep(params):
    """n = 2, weights at rest: p = f - eta g, so p - q, q - f and q's change follow by hand."""
    rho, alpha, eta = 0.6, 1.7, 0.21
    method = GSADMM(cuts=[2], optimizer=optax.sgd(0.0), rho=rho, alpha=alpha, eta=eta)
    x, y = batches(1)[0]
    _, infos = trained(method, [(x, y)] * 3, params, drain=False)
    f = twins.run(NET, list(enumerate(params[:2])), x)
    rest = list(enumerate(params))[2:]
    g = jax.grad(lambda p: losses.cross_entropy().value(twins.run(NET, rest, p), y).sum())(f)
    size = float(jnp.sqrt((g**2).sum(1).mean()))
    v = eta * rho / (alpha + rho) * size
    np.testing.assert_allclose(infos[2].shown["coupling"], v, rtol=1e-12)
    np.testing.assert_allclose(infos[2].shown["primal_residual"], eta * size - v, rtol=1e-12)
    np.testing.assert_allclose(infos[2].shown["dual_residual"], rho * v, rtol=1e-12)


def test_one_trace_serves_every_step_and_every_rho(params):
    method = GSADMM(subnets=3, optimizer=optax.sgd(0.1))
    traces = []

    @jax.jit
    def step(state, x, y):
        traces.append(1)
        return method.step(state, x, y)

    state = method.init(jax.random.key(0), *batches(1)[0], params)
    results = []
    for rho in (1.0, 0.3, 4.0):
        new = state._replace(
            penalties=state.penalties._replace(rho=jnp.float64(rho), alpha=jnp.float64(0.5))
        )
        for x, y in batches(5):
            new, info = step(new, x, y)
        results.append(float(info.shown["primal_residual"]))
    assert len(traces) == 1
    assert len({round(r, 9) for r in results}) == 3


def test_an_optimizer_for_each_subnetwork(params):
    still = optax.sgd(0.0)
    method = solvers.gsadmm(NET, subnets=2, optimizer=[still, optax.sgd(0.1)], batch_size=BATCH)
    state, _ = trained(method, batches(3), params)
    cut = method.program.stages.starts[1]
    assert_close(method.params(state)[:cut], params[:cut], atol=0)
    assert float(jnp.abs(method.params(state)[-1]["W"] - params[-1]["W"]).max()) > 1e-3


def test_a_network_is_trained_to_squared_targets_too():
    net = jtssm.mlp([4, 9, 8, 2])
    x_key, key = jax.random.split(jax.random.key(5))
    x = jax.random.normal(x_key, (60, 4), np.float64)
    y = net.apply(net.init(key, np.float64), x)  # the network itself: the least error is 0
    x, y = np.asarray(x), np.asarray(y)
    method = solvers.gsadmm(
        net, subnets=3, optimizer=optax.adam(1e-2), batch_size=60, loss="squared_error"
    )
    state = method.init(jax.random.key(1), x, y)
    step = jax.jit(lambda s: jax.lax.fori_loop(0, 300, lambda _, s: method.step(s, x, y)[0], s))
    before = float(((method.predict(state, x) - y) ** 2).mean())
    after = float(((method.predict(step(state), x) - y) ** 2).mean())
    assert after < 0.05 * before


@pytest.mark.slow
def test_cut_into_single_layers_the_network_learns_because_rates_fall_with_the_delay():
    """Ten subnetworks of one layer, whole minibatches, the same Adam with and without delay_power."""
    splits = data.load("digits", flat=True)
    net = jtssm.mlp([64, *[64] * 9, 10])
    steps = 40 * (len(splits.train.y) // 30)
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 5, steps))
    accuracy = {}
    for power in (1, 0):
        method = solvers.gsadmm(
            net,
            subnets=10,
            optimizer=optimizer,
            batch_size=30,
            microbatches=1,
            schedule=solvers.Streaming(delay_power=power),
        )
        result = jtssm.fit(
            method, splits.train, epochs=40, key=jax.random.key(0), validation=splits.valid
        )
        accuracy[power] = result.history[-1]["validation_accuracy"]
    assert accuracy[1] > 0.93
    assert accuracy[0] < accuracy[1] - 0.1
