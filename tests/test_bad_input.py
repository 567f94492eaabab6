"""Static misuse and bad samples raise ValueError at the front door, naming the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, sharding, solvers
from jtssm.nn import images
from jtssm.nn.network import sequence
from jtssm.nn.perceptrons import dense
from tests.nn.own_layer import Grow

NET = jtssm.mlp([4, 8, 8, 3])
GOOD = {"optimizer": optax.sgd(0.1), "batch_size": 6, "subnets": 2}
X, Y = np.ones((12, 4)), np.zeros(12, np.int32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rho": 0}, r"rho: expected a finite number above 0, e\.g\. 1\.0; got 0"),
        ({"rho": -1.0}, r"rho: expected .* above 0.*got -1\.0"),
        ({"rho": float("nan")}, r"rho: expected a finite number.*got nan"),
        ({"alpha": float("inf")}, r"alpha: expected a finite number.*got inf"),
        ({"eta": 0.0}, r"eta: expected .* above 0"),
        ({"eta": "fast"}, r"eta: expected .* above 0.*got 'fast'"),
        ({"batch_size": 0}, r"batch_size: expected an integer of at least 1; got 0"),
        ({"batch_size": 6.0}, r"batch_size: expected an integer of at least 1; got 6\.0"),
        ({"subnets": 4}, r"subnets: expected 1\.\.3, the network has 3 layers; got 4"),
        (
            {"schedule": "async"},
            r"schedule: expected one of \['stored', 'streaming'\], a solvers\.Streaming.*got 'async'",
        ),
        (
            {"schedule": solvers.Stored(order="parallel")},
            r"order: expected None with gsadmm, it is gsam's alone; got 'parallel'",
        ),
        ({"loss": "hinge"}, r"loss: expected one of .*got 'hinge'"),
        ({"precision": "exact"}, r"precision: expected None, 'highest'.*got 'exact'"),
        ({"optimizer": "adam"}, r"optimizer: expected an optax optimizer.*got 'adam'"),
        ({"optimizer": [optax.sgd(0.1)]}, r"optimizer: expected .* list of 2"),
        ({"grid": 7}, r"grid: expected 8 or 16 bits, or a list of values; got 7"),
        (
            {"grid": 8, "schedule": "stored"},
            r"grid: expected None with schedule='stored'.*got 8; use schedule='streaming'",
        ),
    ],
)
def test_gsadmm_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        solvers.gsadmm(NET, **{**GOOD, **changes})


ROUND = {"optimizer": optax.sgd(0.1), "batch_size": 2, "local_steps": 3}


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        (
            NET,
            {"subnets": 9},
            r"subnets: expected at most 8, the width of layer 0, 'dense 8 relu'; got 9",
        ),
        (
            jtssm.mlp([4, 8, 5, 3]),
            {"subnets": 6},
            r"at most 5, the width of layer 1, 'dense 5 relu'; got 6",
        ),
        (NET, {"subnets": 0}, r"subnets: expected an integer of at least 1; got 0"),
        (NET, {"local_steps": 0}, r"local_steps: expected an integer of at least 1; got 0"),
        (NET, {"batch_size": 0}, r"batch_size: expected an integer of at least 1; got 0"),
        (
            NET,
            {"deal": "random"},
            r"deal: expected one of \['stratified', 'uniform'\]; got 'random'",
        ),
        (NET, {"scale": 0}, r"scale: expected a finite number above 0.*got 0"),
        (NET, {"loss": "hinge"}, r"loss: expected one of .*got 'hinge'"),
        (NET, {"precision": "exact"}, r"precision: expected None, 'highest'.*got 'exact'"),
        (NET, {"optimizer": "adam"}, r"optimizer: expected an optax optimizer.*got 'adam'"),
        (jtssm.mlp([4, 3]), {}, r"net: expected at least one hidden layer.*got 1 layer"),
        (
            sequence([dense(8), Grow(3)], (4,)),
            {},
            r"net: expected layers whose parameters belong to neurons.*got layer 1, 'grow 3'",
        ),
    ],
)
def test_ist_refuses(net, changes, message):
    with pytest.raises(ValueError, match=message):
        solvers.ist(net, **{"subnets": 2, **ROUND, **changes})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m, s: m.step(s, X[:12], Y),
            r"x: expected \[local_steps, workers, batch_size, \.\.\.\] = \[3, 2, 2, '\.\.\.'\]; got shape \(12, 4\)",
        ),
        (lambda m, s: m.step(s, X.reshape(3, 2, 2, 4), Y), r"y: expected .*got shape \(12,\)"),
        (
            lambda m, s: m.step(s, X.reshape(3, 2, 2, 4)[..., :3], Y.reshape(3, 2, 2)),
            r"x: expected \[samples, 4\].*got shape \(12, 3\)",
        ),
        (
            lambda m, s: m.step(s, X.reshape(3, 2, 2, 4).astype(np.float32), Y.reshape(3, 2, 2)),
            r"x: expected float64, as in init; got float32",
        ),
        (
            lambda m, s: m.init(jax.random.key(0), X, Y, NET.init(jax.random.key(0))[:2]),
            r"params: expected 3 trees, one a layer; got 2",
        ),
        (lambda m, s: m.init(jax.random.key(0), X, Y + 7), r"y: expected labels 0\.\.2"),
        (
            lambda m, s: jtssm.fit(m, (X[:5], Y[:5]), epochs=2, key=jax.random.key(0)),
            r"train: expected at least 12 samples, one step of \w+; got 5 times 2 epochs",
        ),
    ],
)
@pytest.mark.parametrize("name", ["ist", "local_sgd", "ensemble"])
def test_methods_of_workers_refuse_samples_that_do_not_fit(name, call, message):
    count = {"ist": "subnets", "local_sgd": "workers", "ensemble": "members"}[name]
    method = solvers.METHODS[name](NET, **ROUND, **{count: 2})
    with pytest.raises(ValueError, match=message):
        call(method, method.init(jax.random.key(0), X, Y))


@pytest.mark.parametrize(
    ("builder", "count"), [(solvers.local_sgd, "workers"), (solvers.ensemble, "members")]
)
def test_workers_are_counted_from_one(builder, count):
    with pytest.raises(ValueError, match=rf"{count}: expected an integer of at least 1; got 0"):
        builder(NET, **ROUND, **{count: 0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rho": 0}, r"rho: expected a finite number above 0.*got 0"),
        ({"nu": -1e-4}, r"nu: expected a finite number above 0.*got -0\.0001"),
        ({"weight_decay": -1}, r"weight_decay: expected .* above 0.*got -1"),
        ({"steps": "newton"}, r"steps: expected one of .*'damped'.*got 'newton'"),
        ({"t0": 1.0}, r"t0: expected None unless steps='gradient'; got 1\.0"),
        ({"t0": 0.0, "steps": "gradient"}, r"t0: expected a finite number above 0"),
        ({"damping": 0.0}, r"damping: expected a finite number above 0"),
        (
            {"damping": 1.0, "steps": "exact"},
            r"damping: expected None with steps='exact'; got 1\.0",
        ),
        ({"grid": 7}, r"grid: expected 8 or 16 bits, or a list of values; got 7"),
        (
            {"grid": [0, 2, 1]},
            r"grid: expected 2 to 65536 rising finite numbers.*got \[0\.0, 2\.0, 1\.0\]",
        ),
        ({"grid": [1.0, float("nan")]}, r"grid: expected .* rising finite numbers"),
        ({"grid": [1.0]}, r"grid: expected 2 to 65536"),
        ({"grid": "fine"}, r"grid: expected 8, 16, or rising finite numbers.*got 'fine'"),
        ({"float_q": True}, r"float_q: expected False without a grid; got True"),
        ({"loss": "hinge"}, r"loss: expected one of .*got 'hinge'"),
        (
            {"loss": losses.cross_entropy()._replace(name="mine", prox=None)},
            r"loss: expected one with a prox.*got mine",
        ),
        ({"net": jtssm.mlp([4, 3])}, r"net: expected at least two layers.*got one"),
        (
            {"net": jtssm.mlp([4, 8, 3], jax.nn.sigmoid)},
            r"net: expected jax\.nn\.relu, .*which have a z-step.* hidden layer 0; got .*sigmoid",
        ),
        (
            {"net": sequence([dense(4, jax.nn.relu), dense(3, jax.nn.relu)], (4,))},
            r"net: expected a last layer that is dense, without activation; got 'dense 3 relu'",
        ),
        (
            {"net": sequence([Grow(4), dense(3)], (4,))},
            r"net: expected dense layers only; got layer 0, 'grow 4'",
        ),
    ],
)
def test_pdadmm_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        solvers.pdadmm(**{"net": NET, **changes})


def test_grow_refuses_networks_it_cannot_reach():
    method = solvers.pdadmm(NET)
    state = method.init(jax.random.key(0), X.astype(np.float32), Y)
    tanh = jtssm.mlp([4, 8, 8, 8, 3], jnp.tanh)
    for net in (
        NET,
        jtssm.mlp([4, 8, 8, 7, 3]),
        jtssm.mlp([4, 8, 3]),
        jtssm.mlp([5, 8, 8, 8, 3]),
        tanh,
    ):
        with pytest.raises(
            ValueError, match=r"net: expected the layers of widths \[4, 8, 8\].*got widths"
        ):
            solvers.layerwise.grow(method, state, net)
    other = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=6)
    with pytest.raises(ValueError, match=r"method: expected an unplaced one from solvers\.pdadmm"):
        solvers.layerwise.grow(other, state, jtssm.mlp([4, 8, 8, 8, 3]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 0}, r"alpha: expected a finite number above 0"),
        ({"eta": -1}, r"eta: expected a finite number above 0.*got -1"),
        ({"schedule": solvers.Stored}, r"schedule: expected one of .*got <class"),
    ],
)
def test_gsam_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        solvers.gsam(NET, **{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": -1}, r"batch_size: expected an integer"),
        ({"optimizer": None}, r"optimizer: expected an optax optimizer"),
        ({"precision": 3.5}, r"precision: expected None"),
    ],
)
def test_sgd_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        solvers.sgd(NET, **{"optimizer": optax.sgd(0.1), "batch_size": 6, **changes})


BAD_SAMPLES = [
    (X[:, :3], Y, r"x: expected \[samples, 4\] or images of 4 numbers; got shape \(12, 3\)"),
    (X.astype(np.uint8), Y, r"x: expected a floating dtype; got uint8: convert"),
    (X, Y[:5], r"y: expected shape \(12,\) for cross_entropy; got \(5,\)"),
    (X, Y.astype(float), r"y: expected integer labels for cross_entropy; got float64"),
    (X, Y + 3, r"y: expected labels 0\.\.2, the network has 3 outputs; got 3\.\.3"),
    (X, Y - 1, r"y: expected labels 0\.\.2.*got -1\.\.-1"),
    (np.where(np.eye(12, 4) > 0, np.nan, X), Y, r"x: expected finite numbers; got 4 that are NaN"),
]


def deleted():
    x = jnp.asarray(X)
    x.delete()
    return x


BAD_SAMPLES += [
    (X.astype(">f8"), Y, r"x: expected .* byte order; got >f8: convert, e\.g\. .*\('float64'\)"),
    (X, Y.astype(">i4"), r"y: expected .* byte order; got >i4"),
    (X.astype(np.longdouble), Y, r"x: expected numbers of at most 64 bits; got float128"),
    (deleted(), Y, r"x: expected an array that holds its numbers; got .* deleted"),
    (np.ma.masked_equal(X, 0), Y, r"x: expected an array without a mask"),
]


@pytest.mark.parametrize("schedule", ["streaming", "stored"])
@pytest.mark.parametrize(("x", "y", "message"), BAD_SAMPLES)
def test_init_and_fit_refuse_bad_samples(x, y, message, schedule):
    method = solvers.gsadmm(NET, **GOOD, schedule=schedule)
    with pytest.raises(ValueError, match=message):
        method.init(jax.random.key(0), x, y)
    placed = sharding.place(method, sharding.make_mesh(subnet=2))
    with pytest.raises(ValueError, match=message):
        placed.init(jax.random.key(0), x, y)
    with pytest.raises(ValueError, match=message):
        jtssm.fit(method, (x, y), epochs=1, key=jax.random.key(0))


@pytest.mark.parametrize(("x", "y", "message"), BAD_SAMPLES)
def test_fit_refuses_bad_validation_samples(x, y, message):
    method = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=6)
    with pytest.raises(ValueError, match=message):
        jtssm.fit(method, (X, Y), epochs=1, key=jax.random.key(0), validation=(x, y))


def test_step_refuses_another_batch_size_and_dtype():
    method = solvers.gsadmm(NET, **GOOD)
    state = method.init(jax.random.key(0), X, Y)
    with pytest.raises(ValueError, match=r"x: expected a minibatch of batch_size=6 samples; got 5"):
        method.step(state, X[:5], Y[:5])
    with pytest.raises(ValueError, match=r"x: expected a floating dtype"):
        jax.jit(method.step)(state, X[:6].astype(int), Y[:6])


@pytest.mark.parametrize("mesh", [None, {"subnet": 2}])
def test_step_refuses_another_dtype_than_that_of_init_and_predict_another_width(mesh):
    method = solvers.gsadmm(NET, **GOOD)
    method = method if mesh is None else sharding.place(method, sharding.make_mesh(**mesh))
    state = method.init(jax.random.key(0), X.astype(np.float32), Y)
    with pytest.raises(ValueError, match=r"x: expected float32, as in init; got float64"):
        method.step(state, X[:6], Y[:6])
    with pytest.raises(
        ValueError, match=r"x: expected \[samples, 4\] or images of 4 numbers; got shape \(12, 8\)"
    ):
        method.predict(state, np.ones((12, 8), np.float32))


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", ["sgd", "gsadmm", "local_sgd"])
def test_samples_of_16_bits_train_a_state_of_32(name, dtype):
    """The same numbers as samples widened beforehand, exactly."""
    adam = optax.adam(0.1)
    method = {
        "sgd": solvers.sgd(NET, optimizer=adam, batch_size=6),
        "gsadmm": solvers.gsadmm(NET, optimizer=adam, batch_size=6, subnets=2),
        "local_sgd": solvers.local_sgd(NET, optimizer=adam, batch_size=3, workers=2, local_steps=1),
    }[name]
    x = np.random.default_rng(0).normal(size=(12, 4)).astype(dtype)
    y = np.arange(12) % 3
    results = [
        jtssm.fit(method, (a, y), epochs=2, key=jax.random.key(0)) for a in (x, x.astype("float32"))
    ]
    floats = [a for a in jax.tree.leaves(results[0].state) if jnp.issubdtype(a.dtype, jnp.floating)]
    assert {str(a.dtype) for a in floats} == {"float32"}
    jax.tree.map(np.testing.assert_array_equal, results[0].params, results[1].params)
    np.testing.assert_array_equal(*(r.predict(x) for r in results))


def test_samples_that_lie_in_a_file_are_taken(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(12, 4)).astype("float32"))
    there, here = (np.load(tmp_path / "x.npy", mmap_mode=mode) for mode in ("r", None))
    method = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=6)
    fits = [jtssm.fit(method, (x, Y), epochs=1, key=jax.random.key(0)) for x in (there, here)]
    jax.tree.map(np.testing.assert_array_equal, *(fit.params for fit in fits))


def test_the_stored_schedule_refuses_a_broken_last_minibatch():
    method = solvers.gsadmm(NET, **GOOD, schedule="stored")
    with pytest.raises(
        ValueError, match=r"x: expected a multiple of batch_size=6.*got 11: leave out 5"
    ):
        method.init(jax.random.key(0), X[:11], Y[:11])


def test_init_refuses_parameters_of_another_network():
    method = solvers.gsadmm(NET, **GOOD)
    with pytest.raises(ValueError, match=r"params: expected 3 trees, one a layer; got 2"):
        method.init(jax.random.key(0), X, Y, NET.init(jax.random.key(0))[:2])
    other = jtssm.mlp([4, 8, 9, 3]).init(jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"params: expected arrays of shapes .*\(8, 8\).*got .*\(8, 9\)"
    ):
        method.init(jax.random.key(0), X, Y, other)


def test_fit_refuses_less_than_a_minibatch_and_other_arguments():
    method, key = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=6), jax.random.key(0)
    with pytest.raises(ValueError, match=r"train: expected at least 6 samples.*got 5"):
        jtssm.fit(method, (X[:5], Y[:5]), epochs=1, key=key)
    with pytest.raises(ValueError, match=r"epochs: expected an integer of at least 1; got 0"):
        jtssm.fit(method, (X, Y), epochs=0, key=key)
    with pytest.raises(ValueError, match=r"train: expected a pair \(x, y\); got ndarray"):
        jtssm.fit(method, X, epochs=1, key=key)


def place(changes=None, mesh=None, **options):
    method = solvers.gsadmm(NET, **{**GOOD, **(changes or {})})
    return sharding.place(method, sharding.make_mesh(**(mesh or {})), **options)


@pytest.mark.parametrize(
    ("changes", "mesh", "options", "message"),
    [
        ({}, {"subnet": 4}, {}, r"mesh: expected a 'subnet' axis of at most 2.*got 4"),
        (
            {},
            {"pc": 4},
            {},
            r"mesh: expected a 'pc' axis that divides batch_size / microbatches=3; got 4",
        ),
        ({}, {"pr": 7}, {}, r"pr: expected a size that divides .*\[8, 8, 3\]; got 7"),
        ({}, {"pr": 2}, {"forms": "rows"}, r"forms: expected 'auto' or a list of 3 forms"),
        (
            {},
            {"pr": 2},
            {"forms": ["model"] * 3},
            r"forms\[2\]: expected one of \['batch'.*got 'model': pr = 2 does not divide its 3 outputs",
        ),
        ({}, {"pr": 2}, {"forms": ["model", "rows", "batch"]}, r"forms\[1\]: .*got 'rows'"),
        ({}, {}, {"axes": {"rows": "pc"}}, r"axes: expected one of .*got 'rows'"),
        ({}, {}, {"axes": {"pc": "data"}}, r"axes\['pc'\]: expected one of .*got 'data'"),
        ({}, {}, {"axes": {"pc": "pc", "pr": "pc"}}, r"axes: expected different axes"),
        (
            {"optimizer": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))},
            {"pr": 2},
            {},
            r"optimizer: expected an elementwise one.*pr=2",
        ),
        ({"optimizer": optax.lamb(0.1)}, {"pr": 2}, {}, r"optimizer: expected an elementwise one"),
        (
            {"optimizer": optax.adafactor(0.1)},
            {"pr": 2},
            {},
            r"optimizer: expected an elementwise one",
        ),
    ],
)
def test_place_refuses(changes, mesh, options, message):
    with pytest.raises(ValueError, match=message):
        place(changes, mesh, **options)


def test_elementwise_optimizers_pass_the_probe():
    for optimizer in (
        optax.adam(0.1),
        optax.sgd(0.1, momentum=0.9),
        optax.adamw(0.1),
        optax.lion(0.1),
    ):
        place({"optimizer": optimizer}, {"pr": 2})


def test_an_optimizer_state_with_a_random_key_is_refused_on_a_mesh():
    noisy = optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1))
    placed = place({"optimizer": noisy}, {"subnet": 2})
    with pytest.raises(ValueError, match=r"optimizer: expected a state of numbers.*typed PRNG key"):
        placed.init(jax.random.key(0), X, Y)


def test_make_mesh_refuses_more_devices_than_there_are():
    with pytest.raises(ValueError, match=r"expected at most 8.*got 4 \* 2 \* 2 = 16.*jax_num_cpu"):
        sharding.make_mesh(4, 2, 2)
    with pytest.raises(ValueError, match=r"pr: expected an integer of at least 1; got 0"):
        sharding.make_mesh(pr=0)


def test_a_mesh_without_any_of_our_axes_is_refused():
    mesh = jax.make_mesh((2,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    method = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=6)
    with pytest.raises(ValueError, match=r"axes: expected a map .*\['x'\].*got none that match"):
        sharding.place(method, mesh)


class Unshown:
    """Has no repr."""

    def __repr__(self):
        raise KeyError("no")


@pytest.mark.parametrize(
    "name", ["batch_size", "rho", "schedule", "loss", "optimizer", "precision", "cuts"]
)
def test_what_cannot_be_shown_or_compared_is_refused_as_well(name):
    for value in (Unshown(), 10**5000, np.array([1, 2]), {1, 2}, np.bool_(True)):
        if name == "cuts" and isinstance(value, np.ndarray):
            continue  # good cuts
        with pytest.raises(ValueError, match=rf"{name}: expected .*got"):
            solvers.gsadmm(NET, **{**GOOD, "subnets": None, name: value})


def test_numbers_of_numpy_do_what_those_of_python_do():
    integer, real = np.int8, np.float32
    wide = jtssm.mlp([integer(100), integer(100), integer(3)], dropout=np.float64(0.5))
    assert wide.costs() == [10_000, 0, 300]  # 100 * 100 is 16 in 8 bits
    assert all(type(n) is int for shape in wide.shapes for n in shape)
    numbers = {"batch_size": integer(6), "subnets": integer(2)}
    given = {"rho": real(0.5), "alpha": integer(2)}
    python = {name: float(a) for name, a in given.items()} | {k: int(a) for k, a in numbers.items()}
    rate = optax.sgd(0.1)
    both = solvers.Streaming(integer(2), delay_power=integer(2)), solvers.Streaming(2, 2.0)
    pairs = zip((numbers | given, python), both, strict=True)
    ours, theirs = (solvers.gsadmm(NET, optimizer=rate, schedule=s, **a) for a, s in pairs)
    assert ours.settings == theirs.settings
    states = [m.init(jax.random.key(0), X, Y) for m in (ours, theirs)]
    pairs = zip((ours, theirs), states, strict=True)
    states = [jax.jit(m.step)(s, X[:6], Y[:6])[0] for m, s in pairs]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert sharding.make_mesh(integer(2), pc=integer(2)).devices.shape == (2, 1, 2)
    best = jtssm.plan(NET, integer(100), integer(100), "host").best.shape  # overflows 8 bits
    assert best == jtssm.plan(NET, 100, 100, "host").best.shape


HUGE = [[4, 10**12, 3], [4, 10**9, 10**9, 3], [4, 2**62, 3]]


@pytest.mark.parametrize("widths", HUGE)
def test_a_network_that_no_memory_holds_is_refused(widths):
    method = solvers.sgd(jtssm.mlp(widths), optimizer=optax.sgd(0.1), batch_size=6)
    placed = sharding.place(method, sharding.make_mesh(1, 1, 2))
    split = solvers.gsadmm(jtssm.mlp(widths), **GOOD)
    for m in (method, placed, split, sharding.place(split, sharding.make_mesh(2))):
        with pytest.raises(ValueError, match=r"net: expected a network whose state fits in .*got"):
            m.init(jax.random.key(0), X, Y)
    crew = {**ROUND, "members": 10**12}
    with pytest.raises(ValueError, match=r"net: expected a network whose state fits"):
        solvers.ensemble(NET, **crew).init(jax.random.key(0), X, Y)


@pytest.mark.parametrize("old", [jax.random.PRNGKey(7), np.array([0, 7], np.uint32)])
def test_a_key_of_the_old_style_is_as_good_as_a_typed_one(old):
    method = solvers.sgd(NET, optimizer=optax.sgd(0.1), batch_size=6)
    for m in (method, sharding.place(method, sharding.make_mesh(1, 2))):
        one, two = (m.params(m.init(key, X, Y)) for key in (old, jax.random.key(7)))
        jax.tree.map(np.testing.assert_array_equal, one, two)
    with pytest.raises(ValueError, match=r"key: expected a single key.*got"):
        method.init(jax.random.split(jax.random.key(7)), X, Y)


def test_a_number_that_divides_nothing_is_told_at_once():
    with pytest.raises(ValueError, match=r"groups: expected one of \[1, 2, 4, .*, or a larger one"):
        images.convolution(10**15, 3, groups=3)
    with pytest.raises(ValueError, match=r"num_devices: expected a number that some mesh fits"):
        jtssm.plan(NET, 10**12, 64, "host")
    with pytest.raises(ValueError, match=r"num_devices: expected at most 2\*\*40; got"):
        jtssm.plan(NET, 2**41, 64, "host")


@pytest.mark.parametrize(
    ("activation", "message"),
    [
        (3, r"activation: expected None or a function.*got 3"),
        (
            np.tanh,
            r"activation: expected .*that jax can trace; got <ufunc 'tanh'>, which raised TracerArrayConversionError",
        ),
        (lambda a: a.sum(), r"activation: expected .*that keeps its shape; got"),
        (lambda a: a > 0, r"activation: expected .*that gives floats; got"),
    ],
)
def test_an_activation_that_is_none_is_refused_where_it_is_given(activation, message):
    for make in (
        lambda f: jtssm.mlp([4, 8, 3], f),
        lambda f: images.convolution(4, 3, activation=f),
    ):
        with pytest.raises(ValueError, match=message):
            make(activation)


def test_fit_refuses_a_state_of_another_method_or_network():
    method, other = (
        solvers.sgd(n, optimizer=optax.sgd(0.1), batch_size=6) for n in (NET, jtssm.mlp([4, 9, 3]))
    )
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"state: expected arrays of shapes .*, of this network"):
        jtssm.fit(method, (X, Y), epochs=1, key=key, state=other.init(key, X, Y))
    with pytest.raises(
        ValueError, match=r"state: expected one of sgd, as its init or fit return it; got"
    ):
        jtssm.fit(
            method, (X, Y), epochs=1, key=key, state=solvers.gsadmm(NET, **GOOD).init(key, X, Y)
        )
