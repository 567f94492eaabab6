"""Faults of small kinds, a dozen variants each: refused by name, or taken as what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import jtssm
from jtssm import nn, solvers
from jtssm.cli import main
from jtssm.nn import images
from jtssm.train.record import make_plain
from tests.train.short_runs import KEY, NET, X, Y, fit, sgd

WORDS = [
    ("--seed", word, "expected an integer from 0 to 4294967295, of 32 bits; got")
    # what jax drops beyond 32 bits gives the weights of another seed
    for word in ("18446744073709551616", "-9223372036854775809", "4294967296", "-1", "9" * 400)
]
WORDS += [("--seed", word, "expected an integer") for word in ("1e3", "", "0x10", "9" * 5000)]
WORDS += [
    ("--mesh", word, "expected sizes of subnet, pr and pc, each once")
    for word in ("pc=1,pc=2", "pc=1,pc=1", "subnet=2,pr=1,subnet=2", "pc=1,", ",", "", "pc=1=1")
]
WORDS += [
    ("--hidden", word, "expected integers with commas between")
    for word in ("16,", ",16", "16,,16", ",", "", "16.0", "16;16", "9" * 5000)
]
WORDS += [("--hidden", word, "widths[1]: expected an integer") for word in ("0", "-3", "9" * 30)]
WORDS += [
    (name, word, "expected a path, e.g. run; got")
    for name in ("--out", "--checkpoint", "--data-dir")
    for word in ("", " ", "a\0b")
]
WORDS += [("--size", word, "size: expected") for word in ("0", "-1", "9")]


@pytest.mark.parametrize(
    ("name", "word", "message"), WORDS, ids=[f"{a} {b[:20]!r}" for a, b, _ in WORDS]
)
def test_a_word_that_cannot_be_is_one_short_line(name, word, message, tmp_path, capsys):
    out = [] if name == "--out" else ["--out", str(tmp_path / "run")]
    assert main(["train", "sgd", "--epochs", "1", name, word, *out]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert (error.count("\n"), len(error) < 500) == (1, True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices", ["0", "-2"])
def test_devices_that_are_measured_are_counted_from_one(devices, tmp_path, capsys):
    assert main(["calibrate", str(tmp_path / "a.json"), "--devices", devices]) == 2
    assert "--devices: expected an integer of at least 1" in capsys.readouterr().err


class Own(nn.Layer):
    """A layer that says it gives samples of some shape."""

    def __init__(self, gives):
        self.gives = gives

    def init(self, key, shape, dtype):
        return {}

    def apply(self, params, x, products):
        return x

    def shape(self, shape):
        return self.gives

    def cost(self, shape):
        return 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: jtssm.mlp([4, 0, 3]),
        lambda: jtssm.mlp([4, -1, 3]),
        lambda: jtssm.mlp([4, True, 3]),
        lambda: jtssm.mlp(["4", 6, 3]),
        lambda: jtssm.mlp(jnp.array([4, 6, 3])),
        lambda: nn.dense(0),
        lambda: nn.sequence([nn.dense(3)], (28, 28, 0)),
        lambda: nn.sequence([nn.dense(3)], ()),
        lambda: images.convnet((8, 8, 1), 0, channels=(2,), hidden=(4,)),
        lambda: images.convnet((8, 8, 1), 3, channels=(0,), hidden=(4,)),
        lambda: images.convnet((8, 8, 1), 3, channels=(2,) * 6, hidden=(4,)),
        lambda: nn.layers([lambda x: x[:, :0]], jnp.zeros((1, 4))),
        lambda: nn.layers([jnp.tanh], [[1.0, 2.0]]),
        lambda: nn.layers([({"W": np.zeros((4, 0))}, lambda p, x: x @ p["W"])], jnp.zeros((1, 4))),
        lambda: nn.from_linen([linen.Dense(0), linen.Dense(3)], jnp.zeros((1, 4))),
        *(
            lambda gives=gives: nn.sequence([Own(gives), nn.dense(3)], (4,))
            for gives in ((0,), (-1,), (4.0,), 4, None, "4", (4, None))
        ),
    ],
)
def test_layers_of_no_width_and_shapes_that_are_none_are_named(make):
    with pytest.raises(ValueError, match=r"(?s)expected .*got"):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: jtssm.mlp(np.array([4, 6, 3])),
        lambda: jtssm.mlp([np.int64(4), np.uint8(6), np.int32(3)]),
        lambda: nn.sequence([nn.dense(np.int16(6)), nn.dense(3)], np.array([4])),
        lambda: nn.sequence([nn.dense(6), nn.dense(3)], [np.int64(4)]),
        *(
            lambda gives=gives: nn.sequence([Own(gives), nn.dense(3)], (4,))
            for gives in ([6], np.array([6]), (np.int64(6),))
        ),
    ],
)
def test_integers_of_numpy_and_lists_are_shapes(make):
    shapes = make().shapes
    assert shapes == ((4,), (6,), (3,))
    assert {type(n) for shape in shapes for n in shape} == {int}


def bad(a, number):
    return jax.tree.map(lambda a: a.at[(0,) * a.ndim].set(number), a)


def linear(number):
    module = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    module.kernel[...] = bad(module.kernel[...], number)
    return module


def batch_norm(number):
    module = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    module.mean[...] = bad(module.mean[...], number)
    return module


STATE = sgd().init(KEY, X, Y)
PARAMS = sgd().params(STATE)


def spoilt(number):
    weights = STATE.weights[0]._replace(params=bad(PARAMS, number))
    return STATE._replace(weights=(weights,))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "start",
    [
        lambda number: sgd().init(KEY, X, Y, bad(PARAMS, number)),
        lambda number: fit(params=bad(PARAMS, number)),
        lambda number: fit(state=spoilt(number)),
        lambda number: fit(state=STATE._replace(pace=jnp.asarray(number))),
        lambda number: nn.from_nnx([linear(number)]),
        lambda number: nn.from_nnx([batch_norm(number)], jnp.zeros((1, 4))),
        lambda number: nn.layers(
            [({"W": np.full((4, 3), number)}, lambda p, x: x @ p["W"])], jnp.zeros((1, 4))
        ),
    ],
    ids=["init", "fit params", "fit state", "pace", "nnx", "nnx statistics", "functions"],
)
def test_numbers_to_start_from_are_finite(start, number):
    with pytest.raises(
        ValueError, match=r"expected finite numbers; got [0-9]+ that are NaN or inf"
    ):
        start(number)


NORMED = jtssm.mlp([4, 8, 4], normalisation="batch")
RUNNING = jtssm.mlp([4, 8, 4], normalisation="running")
ROUND = {"optimizer": optax.sgd(0.1), "local_steps": 2}
BY_NNX = nn.from_nnx(
    [nnx.Linear(4, 4, rngs=nnx.Rngs(0)), nnx.BatchNorm(4, rngs=nnx.Rngs(0))], jnp.zeros((1, 4))
)
PIXEL = nn.sequence([nn.convolution(2, 4, stride=4, normalisation="batch"), nn.dense(3)], (4, 4, 1))


@pytest.mark.parametrize("net", [NORMED, RUNNING, BY_NNX, PIXEL])
@pytest.mark.parametrize(
    "make",
    [
        lambda net, size: solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=size),
        lambda net, size: solvers.gsadmm(net, optimizer=optax.sgd(0.1), batch_size=size, subnets=2),
        lambda net, size: solvers.local_sgd(net, workers=2, batch_size=size, **ROUND),
        lambda net, size: solvers.ensemble(net, members=2, batch_size=size, **ROUND),
    ],
    ids=["sgd", "gsadmm", "local_sgd", "ensemble"],
)
def test_statistics_of_one_sample_are_refused(net, make):
    with pytest.raises(
        ValueError, match=r"batch_size: expected at least 2 samples, as layer .*; got 1: use"
    ):
        make(net, 1)
    make(net, 2)


def test_statistics_of_one_sample_over_its_pixels_or_neurons_are_some():
    net = images.convnet((8, 8, 1), 3, channels=(2,), hidden=(), normalisation=None)
    pixels = nn.sequence([nn.convolution(2, 3, normalisation="batch"), nn.dense(3)], (4, 4, 1))
    for each in (net, pixels, jtssm.mlp([4, 8, 3], normalisation="layer")):
        assert solvers.sgd(each, optimizer=optax.sgd(0.1), batch_size=1).batch_shape == (1,)


def test_a_single_sample_is_not_normalised_by_itself():
    """Every sample would have the same outputs."""
    how = sgd(net=NORMED)
    state = how.init(KEY, X, Y)
    with pytest.raises(ValueError, match=r"x: expected at least 2 samples.*got 1"):
        jtssm.evaluate(how, state, (X[:1], Y[:1]))
    with pytest.raises(ValueError, match=r"x: expected at least 2 samples.*got 1"):
        jtssm.train.evaluation.outputs(how, state, X[:1])
    with pytest.raises(ValueError, match=r"x: expected at least one sample; got none"):
        jtssm.train.evaluation.outputs(how, state, X[:0])


@pytest.mark.parametrize(
    "data",
    [
        (X.tolist(), Y.tolist()),
        (X[:2].tolist(), Y[:2].tolist()),
        {"a": (X.tolist(), Y.tolist())},
        [X, Y, X],
        [3, 4],
        [(X, Y, Y)],
        [None],
        ["xy"],
    ],
)
def test_lists_that_are_no_samples_are_named_by_evaluate(data):
    with pytest.raises(ValueError, match=r"(?s)^(data|x): expected .*got"):
        jtssm.evaluate(sgd(), STATE, data)


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.float16(0.5), 0.5),
        (jnp.bfloat16(1.5), 1.5),
        (jnp.float32(2), 2.0),
        (np.int64(7), 7),
        (np.True_, True),
        (jnp.array(True), True),
        (np.array(3.0), 3.0),
        (np.str_("text"), "text"),
        (None, None),
        (10**30, 10**30),
        ([np.float32(1)], [np.float32(1)]),
        ({"a": 1}, {"a": 1}),
    ],
)
def test_what_a_callback_may_add_to_a_line(value, kept):
    line = {"mine": value}
    make_plain(line)
    assert line["mine"] == kept
    assert type(line["mine"]) is type(kept)


@pytest.mark.parametrize(
    "value", [1j, np.complex64(1j), b"a", np.datetime64("2020"), object(), {1}, KEY, print, NET]
)
def test_what_no_file_holds_is_refused_at_its_line(value):
    with pytest.raises(ValueError, match=r"epoch\.record: expected numbers, text .*, 'mine'$"):
        make_plain({"mine": value})
    with pytest.raises(
        ValueError, match=r"epoch\.record: expected .*by names; got another name, 3"
    ):
        make_plain({3: 1.0})
