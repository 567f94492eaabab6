"""A decoder: causal, of words, with outputs a position; the same numbers whole, cut and on a grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

import jtssm
from jtssm import losses, nn, sharding, solvers
from jtssm.nn import architectures
from jtssm.sharding import cost
from jtssm.sharding.layers.choose import misfit
from tests.sharding.cost.test_predicted import products

VOCABULARY, WIDTH, HEADS, LENGTH, HIDDEN = 16, 16, 4, 3, 12
SHAPE = {"width": WIDTH, "heads": HEADS, "sequence": LENGTH, "hidden": HIDDEN}
NET = architectures.decoder(1, vocabulary=VOCABULARY, **SHAPE)
MOMENTUM = optax.sgd(0.3, momentum=0.9)
RNG = np.random.default_rng(0)
X, Y = RNG.integers(0, VOCABULARY, (2, 8, LENGTH)).astype(np.int32)
Y[1, 1:] = -100  # devices of pc then have unequal numbers of labels
LOSS = losses.cross_entropy(ignore_index=-100)
WAYS = {"optimizer": MOMENTUM, "batch_size": 8, "loss": LOSS, "precision": "highest"}
FORMS = ["batch", "paired", "paired", "gathered"]


class Twin(linen.Module):
    """The same of flax's own modules."""

    @linen.compact
    def __call__(self, x):
        wide = {"param_dtype": np.float64, "dtype": np.float64}
        norm = lambda: linen.LayerNorm(epsilon=1e-5, use_fast_variance=False, **wide)
        places = self.param("places", linen.initializers.normal(), (LENGTH, WIDTH), np.float64)
        h = linen.Embed(VOCABULARY, WIDTH, **wide)(x) + places[None]
        attention = linen.MultiHeadDotProductAttention(HEADS, **wide)
        h = h + attention(norm()(h), mask=linen.make_causal_mask(x))
        z = linen.gelu(linen.Dense(HIDDEN, **wide)(norm()(h)))
        h = h + linen.Dense(WIDTH, **wide)(z)
        return linen.Dense(VOCABULARY, **wide)(norm()(h))


def as_twin(params):
    """Our parameters by flax's names."""
    words, attention, perceptron, scores = params
    size = WIDTH // HEADS
    norms = [{"scale": p["gamma"], "bias": p["beta"]} for p in params[1:]]
    split = lambda k: {
        "kernel": attention["W1"].reshape(WIDTH, HEADS, 3, size)[:, :, k],
        "bias": attention["b1"].reshape(HEADS, 3, size)[:, k],
    }
    dense = lambda p, k="": {"kernel": p[f"W{k}"], "bias": p[f"b{k}"]}
    out = {"kernel": attention["W2"].reshape(HEADS, size, WIDTH), "bias": attention["b2"]}
    heads = {name: split(k) for k, name in enumerate(("query", "key", "value"))}
    return {
        "places": words["places"],
        "Embed_0": {"embedding": words["table"]},
        "MultiHeadDotProductAttention_0": heads | {"out": out},
        **{f"LayerNorm_{k}": norm for k, norm in enumerate(norms)},
        **{f"Dense_{k}": dense(perceptron, k + 1) for k in range(2)},
        "Dense_2": dense(scores),
    }


def same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10, rtol=1e-10), a, b)


@functools.cache
def start():
    """Float64 parameters, none of them 0 or 1."""
    params = NET.init(jax.random.key(0), jnp.float64)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: np.asarray(a) + 0.3 * rng.normal(size=a.shape), params)


@functools.cache
def steps(make, place, steps=5, **options):
    """(parameters, loss) after each step; place: (sizes, forms), None: one device."""
    method = make(NET, **WAYS, **options)
    if place is not None:
        sizes, forms = place
        plain, mesh = method, sharding.make_mesh(*sizes)
        method = sharding.place(plain, mesh, forms=list(forms))
    state, found = method.init(jax.random.key(0), X, Y, start()), []
    if place is not None:
        moved = sharding.count_bytes(method.step, state, X, Y)
        assert cost.step_bytes(plain, mesh, forms=list(forms), word=8) == moved
    step = jax.jit(method.step)
    for i in range(steps):
        state, info = step(state, np.roll(X, i, 0), np.roll(Y, i, 0))
        found.append(jax.tree.map(np.asarray, (method.params(state), info.loss)))
    return found


def test_sgd_is_plain_flax_and_optax():
    """Three steps of momentum with labels that do not count, in float64."""
    optimizer, params = MOMENTUM, as_twin(jax.tree.map(jnp.asarray, start()))

    def mean(params, x, y):
        outputs = Twin().apply({"params": params}, x)
        safe = jnp.where(y == -100, 0, y)
        value = optax.losses.softmax_cross_entropy_with_integer_labels(outputs, safe)
        return (value * (y != -100)).sum() / (y != -100).sum()

    @jax.jit
    def step(params, state, x, y):
        loss, gradient = jax.value_and_grad(mean)(params, x, y)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    state = optimizer.init(params)
    found = steps(solvers.sgd, None)
    for i in range(3):
        params, state, loss = step(params, state, np.roll(X, i, 0), np.roll(Y, i, 0))
        same((params, loss), (as_twin(found[i][0]), found[i][1]))
    assert abs(found[0][1] - found[2][1]) > 1e-3


