"""What a method is, and how it meets its neighbours.

A method is a record of pure functions (`Method`). It is written once, as `Parts`: functions whose
first argument is an `Exchange`, the record through which pieces of a network talk to each other. On
one device the exchange works by index (`by_index`); `jtssm.sharding.place` hands the same functions
an exchange made of collectives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jtssm import checks
from jtssm.arrays import Tree
from jtssm.protocol import sample_checks


class Method(NamedTuple):
    """A training method as pure functions; jit them yourself.

    Every State has a scalar `pace`, 1 at the start, which the steps are multiplied by; it is traced, so
    that halving it (`fit(on_divergence="halve")`) costs no compilation. It multiplies an optimizer's
    updates (gsadmm, gsam, ist, local_sgd, ensemble, sgd), the step length eta of p (gsadmm and gsam, but
    not in the streaming schedule with one sweep, where eta is no step), and the steps of p and W
    (pdadmm).
    """

    name: str
    init: Callable  # (key, x, y, params=None) -> State; params: one tree a layer, a warm start
    step: Callable  # (state, x, y) -> (State, Info)
    predict: Callable  # (state, x) -> outputs of the composed network
    params: Callable  # state -> list: the whole network's parameters, one tree a layer
    batch_shape: tuple[int, ...] | None  # leading shape of what a step consumes; None: all samples
    batch_axes: tuple | None  # how those dimensions lie on the mesh
    resident: bool  # stores variables for every sample: samples stay in place
    drain: Callable  # state -> State in which no minibatch is in flight any more
    moves: Callable  # number of samples in a step -> tuple[Move, ...]
    parts: Any  # Parts, or jtssm.protocol.workers.WorkerParts
    spread: Callable  # state of the unplaced method -> state of this one: laid out on its mesh
    # (state, x) -> State in which statistics that layers keep are those of x under the whole network;
    # the same state where no layer keeps any
    estimate: Callable
    mesh: Any = None  # set by place
    axes: Any = None  # set by place: jtssm.sharding.mesh.AxisNames
    forms: tuple[str, ...] | None = None  # set by place: of each layer, where layers may be split


def given_trees(draw: Callable, params: Any, dtype: Any) -> list[Tree]:
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


def _shape(leaf: Any) -> Any:
    """Of an array; of something else what it is."""
    shape = getattr(leaf, "shape", None)
    return shape if isinstance(shape, tuple) else type(leaf).__name__
