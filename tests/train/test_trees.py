"""`fit` and what stands around it on samples that are trees of arrays."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import nn, sharding, solvers, testing
from jtssm.sharding.cost import memory
from jtssm.sharding.cost.demand import method_forms, step_demand
from jtssm.sharding.distributed import ProcessSamples, check_shares
from tests.tree_networks import encoder, sentences, unet

NET = encoder()
ADAM = optax.adam(1e-2)
X, Y = sentences(24)
SHARED = {"optimizer": ADAM, "batch_size": 8}
KEY = jax.random.key(0)


def close(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


def test_a_run_of_trees_is_resumed_evaluated_and_asked(tmp_path):
    method = solvers.gsadmm(NET, subnets=2, **SHARED)
    # given: flax draws in float32, of which programs for other meshes may round the last bit otherwise
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), NET.init(KEY, jnp.float64))
    ways = {"key": KEY, "validation": (X, Y), "progress": False, "params": start}
    whole = jtssm.fit(method, (jax.tree.map(jnp.asarray, X), Y), epochs=2, **ways)
    mesh = sharding.make_mesh(2, 1, 2)
    jtssm.fit(method, (X, Y), epochs=1, mesh=mesh, checkpoint=tmp_path, **ways)
    result = jtssm.fit(method, (X, Y), epochs=2, checkpoint=tmp_path, **ways)
    close(result.params, whole.params)
    # the line of the shorter run was drained; what stands behind it was not
    assert result.history[0] != whole.history[0]
    last = whole.history[-1]["validation_loss"]
    close(result.history[-1]["validation_loss"], last)

    found = result.evaluate((X, Y), metrics={"second": lambda f, y: f[:, 1]})
    outputs = result.predict(X)
    np.testing.assert_allclose(found["loss"], last, rtol=1e-9)
    np.testing.assert_allclose(found["second"], outputs[:, 1].mean(), rtol=1e-9)
    assert outputs.shape == (24, 3)
    shuffled = {"ids": X["ids"][::-1], "mask": X["mask"][::-1]}
    np.testing.assert_allclose(result.predict(shuffled), outputs[::-1], rtol=1e-9)
    other = {"ids": X["ids"], "mask": ~X["mask"] | (np.arange(4) == 0)[None]}
    with pytest.raises(ValueError, match=r"of checksum"):
        jtssm.fit(method, (other, Y), epochs=2, checkpoint=tmp_path, **ways)


def in_batches(sizes):
    """The samples in order, so many at a time."""
    ends = np.cumsum([0, *sizes])
    for a, b in pairwise(ends):
        yield jax.tree.map(lambda each, a=a, b=b: each[a:b], (X, Y))


def test_a_stream_of_trees_is_cut_to_minibatches_and_resumed(tmp_path):
    method = solvers.sgd(NET, **SHARED)
    ways = {"key": KEY, "progress": False}
    batches = list(in_batches((5, 7, 12)))
    jtssm.fit(method, batches, epochs=1, checkpoint=tmp_path, **ways)
    result = jtssm.fit(method, batches, epochs=2, checkpoint=tmp_path, **ways)
    state = method.init(jax.random.split(KEY)[0], X, Y)
    step = jax.jit(method.step)
    for x, y in [*in_batches((8, 8, 8)), *in_batches((8, 8, 8))]:
        state, _ = step(state, x, y)
    close(result.params, method.params(state))
    assert [line["step"] for line in result.history] == [3, 6]
    close(result.evaluate(iter(batches))["loss"], result.evaluate((X, Y))["loss"])
    strange = ({"ids": X["ids"], "mask": X["ids"]}, Y)
    with pytest.raises(ValueError, match=r"batch 1: x\['mask'\]: expected booleans"):
        jtssm.fit(method, [(X, Y), strange], epochs=1, **ways)
    with pytest.raises(ValueError, match=r"train: x\['mask'\]: expected an array"):
        jtssm.fit(method, ({"ids": X["ids"], "mask": X["mask"].astype(str)}, Y), epochs=1, **ways)


@pytest.mark.slow
def test_a_plan_of_trees_is_made_and_its_memory_is_that_of_the_program():
    with jax.enable_x64(False):
        net = unet()
        method = solvers.gsadmm(net, subnets=2, **SHARED)
        sizes = (2, 1, 2)
        step = step_demand(method, sizes, method_forms(method, sizes, "auto", None), None)
        told = memory.step_memory(method, sizes, step)
        placed, state, given = memory.placed_step(
            method, sizes, "auto", None, sharding.make_mesh(*sizes)
        )
        found = jax.jit(placed.step).lower(state, *given).compile().memory_analysis()
        assert told.arguments == found.argument_size_in_bytes
        for network in (net, NET):
            best = jtssm.plan(network, 4, 16, "h100-nvlink", method="gsadmm", cuts=[1]).best
            assert np.prod(best.shape) == 4


def started(f):
    """A function of a tree of samples, with the weights it starts from."""
    return lambda key, x: {"W": jax.random.normal(key, (4, 4), x["h"].dtype)}, f


def places():
    """A network of plain functions, whose samples hold floats beside integers."""
    inner = lambda p, x: {"h": jnp.tanh(x["h"] @ p["W"]), "at": x["at"]}
    last = lambda p, x: (x["h"] * (1 + x["at"][:, None])) @ p["W"]
    sample = {"h": jnp.zeros((1, 4)), "at": jnp.zeros(1, jnp.int32)}
    return nn.layers([started(inner), started(inner), started(last)], sample)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "gsadmm", "gsam", "local_sgd", "ensemble"])
def test_methods_keep_their_contract_on_trees(name):
    rng = np.random.default_rng(0)
    x = {"h": rng.normal(size=(32, 4)), "at": rng.integers(0, 3, 32).astype(np.int32)}
    y = rng.integers(0, 4, 32).astype(np.int32)
    workers = {"local_sgd": {"workers": 2}, "ensemble": {"members": 2}}.get(name)
    more = {"subnets": 3} if name in ("gsadmm", "gsam") else {}
    more |= workers | {"local_steps": 2} if workers else {}
    method = solvers.METHODS[name](places(), **SHARED, **more)
    shape = (1, 2, 2) if name == "sgd" else (3, 1, 2) if "subnets" in more else (2, 1, 2)
    testing.check_method(method, x, y, mesh=sharding.make_mesh(*shape))


@pytest.mark.slow
def test_fit_finds_a_mesh_for_trees():
    method = solvers.gsadmm(NET, subnets=2, **SHARED)
    result = jtssm.fit(method, (X, Y), epochs=1, key=KEY, mesh="auto", progress=False)
    assert result.method.mesh.size == 8
    assert np.isfinite(result.history[-1]["loss"]) or result.history[-1]["samples"] == 0


def test_shares_of_processes_may_be_trees():
    seen = []
    shares = lambda x: check_shares((0,), ProcessSamples(x, Y), lambda x, y: seen.append((x, y)))
    assert shares(X) != shares(X | {"mask": ~X["mask"]})
    close(seen[0], (X, Y))
