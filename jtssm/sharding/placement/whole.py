"""Methods that train the network as one piece: their layers on the grid, their arrays sharded by jax.

The gradient is taken inside shard_map, in the forms of the layers; the optimizer runs outside, on whole
arrays that jax keeps sharded, so that norms and products over all of a layer are what they should be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Tree
from jtssm.nn.boundary import float_dtype, num_samples, stacked
from jtssm.nn.inputs import as_input
from jtssm.nn.ops import Products, varying
from jtssm.protocol import device_memory
from jtssm.protocol.exchange import Exchange, by_index
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method, Placement
from jtssm.protocol.stages import whole_params
from jtssm.protocol.whole import WholeProgram
from jtssm.sharding import collectives, gloo
from jtssm.sharding.layers import gradients
from jtssm.sharding.layers.forms import Grid, whole_grid
from jtssm.sharding.mesh import AxisNames, axis_size, check_split, devices_of, put, put_samples
from jtssm.sharding.placement import flat
from jtssm.sharding.placement.elementwise import works_on_rows
from jtssm.sharding.placement.on_host import gathered
from jtssm.sharding.placement.starts import Starts
from jtssm.sharding.placement.storage import Storage


def place_whole(
    program: WholeProgram, mesh: Mesh, names: AxisNames, forms: tuple[str, ...]
) -> Method:
    """A method of one piece on a mesh; see `jtssm.sharding.place`."""
    whole = _Whole(program, mesh, names, forms)
    return Method(
        init=whole.init,
        step=whole.step,
        predict=whole.predict,
        params=lambda state: whole_params(gathered(state)),
        drain=lambda state: state,
        estimate=whole.estimate,
        program=program,
        placement=Placement(mesh, names, forms, whole.spread),
    )


class _Whole:
    """A program on a mesh; its functions become those of the placed method."""

    def __init__(self, program: WholeProgram, mesh: Mesh, names: AxisNames, forms: tuple[str, ...]):
        self.program, self.mesh, self.names = program, mesh, names
        self.pr, self.pc = axis_size(mesh, names.pr), axis_size(mesh, names.pc)
        pc = names.pc if isinstance(names.pc, str) else None  # several: of workers alone
        self.grid = whole_grid(
            program.network, forms, self.pr, self.pc, (names.pr, pc), gloo.meet(mesh)
        )
        self.storage, self.starts = Storage(self.grid), Starts()
        shapes, stages = program.network.parameter_shapes(), program.stages
        self.in_rows = works_on_rows(stages.optimizers[0], self.storage.given((shapes,))[0])

    def init(self, key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None = None) -> Tree:
        """The state, laid out on the mesh: no device ever holds another's weights."""
        key = checks.key(key)
        self.program.check(x, y, "init")
        # shapes alone
        dtype = float_dtype(x)
        like = stacked(self.program.network.boundaries[0], 1, dtype=dtype)
        x = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), like)
        y = np.zeros((1, *jnp.shape(y)[1:]), jnp.result_type(y))
        given = None if params is None else self.program.stages.given(params, dtype)

        def start(key: Array, given: Tree) -> Tree:
            own = None if given is None else flat.unflattened(given)
            return self.storage.stored(self.program.init(by_index(1), key, x, y, own))

        whole = jax.eval_shape(start, key, given)
        device_memory.fits(whole, devices_of(self.mesh))
        laid_out = self._shardings(whole)
        if given is not None:
            to = tuple(w.params for w in laid_out.weights)
            given = self.storage.given(given)
            given = jax.tree.map(lambda a, s: put(a, self.mesh, s.spec), given, to)
        key = put(key, self.mesh, PartitionSpec())
        return self.starts.run(start, key, given, told=(x, y), out_shardings=laid_out)

    def spread(self, state: Tree) -> Tree:
        """A state of one device, or gathered, on the mesh; a placed one as it is.

        Of a state of `jax.ShapeDtypeStruct`s the same with shardings: enough to compile a step.
        """
        stored, specs = self.storage.laid_out(state)
        return jax.tree.map(lambda a, spec: put(a, self.mesh, spec), stored, specs)

    def step(self, state: Tree, x: Tree, y: AnyArray) -> tuple[Tree, Info]:
        self.program.check(x, y, "step", state.weights)
        x, y = as_input(self.program.network, x), jnp.asarray(y)
        at, light = CallSamples(self.grid, num_samples(x) // self.pc), _light(state)
        specs = flat.rows(self.storage.specs(light))
        work = self._mapped(
            lambda state, x, y: self.program.gradient(at.exchange(num_samples(x)), state, x, y),
            (specs, at.inputs, at.outputs),
            (tuple(w.params for w in specs.weights), PartitionSpec()),
        )
        x = put_samples(x, self.mesh, at.inputs)
        gradient, info = work(flat.rows(light), x, put(y, self.mesh, at.outputs))
        return self._descended(state, gradient, info), info

    def _descended(self, state: Tree, gradient: tuple[Tree], info: Info) -> Tree:
        """After the optimizer, which sees every array in its own shape: norms, masks by rank, kernels.

        One that works number by number takes what is stored flat as it is: nothing moves for it.
        """
        laid_out = self._shardings(state)
        params = tuple(w.params for w in state.weights)
        taken = flat.rows if self.in_rows else flat.unflattened

        def descend(state: Tree, gradient: tuple[Tree], info: Info) -> Tree:
            gradient = taken(flat.like(params, gradient))
            found = self.program.descend(taken(state), gradient, info)
            return flat.like(state, found) if self.in_rows else self.storage.stored(found)

        if AxisType.Explicit in self.mesh.axis_types:
            return jax.sharding.auto_axes(descend, out_sharding=laid_out)(state, gradient, info)
        found = descend(state, gradient, info)
        return jax.lax.with_sharding_constraint(found, laid_out)

    def predict(self, state: Tree, x: Tree) -> Array:
        """Outputs, split over pc, over pr too where the last layer's are; whole if pc does not divide."""
        x = as_input(self.program.network, x)
        samples = num_samples(x)
        whole = samples % self.pc
        grid = self.grid._replace(samples=()) if whole else self.grid
        at, light = CallSamples(grid, samples if whole else samples // self.pc), _light(state)

        def run(state: Tree, x: Tree) -> Array:
            return self.program.forward(at.exchange(num_samples(x)), 0, state.weights[0], x)

        work = self._mapped(run, (flat.rows(self.storage.specs(light)), at.inputs), at.outputs)
        return work(flat.rows(light), put_samples(x, self.mesh, at.inputs))

    def estimate(self, state: Tree, x: Tree) -> Tree:
        """The state with the network's statistics of x [samples, ...], a multiple of pc."""
        if not self.program.network.estimated:
            return state
        x = as_input(self.program.network, x)
        check_split(x, self.pc)
        at, light = CallSamples(self.grid, num_samples(x) // self.pc), _light(state)
        specs = flat.rows(self.storage.specs(light))
        run = lambda state, x: self.program.estimate(at.exchange(num_samples(x)), state, x)
        work = self._mapped(run, (specs, at.inputs), specs)
        found = work(flat.rows(light), put_samples(x, self.mesh, at.inputs))
        old, new = (tuple(w.params for w in s.weights) for s in (state, found))
        pairs = zip(state.weights, flat.like(old, new), strict=True)
        return state._replace(weights=tuple(w._replace(params=p) for w, p in pairs))

    def _mapped(self, fn: Callable, in_specs: Tree, out_specs: Tree) -> Callable:
        return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def _shardings(self, state: Tree) -> Tree:
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            self.storage.specs(state),
            is_leaf=lambda a: isinstance(a, PartitionSpec),
        )


def _light(state: Tree) -> Tree:
    """The state without what only the optimizer needs."""
    return state._replace(weights=tuple(w._replace(opt_state=()) for w in state.weights))


class CallSamples(NamedTuple):
    """A call's samples: `here` of them on each device of pc, split further over pr as the layers say."""

    grid: Grid
    here: int

    @property
    def inputs(self) -> PartitionSpec:
        """How x lies on the mesh."""
        return self._spec(self.grid.arrives(self.here))

    @property
    def outputs(self) -> PartitionSpec:
        """How the outputs and y lie on the mesh."""
        return self._spec("samples" if self.grid.split_outputs(self.here) else "whole")

    def _spec(self, layout: str) -> PartitionSpec:
        grid = self.grid
        lead = (*grid.samples, grid.axis) if layout == "samples" else grid.samples
        return PartitionSpec(lead or None, *([grid.axis] if layout == "rows" else []))

    def exchange(self, samples: int) -> Exchange:
        """The exchange of the one piece, for arrays of so many samples on a device."""
        split = prod(lax.axis_size(name) for name in self.grid.samples)
        held = _Held(self.grid, self.here, split * self.here // samples)
        return by_index(1, held, _Layers(self.grid, self.here))


class _Held(NamedTuple):
    """The samples that a device holds of a call's; see `jtssm.protocol.exchange.SampleSplit`."""

    grid: Grid
    here: int
    num_splits: int

    def own(self, a: Array) -> Array:
        """By where the device stands along pc."""
        axes = self.grid.samples
        if not axes:
            return a
        return lax.dynamic_slice_in_dim(a, lax.axis_index(axes) * self.here, self.here)

    def sum(self, tree: Tree) -> Tree:
        """Over the devices whose samples it is of."""
        return _total(self.grid, tree)

    def apart(self, params: Tree) -> Tree:
        """Each device's own, along the axes that split the samples."""
        return varying(params, self.grid.samples)

    def total(self, sums: tuple[Tree, ...]) -> Tree:
        """Over the devices whose samples the sums are of."""
        return _total(self.grid, sums[0])


class _Layers(NamedTuple):
    """The layers in their forms; see `jtssm.protocol.exchange.LayerSplit`."""

    grid: Grid
    here: int

    def own(self, l: int, params: list[Tree]) -> list[Tree]:
        """All of them: jax shards what is stored."""
        return params

    def joined(self, l: int, params: list[Tree], frozen: Sequence[bool]) -> list[Tree]:
        """Between processes on CPUs, as `jtssm.sharding.layers.gradients` says."""
        return gradients.joined(self.grid, 0, params, frozen)

    def products(self, i: int, samples: int) -> Products:
        """By the samples of the call, of which `samples` may be a part."""
        return self.grid.products(i, self.here)


def _total(grid: Grid, sums: Tree) -> Tree:
    """Sums over the devices whose samples they are of.

    The axes come in the order of the grid: a set of names has another order in each process, and
    processes that compile different programs wait for each other for ever.
    """
    names = (*grid.samples, *(() if grid.axis is None else (grid.axis,)))

    def its_axes(a: Array) -> tuple[str, ...]:
        apart = jax.typeof(a).manual_axis_type.varying
        return tuple(n for n in names if n in apart)

    if not grid.gloo:
        return jax.tree.map(lambda a: collectives.total(a, its_axes(a)), sums)
    leaves, structure = jax.tree.flatten(sums)
    return jax.tree.unflatten(structure, gloo.summed(leaves, list(map(its_axes, leaves))))
