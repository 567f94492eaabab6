"""An optimizer of a piece sees the whole network's tree; what it cannot be given, it is refused for."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import solvers
from jtssm.protocol.piece_optimizers import Elsewhere, of_pieces, wants_loss

NET = jtssm.mlp([6, 8, 7, 8, 3])
STARTS = (0, 1, 3, 4)
PARAMS = NET.init(jax.random.key(0), jnp.float32)
OPTIMIZERS = {
    "momentum": optax.sgd(0.1, momentum=0.9),
    "adamw": optax.adamw(1e-2),
    "adafactor": optax.adafactor(1e-2),
    "lamb": optax.lamb(1e-2),
    "muon": optax.contrib.muon(1e-2),
    "noise": optax.noisy_sgd(1e-2, key=jax.random.key(0)),
    "schedule free": optax.contrib.schedule_free_adamw(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(1e-2)),
    "masked": optax.masked(optax.sgd(0.1), lambda p: jax.tree.map(lambda a: a.ndim > 1, p)),
    "several steps": optax.MultiSteps(optax.adam(1e-2), 2).gradient_transformation(),
    "plateau": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1)),
    "polyak": optax.polyak_sgd(),
}


def trained(optimizer, params):
    """Parameters and state after three steps."""
    optimizer = optax.with_extra_args_support(optimizer)
    state = optimizer.init(params)
    for loss in (3.0, 2.0, 2.5):
        gradient = jax.tree.map(lambda a, loss=loss: loss * (a - 0.1) ** 3, params)
        updates, state = optimizer.update(gradient, state, params, value=jnp.float32(loss))
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_numbers_of_a_piece_are_those_it_has_alone(name):
    each = of_pieces(OPTIMIZERS[name], NET, STARTS)
    for one, (first, after) in zip(each, pairwise(STARTS), strict=True):
        own = PARAMS[first:after]
        # of the alone: nothing but the arrays, in the same order
        alone, here = trained(OPTIMIZERS[name], own), trained(one, own)
        for a, b in zip(*map(jax.tree.leaves, (alone, here)), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(*map(_numbers, (a, b)))
        assert not np.array_equal(here[0][0]["W"], own[0]["W"])


def _numbers(a):
    return jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a


def test_a_piece_sees_all_layers_with_shapes_in_the_place_of_what_others_hold():
    seen = []

    def mask(params):
        seen.append(params)
        return jax.tree.map(lambda _: True, params)

    of_pieces(optax.masked(optax.sgd(0.1), mask), NET, STARTS)
    middle = next(params for params in seen if isinstance(params[0]["W"], Elsewhere))
    assert [layer["W"].shape for layer in middle] == [layer["W"].shape for layer in PARAMS]
    assert (middle[0]["W"].ndim, middle[0]["W"].size) == (2, 48)
    assert len(jax.tree.leaves(middle)) == 4  # of the layers 1 and 2 alone


def test_only_those_that_read_the_loss_want_it():
    wants = {name: wants_loss(of_pieces(o, NET, STARTS)[1]) for name, o in OPTIMIZERS.items()}
    assert {name for name, wanted in wants.items() if wanted} == {"plateau", "polyak"}


def test_only_what_is_set_to_zero_is_frozen():
    labels = ["frozen", "moving", "moving", "frozen"]
    each = {"frozen": optax.set_to_zero(), "moving": optax.adamw(1e-2)}
    pieces = of_pieces(optax.multi_transform(each, labels), NET, STARTS)
    assert [one.frozen for one in pieces] == [(True, True), (False,) * 4, (True, True)]
    assert not any(any(of_pieces(o, NET, (0, 4))[0].frozen) for o in OPTIMIZERS.values())


def growing():
    """An optimizer whose state is longer after each step."""
    init = lambda params: jnp.zeros(1)
    update = lambda g, state, params=None: (g, jnp.concatenate([state, state]))
    return optax.GradientTransformation(init, update)


def widening():
    """One whose state becomes float32."""
    init = lambda params: {"count": jnp.zeros((), jnp.int32)}
    update = lambda g, state, params=None: (g, {"count": state["count"] + 0.5})
    return optax.GradientTransformation(init, update)


STATE = "optimizer: expected a state and updates that keep their shapes and dtypes"
ENOUGH = r"optimizer: expected one that a gradient, the parameters .* are enough for; .* got an optimizer"
REFUSED = {
    "grows": (growing(), rf"{STATE}.* in which its state goes from float\d+\[1\] to float\d+\[2\]"),
    "line search": (optax.lbfgs(), rf"{ENOUGH} with the states .*ZoomLinesearchState.*'value_fn'"),
    "lookahead": (optax.lookahead(optax.sgd(0.1), 3, 0.5), rf"{ENOUGH}.*LookaheadState"),
    "per example": (
        optax.contrib.differentially_private_aggregate(1.0, 1.0, key=0),
        rf"{ENOUGH}.*raised",
    ),
    "short mask": (optax.masked(optax.sgd(0.1), [True, False]), r"expected one that .*raised"),
}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("make", ["sgd", "gsadmm", "local_sgd"])
def test_what_cannot_train_is_refused_before_any_work(make, name):
    optimizer, message = REFUSED[name]
    more = {"gsadmm": {"subnets": 2}, "local_sgd": {"workers": 2, "local_steps": 2}}.get(make, {})
    with pytest.raises(ValueError, match=message):
        getattr(solvers, make)(NET, optimizer=optimizer, batch_size=20, **more)


def test_a_state_is_tried_again_in_the_dtype_that_is_trained():
    init = lambda params: jax.tree.map(jnp.zeros_like, params)
    update = lambda g, state, params=None: (g, jax.tree.map(lambda a: a.astype(jnp.float32), state))
    method = solvers.gsadmm(
        NET, subnets=2, optimizer=optax.GradientTransformation(init, update), batch_size=20
    )
    x, y = np.zeros((20, 6)), np.zeros(20, np.int32)
    method.init(jax.random.key(0), x.astype(np.float32), y)
    with pytest.raises(ValueError, match=rf"{STATE}.*\[0\]\['W'\] goes from float64.* to float32"):
        method.init(jax.random.key(0), x, y)  # conftest.py: 64 bits are enabled
    method = solvers.local_sgd(NET, workers=2, optimizer=widening(), batch_size=10, local_steps=1)
    with pytest.raises(ValueError, match=rf"{STATE}.*\['count'\] goes from int32\[\] to float"):
        method.init(jax.random.key(0), x, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["plateau", "polyak", "several steps", "schedule free"])
def test_optax_keeps_its_states_in_both_precisions(name, dtype):
    method = solvers.gsadmm(NET, subnets=2, optimizer=OPTIMIZERS[name], batch_size=20)
    method.init(jax.random.key(0), np.zeros((20, 6), dtype), np.zeros(20, np.int32))


def test_several_steps_are_taken_as_optax_makes_them_but_not_where_states_start_anew():
    several = optax.MultiSteps(optax.adam(1e-2), 2)
    method = solvers.gsadmm(NET, subnets=2, optimizer=several, batch_size=20)
    assert "MultiStepsState" in repr(method)
    assert method.settings.remade(NET).settings == method.settings
    with pytest.raises(
        ValueError, match=r"optimizer: expected one that updates at every step.*got optax.Mul"
    ):
        solvers.ist(NET, subnets=2, optimizer=several, batch_size=10, local_steps=2)
