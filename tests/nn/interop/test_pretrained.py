"""Networks start from the weights that modules bring; statistics that came with them are kept."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core, linen, nnx

import jtssm
from jtssm import nn, solvers

X = np.random.default_rng(0).normal(5, 3, (40, 8)).astype(np.float32)
Y = np.arange(40) % 3
SAMPLE = X[:1]


class Constant(linen.Module):
    """Keeps a collection that nothing moves."""

    @linen.compact
    def __call__(self, x):
        return x * self.variable("constants", "scale", lambda: jnp.full(8, 2.0)).value[None]


def filled(module, number=0.5):
    """A module with numbers that none draws, its pair."""
    variables = module.init(jax.random.key(0), SAMPLE)
    return module, jax.tree.map(lambda a: jnp.full(a.shape, number, a.dtype), variables)


def leaves_equal(one, other):
    pairs = zip(*map(jax.tree.leaves_with_path, (one, other)), strict=True)
    for (path, a), (there, b) in pairs:
        assert path == there
        np.testing.assert_array_equal(a, b)


def test_pairs_go_in_as_they_come_out():
    shared = linen.Dense(8)
    given = [
        shared,
        linen.relu,
        shared,
        Constant(),
        linen.BatchNorm(use_running_average=False),
        linen.Dense(3),
    ]
    net = nn.from_linen(given, SAMPLE)
    params = jax.tree.map(lambda a: a + 0.125, net.init(jax.random.key(1)))
    out = net.modules(params)
    again = nn.from_linen(out, SAMPLE)
    assert [layer.name for layer in again.layers] == [layer.name for layer in net.layers]
    leaves_equal(again.init(jax.random.key(2)), params)
    assert again.layers[0].tied
    frozen = [(m[0], core.freeze(m[1])) if isinstance(m, tuple) else m for m in out]
    leaves_equal(nn.from_linen(frozen, SAMPLE).init(jax.random.key(2)), params)
    # a bare module between pairs is drawn, as it would be alone
    mixed = nn.from_linen([*out[:-1], linen.Dense(3)], SAMPLE).init(jax.random.key(2))
    leaves_equal(mixed[:-1], params[:-1])
    leaves_equal(mixed[-1], net.init(jax.random.key(2))[-1])
    with pytest.raises(ValueError, match=r"modules 0 and 2 share; got others in the second"):
        nn.from_linen([out[0], out[1], filled(shared), *out[3:]], SAMPLE)
    with pytest.raises(ValueError, match=r"modules 0 and 2 share; got none for the first"):
        nn.from_linen([shared, out[1], out[2], *out[3:]], SAMPLE)


def test_nnx_modules_keep_the_weights_they_carry():
    rngs = nnx.Rngs(3)
    modules = [
        nnx.Linear(8, 8, rngs=rngs),
        nnx.BatchNorm(8, rngs=rngs),
        nnx.Linear(8, 3, rngs=rngs),
    ]
    modules[1].mean[...] = jnp.full(8, 4.0)
    params = nn.from_nnx(modules).init(jax.random.key(9))
    for module, p in zip(modules, params, strict=True):
        leaves_equal(p["params"], nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    np.testing.assert_array_equal(params[1]["state"]["mean"], np.full(8, 4.0))
    leaves_equal(nn.from_nnx(nn.from_nnx(modules).modules(params)).init(jax.random.key(1)), params)


class Whole(nnx.Module):
    """A model with modules in attributes and in a list."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.stem, self.drop = nnx.Linear(8, 8, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(8, 8, rngs=rngs)])
        self.width = 8


