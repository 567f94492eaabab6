"""pdADMM: every block against the written Lagrangian, the whole against a slow twin."""

import functools
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtssm
from jtssm import data, losses, solvers
from jtssm.data import synthetic
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from jtssm.solvers import layerwise
from jtssm.solvers.layerwise import activations, updates
from jtssm.solvers.layerwise.activations import RELU
from tests.cases import few_of
from tests.solvers.layerwise import twin

NET = jtssm.mlp([9, 5, 7, 6, 3])
LEAKY = functools.partial(jax.nn.leaky_relu, negative_slope=0.2)
RHO, NU, DECAY = 2.3, 0.4, 0.03


def samples(num=14, seed=0, inputs=9, classes=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, inputs)), rng.integers(0, classes, num).astype(np.int32)


@pytest.fixture(params=["cross_entropy", "squared_error"])
def point(request):
    """A method, an arbitrary point that satisfies nothing but r = p W + b - z, x and y."""
    x, y = samples()
    rng = np.random.default_rng(1)
    if request.param == "squared_error":
        y = rng.normal(size=(len(x), 3))
    method = solvers.pdadmm(NET, rho=RHO, nu=NU, weight_decay=DECAY, loss=request.param)
    state = method.init(jax.random.key(0), x, y)
    noise = lambda a: a + jnp.asarray(rng.normal(size=a.shape))
    fields = {name: jax.tree.map(noise, getattr(state, name)) for name in "pzqu"}
    fields["weights"] = jax.tree.map(noise, state.weights)
    state = state._replace(**fields)
    return method, state, jnp.asarray(x), jnp.asarray(y)


def residual(state, l, x):
    layer = state.weights[l].params[0]
    return (x if l == 0 else state.p[l]) @ layer["W"] + layer["b"][None, :] - state.z[l]


def replaced(state, name, l, a):
    """The state with W, b, p, z, q or u of layer l replaced."""
    if name in "Wb":
        piece = state.weights[l]
        piece = piece._replace(params=[piece.params[0] | {name: a}])
        return state._replace(weights=(*state.weights[:l], piece, *state.weights[l + 1 :]))
    old = getattr(state, name)
    return state._replace(**{name: (*old[:l], a, *old[l + 1 :])})


def along(method, state, x, y, name, l):
    """L as a function of one block."""
    return lambda a: layerwise.lagrangian(method, replaced(state, name, l, a), x, y)


def before(state, l):
    return state.q[l - 1], state.u[l - 1]


def test_the_lagrangian_is_the_sum_that_the_docstring_writes(point):
    method, state, x, y = point
    expected = float(method.loss.value(state.z[-1], y).sum())
    for l in range(4):
        expected += NU / 2 * float((residual(state, l, x) ** 2).sum())
        expected += DECAY / 2 * float((state.weights[l].params[0]["W"] ** 2).sum())
    for l in range(3):
        gap = np.asarray(state.p[l + 1] - state.q[l])
        expected += NU / 2 * float(((state.q[l] - np.maximum(state.z[l], 0)) ** 2).sum())
        expected += float((state.u[l] * gap).sum()) + RHO / 2 * float((gap**2).sum())
    np.testing.assert_allclose(layerwise.lagrangian(method, state, x, y), expected, rtol=1e-13)


def test_p_and_W_move_along_the_gradient_by_the_exact_line_search(point):
    """At the line's minimum the gradient is orthogonal to the step; r stays p W + b - z."""
    method, state, x, y = point
    for l in (1, 2, 3):
        W, r = state.weights[l].params[0]["W"], residual(state, l, x)
        L = along(method, state, x, y, "p", l)
        p, r_new, tau = layerwise.update_p(state.p[l], r, W, *before(state, l), rho=RHO, nu=NU)
        np.testing.assert_allclose(p, state.p[l] - jax.grad(L)(state.p[l]) / tau, atol=1e-12)
        slope = float((jax.grad(L)(p) * (p - state.p[l])).sum())
        assert abs(slope) < 1e-10 * float(L(p))
        np.testing.assert_allclose(r_new, residual(replaced(state, "p", l, p), l, x), atol=1e-12)
    for l in range(4):
        W, r = state.weights[l].params[0]["W"], residual(state, l, x)
        L, p = along(method, state, x, y, "W", l), x if l == 0 else state.p[l]
        W_new, r_new, theta = layerwise.update_W(W, r, p, nu=NU, weight_decay=DECAY)
        np.testing.assert_allclose(W_new, W - jax.grad(L)(W) / theta, atol=1e-12)
        assert abs(float((jax.grad(L)(W_new) * (W_new - W)).sum())) < 1e-10 * float(L(W_new))
        np.testing.assert_allclose(
            r_new, residual(replaced(state, "W", l, W_new), l, x), atol=1e-12
        )


