"""Methods of equal workers on a mesh: workers and homes along "subnet", their minibatches along "pc".

They split no layer: an axis "pr" splits their minibatches too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Tree
from jtssm.nn.boundary import float_dtype
from jtssm.nn.inputs import as_input
from jtssm.nn.ops import PLAIN, Hops, varying
from jtssm.protocol import device_memory
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method, Placement, given_trees
from jtssm.protocol.workers import Meeting, WorkerProgram
from jtssm.sharding import collectives, gloo
from jtssm.sharding.mesh import (
    AXES,
    AxisNames,
    axis_size,
    check_split,
    devices_of,
    predicted,
    put,
    put_samples,
)
from jtssm.sharding.placement.on_host import gathered
from jtssm.sharding.placement.starts import Starts


def by_collectives(num: int, names: AxisNames, processes: bool = False) -> Meeting:
    """The meeting of `num` workers spread over a mesh; called inside shard_map.

    processes: whether its devices meet by gloo, see `jtssm.sharding.gloo`.

    A deal is one all-to-all of each array: device d sends slice w of its homes to the device of worker w.
    """
    subnet, pc = (
        names.present("subnet"),
        names.present("pc"),
    )  # pc: and pr, which has no other use here
    size = lax.axis_size(subnet) if subnet else 1
    here = collectives.index(names.subnet) * (num // size) + jnp.arange(num // size)
    apart = partial(varying, axes=subnet)
    turned = partial(_turned, axis=names.subnet)
    if processes and size == 2:
        turned = partial(gloo.turned, axis=subnet[0])
    copy = lambda a: jnp.broadcast_to(a, (num // size, *a.shape))
    sums = lambda tree: jax.tree.map(lambda a: a.sum(axis=0), tree)
    total = gloo.totals if processes else collectives.total
    return Meeting(
        num=num,
        here=here,
        to_workers=turned,
        to_homes=turned,
        own_homes=partial(_own, axis=names.subnet),
        apart=apart,
        copies=lambda tree: apart(jax.tree.map(copy, tree)),
        mean=lambda tree: jax.tree.map(lambda a: a / num, total(sums(tree), subnet)),
        total=lambda tree: total(sums(tree), (*subnet, *pc)),
        sum_samples=lambda a: collectives.total(a, pc),
        gather=lambda x: collectives.gather_columns(x, names.subnet),
        sum_homes=lambda x: collectives.total(x, subnet),
        own_samples=partial(_own, axis=names.pc),
        products=PLAIN._replace(
            over_samples=lambda a: collectives.mean(PLAIN.over_samples(a), pc),
            sample_axes=tuple(pc),
            hops=Hops(narrowed=partial(collectives.narrowed, axes=pc)),
        ),
    )


def _turned(a: Array, axis: str | None) -> Array:
    """A[I_X, J, ...] -> A[J_X, I, ...]: all-to-all."""
    if axis is not None:
        a = lax.all_to_all(a, axis, split_axis=1, concat_axis=0, tiled=True)
    return a.swapaxes(0, 1)


def _own(a: Array, axis: str | tuple[str, ...] | None) -> Array:
    """The rows of an array that is the same everywhere which live on this device."""
    if axis is None:
        return a
    return collectives.part(a, axis, 0)


def place_workers(program: WorkerProgram, mesh: Mesh, names: AxisNames) -> Method:
    """A method of workers on a mesh; see `jtssm.sharding.place`."""
    sizes = [axis_size(mesh, name) for name in names]
    _check_sizes(program, *sizes)
    # over an axis of size 1 nothing is exchanged, not even in name
    subnet, pr, pc = (
        names.present(axis) if size > 1 else () for axis, size in zip(AXES, sizes, strict=True)
    )
    names = AxisNames(subnet[0] if subnet else None, None, (*pc, *pr) or None)
    crew = _Crew(program, mesh, names)
    return Method(
        init=crew.init,
        step=crew.step,
        predict=crew.predict,
        params=lambda state: program.model.params(gathered(state)),
        drain=lambda state: state,
        estimate=crew.estimate,
        program=program,
        placement=Placement(mesh, names, None, crew.spread),
    )


def _check_sizes(program: WorkerProgram, subnet: int, pr: int, pc: int) -> None:
    fits = [d for d in range(1, program.num + 1) if program.num % d == 0]
    if subnet not in fits:
        raise ValueError(
            f"mesh: expected a 'subnet' axis of one of {fits}, which divide the {program.num} workers "
            f"of {program.name}; got {subnet}"
        )
    if program.model.homes % subnet:
        raise ValueError(
            f"mesh: expected deal='stratified' with subnet={subnet}, whose shapes are static; got "
            f"deal='uniform', which one device stores whole"
        )
    if program.round_shape[2] % (pr * pc):
        raise ValueError(
            f"mesh: expected 'pr' and 'pc' axes whose product divides batch_size={program.batch.size}, "
            f"{program.name} splits its samples over both; got {pr} * {pc}"
        )


class _Crew:
    """A program on a mesh; its functions become those of the placed method."""

    def __init__(self, program: WorkerProgram, mesh: Mesh, names: AxisNames):
        self.program, self.mesh, self.names = program, mesh, names
        self.starts = Starts()

    def init(self, key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None = None) -> Tree:
        """The state, laid out on the mesh: no device ever holds the whole of what is split.

        Where N does not divide the width of a dealt layer, this is so only of given `params`: without
        them every device draws such layers whole, for a moment, and keeps its part.
        """
        program = self.program
        key = checks.key(key)
        program.check(x, y, "init")
        dtype = float_dtype(x)
        key = put(key, self.mesh, PartitionSpec())
        shapes = jax.eval_shape(partial(program.first_state, dtype=dtype), key)
        device_memory.fits(shapes, devices_of(self.mesh))
        shardings = self._shardings(shapes)
        if params is None:
            start = partial(program.first_state, dtype=dtype)
            one = jax.ShapeDtypeStruct((), dtype)
            return self.starts.run(start, key, told=one, out_shardings=shardings)
        given = jax.tree.map(np.asarray, given_trees(program.model.draw, params, dtype))
        laid = program.model.lay_out(np, given)
        on_mesh = {
            name: jax.tree.map(
                lambda a, to: put(a, self.mesh, to.spec), a, getattr(shardings, name)
            )
            for name, a in laid.items()
        }
        with_given = lambda key, given: program.model.start(key, **given)
        return self.starts.run(with_given, key, on_mesh, out_shardings=shardings)

    def spread(self, state: Tree) -> Tree:
        """An unplaced state on the mesh; a placed one as it is."""
        return jax.tree.map(lambda a, to: put(a, self.mesh, to.spec), state, self._shardings(state))

    def step(self, state: Tree, x: Tree, y: AnyArray) -> tuple[Tree, Info]:
        """A round: x [R, N, b, ...], y [R, N, b]."""
        self.program.check(x, y, "step", state)
        spec, samples = self._specs(state), self.names.spec(None, "subnet", "pc")
        work = self._mapped(
            lambda state, x, y: self.program.step(self._meeting(), state, x, y),
            (spec, samples, samples),
            (spec, PartitionSpec()),
        )
        x = put_samples(self.program.samples(x), self.mesh, samples)
        return work(state, x, put(jnp.asarray(y), self.mesh, samples))

    def predict(self, state: Tree, x: Tree) -> Array:
        """Outputs, split over pc; whole everywhere if pc does not divide them."""
        x = as_input(self.program.network, x)

        def forward(state: Tree, x: Tree) -> Array:
            x = varying(x, self.names.present("pc"))
            return self.program.forward(self._meeting(), state, x)

        return predicted(self._mapped, forward, self._specs(state), state, x, self.mesh, self.names)

    def estimate(self, state: Tree, x: Tree) -> Tree:
        """The state with the network's statistics of x [samples, ...], a multiple of pc."""
        if not self.program.network.estimated:
            return state
        x, samples = as_input(self.program.network, x), self.names.spec("pc")
        check_split(x, axis_size(self.mesh, self.names.pc))
        spec = self._specs(state)
        run = lambda state, x: self.program.estimate(self._meeting(), state, x)
        work = self._mapped(run, (spec, samples), spec)
        return work(state, put_samples(x, self.mesh, samples))

    def _meeting(self) -> Meeting:
        return by_collectives(self.program.num, self.names, gloo.meet(self.mesh))

    def _mapped(self, fn: Callable, in_specs: Tree, out_specs: Tree) -> Callable:
        return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def _specs(self, state: Tree) -> Tree:
        """A PartitionSpec for every array of a state."""

        def of(name: str) -> Tree:
            spec = self.names.spec(*self.program.kinds[name])
            return jax.tree.map(lambda _: spec, getattr(state, name))

        return state._replace(**{name: of(name) for name in state._fields})

    def _shardings(self, state: Tree) -> Tree:
        return jax.tree.map(
            lambda spec: NamedSharding(self.mesh, spec),
            self._specs(state),
            is_leaf=lambda a: isinstance(a, PartitionSpec),
        )