class WholeLinen(linen.Module):
    """The same of linen."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(3, name="head")(linen.relu(linen.Dense(8)(x)))


DENSE = linen.Dense(3)
BAD = [
    (
        lambda: nn.from_nnx(Whole(), SAMPLE),
        r"got a whole Whole: .*from_nnx\(\[model.stem, model.drop, \*model.blocks\], sample_input\)",
    ),
    (
        lambda: nn.from_nnx(nnx.Sequential(nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(0)))),
        r"model.layers",
    ),
    (lambda: nn.from_nnx(Whole().blocks, SAMPLE), r"from_nnx\(\[\*model\], sample_input\)"),
    (
        lambda: nn.from_linen(WholeLinen(), SAMPLE),
        r"got a whole WholeLinen, whose parameters stand in 'Dense_0, head': .*from_linen\(\[model\], ",
    ),
    (
        lambda: nn.from_linen(filled(WholeLinen()), SAMPLE),
        r"variables\['params'\]\['Dense_0'\].*from_linen\(\[\(model, variables\)\], ",
    ),
    (lambda: nn.from_linen(linen.Sequential([DENSE]), SAMPLE), r"from_linen\(\[\*model.layers\], "),
    (
        lambda: nn.from_linen([(DENSE, {"params": {"kernel": np.ones((8, 3))}})], SAMPLE),
        r"module 0, Dense.*none at \['params'\]\['bias'\], and others at no place",
    ),
    (
        lambda: nn.from_linen([filled(DENSE), filled(DENSE.clone(features=4))], SAMPLE),
        r"module 1, Dense.*variables\['params'\]\['kernel'\]: expected shape \(3, 4\); got \(8, 4\)",
    ),
    (lambda: nn.from_linen([(DENSE, 3)], SAMPLE), r"pairs \(module, variables\) or functions"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=range(len(BAD)))
def test_what_is_no_list_of_such_is_refused_with_what_to_write(call, message):
    with pytest.raises(ValueError, match=message):
        call()


NORM = linen.BatchNorm(use_running_average=False)
KEPT = r"estimate: the statistics of normalisation that came with the weights are kept"


def mean_after_fit(net, **ways):
    """The running mean of layer 0 after an epoch that moves nothing else."""
    method = solvers.sgd(net, optimizer=optax.set_to_zero(), batch_size=40)
    result = jtssm.fit(method, (X, Y), epochs=1, key=jax.random.key(0), **ways)
    return np.asarray(result.params[0]["state"]["batch_stats"]["mean"])


def test_pretrained_statistics_are_estimated_only_where_that_is_asked():
    head = linen.Dense(3)
    pretrained, new = (nn.from_linen([m, head], SAMPLE) for m in (filled(NORM), NORM))
    with pytest.warns(UserWarning, match=KEPT):
        np.testing.assert_array_equal(mean_after_fit(pretrained), np.full(8, 0.5))
    np.testing.assert_array_equal(mean_after_fit(pretrained, estimate=False), np.full(8, 0.5))
    mean = X.mean(axis=0)
    np.testing.assert_allclose(mean_after_fit(pretrained, estimate=True), mean, rtol=1e-5)
    np.testing.assert_allclose(mean_after_fit(new), mean, rtol=1e-5)
    given = pretrained.init(jax.random.key(0))
    with pytest.warns(UserWarning, match=KEPT):
        np.testing.assert_array_equal(mean_after_fit(new, params=given), np.full(8, 0.5))
    drawn = new.init(jax.random.key(0))  # statistics of no samples are no statistics
    np.testing.assert_allclose(mean_after_fit(pretrained, params=drawn), mean, rtol=1e-5)
    with pytest.raises(ValueError, match=r"estimate: expected True or False; got 'yes'"):
        mean_after_fit(new, estimate="yes")


def test_frozen_statistics_stay_and_others_are_estimated_beside_them():
    frozen = filled(linen.BatchNorm(use_running_average=True))
    net = nn.from_linen(
        [frozen, linen.BatchNorm(use_running_average=False), linen.Dense(3)], SAMPLE
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(mean_after_fit(net, estimate=True), np.full(8, 0.5))
        np.testing.assert_array_equal(mean_after_fit(net), np.full(8, 0.5))
    mixed = nn.from_linen([filled(NORM), NORM.clone(), linen.Dense(3)], SAMPLE)
    with pytest.raises(
        ValueError, match=r"estimate: expected True or False.*\[0\] come with some, and \[1\]"
    ):
        mean_after_fit(mixed)


def test_a_networks_own_running_statistics_are_kept_too():
    net = jtssm.mlp([8, 4, 3], normalisation="running")
    method = solvers.sgd(net, optimizer=optax.set_to_zero(), batch_size=40)
    first = jtssm.fit(method, (X, Y), epochs=1, key=jax.random.key(0))
    params = jax.tree.map(lambda a: 2 * a, first.params)
    with pytest.warns(UserWarning, match=KEPT):
        second = jtssm.fit(method, (X, Y), epochs=1, key=jax.random.key(0), params=params)
    leaves_equal(second.params, params)
