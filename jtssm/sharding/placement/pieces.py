"""`place`: the same method on a mesh, with shard_map inside its functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec
from jax.tree_util import PyTreeDef
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Tree
from jtssm.nn.boundary import first, float_dtype
from jtssm.nn.inputs import as_input
from jtssm.nn.ops import varying
from jtssm.protocol import device_memory
from jtssm.protocol.exchange import by_index
from jtssm.protocol.info import Info
from jtssm.protocol.method import Method, Placement
from jtssm.protocol.stages import StageProgram, whole_params
from jtssm.sharding.mesh import check_split, devices_of, predicted, put, put_samples
from jtssm.sharding.placement.exchange import by_collectives, own_part
from jtssm.sharding.placement.on_host import gathered, lay_out, shapes, spread
from jtssm.sharding.placement.packing import Layout, Rows, is_rows, layout_of, specs
from jtssm.sharding.placement.switch import Place


def check_elementwise(
    at: Place, l: int, optimizer: optax.GradientTransformation, shapes: list[Tree]
) -> None:
    """Run the optimizer on a toy of piece l, whole and as two halves: the numbers must agree.

    And of its state as it will be, arrays must be split as parameters are: moments of rows are not, which
    some keep of large ones alone.
    """
    half = at._replace(sizes=(at.sizes[0], 2, at.sizes[2]))
    layers = shapes[at.starts[l] : at.starts[l + 1]]
    size = lambda a: tuple(4 for _ in a.shape)
    toy = jax.tree.map(lambda a: np.linspace(0.5, 1.5, 4 ** len(a.shape)).reshape(size(a)), layers)
    own = jax.eval_shape(lambda toy: own_part(half, l, toy, rank=1), toy)
    leaves, structure = jax.tree.flatten(toy)
    told = (a.shape for a in (*leaves, *jax.tree.leaves(own)))
    takes = optax.with_extra_args_support(optimizer)
    same = _agree(takes.init, takes.update, _Toy(structure, tuple(told), half, l, toy))
    if not (same and _split_alike(at, l, takes, layers)):
        raise ValueError(
            f"optimizer: expected an elementwise one (sgd, adam, adamw, ...) for subnetwork {l}, "
            f"which is split over pr={at.sizes[1]}: clipping by the global norm, lamb or muon would "
            f"see a part of the weights only; got {optimizer!r}; use pr=1"
        )


@dataclass(frozen=True)
class _Toy:
    """A toy of a piece; two are equal whose arrays, and halves of arrays, are."""

    structure: PyTreeDef
    told: tuple[tuple[int, ...], ...]  # shapes of the whole arrays and of a half's
    half: Place = field(compare=False)
    l: int = field(compare=False)
    params: list[Tree] = field(compare=False)


@lru_cache(maxsize=64)
def _agree(init: Callable, update: Callable, toy: _Toy) -> bool:
    """Whether an optimizer does the same with whole arrays as with halves; a planner asks often."""
    optimizer = optax.GradientTransformationExtraArgs(init, update)

    def both(params: list[Tree]) -> tuple[list[Tree], list[Tree]]:
        whole = own_part(toy.half, toy.l, _two_steps(optimizer, params), rank=1)
        return whole, _two_steps(optimizer, own_part(toy.half, toy.l, params, rank=1))

    try:
        whole, part = both(toy.params)
    except (ValueError, TypeError, NotImplementedError):
        return False
    return all(map(np.allclose, jax.tree.leaves(whole), jax.tree.leaves(part)))


def _split_alike(
    at: Place, l: int, optimizer: optax.GradientTransformation, params: list[Tree]
) -> bool:
    """Whether each array of the optimizer's state has a parameter's shape, whole and on a device."""
    local = jax.eval_shape(lambda p: own_part(at, l, p, rank=0), params)
    states = [jax.eval_shape(optimizer.init, p) for p in (params, local)]
    pairs = [
        {(a.shape, b.shape) for a, b in zip(*map(jax.tree.leaves, trees), strict=True)}
        for trees in ((params, local), states)
    ]
    return all(pair in pairs[0] or prod(pair[0]) <= 1 for pair in pairs[1])


def _two_steps(optimizer: optax.GradientTransformationExtraArgs, params: Tree) -> Tree:
    state = optimizer.init(params)
    for scale in (3.0, 1.0):
        gradient = jax.tree.map(lambda a, scale=scale: scale * (a - 0.9) ** 3, params)
        updates, state = optimizer.update(gradient, state, params, value=jnp.asarray(scale))
        params = optax.apply_updates(params, updates)
    return params


class Placing:
    """A program on a mesh; its functions become those of the placed method."""

    def __init__(self, program: StageProgram, mesh: Mesh, at: Place):
        self.program, self.mesh, self.at, self.names = program, mesh, at, at.names
        self.exchange = by_collectives(at)

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
        return jax.jit(start)(key, x, y, rows)

    def spread(self, state: Tree) -> Tree:
        """An unplaced state (of one device, or gathered) on the mesh; a placed one as it is.

        Of a state of `jax.ShapeDtypeStruct`s the same with shardings: enough to compile a step.
        """
        if is_rows(state.weights):
            return state
        abstract = any(isinstance(a, jax.ShapeDtypeStruct) for a in jax.tree.leaves(state))
        (dtype,) = {a.dtype for a in jax.tree.leaves([w.params for w in state.weights])}
        weights = self._weights_layout(dtype)
        slots, pr = self.at.local * self.at.sizes[0], self.at.sizes[1]

        def laid_out(name: str, value: Tree) -> Tree:
            kind = self.program.kinds.get(name, ())
            if abstract and isinstance(kind, str):
                layout = weights if kind == "weights" else layout_of(kind, value)
                return shapes(layout, value, self.mesh, self.names, pr, slots)
            if kind == "weights":
                return lay_out(weights, value, self.mesh, self.names, pr, slots)
            if isinstance(kind, str):
                return spread(layout_of(kind, value), value, self.mesh, self.names, slots)
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

    def _weights_layout(self, dtype: DTypeLike) -> Layout:
        """Of all pieces' weights and optimizer states, from shapes alone."""
        net = self.program.network
        params = jax.eval_shape(lambda: net.init(jax.random.key(0), dtype))
        pieces = list(enumerate(self.program.stages.by_piece(params)))
        start = lambda l, p: jax.eval_shape(lambda p: self.program.start(l, p), p)
        whole = [start(l, p) for l, p in pieces]
        local = [start(l, self._part(l, p)) for l, p in pieces]
        return layout_of("weights", whole, local, self.at.sizes[1])

    def _part(self, l: int, params: Tree) -> Tree:
        """Shapes of what one device holds of piece l's parameters."""
        return jax.eval_shape(lambda p: own_part(self.at, l, p, rank=0), params)

    def _lay_out(self, given: tuple[list[Tree], ...]) -> Rows:
        """Given parameters as rows on the mesh."""
        local, pr = [self._part(l, p) for l, p in enumerate(given)], self.at.sizes[1]
        slots = self.at.local * self.at.sizes[0]
        layout = layout_of("weights", given, local, pr)
        return lay_out(layout, given, self.mesh, self.names, pr, slots)

    def _rows(self, whole: Tree, weights: Layout) -> Tree:
        """The state with Rows (of nothing but their layout) where the pieces' trees stood."""
        layouts = {
            name: weights if kind == "weights" else layout_of(kind, getattr(whole, name))
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
