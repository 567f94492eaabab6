"""What a method is to whoever trains with it: a record of pure functions.

Behind it stands a program (`jtssm.protocol.program`), the method written once; the functions are the
program's on one device, or on a mesh what `jtssm.sharding.place` made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import AnyArray, Array, Tree
from jtssm.protocol import sample_checks, summary
from jtssm.protocol.axes import AxisNames
from jtssm.protocol.declared import Move
from jtssm.protocol.info import Info

if TYPE_CHECKING:
    from jtssm.losses import Loss
    from jtssm.nn.network import Network
    from jtssm.protocol.program import Program
    from jtssm.protocol.settings import Settings


class Placement(NamedTuple):
    """Where a placed method lies."""

    mesh: Mesh
    axes: AxisNames
    forms: tuple[str, ...] | None  # one a layer, where layers may be split
    # a state of the unplaced method -> the same, laid out on the mesh
    spread: Callable[[Tree], Tree]


class Method(NamedTuple):
    """A training method as pure functions; jit them yourself.

    Every State has a scalar `pace`, 1 at the start, which the steps are multiplied by; it is traced, so
    that halving it (`fit(on_divergence="halve")`) costs no compilation. It multiplies an optimizer's
    updates (gsadmm, gsam, ist, local_sgd, ensemble, pipeline, sgd), the step length eta of p (gsadmm and
    gsam, but not in the streaming schedule with one sweep, where eta is no step), and the steps of p
    and W (pdadmm).
    """

    # x is always an array [samples, ...], or a tree of them, as the network takes it
    init: Callable[..., Tree]  # (key, x, y, params=None) -> State; params: one tree a layer
    step: Callable[[Tree, Tree, AnyArray], tuple[Tree, Info]]  # (state, x, y) -> (State, Info)
    predict: Callable[[Tree, Tree], Array]  # (state, x) -> outputs of the composed network
    # state -> the whole network's parameters, one tree a layer
    params: Callable[[Tree], list[Tree]]
    drain: Callable[[Tree], Tree]  # state -> State in which no minibatch is in flight any more
    # (state, x) -> State in which statistics that layers keep are those of x under the whole network;
    # the same state where no layer keeps any
    estimate: Callable[[Tree, Tree], Tree]
    program: Program
    placement: Placement | None = None  # None: on one device

    def __repr__(self) -> str:
        return summary.line(self)

    def summary(self, samples: int | None = None) -> str:
        """Layers and parameters, cuts, what a step sends, what a device holds: a text to print.

        Args:
          samples: that a resident method keeps; float32 samples are assumed.

        Examples:
          >>> import jtssm
          >>> from jtssm import solvers
          >>> adam = solvers.optimizer("adam", 1e-3)
          >>> method = solvers.gsadmm(
          ...     jtssm.mlp([4, 8, 3]), subnets=2, optimizer=adam, batch_size=20
          ... )
          >>> print(method.summary())
          gsadmm(optimizer=adam(learning_rate=0.001), batch_size=20, subnets=2)
          Network of 2 layers, 67 parameters: samples (4,)
             0  dense 8 relu  (8,)  40
             1  dense 3       (3,)  27
          cut before layer 1: 40, 27 parameters
          on one device:
            a step takes 20 samples; on a mesh it would send
              f, 20 x 8, along subnet from piece 0 to 1 (permute), once
              q - f, 20 x 8, along subnet from piece 1 to 0 (permute), once
              gradient of W, 40, along pc (all_reduce), once
              gradient of W, 27, along pc (all_reduce), once
            a device holds 812 B of weights and optimizer's state, 3.55 kB of other variables
        """
        return summary.text(self, samples)

    @property
    def name(self) -> str:
        """What its constructor is called."""
        return self.program.name

    @property
    def settings(self) -> Settings | None:
        """What it was made with; None: of a constructor that is not `recorded`."""
        return self.program.settings

    @property
    def network(self) -> Network:
        """What it trains."""
        return self.program.network

    @property
    def loss(self) -> Loss:
        """What it minimises."""
        return self.program.loss

    @property
    def batch_shape(self) -> tuple[int, ...] | None:
        """Leading shape of what a step consumes; None: all samples."""
        return self.program.batch.shape

    @property
    def batch_axes(self) -> tuple[str | None, ...]:
        """How those dimensions lie on the mesh."""
        return self.program.batch.axes

    @property
    def resident(self) -> bool:
        """Whether it stores variables for every sample, so that samples stay in place."""
        return self.program.batch.resident

    def moves(self, samples: int) -> tuple[Move, ...]:
        """What it sends in a step of so many samples."""
        return self.program.declared.moves(samples)

    @property
    def mesh(self) -> Mesh | None:
        """Where it lies; None: on one device."""
        return None if self.placement is None else self.placement.mesh

    @property
    def forms(self) -> tuple[str, ...] | None:
        """How its layers are split over pr, one form each; None: on one device, or of workers."""
        return None if self.placement is None else self.placement.forms

    def spread(self, state: Tree) -> Tree:
        """A state of one device, or gathered, laid out where this method lies."""
        return state if self.placement is None else self.placement.spread(state)


def given_trees(
    draw: Callable[[Array, DTypeLike], list[Tree]], params: Sequence[Tree], dtype: DTypeLike
) -> list[Tree]:
    """A warm start, one tree a layer, in the dtype of the samples; draw: (key, dtype) -> such trees.

    Raises:
      ValueError: not one tree a layer, or trees of another network, or numbers that are not finite.
    """
    shapes = jax.eval_shape(lambda: draw(jax.random.key(0), dtype))
    if not isinstance(params, (list, tuple)) or len(params) != len(shapes):
        got = len(params) if isinstance(params, (list, tuple)) else checks.shown(params)
        raise ValueError(f"params: expected {len(shapes)} trees, one a layer; got {got}")
    expected, got = (jax.tree.map(_shape, list(tree)) for tree in (shapes, params))
    if expected != got:
        raise ValueError(f"params: expected arrays of shapes {expected}; got {checks.shown(got)}")
    for leaf in jax.tree.leaves(list(params)):
        sample_checks.weights(leaf)
    # left where they are: numpy arrays stay in host memory
    return jax.tree.map(lambda a, like: a.astype(like.dtype), list(params), shapes)


def _shape(leaf: object) -> tuple[int, ...] | str:
    """Of an array; of something else what it is."""
    shape = getattr(leaf, "shape", None)
    return shape if isinstance(shape, tuple) else type(leaf).__name__
