"""An optimizer bears its words, or is told by the structure of its state; it does what it did."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtssm import solvers
from jtssm.protocol.optimizers import state_names, told

PARAMS = {"W": jnp.arange(6.0).reshape(2, 3)}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (solvers.optimizer("adam", 1e-2, b1=0.5), optax.adam(1e-2, b1=0.5)),
        (told(optax.sgd(0.1, momentum=0.9), "sgd", {"rate": 0.1}), optax.sgd(0.1, momentum=0.9)),
        (told(optax.scale(-0.3), "plain", {}), optax.scale(-0.3)),  # takes no more than a gradient
    ],
    ids=["adam", "momentum", "scale"],
)
def test_it_does_what_the_optimizer_does(ours, theirs):
    assert isinstance(ours, optax.GradientTransformation)
    for opt in (ours, theirs):
        state = opt.init(PARAMS)
        assert jax.tree.structure(state) == jax.tree.structure(theirs.init(PARAMS))
    updates = [opt.update(PARAMS, opt.init(PARAMS), PARAMS)[0] for opt in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *updates)
    assert float(jnp.abs(updates[0]["W"]).max()) > 0


def test_arguments_are_told_by_name_however_they_are_given():
    adam = solvers.optimizer("adam", 1e-2, 0.5, eps=1e-6)
    assert (adam.name, adam.arguments) == ("adam", {"learning_rate": 1e-2, "b1": 0.5, "eps": 1e-6})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("adamm", {}, r"name: expected a function of optax, .*got 'adamm'"),
        (3, {}, r"name: expected a function of optax, .*got 3"),
        ("adam", {}, r"arguments: expected those of optax\.adam; .*missing a required argument"),
        ("adam", {"rate": 1.0}, r"expected those of optax\.adam; got \{'rate': 1\.0\}: "),
        ("constant_schedule", {"value": 1.0}, r"name: expected an optimizer of optax"),
    ],
)
def test_what_is_no_optimizer_of_optax_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        solvers.optimizer(name, **arguments)


def test_without_words_the_names_of_its_states_tell_one_from_another():
    assert state_names(optax.adam(1e-3)) == ["ScaleByAdamState", "EmptyState"]
    warmed = optax.adam(optax.linear_schedule(0.0, 1.0, 5))
    assert state_names(warmed) == ["ScaleByAdamState", "ScaleByScheduleState"]
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    assert state_names(clipped)[-2:] == ["TraceState", "EmptyState"]
    mapped = optax.GradientTransformation(lambda params: {"a": [optax.EmptyState()]}, None)
    assert state_names(mapped) == ["EmptyState"]
    strange = optax.GradientTransformation(lambda params: params["layer"], None)
    assert state_names(strange) == []
