"""Modules train while training, whatever their flag is called, and what is frozen stays frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

from jtssm import nn, solvers
from jtssm.nn.interop import modes
from jtssm.nn.ops import PLAIN
from jtssm.solvers.pieces import training

X = np.random.default_rng(0).normal(5, 3, (40, 8)).astype(np.float32)
MEAN = X.mean(axis=0)
SAMPLE = jnp.zeros((1, 8))
FROZEN = {"use_running_average": (True, True)}


def linen_argument(name, default=" = False"):
    """A linen module with batch statistics and dropout, told by an argument of that name."""
    made = {}
    exec(
        f"""
class Block(linen.Module):
    @linen.compact
    def __call__(self, x, {name}: bool{default}):
        x = linen.BatchNorm(use_running_average=not {name})(x)
        return linen.Dropout(0.5, deterministic=not {name})(x)
""",
        {"linen": linen},
        made,
    )
    return made["Block"]()


class Fielded(linen.Module):
    """Told by a field."""

    training: bool = False
    mine: bool = False

    @linen.compact
    def __call__(self, x):
        on = self.training or self.mine
        x = linen.BatchNorm(use_running_average=not on)(x)
        return linen.Dropout(0.5, deterministic=not on)(x)


class Hidden(linen.Module):
    """Told by a field of a name of its own."""

    mine: bool = False
    norm: bool = True

    @linen.compact
    def __call__(self, x):
        if self.norm:
            return linen.BatchNorm(use_running_average=not self.mine)(x)
        return linen.Dropout(0.5, deterministic=not self.mine)(x)


class Both(nnx.Module):
    """Batch statistics and dropout, told by `train`."""

    def __init__(self, **norm):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(8, rngs=rngs, **norm)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train: bool = False):
        return self.drop(self.norm(x, use_running_average=not train), deterministic=not train)


class Untold(Both):
    """The same, told by nothing but flax's own attributes."""

    def __call__(self, x):
        return self.drop(self.norm(x))


class Mine(Both):
    """The same, told by an argument of another name."""

    def __call__(self, x, enable_dropout: bool = False):
        return super().__call__(x, enable_dropout)


