"""Means and variances of normalisation on a grid: their numbers, and the bytes they move."""

from itertools import product

import jax
import jax.numpy as jnp
import optax
import pytest

import jtssm
from benchmarks.grid_bytes import uniform
from jtssm import sharding, solvers
from jtssm.nn import architectures, images
from jtssm.nn.norm import NORMALISATIONS
from jtssm.sharding import cost
from jtssm.sharding.cost import memory
from tests.cases import few_of
from tests.sharding.layers.test_forms import assert_same
from tests.sharding.layers.traffic_cases import agree

KINDS = list(NORMALISATIONS)
GRIDS = [(1, 4), (2, 2), (4, 1)]  # pr, pc


def perceptron(kind):
    return jtssm.mlp([8, 16, 24, 16, 8], jnp.tanh, normalisation=kind)


CASES = list(product(GRIDS, KINDS))


@pytest.mark.parametrize(("grid", "kind"), few_of(CASES, CASES[::2]), ids=str)
def test_a_perceptrons_statistics_move_what_the_formulas_say(grid, kind):
    """Every form; "paired" of the benchmark is model and row in turns."""
    for form in (
        ("batch", "gathered", "model", "scattered", "paired") if grid[0] > 1 else ("batch",)
    ):
        agree(perceptron(kind), 8, *grid, uniform(perceptron(kind), form, grid[0]), compiled=False)
    agree(perceptron(kind), 8, *grid, "auto", compiled=(grid, kind) == ((2, 2), "batch"))


def test_where_a_row_layer_leaves_samples_they_are_all_counted():
    """What it sums is scattered over the samples: their mean is over pr too."""
    net, forms = (
        jtssm.mlp([8, 16, 8, 8], jnp.tanh, normalisation="batch"),
        ["model", "row", "batch"],
    )
    assert_same(net, (1, 2, 2), forms, 8, num=2)
    for kind in KINDS:
        agree(perceptron(kind), 8, 2, 2, ["model", "row", "gathered", "model"], compiled=False)


IMAGES = [(*on, kind) for on in (((2, 2), 4), ((3, 1), 3), ((3, 2), 2)) for kind in KINDS]


@pytest.mark.parametrize(("grid", "batch", "kind"), few_of(IMAGES, IMAGES[::2]), ids=str)
def test_a_convnets_statistics_move_what_the_formulas_say(grid, batch, kind):
    """Rows of images too, of slabs that differ by one; and with fewer samples than devices."""
    net = images.convnet((13, 6, 3), 6, channels=(6,), hidden=(6,), normalisation=kind)
    forms = ("domain", "batch", "gathered", "model") if batch > 2 else ("domain", "auto")
    for form in forms:
        forms = form if form == "auto" else uniform(net, form, grid[0])
        agree(net, batch, *grid, forms, compiled=(form, grid, kind) == ("domain", (2, 2), "batch"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_residual_networks_statistics_move_what_the_formulas_say(kind):
    net = architectures.resnet((1, 1), 4, size=12, channels=4, normalisation=kind)
    for grid, form in (((1, 4), "batch"), ((2, 2), "batch"), ((2, 2), "gathered")):
        agree(net, 4, *grid, uniform(net, form, grid[0]), compiled=False)


WORKERS = list(product(((4, 1, 2), (2, 2, 2), (1, 2, 4), (4, 1, 1)), KINDS))
FEW = [((4, 1, 2), "batch"), ((2, 2, 2), "running"), ((1, 2, 4), "layer"), ((4, 1, 1), "batch")]


@pytest.mark.parametrize(("sizes", "kind"), few_of(WORKERS, FEW), ids=str)
def test_workers_statistics_move_what_the_formulas_say(sizes, kind):
    """pr and pc split a worker's minibatch; widths that 4 does not divide are dealt with empty places."""
    given = {"optimizer": optax.adam(1e-3), "batch_size": 8, "local_steps": 3}
    net = jtssm.mlp([24, 30, 45, 8], normalisation=kind)
    convnet = images.convnet((8, 8, 3), 8, channels=(4,), hidden=(16,), normalisation=kind)
    with jax.enable_x64(False):  # the model counts words of four bytes
        for method in (
            solvers.ist(net, subnets=4, **given),
            solvers.local_sgd(net, workers=4, **given),
            solvers.ensemble(convnet, members=4, **given),
        ):
            placed, state, samples = memory.placed_step(
                method, sizes, "auto", None, sharding.make_mesh(*sizes)
            )
            expected = cost.step_bytes(method, placed.mesh)
            assert sharding.count_bytes(placed.step, state, *samples) == expected
