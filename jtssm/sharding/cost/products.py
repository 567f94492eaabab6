"""The products of a step on one device, as data: how many multiply-adds, over what."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import jax

from jtssm.arrays import Tree
from jtssm.nn.boundary import numbers, rows_of
from jtssm.nn.network import Network
from jtssm.protocol.declared import MatrixProduct, Run
from jtssm.sharding.layers.forms import Grid
from jtssm.sharding.layers.halo import Slabs
from jtssm.sharding.layers.questions import between, groups
from jtssm.sharding.layers.stored import SPLITS, part_size
from jtssm.sharding.layers.traffic import Pass


class Task(NamedTuple):
    """A product, or another pass over activations, on one device."""

    multiply_adds: float
    smallest: float  # dimension of the product: what its rate depends on
    activations: float  # words read and written
    weights: float  # words read
    gathered: float  # of these, those that only this pass holds
    times: float  # in a step
    # of the activations, how often a device may hold them at a time: with gradients and copies that a
    # convolution is made of; a declared product's stand for themselves, one after another
    held: float = 3.0
    between: float = 0.0  # words within the layer, held once, and more of one layer at a time

    @property
    def words(self) -> float:
        """All that is read and written."""
        return self.activations + self.weights


def passes(run: Run, first: bool) -> int:
    """Products of a layer; first: of its piece."""
    return run.forward + run.weights + (run.inputs if run.first or not first else 0)


def task(work: Pass, i: int, times: float) -> Task:
    """The product of layer i on one device, a pass forward."""
    grid = work.grid
    shape, out = grid.network.shapes[i : i + 2]
    share = _share(work, i)
    stored = stored_words(grid, work.params[i], i)
    used = _used_words(grid, work.params[i], i)
    here = [
        work.samples * numbers(size) * part
        for size, part in zip((shape, out), _parts(work, i), strict=True)
    ]
    adds = work.samples * grid.network.cost(i) * share
    inner = work.samples * between(grid.network.layers[i], shape) * _share(work, i)
    return Task(adds, _smallest(work, i), sum(here), used, used - stored, times, between=inner)


def _share(work: Pass, i: int) -> float:
    """The part of layer i's multiply-adds that one device of pr does."""
    grid = work.grid
    form = grid.forms[i] if grid.axis is not None else "batch"
    if grid.axis is None or (form in ("batch", "gathered") and not work.spread):
        return 1.0
    if form == "domain":
        outputs = grid.halo(i).outputs
        return outputs.room / outputs.height
    return 1 / grid.size


def _parts(work: Pass, i: int) -> tuple[float, float]:
    """The part of layer i's inputs and of its outputs that lies on one device of pr."""
    grid = work.grid
    if grid.axis is None:
        return 1.0, 1.0
    layouts = grid.enters(i, work.spread), grid.leaves(i, work.spread)
    return tuple(_part(work, layout, i + k) for k, layout in enumerate(layouts))  # type: ignore[return-value]


def _part(work: Pass, layout: str, position: int) -> float:
    if layout in ("whole", "copies"):
        return 1.0
    if layout == "rows":
        height = work.grid.network.shapes[position][0]
        return Slabs(height, work.grid.size).room / height
    return 1 / work.grid.size


def _smallest(work: Pass, i: int) -> float:
    """The smallest dimension of the product of layer i with its largest weight, on one device."""
    grid, out = work.grid, work.grid.network.shapes[i + 1]
    weights = [a for a in jax.tree.leaves(work.params[i]) if len(a.shape) > 1]
    if not weights:
        return float("inf")
    largest = max(weights, key=lambda a: a.size)
    form = grid.forms[i] if grid.axis is not None else "batch"
    inner, columns = prod(largest.shape[:-1]), largest.shape[-1] / groups(grid.network.layers[i])
    inner /= grid.size if form in ("row", "paired") else 1
    columns /= grid.size if SPLITS.get(form) == "model" else 1
    rows = work.samples * rows_of(out) * (_parts(work, i)[1] if form not in SPLITS else 1)
    return min(rows, inner, columns)


def _used_words(grid: Grid, params: Tree, i: int) -> float:
    """Parameters of layer i that its product reads on one device."""
    if grid.axis is not None and grid.forms[i] == "gathered":
        return sum(a.size for a in jax.tree.leaves(params))
    return stored_words(grid, params, i)


def stored_words(grid: Grid, params: Tree, i: int) -> int:
    """Parameters of layer i that one device stores."""
    stored = jax.tree.map(
        lambda a, d: part_size(a.size, d, grid.size), params, grid.stored(i, params)
    )
    return sum(jax.tree.leaves(stored))


def matrix_task(product: MatrixProduct, devices: int) -> Task:
    """A declared product where so many devices share its samples."""
    rows, inner, columns, times, *_ = product
    share = 1 / devices if product.split else 1.0
    words = rows * inner + inner * columns + rows * columns
    least = min(rows, inner, columns)
    return Task(rows * inner * columns * share, least, words * share, 0.0, 0.0, times, held=0.5)


def batched(one: Task, num: int) -> Task:
    """The same task of several workers on a device, which are batched."""
    return one._replace(
        multiply_adds=num * one.multiply_adds,
        activations=num * one.activations,
        between=num * one.between,
        weights=num * one.weights,
    )


def network_tasks(net: Network, run: Run, devices: int) -> list[Task]:
    """Passes through a whole network where so many devices share the samples, one task a layer."""
    grid = Grid(net, ("batch",) * len(net.layers), (0,), None, 1, (), apart=False)
    work = Pass(grid, net.parameter_shapes(), run.samples // devices, devices)
    return [task(work, i, passes(run, i == 0)) for i in range(len(net.layers))]