def test_the_exact_steps_are_flat_on_L(point):
    method, state, x, y = point
    l = 2
    W, r = state.weights[l].params[0]["W"], residual(state, l, x)
    p, r_new, _ = layerwise.minimise_p(state.p[l], r, W, *before(state, l), rho=RHO, nu=NU)
    np.testing.assert_allclose(jax.grad(along(method, state, x, y, "p", l))(p), 0, atol=1e-11)
    np.testing.assert_allclose(r_new, residual(replaced(state, "p", l, p), l, x), atol=1e-12)
    for damping in (0.3, 5.0):
        W_new, r_new, theta = layerwise.minimise_W(
            W, r, state.p[l], nu=NU, damping=damping, weight_decay=DECAY
        )
        proximal = lambda a, theta=theta: (
            best_b(state, l, a, x, y, method) + theta / 2 * jnp.sum((a - W) ** 2)
        )
        np.testing.assert_allclose(jax.grad(proximal)(W_new), 0, atol=1e-11)
        centred = np.asarray(state.p[l] - state.p[l].mean(axis=0)[None, :])
        eigenvalues = np.linalg.eigvalsh(NU * centred.T @ centred)
        np.testing.assert_allclose(theta, damping * eigenvalues.mean(), rtol=1e-12)
        np.testing.assert_allclose(
            r_new, residual(replaced(state, "W", l, W_new), l, x), atol=1e-12
        )
    exact, *_ = layerwise.minimise_W(W, r, state.p[l], nu=NU, damping=0.0, weight_decay=DECAY)
    flat = jax.grad(lambda a: best_b(state, l, a, x, y, method))(exact)
    np.testing.assert_allclose(flat, 0, atol=1e-6)


def best_b(state, l, W, x, y, method):
    """L as a function of W with b at its minimiser."""
    moved = replaced(state, "W", l, W)
    b, _ = layerwise.update_b(state.weights[l].params[0]["b"], residual(moved, l, x))
    return layerwise.lagrangian(method, replaced(moved, "b", l, b), x, y)


def test_b_and_q_minimise_L_and_u_moves_by_rho_along_its_gradient(point):
    method, state, x, y = point
    for l in range(4):
        b, r = layerwise.update_b(state.weights[l].params[0]["b"], residual(state, l, x))
        np.testing.assert_allclose(jax.grad(along(method, state, x, y, "b", l))(b), 0, atol=1e-12)
        np.testing.assert_allclose(r, residual(replaced(state, "b", l, b), l, x), atol=1e-12)
    for l in range(3):
        p, u, z = state.p[l + 1], state.u[l], state.z[l]
        q = layerwise.update_q(p, u, z, rho=RHO, nu=NU)
        np.testing.assert_allclose(jax.grad(along(method, state, x, y, "q", l))(q), 0, atol=1e-12)
        dL = jax.grad(along(method, replaced(state, "q", l, q), x, y, "u", l))(u)
        u_new = layerwise.update_u(u, p, q, rho=RHO)
        np.testing.assert_allclose(u_new, u + RHO * dL, atol=1e-12)
        np.testing.assert_allclose(u_new, NU * (q - np.maximum(z, 0)), atol=1e-12)


