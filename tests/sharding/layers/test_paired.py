"""Residual blocks on a grid: pairs of products split by heads and by hidden neurons, gathered kernels."""

import functools
from collections import Counter
from itertools import product

import jax
import numpy as np
import optax
import pytest

from jtssm import sharding, solvers
from jtssm.nn import architectures
from jtssm.sharding import cost
from jtssm.sharding.count import hlo
from jtssm.sharding.count.routes import Route, ring_bytes
from jtssm.sharding.layers.choose import misfit
from tests.sharding.layers.test_forms import samples, steps
from tests.sharding.layers.traffic_cases import AS_WRITTEN, agree

MOMENTUM = optax.sgd(0.05, momentum=0.9)
TOKENS = architectures.transformer(1, width=8, heads=4, sequence=3, hidden=12, classes=4)
IMAGES = architectures.resnet((1,), 4, size=12, channels=4)
GRIDS = [(2, 1), (2, 2), (4, 2)]  # pr, pc


def fitted(net, form, pr):
    """The form for every layer that can have it, else batch."""
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    fits = [not misfit(net, i, shapes[i], form, pr) for i in range(len(net.layers))]
    assert any(fits[:-1])
    return [form if fit else "batch" for fit in fits]


def method(net, batch):
    return solvers.sgd(net, optimizer=MOMENTUM, batch_size=batch, precision="highest")


@functools.cache
def alone(of, batch):
    """The start, and what three steps on one device give."""
    net = {"tokens": TOKENS, "images": IMAGES}[of]
    plain, (x, y) = method(net, batch), samples(net, batch)
    state = plain.init(jax.random.key(0), x, y)
    return net, x, y, state, steps(plain, state, x, y, 3)


def assert_same(of, grid, forms, batch=8):
    """Loss, gradients (the first momentum) and three steps; the compiled program moves what it should."""
    net, x, y, state, expected = alone(of, batch)
    mesh, plain = sharding.make_mesh(1, *grid), method(net, batch)
    forms = fitted(net, forms, grid[0]) if isinstance(forms, str) else forms
    placed = sharding.place(plain, mesh, forms=forms)
    moved = cost.step_bytes(plain, mesh, forms=forms, word=8)
    state = placed.spread(state)
    step = jax.jit(placed.step).lower(state, x, y).compile(AS_WRITTEN)
    assert sharding.count_bytes(placed.step, state, x, y) == moved
    assert hlo.moved(step.as_text(), mesh) == without_equal(moved, forms, net, mesh)
    for weights, info in expected:
        state, got = step(state, x, y)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10, rtol=1e-10),
            (weights, info),
            (state.weights, got),
        )


def without_equal(moved, forms, net, mesh):
    """Of two betas that are added, as at the end of a widened block, XLA sums the equal gradients once."""
    widened = [
        (s[-1], form)
        for s, a, form in zip(net.shapes[1:], net.layers, forms, strict=True)
        if len(a.statistics) == 4
    ]
    pr, whole = mesh.shape["pr"], tuple(name for name in ("pr", "pc") if mesh.shape[name] > 1)
    less = Counter()
    for size, form in widened:
        if form != "gathered":
            less[Route("all_reduce", whole)] += 8 * size
            continue
        less[Route("reduce_scatter", ("pr",))] += 8 * size
        if mesh.shape["pc"] > 1:
            less[Route("all_reduce", ("pc",))] += 8 * size // pr
    return {route: size - less[route] for route, size in moved.items()}


EVERY = [
    pytest.param(grid, form, marks=[pytest.mark.slow] * (form != "paired" and grid != (2, 2)))
    for grid in GRIDS
    for form in ("paired", "gathered", "batch")
]


@pytest.mark.parametrize(("grid", "form"), EVERY, ids=str)
def test_a_transformer_gives_the_numbers_of_one_device(grid, form):
    assert_same("tokens", grid, form)


