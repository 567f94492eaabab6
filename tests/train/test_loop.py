"""The training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, sharding, solvers
from jtssm.data import synthetic
from jtssm.train.batches import CHUNK

NET = jtssm.mlp([4, 12, 12, 3])
X, Y = synthetic.separable(0, 130, 4, 3, np.float64)
KEY = jax.random.key(0)


def gsadmm(optimizer=None, **options):
    optimizer = optax.adam(1e-2) if optimizer is None else optimizer
    ways = {"batch_size": 20, "microbatches": 1} | options
    return solvers.gsadmm(NET, subnets=2, optimizer=optimizer, **ways)


def test_history_counts_steps_samples_and_evaluates_the_composed_network():
    result = jtssm.fit(
        gsadmm(), (X, Y), epochs=3, key=KEY, validation={"train": (X, Y), "few": (X[:7], Y[:7])}
    )
    assert [line["epoch"] for line in result.history] == [1, 2, 3]
    assert [line["step"] for line in result.history] == [6, 12, 18]
    # the first minibatch reaches the last of 2 subnetworks one tick late
    assert [line["samples"] for line in result.history] == [100, 120, 120]
    outputs = NET.apply(result.params, X)
    np.testing.assert_allclose(result.predict(X), outputs, atol=1e-12)
    last = result.history[-1]
    expected = float(losses.cross_entropy().value(outputs, Y).mean())
    np.testing.assert_allclose(last["train_loss"], expected, rtol=1e-9)
    assert last["few_accuracy"] == float((outputs[:7].argmax(1) == Y[:7]).mean())
    assert last["seconds"] > 0


def test_fit_is_the_users_own_loop_with_shuffled_minibatches():
    """Every epoch deals each sample at most once: shown with targets that identify the samples."""
    seen = []
    method = solvers.sgd(NET, optimizer=optax.sgd(0.0), batch_size=20)

    def step(state, x, y):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return method.step(state, x, y)

    jtssm.fit(method._replace(step=step), (X, Y), epochs=2, key=KEY)
    jax.effects_barrier()
    rows = [bytes(row) for x in seen for row in x]
    assert len(rows) == 240
    assert len(set(rows[:120])) == len(set(rows[120:])) == 120
    assert set(rows) <= {bytes(row) for row in X}
    assert rows[:120] != rows[120:]


def test_rounds_straddle_epochs_and_lose_no_sample():
    """130 samples, rounds of 2 x 2 x 20 = 80: 8 rounds in 5 epochs, none after 0.6 of one."""
    seen = []
    options = {"optimizer": optax.sgd(0.0), "local_steps": 2, "batch_size": 20}
    method = solvers.ist(NET, subnets=2, **options)

    def step(state, x, y):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return method.step(state, x, y)

    result = jtssm.fit(method._replace(step=step), (X, Y), epochs=5, key=KEY)
    jax.effects_barrier()
    assert [line["step"] for line in result.history] == [1, 3, 4, 6, 8]
    assert [line["samples"] for line in result.history] == [80, 160, 80, 160, 160]
    rows = [bytes(row) for x in seen for row in x.reshape(-1, 4)]
    times = [rows.count(bytes(row)) for row in X]
    assert sum(times) == 640
    assert set(times) == {4, 5}  # 10 of 650 wait for a round that does not come

    few = jtssm.fit(method, (X[:50], Y[:50]), epochs=2, key=KEY, validation=(X, Y))
    assert [line["samples"] for line in few.history] == [0, 80]
    assert np.isnan(few.history[0]["loss"])  # nothing was measured
    assert result.state.round == 8


def test_a_run_is_reproducible_from_its_key_and_the_same_on_a_mesh():
    method = gsadmm(optax.sgd(0.05))
    runs = [
        jtssm.fit(method, (X, Y), epochs=2, key=key, mesh=mesh)
        for key, mesh in (
            (KEY, None),
            (KEY, sharding.make_mesh(2, 1, 2)),
            (jax.random.key(1), None),
        )
    ]
    one, mesh, other = (np.asarray(run.params[0]["W"]) for run in runs)
    np.testing.assert_allclose(one, mesh, atol=1e-10)
    assert np.abs(one - other).max() > 1e-3
    assert runs[1].method.mesh is not None


def test_chunks_make_no_difference(monkeypatch):
    whole = jtssm.fit(gsadmm(), (X, Y), epochs=2, key=KEY)
    monkeypatch.setattr("jtssm.train.batches.CHUNK", 4)
    parts = jtssm.fit(gsadmm(), (X, Y), epochs=2, key=KEY)
    assert CHUNK > 6
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), whole.params, parts.params
    )


def test_the_minibatches_in_flight_are_drained_at_the_end():
    result = jtssm.fit(gsadmm(), (X, Y), epochs=2, key=KEY)
    assert [int(w.opt_state[0].count) for w in result.state.weights] == [12, 12]


def test_callbacks_see_every_epoch_and_may_stop():
    seen = []

    def stop_after_two(epoch):
        seen.append(epoch.record["epoch"])
        np.testing.assert_allclose(epoch.method.predict(epoch.state, X[:2]).shape, (2, 3))
        return epoch.record["epoch"] == 2

    result = jtssm.fit(gsadmm(), (X, Y), epochs=9, key=KEY, callbacks=[stop_after_two])
    assert seen == [1, 2]
    assert len(result.history) == 2
    assert [int(w.opt_state[0].count) for w in result.state.weights] == [12, 12]


@pytest.mark.parametrize("mesh", [None, {"subnet": 2}])
def test_divergence_stops_and_keeps_the_last_finite_state(mesh):
    method = gsadmm(optax.sgd(lambda count: jnp.where(count == 8, jnp.inf, 0.01)))
    mesh = mesh and sharding.make_mesh(**mesh)
    with pytest.warns(RuntimeWarning, match=r"step 9: .* is not finite .*keeps the state before"):
        result = jtssm.fit(method, (X, Y), epochs=5, key=KEY, mesh=mesh)
    # subnetwork 2 takes its step 8 (from 0) at tick 9: its weights go first
    assert result.divergence.step == 9
    assert result.divergence.variable.startswith("weights[1].params[0]")
    assert len(result.history) == 1
    finite = jax.tree.map(lambda a: bool(np.isfinite(a).all()), result.params)
    assert all(jax.tree.leaves(finite))
    assert np.isfinite(result.predict(X)).all()
    assert int(sharding.gathered(result.state).tick) == 9


def test_a_loss_that_is_not_finite_is_named():
    method = solvers.sgd(NET, optimizer=optax.sgd(1e200), batch_size=20)
    with pytest.warns(RuntimeWarning, match=r"step \d+: .* is not finite"):
        result = jtssm.fit(method, (X, Y), epochs=3, key=KEY)
    assert result.divergence is not None
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(result.params))


def test_numbers_an_optimizer_starts_with_as_infinite_are_no_divergence():
    optimizer = optax.chain(optax.sgd(0.05), optax.contrib.reduce_on_plateau())
    fed = optax.GradientTransformationExtraArgs(
        optimizer.init, lambda g, s, p: optimizer.update(g, s, p, value=jnp.float64(1.0))
    )
    stubborn = optax.GradientTransformation(
        lambda p: (fed.init(p), jnp.inf * jnp.ones(())),
        lambda g, s, p: (fed.update(g, s[0], p)[0], (fed.update(g, s[0], p)[1], s[1])),
    )
    result = jtssm.fit(gsadmm(stubborn), (X, Y), epochs=2, key=KEY)
    assert result.divergence is None
    assert len(result.history) == 2


def test_ctrl_c_returns_what_was_reached():
    def interrupt(epoch):
        if epoch.record["epoch"] == 2:
            raise KeyboardInterrupt

    result = jtssm.fit(gsadmm(), (X, Y), epochs=9, key=KEY, callbacks=[interrupt])
    assert result.interrupted
    assert len(result.history) == 2
    assert np.isfinite(result.predict(X)).all()


def test_an_exception_of_a_callback_carries_what_was_reached():
    def fail(epoch):
        if epoch.record["epoch"] == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full") as raised:
        jtssm.fit(gsadmm(), (X, Y), epochs=9, key=KEY, callbacks=[fail])
    result = raised.value.result
    assert len(result.history) == 3
    assert [int(w.opt_state[0].count) for w in result.state.weights] == [18 - 2, 18 - 1]


def test_fit_runs_on_a_users_mesh_with_explicit_axes():
    mesh = jax.make_mesh((2, 4), ("subnet", "pc"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    method = gsadmm(optax.sgd(0.05))
    plain, placed = (
        jtssm.fit(method, (X, Y), epochs=2, key=KEY, mesh=m, validation=(X, Y))
        for m in (None, mesh)
    )
    np.testing.assert_allclose(
        plain.history[-1]["validation_loss"], placed.history[-1]["validation_loss"], atol=1e-9
    )


def test_the_stored_schedule_leaves_out_what_does_not_fill_a_minibatch_and_says_so():
    with pytest.warns(UserWarning, match=r"train: 10 of 130 samples are left out"):
        result = jtssm.fit(
            gsadmm(schedule="stored"), (X, Y), epochs=2, key=KEY, mesh=sharding.make_mesh(2, 1, 2)
        )
    assert [line["samples"] for line in result.history] == [120, 120]


@pytest.mark.parametrize("mesh", [None, (1, 1, 2)])
def test_a_resident_run_goes_on_from_its_state_where_samples_are_left_out(mesh):
    """The state is of the samples that stay, not of all that are given."""
    net = jtssm.mlp([4, 6, 3])
    method = solvers.gsadmm(
        net, subnets=2, optimizer=optax.sgd(0.1), batch_size=8, schedule="stored"
    )
    rng = np.random.default_rng(0)
    train = rng.normal(size=(27, 4)), rng.integers(0, 3, 27)
    given = {"key": jax.random.key(0), "mesh": mesh and sharding.make_mesh(*mesh)}

    def run(epochs, **more):
        with pytest.warns(UserWarning, match="3 of 27 samples are left out"):
            return jtssm.fit(method, train, epochs=epochs, **given, **more)

    whole, half = run(2), run(1)
    rest = run(1, state=half.state)
    jax.tree.map(np.testing.assert_array_equal, whole.params, rest.params)


def test_images_and_a_warm_start():
    net = jtssm.mlp([4, 5, 3])
    params = net.init(jax.random.key(5), jnp.float64)
    method = solvers.sgd(net, optimizer=optax.sgd(0.0), batch_size=20)
    result = jtssm.fit(method, (X.reshape(-1, 2, 2, 1), Y), epochs=1, key=KEY, params=params)
    jax.tree.map(np.testing.assert_array_equal, result.params, params)


def test_a_bar_is_shown_when_asked_for(capsys):
    jtssm.fit(gsadmm(), (X, Y), epochs=2, key=KEY, validation=(X, Y), progress=True)
    shown = capsys.readouterr().err
    assert "12/12" in shown
    assert "validation=1.000" in shown or "validation=0." in shown
    assert "|p-q|=" in shown
    jtssm.fit(gsadmm(), (X, Y), epochs=1, key=KEY)
    assert capsys.readouterr().err == ""


def test_a_resident_method_runs_several_steps_a_dispatch_and_shows_its_certificate():
    x, y = synthetic.separable(0, 60, 4, 3, np.float64)
    method = solvers.pdadmm(jtssm.mlp([4, 8, 3]), rho=2.0, nu=0.4)
    run = lambda every, epochs=7, **more: jtssm.fit(
        method,
        (x, y),
        epochs=epochs,
        key=jax.random.key(0),
        validation=(x, y),
        evaluate_every=every,
        **more,
    )
    one, three = run(1), run(3)
    assert [line["epoch"] for line in three.history] == [3, 6, 7]
    assert [line["step"] for line in three.history] == [3, 6, 7]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), one.state.z, three.state.z
    )
    least = np.minimum.accumulate([line["decrease"] for line in one.history])
    np.testing.assert_allclose([line["c_k"] for line in one.history], least)
    np.testing.assert_allclose([line["c_k"] for line in three.history], least[[2, 5, 6]])
    np.testing.assert_allclose(
        three.history[0]["objective"], np.mean([line["objective"] for line in one.history[:3]])
    )
    on = run(2, epochs=3, state=run(2, epochs=4).state)
    np.testing.assert_allclose(on.state.z[0], one.state.z[0], atol=1e-12)
    with pytest.raises(ValueError, match="params: expected None with a state"):
        run(1, state=one.state, params=one.params)


def test_minibatch_methods_take_several_epochs_between_lines():
    x, y = synthetic.separable(0, 60, 4, 3, np.float64)
    method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.sgd(0.1), batch_size=20)
    lines = [
        jtssm.fit(method, (x, y), epochs=5, key=jax.random.key(0), evaluate_every=k).history
        for k in (1, 2)
    ]
    assert [line["step"] for line in lines[1]] == [6, 12, 15]
    np.testing.assert_allclose(lines[1][-1]["loss"], lines[0][-1]["loss"])
    assert "c_k" not in lines[0][0]


def test_a_method_that_trains_again_is_not_traced_again():
    x, y = synthetic.separable(0, 60, 4, 3, np.float32)
    method, traces = solvers.sgd(jtssm.mlp([4, 3]), optimizer=optax.sgd(0.1), batch_size=20), []

    def step(state, x, y):
        traces.append(1)
        return method.step(state, x, y)

    counting = method._replace(step=step)
    for seed in range(3):
        jtssm.fit(counting, (x, y), epochs=1, key=jax.random.key(seed))
    assert len(traces) == 1


def test_a_divergence_within_a_dispatch_is_found_at_its_step():
    x, y = synthetic.separable(0, 60, 4, 3, np.float32)
    method = solvers.pdadmm(jtssm.mlp([4, 8, 3]), rho=1e-30, nu=1e30, steps="gradient", t0=1e-30)
    with pytest.warns(RuntimeWarning, match=r"step \d+: .* is not finite"):
        result = jtssm.fit(method, (x, y), epochs=40, key=jax.random.key(0), evaluate_every=20)
    assert result.divergence is not None
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(result.state))