def test_the_last_z_is_flat_on_L(point):
    method, state, x, y = point
    m = residual(state, 3, x) + state.z[3]
    z = layerwise.update_z_last(state.z[3], m, y, nu=NU, loss=method.loss)
    np.testing.assert_allclose(jax.grad(along(method, state, x, y, "z", 3))(z), 0, atol=1e-12)


@pytest.mark.parametrize("nu", [1e-6, 1e-2, 1.0, 1e3])
def test_the_prox_of_cross_entropy_is_solved_from_any_start(nu):
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.integers(0, 10, 200))
    m, start = (jnp.asarray(rng.normal(size=(200, 10)) * scale) for scale in (5.0, 40.0))
    z = losses.cross_entropy().prox(start, m, y, nu)
    slope = jax.nn.softmax(z) - jax.nn.one_hot(y, 10) + nu * (z - m)
    np.testing.assert_allclose(slope, 0, atol=1e-12 * max(1, nu))
    low = losses.cross_entropy().prox(*(a.astype(np.float32) for a in (m, m)), y, np.float32(nu))
    assert low.dtype == np.float32
    slope = jax.nn.softmax(low) - jax.nn.one_hot(y, 10, dtype=np.float32) + nu * (low - m)
    np.testing.assert_allclose(slope, 0, atol=3e-6 * max(1, nu))


ENDS = np.array([-30.0, -3.0, -1.0, -0.2, 0.0, 0.3, 1.0, 2.5, 30.0])


IN_NUMPY = {  # f and its derivative
    "relu": (lambda a: np.maximum(a, 0), lambda a: np.where(a > 0, 1.0, 0.0)),
    "leaky_relu 0.2": (lambda a: np.maximum(a, 0.2 * a), lambda a: np.where(a > 0, 1.0, 0.2)),
    "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
}


@pytest.mark.parametrize(
    "activation", [RELU, activations.leaky(0.2), activations.TANH], ids=lambda a: a.name
)
def test_the_hidden_z_is_the_brute_force_minimum(activation):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(ENDS, ENDS, ENDS), -1).reshape(-1, 3)[rng.permutation(729)[:300]]
    z, m, q = (np.concatenate([grid, 2 * rng.normal(size=(100, 3))])[:, i][None] for i in range(3))
    cost = lambda a: (a - m) ** 2 + (q - np.asarray(activation.f(a))) ** 2 + (a - z) ** 2
    found = np.asarray(layerwise.update_z(z, m, q, nu=NU, activation=activation))
    best = twin.brute_force_z(*IN_NUMPY[activation.name], z, m, q)
    np.testing.assert_allclose(cost(found), cost(best), rtol=1e-9, atol=1e-12)
    low = layerwise.update_z(
        *(jnp.asarray(a, np.float32) for a in (z, m, q)), nu=NU, activation=activation
    )
    assert (cost(np.asarray(low, np.float64)) <= cost(best) + 1e-4 * (1 + cost(best))).all()


@pytest.mark.parametrize("t0", [10.0, 1e-3])
def test_step_lengths_end_at_the_first_doubling_that_is_long_enough(t0):
    for c in (t0 / 7, t0, 1.5 * t0, 2 * t0, 2.0000001 * t0, 4 * t0, 1000.0 * t0):
        expected = t0
        while expected < c:
            expected *= 2
        assert float(updates.step_length(jnp.asarray(3 * c), jnp.asarray(3.0), t0)) == expected
    assert float(updates.step_length(jnp.zeros(()), jnp.zeros(()), t0)) == t0
    assert np.isfinite(updates.step_length(jnp.zeros(()), jnp.zeros(()), None))


NUMBERS = [(0.5, 0.1, 1e-3), (1e-4, 1e-4, 10.0)]
CASES = [(a, numbers) for a in (jax.nn.relu, LEAKY, jnp.tanh) for numbers in NUMBERS]
FEW = [(jax.nn.relu, NUMBERS[0]), (LEAKY, NUMBERS[1]), (jnp.tanh, NUMBERS[0])]