class Attribute(Both):
    """The same, told by an attribute."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        setattr(self, name, False)

    def __call__(self, x):
        return super().__call__(x, getattr(self, self.name))


class Off(nnx.Module):
    """Dropout that an attribute of another name turns on."""

    def __init__(self):
        self.mine = False
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.drop(x, deterministic=not self.mine)


class Late(nnx.Module):
    """Dropout whose random numbers come with the call."""

    def __init__(self):
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, rngs=None):
        return self.drop(x, rngs=rngs)


class LateKey(nnx.Module):
    """A key has to come with the call."""

    def __init__(self):
        self.drop = nnx.Dropout(0.5)

    def __call__(self, x, key):
        return self.drop(x, rngs=nnx.Rngs(dropout=key))


class MayKey(nnx.Module):
    """Drops by itself, where it is given a key."""

    def __call__(self, x, key=None):
        return x if key is None else 2 * x * jax.random.bernoulli(key, 0.5, x.shape)


class LinenKey(linen.Module):
    """The same of linen, beside a word that stands behind it."""

    @linen.compact
    def __call__(self, x, dropout_rng=None, train: bool = False):
        return linen.Dropout(0.5, deterministic=not train)(x, rng=dropout_rng)


class LinenRngs(linen.Module):
    """Wants what apply takes."""

    @linen.compact
    def __call__(self, x, rngs=None):
        return x


class Attending(linen.Module):
    """Has a key that is none of random numbers."""

    @linen.compact
    def __call__(self, query, key=None, value=None):
        return query if key is None else query + key


class Rematerialised(nnx.Module):
    """Computes again in the backward pass what a static argument says."""

    def __init__(self):
        self.both = Both()

    def __call__(self, x, train: bool = False):
        return nnx.remat(Both.__call__, static_argnums=(2,))(self.both, x, train)


def evaluating(module):
    module.eval()
    return module


def of_linen(module, mode=None):
    return nn.from_linen([module], SAMPLE, mode=mode)


def of_nnx(module, mode=None):
    return nn.from_nnx([module], SAMPLE, mode=mode)


def seen(net):
    """(whether it drops, the running mean after an estimate on X)."""
    params = net.init(jax.random.key(0))
    (tree,) = net.estimate(params, X)
    means = [a for path, a in jax.tree_util.tree_leaves_with_path(tree) if "mean" in str(path)]
    assert np.isfinite(np.asarray(net.apply([tree], X))).all()
    return net.random, np.asarray(means[0]) if means else None


REMAT = linen.remat(type(linen_argument("train")), static_argnums=(2,))


@pytest.mark.parametrize(
    "make",
    [
        lambda: of_linen(linen_argument("train")),
        lambda: of_linen(linen_argument("training", "")),
        lambda: of_linen(linen_argument("is_train"), {"is_train": True}),
        lambda: of_linen(linen_argument("enable_dropout"), {"enable_dropout": (True, False)}),
        lambda: of_linen(REMAT()),
        lambda: of_nnx(Rematerialised()),
        lambda: of_linen(Fielded()),
        lambda: of_linen(Fielded(training=True)),
        lambda: of_linen(Fielded(), {"mine": True}),
        lambda: of_nnx(Both()),
        lambda: of_nnx(Untold()),
        lambda: of_nnx(Mine(), {"enable_dropout": True}),
        lambda: of_nnx(Attribute("is_training")),
        lambda: of_nnx(Attribute("mine"), {"mine": True}),
        lambda: of_nnx(
            evaluating(Untold()), {"deterministic": False, "use_running_average": False}
        ),
    ],
)
def test_a_module_drops_and_takes_statistics_while_it_trains(make):
    drops, mean = seen(make())
    assert drops
    np.testing.assert_allclose(mean, MEAN, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "drops"),
    [
        (lambda: of_linen(linen.BatchNorm(use_running_average=True)), False),
        (lambda: of_linen(linen_argument("train"), FROZEN), True),
        (lambda: of_linen(linen_argument("mine"), {"mine": (False, False), **FROZEN}), False),
        (lambda: of_linen(Hidden(), FROZEN), False),
        (lambda: of_nnx(nnx.BatchNorm(8, rngs=nnx.Rngs(0), use_running_average=True)), False),
        (lambda: of_nnx(Untold(use_running_average=True)), True),
        (lambda: of_nnx(Untold(), FROZEN), True),
    ],
)
def test_frozen_statistics_stay(make, drops):
    net = make()
    assert seen(net)[0] == drops
    np.testing.assert_array_equal(seen(net)[1], np.zeros(8))
    # training, too, sees the running averages: samples are normalised with mean 0 and variance 1
    params = net.init(jax.random.key(0))
    y = net.layers[0].apply(params[0], jnp.asarray(X), PLAIN.to_train())
    np.testing.assert_allclose(y, X, rtol=1e-4)


def test_frozen_statistics_stay_in_a_fit_that_moves_the_rest():
    net = nn.from_nnx(
        [Untold(use_running_average=True), nnx.Linear(8, 3, rngs=nnx.Rngs(1))], SAMPLE
    )
    method = solvers.sgd(net, optimizer=optax.adamw(0.1, weight_decay=0.1), batch_size=40)
    state = method.init(jax.random.key(0), X, np.arange(40) % 3)
    state = method.estimate(jax.jit(method.step)(state, X, np.arange(40) % 3)[0], X)
    before, after = net.init(jax.random.key(0)), method.params(state)
    jax.tree.map(np.testing.assert_array_equal, before[0]["state"], after[0]["state"])
    assert np.abs(after[1]["params"]["kernel"] - before[1]["params"]["kernel"]).max() > 0.05


@pytest.mark.parametrize(
    "make",
    [
        lambda: of_linen(linen.Dropout(0.5)),
        lambda: of_linen(linen.Dropout(0.5, deterministic=False)),
        lambda: of_nnx(nnx.Dropout(0.5)),
        lambda: of_nnx(Late()),
        lambda: of_nnx(Off(), {"mine": True}),
        lambda: of_nnx(MayKey()),
        lambda: of_linen(LinenKey()),
    ],
)
def test_dropout_draws_wherever_its_random_numbers_come_from(make):
    net = make()
    assert net.random
    params = net.init(jax.random.key(0))
    np.testing.assert_array_equal(net.apply(params, X), X)
    drawing = training(PLAIN, jax.random.key(1), 0, jnp.arange(40))
    y = net.layers[0].apply(params[0], jnp.asarray(X), drawing)
    assert 0.4 < float((y == 0).mean()) < 0.6
    np.testing.assert_array_equal(y[y != 0], 2 * X[y != 0])
    assert not np.array_equal(y[0] == 0, y[1] == 0)  # samples have masks of their own


def test_a_key_that_a_module_must_have_comes_in_prediction_too():
    net = of_nnx(LateKey())
    y = net.layers[0].apply(
        net.init(jax.random.key(0))[0],
        jnp.asarray(X),
        training(PLAIN, jax.random.key(1), 0, jnp.arange(40)),
    )
    assert 0.4 < float((y == 0).mean()) < 0.6
    np.testing.assert_array_equal(net.apply(net.init(jax.random.key(0)), X), X)
    attending = of_linen(Attending())
    assert not attending.random
    np.testing.assert_array_equal(attending.apply(attending.init(jax.random.key(0)), X), X)


class Constant(linen.Module):
    """Keeps a collection of its own."""

    moves: bool = False

    @linen.compact
    def __call__(self, x):
        scale = self.variable("constants", "scale", lambda: jnp.full(8, 2.0))
        if self.moves:
            scale.value = scale.value + 1
        return x * scale.value[None]


def test_collections_that_nothing_moves_are_kept_as_drawn():
    net = of_linen(Constant())
    params = net.estimate(net.init(jax.random.key(0)), X)
    np.testing.assert_array_equal(params[0]["state"]["constants"]["scale"], np.full(8, 2.0))
    np.testing.assert_array_equal(net.apply(params, X), 2 * X)
    ((module, variables),) = net.modules(params)
    np.testing.assert_array_equal(module.apply(variables, X), 2 * X)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: of_linen(linen_argument("is_train")),
            r"mode: expected the value while training of 'is_train', an argument of module 0, Block",
        ),
        (lambda: of_linen(linen_argument("inference", "")), r"mode: expected .* 'inference'"),
        (
            lambda: of_nnx(Mine()),
            r"mode: expected .*'enable_dropout', an argument of module 0, Mine",
        ),
        (
            lambda: of_linen(Hidden()),
            r"batch statistics that training moves; got .* by mode=\{name",
        ),
        (lambda: of_nnx(Attribute("mine")), r"batch statistics that training moves"),
        (lambda: of_linen(LinenRngs()), r"LinenRngs, with an argument 'rngs', which linen's apply"),
        (
            lambda: of_linen(linen.remat(type(linen_argument("train")))()),
            r"(?s)module 0, CheckpointBlock, .*static_argnums",
        ),
        (lambda: of_linen(Hidden(norm=False)), r"dropout that is on while training"),
        (lambda: of_nnx(Off()), r"dropout that is on while training"),
        (
            lambda: of_nnx(evaluating(Untold())),
            r"a Dropout whose deterministic is True.* call train",
        ),
        (
            lambda: of_nnx(Both(), {"tain": True}),
            r"mode: expected names .*got \['tain'\], which none",
        ),
        (lambda: of_linen(linen_argument("train"), {"tain": True}), r"mode: .*\['tain'\]"),
        (lambda: of_nnx(Both(), {"train": 1}), r"mode\['train'\]: expected True or False .*got 1"),
        (lambda: of_nnx(Both(), "train"), r"mode: expected names .*got 'train'"),
        (
            lambda: of_linen(Constant(moves=True)),
            r"nothing but 'batch_stats' .*changes 'constants'",
        ),
    ],
)
def test_modules_that_would_train_as_they_predict_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_known_word_that_stays_as_in_prediction_stays_in_both():
    assert modes.told({"train": False, "deterministic": True, "mine": False}) == {
        "train": (False, False),
        "deterministic": (True, True),
        "mine": (False, True),
    }
