"""A folder of checkpoints knows whose run it is: what is compared, and what is gone on from regardless."""

import json
import shutil
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jtssm
from jtssm import losses, nn, solvers
from jtssm.nn.residual import Residual
from jtssm.train import document as documents
from jtssm.train.fingerprint import _layer, abstract_state, differences, fingerprint, samples
from tests.train.killed import same
from tests.train.short_runs import KEY, NET, X, Y, adam, complete, fit, sgd, steps_in, stopping

# where reading or writing fails, tensorstore calls an event loop that orbax has closed already
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def told(how, params=None, start=None):
    """The fingerprint of a run as another process reads it."""
    shapes = abstract_state(how, KEY, X, Y)
    run = fingerprint(how, shapes, samples((X, Y)), len(X), KEY, params, start, Y)
    return json.loads(json.dumps(run))


def smooth(share):
    value = lambda o, y: optax.softmax_cross_entropy(
        o, optax.smooth_labels(jax.nn.one_hot(y, 4), share)
    )
    return losses.Loss("smooth", value, losses.cross_entropy().correct, True)


def weighing(first):
    plain = losses.cross_entropy()
    return plain._replace(weight=lambda y: jnp.where(y == 0, first, 1.0))


def functions(slope):
    return nn.layers(
        [
            ({"W": np.full((4, 4), 0.5, np.float32)}, lambda p, x: jnp.tanh(slope * x @ p["W"])),
            lambda x: x,
        ],
        np.zeros((1, 4), np.float32),
    )


def given(number):
    return nn.layers(
        [({"W": np.full((4, 4), number, np.float32)}, lambda p, x: x @ p["W"])],
        np.zeros((1, 4), np.float32),
    )


def acting(f):
    return sgd(net=jtssm.mlp([4, 8, 4], activation=f))


def cosine(steps):
    return optax.adam(optax.cosine_decay_schedule(0.1, steps))


def gsadmm(**options):
    return solvers.gsadmm(NET, subnets=2, optimizer=adam(0.1), batch_size=20, **options)


def rounds(rate):
    ways = {"optimizer": adam(0.1), "local_steps": 2, "batch_size": 10}
    return solvers.local_sgd(NET, workers=2, outer_optimizer=optax.sgd(rate), **ways)


OPTIMIZERS = {
    "rate": adam(0.11),
    "weight decay": optax.adamw(0.1),
    "radam": optax.radam(0.1),
    "decay": adam(0.1, b2=0.99),
    "epsilon": adam(0.1, eps=1e-7),
    "a late schedule": optax.adam(optax.piecewise_constant_schedule(0.1, {5000: 0.5})),
}
PAIRS = {
    **{
        name: (lambda: sgd(), lambda o=o: sgd(optimizer=o), "optimizer")
        for name, o in OPTIMIZERS.items()
    },
    "steps of a schedule": (
        lambda: sgd(optimizer=cosine(10**4)),
        lambda: sgd(optimizer=cosine(2 * 10**4)),
        "optimizer",
    ),
    "clipping": (
        lambda: sgd(optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))),
        lambda: sgd(optimizer=optax.chain(optax.clip_by_global_norm(9.0), optax.sgd(0.1))),
        "optimizer",
    ),
    "one layer's rate": (
        lambda: sgd(optimizer=by_layer(0.1)),
        lambda: sgd(optimizer=by_layer(0.2)),
        "optimizer",
    ),
    "a lambda": (
        lambda: acting(lambda x: jnp.tanh(x)),
        lambda: acting(lambda x: jnp.sin(x)),
        "network",
    ),
    "a partial": (
        lambda: acting(partial(jax.nn.leaky_relu, negative_slope=0.1)),
        lambda: acting(partial(jax.nn.leaky_relu, negative_slope=0.2)),
        "network",
    ),
    "a function": (lambda: sgd(net=functions(1.0)), lambda: sgd(net=functions(1.1)), "network"),
    "given weights": (lambda: sgd(net=given(0.5)), lambda: sgd(net=given(0.50001)), "network"),
    "a loss": (
        lambda: sgd(loss=smooth(0.0)),
        lambda: sgd(loss=smooth(0.5)),
        "values of the loss",
    ),
    "weights of a loss": (
        lambda: sgd(loss=weighing(1.0)),
        lambda: sgd(loss=weighing(2.0)),
        "values of the loss",
    ),
    "compute dtype": (lambda: sgd(), lambda: sgd(compute_dtype="bfloat16"), "compute_dtype"),
    "delays": (
        gsadmm,
        lambda: gsadmm(schedule=solvers.Streaming(delay_power=0.0)),
        "arguments",
    ),
    "an outer rate": (lambda: rounds(0.7), lambda: rounds(0.8), "functions"),
    "rho": (gsadmm, lambda: gsadmm(rho=2.0), "arguments"),
    "steps of pdadmm": (
        lambda: solvers.pdadmm(NET),
        lambda: solvers.pdadmm(NET, steps="exact"),
        "arguments",
    ),
    "scale of ist": (
        lambda: ist(),
        lambda: ist(scale=2.0),
        "arguments",
    ),
}