def test_a_position_sees_itself_and_what_came_before():
    run, params = jax.jit(NET.apply), start()
    whole = run(params, X)
    for t in range(LENGTH):
        other = X.copy()
        other[:, t] = (other[:, t] + 1) % VOCABULARY
        moved = abs(run(params, other) - whole).max(axis=(0, 2)) > 1e-6
        assert moved.tolist() == [position >= t for position in range(LENGTH)]


EVERY = [
    ((1, 2, 2), tuple(FORMS)),
    *(
        pytest.param(sizes, ("batch", *[form] * 2, last), marks=pytest.mark.slow)
        for sizes in ((1, 2, 2), (1, 4, 2))
        for form, last in (("paired", "batch"), ("gathered", "gathered"), ("batch", "batch"))
    ),
]


@pytest.mark.parametrize(("sizes", "forms"), EVERY, ids=str)
def test_every_form_gives_the_numbers_of_one_device_and_moves_what_it_should(sizes, forms):
    same(steps(solvers.sgd, None), steps(solvers.sgd, (sizes, forms)))


def test_two_subnetworks_give_the_same_on_any_mesh():
    """gsADMM of two unequal pieces; every one of them has seen labels after five steps."""
    found = steps(solvers.gsadmm, None, subnets=2, alpha=1.3)
    same(found, steps(solvers.gsadmm, ((2, 2, 2), tuple(FORMS)), subnets=2, alpha=1.3))
    moved = jax.tree.map(lambda a, b: abs(a - b).max() > 1e-3, found[-1][0], start())
    assert all(jax.tree.leaves(moved))


def test_its_costs_are_the_products_of_the_trace():
    x = jax.ShapeDtypeStruct((5, LENGTH), np.int32)
    traced = jax.make_jaxpr(NET.apply)(NET.parameter_shapes(), x)
    assert products(traced.jaxpr) == 5 * sum(NET.costs())
    by_hand = LENGTH * (4 * WIDTH**2 + 2 * WIDTH * HIDDEN + WIDTH * VOCABULARY)
    assert sum(NET.costs()) == by_hand + 2 * LENGTH**2 * WIDTH


def test_what_lies_between_its_products_is_counted():
    """Queries, keys, values, what heads give, two of all pairs a head; hidden neurons twice."""
    run = cost.Run(8, 1, 1, 1, first=False)
    between = [task.between for task in cost.network_tasks(NET, run, 2)]
    attention = LENGTH * 4 * WIDTH + 2 * HEADS * LENGTH**2
    assert between == [0, 4 * attention, 4 * LENGTH * 2 * HIDDEN, 0]
    dense = (lambda key, x: jax.random.normal(key, (6, 9)), lambda W, x: jnp.tanh(x @ W))
    net = nn.layers([dense, lambda x: x[:, :2]], jnp.zeros((1, 6)))
    # of a module of the user's: what each product gives, and what is made of that
    assert [task.between for task in cost.network_tasks(net, run, 2)] == [4 * 2 * 9, 0]


def test_forms_that_a_decoder_has():
    params, forms = NET.parameter_shapes(), sharding.layers.forms.FORMS
    have = [[f for f in forms if not misfit(NET, i, params[i], f, 2)] for i in range(4)]
    half = ["batch", "gathered", "paired"]
    assert have == [["batch", "gathered"], half, half, ["batch", "gathered"]]


def test_it_is_planned_by_its_name():
    """GPT-2's smallest and its head: 163 million weights, and of each Adam's two moments."""
    with jax.enable_x64(False):
        found = jtssm.plan("decoder", 1, 1, "h100-nvlink").best.memory
    assert found.weights == 4 * (124_439_808 + 769 * 50_257)
    assert found.optimizer == 2 * found.weights + 4  # and a count of steps
    assert found.samples == 2 * 4 * 1024


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: solvers.sgd(NET, **WAYS).init(jax.random.key(0), X + 1, Y),
            r"x: expected words 0\.\.15, the network knows 16; got 1\.\.16",
        ),
        (
            lambda: solvers.sgd(NET, **WAYS).init(jax.random.key(0), X - 1, Y),
            r"x: expected words 0\.\.15, the network knows 16; got -1\.\.14",
        ),
        (lambda: nn.attention(8, 2, causal="yes"), "causal: expected True or False; got 'yes'"),
        (lambda: nn.embedding(0, 8), "vocabulary: expected an integer of at least 1; got 0"),
        (
            lambda: nn.sequence([nn.embedding(9, 8)], (4, 4)),
            r"embedding 9 8: expected samples of words \(number,\); got shape \(4, 4\)",
        ),
        (
            lambda: nn.sequence([nn.scores(8, 9)], (4, 4)),
            r"scores 8 9: expected samples of tokens \(number, 8\); got shape \(4, 4\)",
        ),
    ],
)
def test_misuse_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_number_that_no_word_has_makes_nan_where_nobody_can_look():
    layer, x = NET.layers[0], np.array([[0, VOCABULARY, -1]])
    found = layer.apply(start()[0], jnp.asarray(x), nn.ops.PLAIN)
    assert np.isnan(found).any(axis=(0, 2)).tolist() == [False, True, True]
