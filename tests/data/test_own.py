"""Samples of one's own: arrays of several libraries, held-out parts, batches that are dicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jtssm
from jtssm import data
from jtssm.data.own import as_numpy
from tests.train.short_runs import KEY, NET, X, Y, fit, sgd

HOW = sgd()  # one method: it is compiled once


class Tensor:
    """A tensor as torch has them: of a graph, on a device, in bfloat16."""

    def __init__(self, a, dtype="torch.float32", steps=("detach", "cpu")):
        self.a, self.dtype, self.steps = np.asarray(a), dtype, steps
        self.shape = self.a.shape

    def _after(self, step):
        return Tensor(self.a, self.dtype, tuple(s for s in self.steps if s != step))

    def detach(self):
        return self._after("detach")

    def cpu(self):
        return self._after("cpu")

    def float(self):
        return Tensor(self.a, "torch.float32", self.steps)

    def numpy(self):
        if self.steps or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert: use Tensor.detach().cpu().float() first")
        return self.a

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


class Series:
    """A column as pandas has them."""

    def __init__(self, a):
        self.a = np.asarray(a)
        self.dtype, self.shape = self.a.dtype, self.a.shape

    def to_numpy(self):
        return self.a

    def __array__(self, dtype=None, copy=None):
        return self.a


class Frame:
    """A table as pandas has them."""

    def __init__(self, **columns):
        self.series = {name: Series(a) for name, a in columns.items()}
        self.columns = list(columns)
        self.shape = (len(next(iter(columns.values()))), len(columns))

    def items(self):
        return self.series.items()

    def to_numpy(self):
        return np.stack([series.a for series in self.series.values()], axis=1)

    def __array__(self, dtype=None, copy=None):
        return self.to_numpy()


X_FRAME = Frame(**{f"x{i}": X[:, i] for i in range(X.shape[1])})
KINDS = {
    "jax": lambda a: jnp.asarray(a),
    "list": lambda a: a.tolist(),
    "tensor": Tensor,
    "bfloat16": lambda a: Tensor(a, "torch.bfloat16"),
    "pandas": lambda a: X_FRAME if a is X else Series(a),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_other_libraries_come_as_numpys(kind):
    for a in (X, Y):
        np.testing.assert_array_equal(as_numpy("a", KINDS[kind](a)), a)


def test_real_tensors_and_tables_where_they_are_installed():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1.0, 2.0], "b": [3, 4]})
    np.testing.assert_array_equal(as_numpy("x", frame), [[1, 3], [2, 4]])
    with pytest.raises(ValueError, match=r"x: expected columns of numbers .*'c'"):
        as_numpy("x", frame.assign(c=["red", "blue"]))


@pytest.mark.parametrize("kind", ["tensor", "bfloat16", "pandas"])
def test_they_train_as_the_same_numbers_in_numpy_do(kind):
    given = tuple(map(KINDS[kind], (X, Y)))
    plain = fit(how=HOW, epochs=1, validation=(X, Y)).history[-1]
    how = jtssm.fit(HOW, given, epochs=1, key=KEY, validation=given)
    same = {name: a for name, a in how.history[-1].items() if name != "seconds"}
    assert same == {name: a for name, a in plain.items() if name != "seconds"}
    found = jtssm.evaluate(how.method, how.state, given)
    assert found["loss"] == plain["validation_loss"]


class Loader:
    """Batches in dicts, as loaders give them, that start anew and know their place."""

    def __init__(self, keys=("image", "label")):
        self.keys, self.epochs = keys, []

    def set_epoch(self, number):
        self.epochs.append(number)

    def __iter__(self):
        for i in range(0, len(X), 40):
            x, y = self.keys
            yield {x: X[i : i + 40], y: Y[i : i + 40], "id": np.arange(40)}


def test_dict_batches_train_as_the_pairs_do():
    pairs = [(X[i : i + 40], Y[i : i + 40]) for i in range(0, len(X), 40)]
    plain = jtssm.fit(HOW, pairs, epochs=2, key=KEY)
    loader = Loader(("tokens", "next"))
    named = data.pairs(loader, x="tokens", y="next")
    for batches in (Loader(), list(Loader()), named):
        found = jtssm.fit(HOW, batches, epochs=2, key=KEY)
        assert [line["loss"] for line in found.history] == [l["loss"] for l in plain.history]
    assert loader.epochs == [0, 1]
    one = {"image": X, "label": Y}
    assert jtssm.evaluate(found.method, found.state, one) == jtssm.evaluate(
        found.method, found.state, (X, Y)
    )
    assert jtssm.evaluate(found.method, found.state, Loader()) == jtssm.evaluate(
        found.method, found.state, pairs
    )


def test_an_iterator_of_dicts_is_one_of_pairs_and_keeps_its_place():
    class Placed:
        def __init__(self):
            self.at = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.at += 1
            return {"a": np.full((2, 3), self.at), "b": np.ones((2, 1)), "y": np.zeros(2, int)}

        def get_state(self):
            return self.at

        def set_state(self, state):
            self.at = state

    found = data.pairs(Placed(), x=("a", "b"), y="y")
    assert iter(found) is found
    x, y = next(found)
    assert sorted(x) == ["a", "b"]
    assert y.shape == (2,)
    assert found.get_state() == 1
    found.set_state(7)
    assert next(found)[0]["a"][0, 0] == 8
    assert not hasattr(found, "set_epoch")
    plain = data.pairs(iter([]), x="a", y="y")
    assert not hasattr(plain, "get_state")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.pairs({"a": 1}, x="a", y="b"), "batches: expected an iterable of dicts"),
        (lambda: data.pairs([], x="a", y=3), "y: expected a key, e.g. 'image'; got 3"),
        (lambda: data.pairs([], x=(), y="b"), "at least one key"),
        (
            lambda: list(data.pairs(Loader(), x="picture", y="label")),
            r"batches: expected dicts with \['picture', 'label'\]; got \['image', 'label', 'id'\]",
        ),
        (lambda: list(data.pairs([(X, Y)], x="a", y="b")), "expected dicts .* got tuple"),
        (lambda: fit_on([{"picture": X, "label": Y}]), "train, batch 0: expected a pair"),
    ],
)
def test_other_dicts_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def fit_on(batches):
    class Again:
        def __iter__(self):
            return iter(batches)

    return jtssm.fit(HOW, Again(), epochs=1, key=KEY)


def test_parts_are_held_out_once_each_and_as_many_as_asked_for():
    x = np.arange(200).reshape(100, 2)
    splits = data.from_arrays(x, x[:, 0] % 7, valid=0.2, test=0.05, seed=3)
    assert [len(part.y) for part in splits] == [75, 20, 5]
    rows = np.concatenate([part.x for part in splits])
    assert sorted(rows[:, 0]) == list(range(0, 200, 2))
    assert not np.array_equal(rows, x)
    for part in splits:
        np.testing.assert_array_equal(part.y, part.x[:, 0] % 7)
    again = data.from_arrays(x, x[:, 0] % 7, valid=0.2, test=0.05, seed=3)
    other = data.from_arrays(x, x[:, 0] % 7, valid=0.2, test=0.05, seed=4)
    assert np.array_equal(again.valid.x, splits.valid.x)
    assert not np.array_equal(other.valid.x, splits.valid.x)


def test_given_parts_stay_as_they_are():
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    splits = data.from_arrays(x, y, valid=(x[:3], y[:3]), test=(x[5:], y[5:]))
    for part, (a, b) in zip(splits, ((x, y), (x[:3], y[:3]), (x[5:], y[5:])), strict=True):
        np.testing.assert_array_equal(part.x, a)
        np.testing.assert_array_equal(part.y, b)
    mixed = data.from_arrays(x, y, valid=0.2, test=(x[5:], y[5:]))
    assert [len(part.y) for part in mixed] == [8, 2, 5]
    np.testing.assert_array_equal(mixed.test.x, x[5:])
    result = jtssm.fit(HOW, data.from_arrays(X, Y).train, epochs=1, key=KEY, validation=(X, Y))
    assert NET is result.method.network


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: data.from_arrays(X, Y[1:]), r"y: expected \d+ entries, one for each sample of x"),
        (lambda: data.from_arrays(X, Y, valid=0.6, test=0.4), "shares that leave samples"),
        (lambda: data.from_arrays(X, Y, valid=1.5), "valid: expected a share"),
        (lambda: data.from_arrays(X, Y, test=0), "test: expected a share above 0"),
        (lambda: data.from_arrays(X, Y, valid=(X,)), "valid: expected a share or a pair"),
        (
            lambda: data.from_arrays(X, Y, valid=(X[:, :2], Y)),
            "valid: x: expected samples of shape",
        ),
        (lambda: data.from_arrays([[1.0], [1.0, 2.0]], Y), "x: expected an array of numbers"),
        (lambda: data.from_arrays(X, ["a"] * len(X)), "y: expected an array of numbers"),
        (lambda: data.from_arrays(X, Y > 0), "y: expected integers or floats"),
        (lambda: data.from_arrays(Frame(a=[1, 2], b=["x", "y"]), [0, 1]), "x: .*in 'b': turn it"),
        (lambda: data.from_arrays(X, Y, seed=-1), "seed: expected an integer of at least 0"),
    ],
)
def test_what_is_no_data_set_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_jax_keys_are_no_samples():
    with pytest.raises((ValueError, TypeError)):
        as_numpy("x", jax.random.key(0))