def ist(**options):
    ways = {"optimizer": adam(0.1), "batch_size": 5, "local_steps": 2}
    return solvers.ist(NET, subnets=2, **ways | options)


def by_layer(rate):
    label = lambda i, tree: jax.tree.map(lambda _: str(i), tree)
    labels = lambda trees: [label(i, tree) for i, tree in enumerate(trees)]
    return optax.multi_transform(
        {"0": optax.sgd(0.1), "1": optax.sgd(rate), "2": optax.sgd(0.1)}, labels
    )


MANY = (  # of a kind that another stands for
    "radam",
    "decay",
    "steps of a schedule",
    "clipping",
    "a partial",
    "rho",
    "steps of pdadmm",
    "scale of ist",
)


@pytest.mark.parametrize(
    "pair", [pytest.param(n, marks=[pytest.mark.slow] if n in MANY else []) for n in PAIRS]
)
def test_what_is_another_run_is_named_and_the_same_one_made_anew_is_none(pair):
    one, other, name = PAIRS[pair]
    assert differences(told(one()), told(one())) == {}
    assert name in differences(told(one()), told(other()))


def test_weights_and_states_that_a_run_starts_from_are_seen_wherever_they_lie():
    how = sgd()
    params = NET.init(KEY, jnp.float64)
    turned = jax.tree.map(lambda a: -a, params)
    assert set(differences(told(how, params), told(how, turned))) == {"params"}
    assert set(differences(told(how), told(how, params))) == {"params"}
    shapes = abstract_state(how, KEY, X, Y)
    state = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
    less = state._replace(pace=state.pace / 2)
    there = jtssm.sharding.place(how, jtssm.sharding.make_mesh(1, 2, 2)).spread(state)
    assert differences(told(how, start=state), told(how, start=there)) == {}
    assert set(differences(told(how, start=state), told(how, start=less))) == {"start"}


def trees(slope):
    """A layer of trees, and one that takes an array out of them."""
    inner = lambda p, x: {"h": jnp.tanh(slope * x["h"] @ p["W"]), "at": x["at"]}
    weights = {"W": np.full((4, 4), 0.5, np.float32)}
    sample = {"h": np.zeros((1, 4), np.float32), "at": np.zeros(1, np.int32)}
    return nn.layers([(weights, inner), lambda x: x["h"] * (1 + x["at"][:, None])], sample)


class Times(nn.Layer):
    """Somebody's own layer, within one of ours."""

    def __init__(self, number):
        self.number = number

    def init(self, key, shape, dtype):
        return {}

    def apply(self, params, x, products):
        return self.number * x

    def shape(self, shape):
        return shape

    def cost(self, shape):
        return 0


def within(number):
    path = (nn.dense(4), Times(number))
    return nn.sequence([Residual("a block", path, (), jnp.tanh)], (4,))


@pytest.mark.parametrize("make", [trees, within])
def test_modules_of_trees_and_layers_within_layers_are_known_by_what_they_do(make):
    layers = lambda net: json.loads(json.dumps(list(map(_layer, net.layers, net.shapes))))
    one, again, other = (dict(enumerate(layers(make(a)))) for a in (1.0, 1.0, 1.1))
    assert differences(one, again) == {}
    assert set(differences(one, other)) == {0}
    assert "on the same inputs" in differences(one, other)[0]