@pytest.mark.parametrize(
    ("grid", "forms", "batch"),
    [
        ((2, 2), ["batch", "paired", "batch", "row"], 8),
        # fewer samples than devices
        pytest.param((4, 2), ["paired", "gathered", "batch", "model"], 2, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_pairs_stand_beside_other_forms(grid, forms, batch):
    assert_same("tokens", grid, forms, batch)


@pytest.mark.parametrize(
    ("grid", "form"),
    [
        ((2, 2), "batch"),
        pytest.param((4, 2), "gathered", marks=pytest.mark.slow),
        pytest.param((2, 1), "batch", marks=pytest.mark.slow),
        pytest.param((2, 1), "gathered", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_residual_network_gives_the_numbers_of_one_device(grid, form):
    assert_same("images", grid, form)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_traces_agree_with_the_formulas_in_every_form(grid):
    for net, form in product((TOKENS, IMAGES), ("gathered", "batch")):
        agree(net, 8, *grid, fitted(net, form, grid[0]), compiled=False)


def test_auto_moves_no_more_than_any_form():
    for grid in GRIDS:
        mesh, plain = sharding.make_mesh(1, *grid), method(TOKENS, 8)
        moved = lambda forms, mesh=mesh, plain=plain: ring_bytes(
            cost.step_bytes(plain, mesh, forms=forms), mesh.shape
        )
        agree(TOKENS, 8, *grid, "auto", compiled=False)
        every = [moved(fitted(TOKENS, form, grid[0])) for form in ("batch", "gathered", "paired")]
        assert moved("auto") <= min(every)


def test_a_pair_needs_one_all_reduce_each_way():
    """By hand, of two blocks: two pairs each, whose inputs and outputs have as many numbers."""
    net = architectures.transformer(2, width=8, heads=4, sequence=3, classes=4)
    forms = [*["paired"] * 4, "batch", "batch"]
    found = cost.step_bytes(method(net, 8), sharding.make_mesh(1, 4, 2), forms=forms)
    b, token, inner = 4, 8, 32
    attention = 3 * token * (token + 1) // 4 + token * token // 4 + 3 * token
    perceptron = inner * (token + 1) // 4 + inner * token // 4 + 3 * token
    rest = 2 * token + 4 * (
        token + 1
    )  # the norm at the end and the outputs; their samples are split
    assert found == {
        Route("all_reduce", ("pr",)): 4 * 2 * 4 * b * 3 * token,
        Route("all_gather", ("pr",)): 4 * b * 3 * token // 4,  # of the gradient of what they split
        Route("all_reduce", ("pc",)): 4 * 2 * (attention + perceptron),
        Route("all_reduce", ("pr", "pc")): 4 * (rest + 2),
    }


def test_weights_of_a_pair_are_split_and_come_back():
    forms = ["paired"] * 2 + ["batch"] * 2
    placed = sharding.place(method(TOKENS, 8), sharding.make_mesh(1, 4, 2), forms=forms)
    state = alone("tokens", 8)[3]
    there = placed.spread(state)
    shapes = {k: a.sharding.shard_shape(a.shape) for k, a in there.weights[0].params[0].items()}
    assert shapes == {
        "gamma": (8,),
        "beta": (8,),
        "W1": (8, 6),
        "b1": (6,),
        "W2": (2, 8),
        "b2": (8,),
    }
    jax.tree.map(np.testing.assert_array_equal, placed.params(there), state.weights[0].params)


MISFITS = [
    (
        TOKENS,
        ["paired"] * 2 + ["batch"] * 2,
        8,
        r"forms\[0\]: expected one of \['batch', 'gathered'\]; got 'paired': pr = 8 does not divide the 4 units",
    ),
    (
        TOKENS,
        ["batch", "paired", "batch", "batch"],
        8,
        r"forms\[1\].*pr = 8 does not divide the 12 units \(heads or neurons\)",
    ),
    (TOKENS, ["batch", "batch", "paired", "batch"], 2, "'mean of tokens 8' has no such form"),
    (
        TOKENS,
        ["model", "batch", "batch", "batch"],
        2,
        r"forms\[0\]: expected one of \['batch', 'gathered', 'paired'\]; got 'model'",
    ),
    (
        IMAGES,
        ["batch"] * 2 + ["domain"] + ["batch"] * 2,
        2,
        "'bottleneck 4 16 batch' has no such form",
    ),
]


@pytest.mark.parametrize(("net", "forms", "pr", "message"), MISFITS)
def test_forms_that_do_not_fit_are_refused_with_what_would(net, forms, pr, message):
    with pytest.raises(ValueError, match=message):
        sharding.place(method(net, 8), sharding.make_mesh(1, pr, 1), forms=forms)


def test_pieces_of_a_network_have_pairs_too():
    """gsADMM with two unequal pieces, each on its own pr x pc grid of more devices than samples."""
    plain = solvers.gsadmm(TOKENS, optimizer=MOMENTUM, batch_size=2, cuts=[1], alpha=1.3)
    forms = ["paired", "paired", "batch", "batch"]
    placed = sharding.place(plain, sharding.make_mesh(2, 2, 2), forms=forms)
    x, y = samples(TOKENS, 4)
    found = []
    for m in (plain, placed):
        state, step = m.init(jax.random.key(0), x, y), jax.jit(m.step)
        for i in range(5):
            half = slice(2 * (i % 2), 2 * (i % 2) + 2)
            state, info = step(state, x[half], y[half])
        found.append((m.params(state), info))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-10), *found)
