"""A layer in the form "gathered" gathers its parameters for its work, and again for its backward pass.

Forward it takes all of them, backward not: the gradient of a bias that no activation follows needs
nothing, that of an embedding no table. Which of them, `gathered_leaves` says: the layer is traced both
ways with a mark on each parameter, in place of what gathers it, and the marks are looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import ShapeDtypeStruct as Shaped
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval
from jax.tree_util import PyTreeDef

from jtssm.arrays import Tree
from jtssm.nn.boundary import Sample, described, merge, partition, stacked
from jtssm.nn.layer import Layer
from jtssm.nn.network import run_layers
from jtssm.nn.ops import PLAIN, Hops

ROWS = 2  # samples in a trace
MARK = "gathered "
# what the backward pass of a gathered layer does not do again: its products and sums over devices
KEPT = {"dot_general", "ragged_dot_general", "conv_general_dilated", "psum", "psum_invariant"}


def regathering(work: Callable[[Tree, Tree], Tree]) -> Callable[[Tree, Tree], Tree]:
    """The work of a layer that gathers its parameters, which keeps none of them for its backward pass.

    They are gathered again there. What is cheap is done again with them, so that nothing which is made of
    them alone is kept either. (XLA for CPUs finds that the same is gathered twice, and keeps it.)
    """
    return jax.checkpoint(work, policy=lambda primitive, *_, **__: primitive.name in KEPT)


class Gathered(NamedTuple):
    """Which leaves of a layer's parameters are gathered, one flag a leaf."""

    forward: tuple[bool, ...]  # what the backward pass needs is made of them
    outputs: tuple[bool, ...]  # forward too, for the outputs alone
    backward: tuple[bool, ...]  # again


def gathered_leaves(
    layer: Layer, sample: Sample, params: Tree, *, inputs: bool, weights: bool
) -> Gathered:
    """Of which parameters a layer that trains takes the whole arrays in a pass.

    Args:
      layer: of any kind.
      sample: one of its inputs.
      params: shapes of its parameters.
      inputs, weights: whether the gradient of its inputs, and of its parameters, is taken.
    """
    leaves, structure = jax.tree.flatten(params)
    taken = tuple(name for name, is_taken in (("x", inputs), ("params", weights)) if is_taken)
    return _traced(_Same(layer), sample, tuple(leaves), structure, taken)


class _Same:
    """A layer as a key: one of a user's own may have no hash."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer

    def __hash__(self) -> int:
        return id(self.layer)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.layer is other.layer


@lru_cache(maxsize=1024)
def _traced(
    key: _Same,
    sample: Sample,
    leaves: tuple[Shaped, ...],
    structure: PyTreeDef,
    taken: tuple[str, ...],
) -> Gathered:
    """Kept for the layers seen last: a planner asks again and again."""
    run = partial(_both_ways, key.layer, taken)
    dtype = leaves[0].dtype if leaves else jnp.float32
    x = stacked(described(sample, key.layer.integer), ROWS, dtype=dtype)
    trace = jax.make_jaxpr(run, return_shape=True)
    closed, shapes = trace(jax.tree.unflatten(structure, leaves), x)
    jaxpr = closed.jaxpr
    gradients = [i > 0 for i, tree in enumerate(shapes) for _ in jax.tree.leaves(tree)]
    needed, _ = partial_eval.dce_jaxpr(jaxpr, gradients)
    all_marks, marks = (set(_marks(each, again=False)) for each in (jaxpr, needed))
    of = lambda marks, again: tuple((f"{MARK}{k}", again) in marks for k in range(len(leaves)))
    return Gathered(of(marks, False), of(all_marks - marks, False), of(all_marks, True))


def _both_ways(layer: Layer, taken: Sequence[str], params: Tree, x: Tree) -> tuple[Tree, Tree]:
    """The outputs of a layer that trains, and gradients of what is taken: "x", "params"."""

    def marked(params: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(params)
        marks = [checkpoint_name(a, f"{MARK}{k}") for k, a in enumerate(leaves)]
        return jax.tree.unflatten(structure, marks)

    def run(some: dict[str, Tree]) -> tuple[Tree, Tree]:
        all_given = given | some
        x = merge(all_given["x"], others)
        return partition(run_layers([layer], [all_given["params"]], x, lambda _: products))

    keys = lambda: jax.random.split(jax.random.key(0), ROWS)
    products = PLAIN.to_train(keys)._replace(hops=Hops(whole=marked, again=regathering))
    floats, others = partition(x)
    given = {"params": params, "x": floats}
    y, pull, rest = jax.vjp(run, {name: given[name] for name in taken}, has_aux=True)
    return merge(y, rest), pull(jax.tree.map(jnp.ones_like, y))


def _marks(jaxpr: Jaxpr, *, again: bool) -> Iterator[tuple[str, bool]]:
    """The marks in a trace, each with whether it is of what the backward pass does again."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "name" and equation.params["name"].startswith(MARK):
            yield equation.params["name"], again
        for inner in jaxprs_in_params(equation.params):
            yield from _marks(inner, again=again or bool(equation.params.get("differentiated")))
