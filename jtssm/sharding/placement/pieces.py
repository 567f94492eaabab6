"""`place`: the same method on a mesh, with shard_map inside its functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Tree
from jtssm.nn.boundary import first, float_dtype
from jtssm.nn.inputs import as_input
from jtssm.nn.ops import varying
from jtssm.protocol import device_memory
from jtssm.protocol.exchange import Kind, by_index
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method, Placement
from jtssm.protocol.stages import StageProgram, whole_params
from jtssm.sharding.mesh import check_split, devices_of, predicted, put, put_samples
from jtssm.sharding.placement.exchange import by_collectives, own_part
from jtssm.sharding.placement.on_host import gathered, lay_out, shapes, spread
from jtssm.sharding.placement.packing import layout_of
from jtssm.sharding.placement.results import gradients_of
from jtssm.sharding.placement.rows import AnyLayout, Rows, is_rows, specs
from jtssm.sharding.placement.slotted import slotted
from jtssm.sharding.placement.starts import Starts
from jtssm.sharding.placement.switch import Place


class Placing:
    """A program on a mesh; its functions become those of the placed method."""

    def __init__(self, program: StageProgram, mesh: Mesh, at: Place):
        self.program, self.mesh, self.at, self.names = program, mesh, at, at.names
        self.exchange = by_collectives(at)
        self.starts = Starts()

    def method(self) -> Method:
        """The placed method."""
        return Method(
            init=self.init,
            step=self.step,
            predict=self.predict,
            params=lambda state: whole_params(gathered(state)),
            drain=self.drain,
            estimate=self.estimate,
            program=self.program,
            placement=Placement(self.mesh, self.names, self.at.forms, self.spread),
        )

    def estimate(self, state: Tree, x: Tree) -> Tree:
        """The state with the network's statistics of x [samples, ...], a multiple of pc."""
        if self.program.estimate is None or not self.program.network.estimated:
            return state
        estimate, x = self.program.estimate, as_input(self.program.network, x)
        check_split(x, self.at.sizes[2])
        spec = self._specs(state)
        work = self._mapped(
            lambda state, x: estimate(self.exchange, state, self._seen(x)),
            (spec, self._samples),
            spec,
        )
        return work(state, put_samples(x, self.mesh, self._samples))

    def init(self, key: Array, x: Tree, y: AnyArray, params: Sequence[Tree] | None = None) -> Tree:
        """The state, laid out on the mesh: no device ever holds another's weights."""
        program, key = self.program, checks.key(key)
        program.check(x, y, "init")
        if program.batch.size is None:
            check_split(x, self.at.sizes[2])
        x, y = as_input(program.network, x), jnp.asarray(y)
        dtype = float_dtype(x)
        given = None if params is None else program.stages.given(params, dtype)
        weights = self._weights_layout(dtype)
        exchange = by_collectives(self.at._replace(weights=weights))
        whole = jax.eval_shape(lambda: program.init(by_index(self.at.num), key, x, y, given))
        device_memory.fits(whole, devices_of(self.mesh))
        rows = None if given is None else self._lay_out(given)
        samples = self._samples if program.batch.resident else PartitionSpec()
        if not program.batch.resident:  # only shapes are needed
            x, y = first(x), first(y)
        start = self._mapped(
            lambda key, x, y, rows: program.init(exchange, key, self._seen(x), y, rows),
            (PartitionSpec(), samples, samples, rows and specs(rows.layout, self.names)),
            self._specs(self._rows(whole, weights)),
        )
        key = put(key, self.mesh, PartitionSpec())
        x, y = put_samples((x, y), self.mesh, samples)
        return self.starts.run(start, key, x, y, rows)

    def spread(self, state: Tree) -> Tree:
        """An unplaced state (of one device, or gathered) on the mesh; a placed one as it is.

        Of a state of `jax.ShapeDtypeStruct`s the same with shardings: enough to compile a step.
        """
        if is_rows(state.weights):
            return state
        abstract = any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(state))
        (dtype,) = {a.dtype for a in jax.tree.leaves([w.params for w in state.weights])}
        weights = self._weights_layout(dtype)
        pr = self.at.sizes[1]

        def laid_out(name: str, value: Tree) -> Tree:
            kind = self.program.kinds.get(name, ())
            if isinstance(kind, str):
                layout = self._layout(kind, value, weights)
                if abstract:
                    return shapes(layout, value, self.mesh, self.names, pr)
                if layout.kind.trained:
                    return lay_out(layout, value, self.mesh, self.names, pr)
                return spread(layout, value, self.mesh, self.names)
            return jax.tree.map(lambda a: put(a, self.mesh, self.names.spec(*kind)), value)

        return state._replace(
            **{name: laid_out(name, getattr(state, name)) for name in state._fields}
        )

    def step(self, state: Tree, x: Tree, y: AnyArray) -> tuple[Tree, Info]:
        self.program.check(x, y, "step", state.weights)
        spec, samples = self._specs(state), self.names.spec(*self.program.batch.axes)
        work = self._mapped(
            lambda state, x, y: self.program.step(self.exchange, state, self._seen(x), y),
            (spec, samples, samples),
            (spec, PartitionSpec()),
        )
        x = put_samples(self.program.samples(x), self.mesh, samples)
        return work(state, x, put(jnp.asarray(y), self.mesh, samples))

    def drain(self, state: Tree) -> Tree:
        spec = self._specs(state)
        work = lambda state: self.program.drain(self.exchange, state)
        return self._mapped(work, (spec,), spec)(state)

    def predict(self, state: Tree, x: Tree) -> Array:
        """Outputs, split over pc; whole everywhere if pc does not divide them."""
        x = as_input(self.program.network, x)
        piece = partial(self.program.forward, self.exchange)

        def forward(weights: Rows, x: Tree) -> Array:
            return self.exchange.chain(piece, weights, x=self._seen(x))[0]

        return predicted(
            self._mapped,
            forward,
            self._specs(state).weights,
            state.weights,
            x,
            self.mesh,
            self.names,
        )

    @property
    def _samples(self) -> PartitionSpec:
        return self.names.spec("pc")

    def _mapped(self, fn: Callable, in_specs: Tree, out_specs: Tree) -> Callable:
        return jax.shard_map(fn, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs)

    def _seen(self, x: Tree) -> Tree:
        """Samples differ from piece to piece: no gradient of theirs may be summed over subnet."""
        return varying(x, self.names.present("subnet", "pc"))

    def _weights_layout(self, dtype: DTypeLike) -> AnyLayout:
        """Of all pieces' weights and optimizer states, from shapes alone."""
        net = self.program.network
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), dtype))
        pieces = list(enumerate(self.program.stages.by_piece(params)))
        start = lambda l, p: jax.eval_shape(lambda p: self.program.start(l, p), p)
        whole = [start(l, p) for l, p in pieces]
        local = [start(l, self._part(l, p)) for l, p in pieces]
        return self._weights(whole, local)

    def _weights(self, whole: Sequence[Tree], local: Sequence[Tree]) -> AnyLayout:
        """Leaf by leaf, but of a method that batches pieces in rows."""
        rows = layout_of("weights", whole, local, self.at.sizes[1], self.at.slots)
        batched = self.at.alike != tuple(range(self.at.num))
        return rows if batched else slotted(rows)

    def _layout(self, kind: str, trees: Sequence[Tree], weights: AnyLayout) -> AnyLayout:
        """Of what is carried, beside weights."""
        if kind == Kind.WEIGHTS:
            return weights
        if kind == Kind.PARTIAL_GRADIENTS:
            return gradients_of(weights, trees, self.at.slots, Kind.PARTIAL_GRADIENTS)
        rows = layout_of(kind, trees, slots=self.at.slots)
        return slotted(rows) if rows.kind is Kind.LINE else rows

    def _part(self, l: int, params: Tree) -> Tree:
        """Shapes of what one device holds of piece l's parameters."""
        return jax.eval_shape(lambda p: own_part(self.at, l, p, rank=0), params)

    def _lay_out(self, given: tuple[list[Tree], ...]) -> Rows:
        """Given parameters as rows on the mesh."""
        local, pr = [self._part(l, p) for l, p in enumerate(given)], self.at.sizes[1]
        layout = self._weights(given, local)
        return lay_out(layout, given, self.mesh, self.names, pr)

    def _rows(self, whole: Tree, weights: AnyLayout) -> Tree:
        """The state with Rows (of nothing but their layout) where the pieces' trees stood."""
        layouts = {
            name: self._layout(kind, getattr(whole, name), weights)
            for name, kind in self.program.kinds.items()
            if isinstance(kind, str)
        }
        return whole._replace(**{name: specs(a, self.names) for name, a in layouts.items()})

    def _specs(self, state: Tree) -> Tree:
        """A PartitionSpec for every array of a placed state."""

        def spec(name: str, value: Tree) -> Tree:
            kind = self.program.kinds.get(name, ())
            if isinstance(kind, str):
                return specs(value.layout, self.names)
            return jax.tree.map(lambda _: self.names.spec(*kind), value)

        return state._replace(**{name: spec(name, getattr(state, name)) for name in state._fields})
