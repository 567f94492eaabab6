"""What a step on the grid moves is what the formulas say, to the byte."""

import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

import jtssm
from benchmarks.grid_bytes import UNIFORM
from jtssm import sharding, solvers
from jtssm.nn import images
from jtssm.sharding import cost
from jtssm.sharding.count.routes import Route, ring_bytes
from jtssm.sharding.layers.forms import FORMS
from tests.sharding.layers.traffic_cases import check, grids, zeros

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("form", [*UNIFORM, "auto"])
@pytest.mark.parametrize("grid", grids(8), ids=str)
def test_a_perceptron_moves_what_the_formulas_say(grid, form):
    program, given = check("mlp", *grid, form)
    assert np.isfinite(program(*zeros(given))[1].loss)


ALEXNETS = [("small alexnet", grid) for grid in grids(8)]
ALEXNETS += [("few samples", grid) for grid in grids(8) if grid[1] <= 2]  # there are two


@pytest.mark.parametrize(("name", "grid"), ALEXNETS, ids=str)
def test_an_alexnet_moves_what_the_formulas_say(name, grid):
    """A smaller one, executed too; with few samples the rows of its images are split."""
    program, given = check(name, *grid, "auto")
    assert np.isfinite(program(*zeros(given))[1].loss)


@pytest.mark.parametrize("form", UNIFORM)
@pytest.mark.parametrize("grid", grids(8)[1:], ids=str)
def test_the_whole_alexnet_is_traced_in_every_form(grid, form):
    check("alexnet", *grid, form, compiled=False)


def compiled_for(devices, names, forms):
    command = [
        sys.executable,
        "-m",
        "tests.sharding.layers.traffic_cases",
        str(devices),
        names,
        forms,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("devices", "programs"), [(16, 10), pytest.param(64, 14, marks=pytest.mark.slow)]
)
def test_on_more_devices_the_compiled_programs_agree(devices, programs):
    assert compiled_for(devices, "mlp,alexnet", "auto") == f"{programs} programs agree"


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 16, 64])
def test_on_more_devices_in_every_form(devices):
    compiled_for(devices, "mlp,alexnet", ",".join(UNIFORM))


def test_equation_8_of_the_paper_by_hand():
    """Dense layers in the model form: gathers of Y, all-reduces of dX and of dW, counted exactly."""
    widths, batch, pr, pc = [96, 128, 64, 192, 64], 64, 4, 2
    net = jtssm.mlp(widths)
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=batch)
    found = cost.step_bytes(method, sharding.make_mesh(1, pr, pc), forms=["model"] * 4)
    b, layers = batch // pc, list(pairwise(widths))
    assert found == {
        Route("all_gather", ("pr",)): 4 * sum(b * out // pr for _, out in layers),
        Route("all_reduce", ("pr",)): 4 * sum(b * into for into, _ in layers[1:]),
        Route("all_reduce", ("pc",)): 4 * sum((i + 1) * o // pr for i, o in layers) + 4 * 2,
    }
    gather = (pr - 1) / pr * b * sum(o for _, o in layers)
    inputs = 2 * (pr - 1) / pr * b * sum(i for i, _ in layers[1:])
    weights = 2 * (pc - 1) / pc * (sum((i + 1) * o // pr for i, o in layers) + 2)
    assert ring_bytes(found, {"pr": pr, "pc": pc}) == 4 * (gather + inputs + weights)


def test_reduce_scatter_halves_dx_and_a_pair_needs_one_reduction():
    net, mesh = jtssm.mlp([64, 64, 64, 64, 64]), sharding.make_mesh(1, 8, 1)
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=64)
    sent = lambda *forms: ring_bytes(cost.step_bytes(method, mesh, forms=forms), mesh.shape)
    unit = 7 / 8 * 64 * 64 * 4  # an all-gather of the activations between two layers
    assert sent(*["model"] * 4) == (4 + 3 * 2) * unit
    assert sent("model", *["scattered"] * 3) == (4 + 3) * unit
    assert sent("model", "row", "model", "row") == (2 + 2 + 2) * unit


def test_auto_moves_least_of_all_forms():
    """Against every choice of forms for three layers, on every grid."""
    net = images.convnet((8, 8, 2), 4, channels=(4,), hidden=())
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=8)
    for pr, pc in [(2, 4), (4, 2), (4, 1)]:
        mesh = AbstractMesh((pr, pc), ("pr", "pc"))
        moved = lambda forms, mesh=mesh: ring_bytes(
            cost.step_bytes(method, mesh, forms=forms), mesh.shape
        )
        tried = []
        for forms in product(FORMS, repeat=3):
            try:
                tried.append(moved(list(forms)))
            except ValueError:
                continue
        assert len(tried) > 30
        assert moved("auto") == min(tried)


@pytest.mark.parametrize(
    ("size", "channels", "pr", "whole"),
    [
        (57, (16, 32), 2, True),
        (57, (16, 32), 8, True),
        (56, (16, 32), 8, False),  # arrives split
        (299, (32, 64, 128), 2, False),  # 2 200 multiply-adds a saved byte
    ],
)
def test_auto_leaves_images_whole_that_arrive_so_where_that_pays(size, channels, pr, whole):
    net = images.convnet((size, size, 3), 8, channels=channels)
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=8 // pr)
    mesh = AbstractMesh((pr, 8 // pr), ("pr", "pc"))
    on_images = 2 * len(channels)
    forms = sharding.place(method, mesh).forms
    assert set(forms[:on_images]) == {"batch" if whole else "domain"}
    assert set(forms[on_images:]) == {"row"}
    if whole:
        moved = lambda forms: ring_bytes(cost.step_bytes(method, mesh, forms=forms), mesh.shape)
        assert moved(forms) < moved(["domain"] * on_images + ["row", "row"])


def test_statistics_of_normalisation_by_hand():
    """[c] means and variances over pc: two all-reduces forward, two backward; without gamma three."""
    net = jtssm.mlp([8, 16, 8], normalisation="batch")
    mesh = sharding.make_mesh(1, 1, 4)
    method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=8)
    placed = sharding.place(method, mesh)
    x, y = np.zeros((8, 8), np.float32), np.zeros(8, np.int32)
    gradients = 8 * 16 + 16 + 16 + 16 * 8  # W, gamma, beta; W of the outputs
    expected = {Route("all_reduce", ("pc",)): 4 * (4 * 16 + 5 * 8 + gradients + 2)}
    assert cost.step_bytes(method, mesh) == expected
    state = placed.init(jax.random.key(0), x, y)
    assert sharding.count_bytes(placed.step, state, x, y) == expected
