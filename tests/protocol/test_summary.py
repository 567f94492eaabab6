"""Methods, networks and results in words that a person reads."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import jtssm
from jtssm import sharding, solvers
from jtssm.data import synthetic

NET = jtssm.mlp([4, 16, 12, 3])
X, Y = synthetic.separable(0, 96, 4, 3)
ADAM = solvers.optimizer("adam", 1e-3)
SHARED = {"optimizer": ADAM, "batch_size": 24}
ROUND = {"optimizer": ADAM, "batch_size": 12, "local_steps": 2}
METHODS = {
    "sgd": (solvers.sgd(NET, **SHARED), (1, 2, 2)),
    "gsadmm": (solvers.gsadmm(NET, subnets=2, microbatches=1, **SHARED), (2, 1, 2)),
    "gsam": (solvers.gsam(NET, subnets=3, schedule="stored", **SHARED), (3, 1, 2)),
    "pdadmm": (solvers.pdadmm(NET), (3, 1, 2)),
    "ist": (solvers.ist(NET, subnets=2, **ROUND), (2, 1, 2)),
    "local_sgd": (solvers.local_sgd(NET, workers=2, **ROUND), (2, 1, 2)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_in_two_lines_without_addresses(name):
    method, shape = METHODS[name]
    placed = sharding.place(method, sharding.make_mesh(*shape))
    for each in (method, placed):
        assert len(repr(each).splitlines()) == 2
        assert repr(each).startswith(f"{name}(")
        assert "0x" not in repr(each) + each.summary(96)
    assert "of a network of 3 layers, 323 parameters, on one device" in repr(method)
    sizes = [f"{axis}={n}" for axis, n in zip(sharding.AXES, shape, strict=True) if n > 1]
    assert repr(placed).endswith(f"on a mesh of {' x '.join(sizes)}")


def bytes_told(text: str) -> tuple[float, float]:
    """Of weights and of other variables, as a summary says."""
    units = {"B": 1, "kB": 1e3}
    words = text.splitlines()[-1].split()
    at = [i for i, word in enumerate(words) if word in units]
    return tuple(float(words[i - 1]) * units[words[i]] for i in at)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_device_holds_is_what_it_holds(name):
    method, shape = METHODS[name]
    placed = sharding.place(method, sharding.make_mesh(*shape))
    for each in (method, placed):
        state = each.init(jax.random.key(0), X, Y)
        device = jax.devices()[0]
        here = sum(
            shard.data.nbytes
            for a in jax.tree.leaves(state)
            for shard in a.addressable_shards
            if shard.device == device
        )
        told = sum(bytes_told(each.summary(len(X))))
        np.testing.assert_allclose(told, here, rtol=0.01)


def test_a_summary_names_cuts_messages_and_forms():
    method, _ = METHODS["gsadmm"]
    text = method.summary()
    assert "cut before layer 1: 80, 243 parameters" in text
    assert "on a mesh it would send\n    f, 24 x 16, along subnet from piece 0 to 1" in text
    sgd = sharding.place(METHODS["sgd"][0], sharding.make_mesh(1, 2, 2))
    assert f"forms of its layers: {', '.join(sgd.forms)}" in sgd.summary()
    assert "summary(samples=...) says the rest" in METHODS["pdadmm"][0].summary()
    assert "p^T p, 16, along pc" in METHODS["pdadmm"][0].summary(96)


def test_a_method_without_settings_is_shown_by_its_name():
    method = solvers.sgd(NET, optimizer=optax.adam(1e-3), batch_size=24)
    bare = method._replace(program=dataclasses.replace(method.program, settings=None))
    assert repr(bare).startswith("sgd\n")