@pytest.mark.parametrize(
    ("activation", "numbers"),
    few_of(CASES, FEW),
    ids=[f"{name} {numbers}" for name in IN_NUMPY for numbers in NUMBERS],
)
def test_iterations_equal_the_papers_trial_by_trial(activation, numbers):
    """Also the powers of two: the paper's start of 10 is never doubled at rho = 1e-4."""
    rho, nu, t0 = numbers
    net = jtssm.mlp([9, 5, 4, 3], activation)
    x, y = samples(8)
    method = solvers.pdadmm(net, rho=rho, nu=nu, steps="gradient", t0=t0, weight_decay=0.01)
    params = net.init(jax.random.key(3), jnp.float64)
    f = IN_NUMPY[activations.find(0, net.layers[0]).name]
    slow = twin.Twin(params, x, y, *f, rho=rho, nu=nu, t0=t0, weight_decay=0.01)
    state = method.init(jax.random.key(0), x, y, params)
    step = jax.jit(method.step)
    doubled = set()
    for _ in range(6):
        lengths = step_lengths(method, state, x)
        state, _ = step(state, x, y)
        slow.iteration()
        assert lengths == slow.lengths
        doubled |= {round(np.log2(t / t0)) for pair in lengths for t in pair if t}
        for l in range(3):
            layer = state.weights[l].params[0]
            for a, b in ((layer["W"], slow.W[l]), (layer["b"], slow.b[l]), (state.z[l], slow.z[l])):
                np.testing.assert_allclose(a, b, atol=1e-8)
        for l in range(2):
            triples = (
                (state.p[l + 1], slow.p[l + 1]),
                (state.q[l], slow.q[l]),
                (state.u[l], slow.u[l]),
            )
            for a, b in triples:
                np.testing.assert_allclose(a, b, atol=1e-8)
    assert (doubled == {0}) == (t0 == 10.0)


def step_lengths(method, state, x):
    """(tau, theta) of every layer in the next iteration, from the public updates."""
    rho, nu, decay, _, t0 = state.numbers
    pairs = []
    for l, piece in enumerate(state.weights):
        W, p, r, tau = piece.params[0]["W"], state.p[l], state.r[l], None
        if l:
            p, r, tau = layerwise.update_p(p, r, W, *before(state, l), rho=rho, nu=nu, t0=t0)
            tau = float(tau)
        _, _, theta = layerwise.update_W(W, r, x if l == 0 else p, nu=nu, t0=t0, weight_decay=decay)
        pairs.append((tau, float(theta)))
    return pairs


@pytest.mark.parametrize("steps", ["gradient", "damped", "exact"])
def test_what_the_carried_variables_promise_holds_after_100_float32_iterations(steps):
    """r = p W + b - z and u = nu (q - f(z)), to rounding; the objective is the Lagrangian."""
    x, y = synthetic.separable(0, 60, 9, 3, np.float32)
    net = jtssm.mlp([9, 20, 20, 20, 3])
    method = solvers.pdadmm(
        net, rho=RHO, nu=NU, steps=steps, weight_decay=1e-2, precision="highest"
    )
    state = method.init(jax.random.key(0), x, y)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: method.step(s, x, y), s, length=100))
    state, infos = run(state)
    for l in range(4):
        scale = float(jnp.abs(state.z[l]).max())
        np.testing.assert_allclose(
            state.r[l], residual(state, l, jnp.asarray(x)), atol=2e-5 * scale
        )
    for l in range(3):
        f = np.maximum(state.z[l], 0)
        np.testing.assert_allclose(state.u[l], NU * (state.q[l] - f), atol=2e-6 * float(f.max()))
    value = float(layerwise.lagrangian(method, state, x, y)) / len(x)
    np.testing.assert_allclose(infos.shown["objective"][-1], value, rtol=1e-5)


