"""`fit` on batches from an iterator: for samples that do not fit in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic
from jtssm.train.divergence import Guard
from jtssm.train.stream import Stream, is_stream

NET = jtssm.mlp([4, 8, 3])
X, Y = synthetic.separable(0, 130, 4, 3, np.float64)
KEY = jax.random.key(0)
BATCH = {"optimizer": optax.sgd(0.05), "batch_size": 20}
ROUND = {"optimizer": optax.sgd(0.05), "batch_size": 10, "local_steps": 2}
METHODS = {
    "sgd": solvers.sgd(NET, **BATCH),
    "gsadmm": solvers.gsadmm(NET, subnets=2, **BATCH),
    "gsam": solvers.gsam(NET, subnets=2, **BATCH),
    "ist": solvers.ist(NET, subnets=2, **ROUND),
    "local_sgd": solvers.local_sgd(NET, workers=2, **ROUND),
    "ensemble": solvers.ensemble(NET, members=2, **ROUND),
}


def batches(size, x=X, y=Y):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def recorded(method):
    """The method, and what its steps are given: rows of x as bytes."""
    seen = []

    def step(state, x, y):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return method.step(state, x, y)

    def rows():
        jax.effects_barrier()
        return [bytes(row) for x in seen for row in x.reshape(-1, 4)]

    return method._replace(step=step), rows


LONG = ("gsam", "ist", "local_sgd", "ensemble")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in LONG else []) for n in METHODS]
)
def test_every_method_that_streams_is_the_users_own_loop(name):
    """Batches of 33 cut to steps of 20 or 40: the numbers of a loop over the samples in their order."""
    method = METHODS[name]
    result = jtssm.fit(method, batches(33), epochs=1, key=KEY)
    size = int(np.prod(method.batch_shape))
    state, step = method.init(jax.random.split(KEY)[0], X, Y), jax.jit(method.step)
    for i in range(0, len(X) - size + 1, size):
        lead = method.batch_shape
        state, _ = step(state, X[i : i + size].reshape(*lead, 4), Y[i : i + size].reshape(lead))
    assert result.history[0]["step"] == len(X) // size
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12),
        result.params,
        method.params(method.drain(state)),
    )


def test_a_pass_is_an_epoch_and_what_fills_no_minibatch_is_left_out():
    method, rows = recorded(METHODS["sgd"])
    result = jtssm.fit(method, batches(33), epochs=2, key=KEY, validation=(X, Y))
    assert [line["step"] for line in result.history] == [6, 12]
    assert [line["samples"] for line in result.history] == [120, 120]
    assert rows() == 2 * [bytes(row) for row in X[:120]]
    assert result.history[1]["validation_loss"] < result.history[0]["validation_loss"]


def test_a_round_goes_on_with_the_next_pass():
    """130 samples, rounds of 40: nothing is left out but the end of the last pass."""
    method, rows = recorded(METHODS["ist"])
    result = jtssm.fit(method, batches(50), epochs=3, key=KEY)
    assert [line["step"] for line in result.history] == [3, 6, 9]
    assert rows() == (3 * [bytes(row) for row in X])[:360]


@pytest.mark.parametrize("every", [1, 2])
def test_a_generator_goes_on_from_epoch_to_epoch(every):
    method, rows = recorded(METHODS["sgd"])
    endless = (batch for _ in range(9) for batch in batches(47))
    result = jtssm.fit(method, endless, epochs=3, steps_per_epoch=4, key=KEY, evaluate_every=every)
    assert [line["step"] for line in result.history] == {1: [4, 8, 12], 2: [8, 12]}[every]
    assert rows() == (2 * [bytes(row) for row in X])[:240]  # 10 go into the second pass


def test_counted_steps_start_what_starts_anew_again():
    method, rows = recorded(METHODS["sgd"])
    result = jtssm.fit(method, batches(130), epochs=2, steps_per_epoch=10, key=KEY)
    assert [line["step"] for line in result.history] == [10, 20]
    assert rows() == (4 * [bytes(row) for row in X])[:400]


class Counted:
    """Batches that are made when they are asked for, and how far they were asked for."""

    def __init__(self, num, size, on_read):
        self.num, self.size, self.on_read = num, size, on_read

    def __iter__(self):
        for i in range(self.num):
            self.on_read(i * self.size)
            rng = np.random.default_rng(i)
            yield rng.normal(size=(self.size, 4)), rng.integers(0, 3, self.size)


def test_no_more_is_read_ahead_than_a_chunk_and_a_batch(monkeypatch):
    """4000 samples in chunks of 100: while one is worked on, the next is read."""
    monkeypatch.setattr("jtssm.train.stream.CHUNK", 5)
    ahead, trained = [], [0]
    method = METHODS["sgd"]

    class Told(Guard):
        def judge(self, *given):
            outcome = super().judge(*given)
            trained[0] += 20 * len(outcome.infos.loss)
            return outcome

    monkeypatch.setattr("jtssm.train.trainer.Guard", Told)
    read = Counted(125, 32, lambda start: ahead.append(start + 32 - trained[0]))
    result = jtssm.fit(method, read, epochs=2, key=KEY)
    assert result.history[-1]["step"] == 400
    assert len(ahead) == 250
    assert 100 < max(ahead) <= 2 * 100 + 32  # what is worked on, what is next, a batch


def test_large_samples_make_small_chunks(monkeypatch):
    monkeypatch.setattr("jtssm.train.stream.CHUNK_BYTES", 2000)
    lengths = []
    monkeypatch.setattr("jtssm.train.stream.Stream._put", _noting(lengths, Stream._put))
    jtssm.fit(METHODS["sgd"], batches(33), epochs=1, key=KEY)
    each = 20 * (4 * 8 + Y.itemsize)
    assert lengths == [2000 // each * 20] * (120 // (2000 // each * 20))
    assert len(lengths) > 2


def _noting(lengths, put):
    return lambda self, x, y: lengths.append(len(x)) or put(self, x, y)


def test_on_a_mesh_the_numbers_are_the_same():
    runs = [
        jtssm.fit(METHODS["sgd"], batches(33), epochs=1, key=KEY, mesh=mesh)
        for mesh in (None, sharding.make_mesh(1, 2, 2))
    ]
    one, other = (np.asarray(run.params[0]["W"]) for run in runs)
    np.testing.assert_allclose(one, other, atol=1e-10)


def test_statistics_are_those_of_the_first_samples_which_are_trained_on_too(monkeypatch):
    monkeypatch.setattr("jtssm.train.stream.SEEN", 50)
    net = jtssm.mlp([4, 3], normalisation="running")
    method, rows = recorded(solvers.sgd(net, optimizer=optax.sgd(0.0), batch_size=20))
    result = jtssm.fit(method, iter(batches(33)), epochs=2, steps_per_epoch=3, key=KEY)
    assert rows() == [bytes(row) for row in X[:120]]
    found = net.estimate(result.params, jnp.asarray(X[:50]))
    np.testing.assert_allclose(result.params[0]["mean"], found[0]["mean"], atol=1e-12)
    assert np.abs(found[0]["mean"] - net.estimate(result.params, X)[0]["mean"]).max() > 1e-3


def test_a_divergence_keeps_the_last_finite_state():
    method = solvers.sgd(NET, optimizer=optax.sgd(1e200), batch_size=20)
    with pytest.warns(RuntimeWarning, match="not finite"):
        result = jtssm.fit(method, batches(33), epochs=2, key=KEY)
    assert result.divergence is not None
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(result.params))


def test_going_back_starts_the_pass_anew(monkeypatch):
    """After a divergence steps are halved and taken again: on all samples of the pass."""
    monkeypatch.setattr("jtssm.train.stream.CHUNK", 2)
    method, rows = recorded(METHODS["sgd"])
    stream = Stream(method, batches(33))
    state = method.init(KEY, stream.x, stream.y)
    guard = Guard(method.step, state)
    next(stream.run(guard, state, stream.draw(1)))
    stream.go_to({"epochs": 0, "steps": 0})
    (place,) = stream.order()["places"]
    assert (place["pass"], place["batch"], place["row"]) == (1, 0, 0)
    assert len(list(stream.run(guard, state, stream.draw(1)))) == 3
    assert {"epochs": 1, "steps": 6}.items() <= stream.order().items()
    assert stream.steps(1) == 6
    # two chunks of the first try were at hand: one was judged, of the other nothing was asked
    assert rows() == [bytes(row) for row in [*X[:40], *X[:120]]]


def fitted(method="sgd", train=None, **options):
    chosen = METHODS[method] if isinstance(method, str) else method
    return jtssm.fit(chosen, train, **({"epochs": 2, "key": KEY} | options))


def refused(message, *given, **options):
    with pytest.raises(ValueError, match=message) as raised:
        fitted(*given, **options)
    return raised.value


@pytest.mark.parametrize(
    "method",
    [solvers.pdadmm(NET), solvers.gsam(NET, subnets=2, schedule="stored", **BATCH)],
    ids=["pdadmm", "stored"],
)
def test_methods_that_keep_all_samples_take_arrays(method):
    for given in (batches(33), iter(batches(33))):
        refused(
            rf"train: expected arrays \(x, y\): {method.name} keeps all samples; got an iterator",
            method,
            given,
        )


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            iter(batches(33)),
            r"steps_per_epoch: expected a number of steps with an iterator, .*got None with a list_iterator",
        ),
        (
            Counted(0, 9, print),
            r"train: expected batches of samples \(x, y\); got an iterator without any",
        ),
        (
            [(X[:9], Y[:9])],
            r"train: expected at least 20 samples in a pass, for a step of sgd; got 9",
        ),
        (iter([]), "steps_per_epoch: expected a number"),
        ("a string", r"train: expected a pair \(x, y\); got str"),
        ({"x": X}, r"train: expected a pair \(x, y\); got dict"),
        ((X, Y, Y), r"train: expected a pair \(x, y\); got tuple"),
        (X, r"train: expected a pair \(x, y\); got ndarray"),
        (7, r"train: expected a pair \(x, y\); got int"),
    ],
)
def test_streams_that_do_not_serve_are_refused(train, message):
    refused(message, "sgd", train)


def listed(*more):
    """A re-iterable whose first batch is good."""
    return type("Listed", (), {"__iter__": lambda self: iter([(X[:40], Y[:40]), *more])})()


BAD = np.where(np.arange(36).reshape(9, 4) == 5, np.nan, X[:9])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X[:9], r"train, batch 1: expected a pair \(x, y\) of numpy arrays; got ndarray"),
        ({"x": X[:9], "y": Y[:9]}, r"batch 1: expected a pair \(x, y\) of numpy arrays; got dict"),
        ((X[:9].tolist(), Y[:9]), r"batch 1: .* got tuple of \['list', 'ndarray'\]"),
        ((X[:9], Y[:8]), r"batch 1: y: expected shape \(9,\) for cross_entropy; got \(8,\)"),
        ((X[:9, :3], Y[:9]), r"batch 1: x: expected \[samples, 4\]"),
        (
            (X[:9].reshape(9, 2, 2), Y[:9]),
            r"batch 1: x: expected float64 samples of shape \(4,\), as in the first batch; got float64 of \(2, 2\)",
        ),
        ((X[:9].astype(np.float32), Y[:9]), r"batch 1: x: expected float64 .*; got float32"),
        ((X[:9].astype(int), Y[:9]), r"batch 1: x: expected a floating dtype; got int64"),
        ((X[:9].astype(object), Y[:9]), r"batch 1: expected arrays of numbers; got one of object"),
        ((X[:9], Y[:9].astype(float)), r"batch 1: y: expected integer labels"),
        (
            (X[:9], Y[:9] + 3),
            r"batch 1: y: expected labels 0\.\.2, the network has 3 outputs; got 3\.\.",
        ),
        ((BAD, Y[:9]), r"batch 1: x: expected finite numbers; got 1 that are NaN"),
    ],
)
def test_a_bad_batch_is_named(batch, message):
    refused(message, "sgd", listed(batch))


def test_an_iterator_that_ends_early_leaves_what_was_reached(monkeypatch):
    monkeypatch.setattr("jtssm.train.stream.CHUNK", 2)
    error = refused(
        r"train: expected an iterator that goes on for all epochs of steps_per_epoch steps; it ended after "
        r"4 batches: 130 samples",
        "sgd",
        iter(batches(33)),
        epochs=3,
        steps_per_epoch=4,
    )
    assert len(error.result.history) == 1
    assert error.result.params[0]["W"].shape == (4, 8)


def test_an_object_whose_second_pass_is_empty_is_refused():
    used = iter(batches(33))
    once = type("Once", (), {"__iter__": lambda self: (batch for batch in used)})()
    error = refused(r"train: expected at least 20 samples in a pass.*got 0", "sgd", once)
    assert len(error.result.history) == 1


def test_empty_batches_are_passed_over():
    method, rows = recorded(METHODS["sgd"])
    fitted(method, [(X[:0], Y[:0]), *batches(60), (X[:0], Y[:0])], epochs=1)
    assert rows() == [bytes(row) for row in X[:120]]


def test_other_arguments_that_do_not_go_with_a_stream():
    refused(
        "steps_per_epoch: expected an integer of at least 1; got 0",
        "sgd",
        batches(33),
        steps_per_epoch=0,
    )
    refused("steps_per_epoch: expected None with arrays.*got 3", "sgd", (X, Y), steps_per_epoch=3)
    shares = sharding.ProcessBatches(batches(33))
    refused("steps_per_epoch: expected a number of steps with ProcessBatches", "sgd", shares)


def test_two_batches_are_batches_and_a_pair_of_lists_is_a_pair():
    assert is_stream(batches(65))
    assert is_stream(tuple(batches(65)))
    assert not is_stream((X.tolist()[:2], [0, 1]))
    assert not is_stream((X, Y))


def test_a_grain_dataset_streams():
    grain = pytest.importorskip("grain")
    method, rows = recorded(METHODS["sgd"])
    dataset = grain.MapDataset.source(list(zip(X, Y, strict=True))).shuffle(seed=3).batch(26)
    result = jtssm.fit(method, dataset, epochs=2, key=KEY)
    assert [line["step"] for line in result.history] == [6, 12]
    seen = rows()
    assert len(set(seen[:120])) == 120
    assert seen[:120] != [bytes(row) for row in X[:120]]
    assert set(seen) <= {bytes(row) for row in X}
