"""What a method was made with is data: readable, comparable, JSON, and enough to make it again."""

import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, sharding, solvers
from jtssm.protocol.settings import plain, recorded

NET = jtssm.mlp([4, 8, 8, 3])
ADAM = solvers.optimizer("adam", 1e-3)
GSADMM = {"optimizer": ADAM, "batch_size": 6, "subnets": 2}
ROUND = {"optimizer": ADAM, "batch_size": 2, "local_steps": 3}
GIVEN = {
    "sgd": {"optimizer": ADAM, "batch_size": 6},
    "gsadmm": GSADMM,
    "gsam": GSADMM | {"schedule": solvers.Stored(order="parallel")},
    "pdadmm": {"rho": 3.0, "grid": [0.0, 0.5, 1.0]},
    "pipeline": GSADMM | {"microbatches": 3},
    "ist": ROUND | {"subnets": 2},
    "local_sgd": ROUND | {"workers": 2},
    "ensemble": ROUND | {"members": 2},
}


def made(name="gsadmm", **changes):
    return solvers.METHODS[name](NET, **GIVEN[name] | changes)


@pytest.mark.parametrize("name", solvers.METHODS)
def test_every_method_tells_its_arguments_and_is_made_again_from_them(name):
    settings = made(name).settings
    document = json.loads(json.dumps(settings.document()))
    assert document == settings.document()
    assert document["method"] == name
    assert plain(GIVEN[name]).items() <= document["arguments"].items()
    assert document["arguments"]["precision"] is None
    assert "net" not in document["arguments"]
    again = settings.remade(jtssm.mlp([4, 6, 6, 3]))
    assert again.settings == settings
    assert again.network.shapes[1] == (6,)


def test_a_document_has_no_addresses_and_every_kind_of_value():
    grid = solvers.pdadmm(NET, grid=np.array([0.0, 0.5]), loss=losses.squared_error()).settings
    assert grid.document()["arguments"]["grid"] == [0.0, 0.5]
    assert grid.document()["arguments"]["loss"] == "squared_error"
    method = made(optimizer=[optax.sgd(0.1), ADAM], rho=np.float32(0.5), compute_dtype=jnp.bfloat16)
    assert method.settings.document() == {
        "method": "gsadmm",
        "arguments": {
            "optimizer": [
                {"state": ["EmptyState", "EmptyState"]},
                {"name": "adam", "learning_rate": 0.001},
            ],
            "batch_size": 6,
            "subnets": 2,
            "cuts": None,
            "balance": "forward",
            "rho": 0.5,
            "alpha": 1.0,
            "eta": None,
            "schedule": {"kind": "Streaming", "sweeps": 1, "delay_power": None},
            "workers": None,
            "local_steps": None,
            "outer_optimizer": None,
            "grid": None,
            "microbatches": None,
            "prediction": None,
            "recompute": True,
            "loss": "cross_entropy",
            "precision": None,
            "compute_dtype": "bfloat16",
        },
    }
    rate = solvers.optimizer("sgd", optax.cosine_decay_schedule(0.1, 10))
    assert plain(rate) == {"name": "sgd", "learning_rate": "cosine_decay_schedule"}


CHANGES = [
    {"rho": 2.0},
    {"cuts": [1], "subnets": None},
    {"schedule": "stored"},
    {"loss": "squared_error"},
    {"precision": "highest"},
    {"compute_dtype": "bfloat16"},
    {"optimizer": optax.adam(1e-3)},
    {"optimizer": solvers.optimizer("adam", 1e-2)},
    {"schedule": solvers.Streaming(2)},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_an_argument_that_differs_makes_the_settings_differ(changes):
    assert made().settings != made(**changes).settings
    assert made(**changes).settings == made(**changes).settings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"rho": 1, "schedule": "streaming"}),
        ({"schedule": "stored"}, {"schedule": solvers.Stored()}),
        ({"loss": "squared_error"}, {"loss": losses.squared_error()}),
        ({"compute_dtype": "bfloat16"}, {"compute_dtype": jnp.bfloat16}),
        ({"subnets": None, "cuts": [1, 2]}, {"subnets": None, "cuts": np.array([1, 2])}),
        ({"optimizer": optax.sgd(0.1)}, {"optimizer": optax.sgd(0.2)}),  # optax does not tell
    ],
)
def test_arguments_that_mean_the_same_are_equal(one, other):
    assert made(**one).settings == made(**other).settings
    assert hash(made(**one).settings) == hash(made(**other).settings)
    assert made().settings != made("gsam").settings
    assert made().settings != "gsadmm"


def test_the_repr_is_the_call_without_what_is_left_at_its_default():
    adam = "optimizer=adam(learning_rate=0.001), batch_size=6, subnets=2"
    assert repr(made(schedule="streaming", alpha=1.0).settings) == f"gsadmm({adam})"
    method = made(rho=0.5, precision="highest", schedule=solvers.Streaming(2))
    assert repr(method.settings) == (
        f"gsadmm({adam}, rho=0.5, schedule=Streaming(sweeps=2, delay_power=None), "
        "precision='highest')"
    )
    several = made(optimizer=[optax.adam(1e-3), optax.sgd(0.1, momentum=0.9)]).settings
    assert "optimizer=[<ScaleByAdamState, EmptyState>, <TraceState, EmptyState>]" in repr(several)


def test_lists_that_are_changed_afterwards_change_nothing():
    cuts, grid = [1, 2], [0.0, 1.0]
    settings = made(subnets=None, cuts=cuts).settings, solvers.pdadmm(NET, grid=grid).settings
    cuts.append(7)
    grid.append(2.0)
    assert settings[0].document()["arguments"]["cuts"] == [1, 2]
    assert settings[1].document()["arguments"]["grid"] == [0.0, 1.0]


@pytest.mark.parametrize("name", ["sgd", "gsadmm", "ist"])
def test_a_placed_method_keeps_them(name):
    method = made(name)
    mesh = sharding.make_mesh(2 if name != "sgd" else 1, 1, 1)
    assert sharding.place(method, mesh).settings == method.settings


def test_a_constructor_is_called_as_before_and_keeps_its_signature():
    with pytest.raises(TypeError, match=r"gsadmm\(\) got an unexpected keyword argument 'sweeps'"):
        solvers.gsadmm(NET, **GSADMM, sweeps=2)

    @recorded(rho=abs)
    def own(net, rho=-1.0):
        """A method of mine."""
        return solvers.pdadmm(net, rho=abs(rho))

    assert own(NET).settings.document() == {"method": "own", "arguments": {"rho": 1.0}}
    assert own(NET, -2.0).settings == own(net=NET, rho=2.0).settings
    assert repr(own(NET, 2.0).settings) == "own(rho=2.0)"
    assert own.__doc__ == "A method of mine."