@pytest.mark.parametrize("steps", ["gradient", "damped", "exact"])
def test_above_4_nu_the_lagrangian_falls_by_what_theory_says_every_iteration(steps):
    """On random problems of many seeds, 60 iterations each."""
    net = jtssm.mlp([9, 8, 7, 3])
    method = solvers.pdadmm(net, steps=steps, weight_decay=0.05)
    run = jax.jit(lambda s, x, y: jax.lax.scan(lambda s, _: method.step(s, x, y), s, length=60))
    value = jax.jit(lambda s, x, y: layerwise.lagrangian(method, s, x, y) / len(x))
    for nu in (0.05, 1.0):
        for seed in range(10):
            x, y = samples(20, seed)
            state = method.init(jax.random.key(seed), x, y)
            numbers = state.numbers._replace(rho=jnp.asarray(4.2 * nu), nu=jnp.asarray(nu))
            state = state._replace(numbers=numbers)
            start = value(state, x, y)
            _, infos = run(state, x, y)
            objective = np.array([start, *infos.shown["objective"]])
            assert (infos.shown["decrease"] >= 0).all()
            assert (np.diff(objective) <= -infos.shown["decrease"] + 1e-12).all()


def test_below_the_condition_nothing_is_promised_and_the_papers_rho_equals_nu_still_learns():
    x, y = synthetic.separable(0, 90, 9, 3, np.float64)
    method = solvers.pdadmm(jtssm.mlp([9, 12, 12, 3]), rho=1e-4, nu=1e-4, steps="gradient")
    result = jtssm.fit(method, (x, y), epochs=60, key=jax.random.key(0), validation=(x, y))
    assert result.history[-1]["validation_accuracy"] > 0.95


def test_one_trace_serves_every_number():
    x, y = samples()
    method = solvers.pdadmm(NET, steps="gradient", t0=0.1, weight_decay=0.1)
    traces = []

    @jax.jit
    def step(*args):
        traces.append(1)
        return method.step(*args)

    state = method.init(jax.random.key(0), x, y)
    for scale in (1.0, 2.0, 0.3):
        numbers = jax.tree.map(lambda a, scale=scale: scale * a, state.numbers)
        state, _ = step(state._replace(numbers=numbers), x, y)
    assert len(traces) == 1


def test_the_products_are_four_a_layer_and_two_for_the_first():
    """Counted in the traced step, as samples x inputs x width each."""
    x, y = samples(64)
    widths = [9, 5, 7, 6, 3]
    for steps in ("gradient", "damped", "exact"):
        method = solvers.pdadmm(NET, steps=steps)
        state = method.init(jax.random.key(0), x, y)
        counted = products(jax.make_jaxpr(method.step)(state, x, y).jaxpr, 64)
        expected = [
            64 * a * b for l, (a, b) in enumerate(pairwise(widths)) for _ in range(4 if l else 2)
        ]
        grams = [] if steps == "gradient" else [64 * a * a for a in widths[:-1]]
        assert counted == sorted([*expected, *grams])


def products(jaxpr, num):
    """Multiply-adds of the products that run over samples, sorted."""
    found = []
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            out = eqn.outvars[0].aval.shape
            size = int(np.prod(out)) * int(np.prod([left[i] for i in contracted]))
            if num in (*left, *out):
                found.append(size)
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                found += products(inner, num)
    return sorted(found)


def test_the_state_can_be_donated_and_nothing_calls_the_host():
    x, y = samples(64)
    method = solvers.pdadmm(NET)
    state = method.init(jax.random.key(0), x, y)
    many = lambda s, x, y: jax.lax.scan(lambda s, _: method.step(s, x, y), s, length=3)
    program = jax.jit(many, donate_argnums=0).lower(state, x, y).compile()
    held = sum(a.nbytes for a in jax.tree.leaves(state))
    assert program.memory_analysis().alias_size_in_bytes == held
    assert "callback" not in program.as_text()
    assert "outfeed" not in program.as_text()
    state, infos = jax.jit(many, donate_argnums=0)(state, x, y)
    assert infos.loss.shape == (3,)