def test_rounding_of_another_machine_is_no_difference():
    run = told(sgd())
    near = json.loads(json.dumps(run))
    near["optimizer"][0]["does"] = [a * (1 + 1e-6) for a in near["optimizer"][0]["does"]]
    assert differences(run, near) == {}
    near["optimizer"][0]["does"][-1] *= 1.01
    assert differences(run, near)["optimizer"].startswith("number 0: values [")


def test_a_cell_run_again_with_another_rate_is_refused_or_goes_on_with_a_word(kept, tmp_path):
    folder, other = shutil.copytree(kept, tmp_path / "kept"), sgd(0.2)
    with pytest.raises(
        ValueError,
        match=r"step 12 is of another: optimizer: number 0: values .* resume='anyway' goes on",
    ):
        fit(folder, other, epochs=4)
    with pytest.raises(
        ValueError, match=r"batch: \[20\] there, \[24\] here.*without the same batch nothing can be"
    ):
        fit(folder, sgd(batch_size=24), epochs=4, resume="anyway")
    with pytest.warns(UserWarning, match=r"going on from step 12 in .*another run: optimizer: "):
        on = fit(folder, other, epochs=4, resume="anyway")
    assert [line["epoch"] for line in on.history] == [1, 2, 3, 4]
    # it is the other run's now: complete, and no longer the first one's
    assert same(on, complete(folder, other, epochs=4))
    with pytest.raises(ValueError, match="is of another: optimizer"):
        fit(folder, epochs=4)
    with pytest.raises(
        ValueError, match="resume: expected None, a checkpoint's number or 'anyway'"
    ):
        fit(folder, resume="whatever")


def test_resume_says_where_the_first_start_begins_and_the_same_call_goes_on(kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "kept")
    begun = lambda: json.loads(
        json.loads((folder / "steps" / str(steps_in(folder)[-1]) / "run" / "metadata").read_text())[
            "text"
        ]
    )
    ways = {"epochs": 6, "resume": 6, "keep": 2}
    with pytest.raises(OSError, match="broken off"):
        fit(folder, callbacks=[stopping(5, fail)], **ways)
    assert begun()["begun"] == 6
    assert 6 not in steps_in(folder)  # soon gone: what it has written since is gone on from
    assert same(fit(folder, **ways), fit(epochs=6))


def fail():
    raise OSError("broken off")


def rewritten(folder, step, change):
    """The document of a checkpoint changed, with a checksum that is right."""
    path = folder / "steps" / str(step) / "run" / "metadata"
    kept = json.loads(path.read_text())
    document = json.loads(kept["text"])
    change(document)
    text = json.dumps(document)
    path.write_text(json.dumps({"text": text, "crc32": zlib.crc32(text.encode())}))


DAMAGED = r"step 12 in .* is damaged .*"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["position"].update(steps="12"),
            DAMAGED + r"position\.steps: expected int; got str",
        ),
        (lambda d: d.update(position=[]), DAMAGED + r"position\.: expected a dict; got list"),
        (lambda d: d.update(odd=False), DAMAGED + r"odd: expected int; got bool"),
        (lambda d: d.pop("halvings"), DAMAGED + r"halvings: expected list; got NoneType"),
        (lambda d: d["journal"].update(history=None), DAMAGED + r"journal\.history: expected list"),
        (lambda d: d.update(format=3), DAMAGED + r"it has format 3, this jtssm reads 4 and 5"),
        (lambda d: d["position"].update(order={"rng": 3}), r"order.rng: expected dict; got int"),
    ],
)
def test_a_document_with_other_types_is_refused_by_name(change, message, kept, tmp_path):
    folder = shutil.copytree(kept, tmp_path / "kept")
    rewritten(folder, 12, change)
    with pytest.raises(ValueError, match=message):
        fit(folder, epochs=4)


def test_another_number_of_cores_is_warned_of(kept, tmp_path, monkeypatch):
    folder = shutil.copytree(kept, tmp_path / "kept")
    here = documents.cores()
    monkeypatch.setattr(documents, "cores", lambda: here + 3)
    with pytest.warns(
        UserWarning, match=rf"checkpoint: expected {here} cores, .*; got {here + 3}: the last bits"
    ):
        fit(folder, epochs=4)