def test_growing_leaves_the_network_and_the_duals_as_they_are():
    x, y = synthetic.separable(0, 60, 9, 3, np.float64)
    shallow, deep = jtssm.mlp([9, 7, 6, 3]), jtssm.mlp([9, 7, 6, 6, 6, 3])
    for options in ({}, {"grid": 8}):
        method = solvers.pdadmm(shallow, rho=RHO, nu=NU, weight_decay=0.02, **options)
        state = method.init(jax.random.key(0), x, y)
        step = jax.jit(method.step)
        for _ in range(15):
            state, _ = step(state, x, y)
        grown, after = layerwise.grow(method, state, deep)
        np.testing.assert_allclose(grown.predict(after, x), method.predict(state, x), atol=1e-12)
        assert grown.network is deep
        jax.tree.map(np.testing.assert_array_equal, after.numbers, state.numbers)
        for l in range(5):
            np.testing.assert_allclose(after.r[l], residual(after, l, x), atol=1e-12)
        for l in range(4) if not options else ():
            f = np.maximum(after.z[l], 0)
            np.testing.assert_allclose(after.u[l], NU * (after.q[l] - f), atol=1e-12)
        value = lambda m, s: float(layerwise.lagrangian(m, s, x, y))
        decay = 0.01 * 2 * 6  # of two identities
        # what was p_L - q apart is now at two ends: no larger than before but for the decay
        assert value(grown, after) <= value(method, state) + decay + 2 * RHO * float(
            (np.minimum(state.p[-1], 0) ** 2).sum()
        ) + float(np.abs(state.u[-2] * np.minimum(state.p[-1], 0)).sum())
        losses_ = []
        for _ in range(15):
            after, info = jax.jit(grown.step)(after, x, y)
            losses_.append(float(info.shown["objective"]))
        assert losses_[-1] < losses_[0]


def test_two_stages_beat_the_deep_network_from_a_random_start():
    x, y = synthetic.separable(0, 120, 9, 3, np.float64)
    shallow, deep = jtssm.mlp([9, 16, 3]), jtssm.mlp([9, *[16] * 7, 3])
    options = {"rho": 10.0, "nu": 0.5, "steps": "gradient"}
    method, key = solvers.pdadmm(shallow, **options), jax.random.key(0)
    run = lambda m, s, k: jax.jit(
        lambda s: jax.lax.fori_loop(0, k, lambda _, s: m.step(s, x, y)[0], s)
    )(s)
    right = lambda m, s: float((m.predict(s, x).argmax(1) == y).mean())
    state = run(method, method.init(key, x, y), 20)
    grown, state = layerwise.grow(method, state, deep)
    state = run(grown, state, 20)
    random = solvers.pdadmm(deep, **options)
    other = run(random, random.init(key, x, y), 40)
    assert right(grown, state) > right(random, other) + 0.05
    assert right(grown, state) > 0.95


def test_images_are_taken_as_rows():
    layers = [dense(5, jax.nn.relu), dense(3)]
    x, y = samples(12)
    ends = []
    for net, seen in (
        (sequence(layers, (9,)), x),
        (sequence(layers, (3, 3, 1)), x.reshape(-1, 3, 3, 1)),
    ):
        method = solvers.pdadmm(net, rho=RHO, nu=NU)
        state = method.init(jax.random.key(0), seen, y)
        state, _ = jax.jit(method.step)(state, seen, y)
        state, info = jax.jit(method.step)(state, seen, y)
        value = layerwise.lagrangian(method, state, seen, y) / len(x)
        np.testing.assert_allclose(info.shown["objective"], value, rtol=1e-12)
        assert [m.shape for m in method.moves(12) if m.what == "p^T p"] == [(81,), (25,)]
        ends.append(state.z[0])
    np.testing.assert_allclose(*ends, atol=1e-12)


def test_on_the_digits_too_the_lagrangian_falls_every_iteration():
    train = data.load("digits", flat=True).train
    x, y = train.x[:300].astype(np.float64), train.y[:300]
    method = solvers.pdadmm(jtssm.mlp([64, 20, 20, 10]), rho=1.0, nu=0.2, weight_decay=0.01)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: method.step(s, x, y), s, length=40)[1])
    for seed in range(8):
        infos = run(method.init(jax.random.key(seed), x, y))
        assert (np.diff(infos.shown["objective"]) <= -infos.shown["decrease"][1:] + 1e-12).all()
        assert infos.accuracy[-1] > 0.8
