"""The layer that somebody's module becomes: pure functions of parameters, statistics and draws.

A layer's tree is {"params": what is trained, "state": statistics of batch normalisation, if any}. While
training, batch normalisation takes the mean and variance of the minibatch, on a mesh those of all
devices that share it; its running averages are not moved along the way but estimated anew on training
samples (`jtssm.Result`, `Method.estimate`), for a layer of a split network runs more often than it steps.
A layer that draws runs sample by sample under `jax.vmap`, each with a key of its own, so that its draws
are the same on any mesh. One that has statistics, too, runs on all samples at once: there only dropout
may draw, a mask for each sample.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.interpreters import partial_eval
from jax.typing import DTypeLike

from jtssm.arrays import Array, Tree
from jtssm.nn import mixing
from jtssm.nn.boundary import Sample, described, floating, num_samples, sample_of, stacked, zeros
from jtssm.nn.layer import Layer
from jtssm.nn.ops import Products, varying

ROWS = 2  # samples in a trace


class Call(NamedTuple):
    """How a module is run."""

    training: bool = False
    key: Array | None = None  # None: nothing is drawn but what dropout draws from
    keys: Array | None = None  # [b]: each sample's
    axes: tuple[str, ...] = ()  # mesh axes that split the samples
    estimating: bool = False  # whether the state shall become that of these samples

    @property
    def drops(self) -> bool:
        """Whether dropout drops."""
        return self.key is not None or self.keys is not None


class Pure(NamedTuple):
    """Somebody's module as pure functions."""

    name: str
    # (key, x [b, ...], an array or a tree of them) -> (params, state), {} for none
    draw: Callable[[Array, Tree], tuple[Tree, Tree]]
    # (params, state, x, call) -> (y, state)
    run: Callable[[Tree, Tree, Tree, Call], tuple[Tree, Tree]]
    whole: Callable[[Tree, Tree], Any]  # (params, state) -> what the user gave, with these
    moved: Callable[[Tree], Tree] = lambda state: {}  # state -> those of it that training must move
    tied: bool = False  # whether it is several that share parameters
    must_draw: str | None = None  # what is said of a module that does not draw while training
    pretrained: bool = False  # whether it starts from statistics of samples, which training moves


class Together(tuple):
    """The modules of a layer that was made of several."""


@dataclass(frozen=True, eq=False, repr=False)
class Adapted(Layer):
    """Somebody's module as a layer; made by `adapted`."""

    of: str  # what the user gave
    pure: Pure = field(repr=False)
    given: Tree = field(repr=False)  # shapes of samples [samples, ...] as the module takes them
    params: Tree = field(repr=False)  # shapes of them, and
    state: Tree = field(repr=False)  # of the statistics
    draws: bool = False  # while training
    integers: bool = False  # whether samples are one array of integers

    @property
    def name(self) -> str:
        """What the user gave."""
        return self.of

    @property
    def random(self) -> bool:
        """Whether it draws while training."""
        return self.draws

    @property
    def integer(self) -> bool:
        """Whether samples are one array of integers."""
        return self.integers

    @property
    def trees(self) -> bool:
        """Any module may."""
        return True

    @property
    def estimated(self) -> tuple[str, ...]:
        """Its statistics."""
        return ("state",) if self.state else ()

    @property
    def uncast(self) -> tuple[str, ...]:
        """Its statistics."""
        return ("state",)

    def _taken(self, x: Tree) -> Tree:
        """As the module takes it: a grid may flatten it on the way."""

        def one(like: jax.ShapeDtypeStruct, a: Array) -> Array:
            a = a.reshape(-1, *like.shape[1:])
            return a if floating(like) else a.astype(like.dtype)

        return jax.tree.map(one, self.given, x)

    def init(self, key: Array, shape: Sample, dtype: DTypeLike) -> Tree:
        """{"params", "state"} as the module draws them, all of them of the dtype."""
        x = zeros(_samples(shape, self.integers, dtype))
        return _tree(*jax.tree.map(lambda a: jnp.asarray(a, dtype), self.pure.draw(key, x)))

    def apply(self, params: Tree, x: Tree, products: Products) -> Tree:
        """What the module makes of x [b, ...], training or not."""
        return _applied(self.pure, params, self._taken(x), products, self.draws)

    def estimate(self, params: Tree, x: Tree, products: Products) -> Tree:
        """The tree with the statistics of x."""
        if not self.state:
            return params
        call = Call(True, axes=products.sample_axes, estimating=True)
        x, old = varying(self._taken(x), call.axes), params["state"]
        _, found = self.pure.run(params["params"], old, x, call)
        return params | {"state": jax.tree.map(lambda a, b: a.astype(b.dtype), found, old)}

    def shape(self, shape: Sample) -> Sample:  # type: ignore[override]
        """Of a sample of the outputs, traced."""
        predict = lambda params, state, x: self.pure.run(params, state, x, Call())[0]
        x = _samples(shape, self.integers)
        sample = sample_of(y := jax.eval_shape(predict, self.params, self.state, x))
        if num_samples(y) != ROWS:
            raise ValueError(f"expected [samples, ...] of numbers, samples first; got {y}")
        return sample

    def cost(self, shape: Sample) -> int:
        """Of a sample, in products and convolutions, traced."""
        return _counted(self, shape)[0]

    def between(self, shape: Sample) -> int:
        """Numbers of a sample that its products make, traced."""
        return _counted(self, shape)[1]

    def traced(self, shape: Sample) -> Jaxpr:
        """What it does with ROWS samples, evaluating."""
        run = lambda params, state, x: self.pure.run(params, state, x, Call())[0]
        samples = _samples(shape, self.integers)
        return jax.make_jaxpr(run)(self.params, self.state, samples).jaxpr

    def moving(self, params: Tree) -> Tree:
        """Its statistics, but for those that are frozen."""
        return self.pure.moved(params["state"]) if self.state else {}

    @property
    def pretrained(self) -> bool:
        """Whether the user's module came with such statistics, of other samples."""
        return self.pure.pretrained

    @property
    def tied(self) -> bool:
        """Whether it is several modules that share parameters."""
        return self.pure.tied

    def module(self, params: Tree) -> Any:
        """The user's own module with these parameters."""
        return self.pure.whole(params["params"], params.get("state", {}))


def _samples(sample: Sample, integer: bool, dtype: DTypeLike = np.float32) -> Tree:
    """Shapes of the samples of a trace; integer: of one array, whether it is of integers."""
    return stacked(described(sample, integer), ROWS, dtype=dtype)


def adapted(one: Pure, sample: Sample, integer: bool) -> Adapted:
    """The layer of somebody's module, which takes such samples; integer: one array, of integers.

    Raises:
      ValueError: parameters that are no floats, draws beside statistics that are not dropout's,
        statistics that no training moves, samples that are mixed.
    """
    x = _samples(sample, integer)
    params, state = jax.eval_shape(lambda x: one.draw(jax.random.key(0), x), x)
    if strange := [a.dtype for a in jax.tree.leaves((params, state)) if not floating(a)]:
        raise ValueError(f"expected parameters and statistics of floats; got {strange[0]}")
    if jax.tree.leaves(one.moved(state)) and not _moves(one, params, state, x):
        raise ValueError(
            "expected batch statistics that training moves; got a module that does not touch them while "
            "training: if a flag of another name tells it to train, say so by mode={name: True}; if they "
            "are to stay, by mode={'use_running_average': (True, True)}"
        )
    random = _draws(one, params, state, x)
    if one.must_draw and not random:
        raise ValueError(one.must_draw)
    if random and jax.tree.leaves(state) and _draws(one, params, state, x, masks=True):
        raise ValueError(
            "expected of a module with batch statistics that only dropout draws in it; got other draws: "
            "make them a module of their own"
        )
    layer = Adapted(one.name, one, x, params, state, random, integer)
    layer.shape(sample)  # which refuses what gives no samples
    if _mixes(one, state, x, random):
        raise ValueError(
            "expected a module that treats samples one by one; got one that mixes them: on a mesh, which "
            "splits samples, it would give other numbers. Take means and sums over other axes, and "
            "statistics of the minibatch by BatchNorm, flax's or nn's"
        )
    return layer


def _tree(params: Tree, state: Tree) -> Tree:
    return {"params": params} | ({"state": state} if jax.tree.leaves(state) else {})


def fresh(statistics: Tree) -> bool:
    """Whether they are those that normalisation starts from, of no samples: means 0, variances 1."""
    return all(
        bool(np.all(a == 0) or np.all(a == 1)) for a in map(np.asarray, jax.tree.leaves(statistics))
    )


def _applied(one: Pure, tree: Tree, x: Tree, products: Products, random: bool) -> Tree:
    params, state, axes = tree["params"], tree.get("state", {}), products.sample_axes
    training, keys_of = products.mode
    x = varying(x, axes)  # a module may take means over them
    if not (random and training and keys_of):
        return one.run(params, state, x, Call(training, axes=axes))[0]
    keys = products.drawn(lambda key, _: key, keys_of(), jax.tree.leaves(x)[0])  # of those here
    if state:
        return one.run(params, state, x, Call(True, keys=keys, axes=axes))[0]

    def alone(x: Tree, key: Array) -> Tree:
        y, _ = one.run(params, state, jax.tree.map(lambda a: a[None], x), Call(True, key))
        return jax.tree.map(lambda a: a[0], y)

    return jax.vmap(alone)(x, keys)


def _draws(one: Pure, params: Tree, state: Tree, x: Tree, *, masks: bool = False) -> bool:
    """Whether what a module gives while training depends on its key; masks: dropout has others."""
    keys = jax.random.split(jax.random.key(1), ROWS) if masks else None
    run = lambda key, params, state, x: one.run(params, state, x, Call(True, key, keys))[0]
    traced = jax.make_jaxpr(run)(jax.random.key(0), params, state, x).jaxpr
    return bool(partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[1][0])


def _moves(one: Pure, params: Tree, state: Tree, x: Tree) -> bool:
    """Whether a run that trains gives other statistics than it is given."""
    run = lambda params, state, x: one.moved(one.run(params, state, x, Call(True))[1])
    traced = jax.make_jaxpr(run)(params, state, x).jaxpr
    return any(a not in traced.invars for a in traced.outvars)


def _mixes(one: Pure, state: Tree, x: Tree, random: bool) -> bool:
    """Whether samples are mixed in prediction, or while training but by statistics that go through us."""
    drawn = jax.eval_shape(lambda x: one.draw(jax.random.key(0), x), x)
    start = jax.jit(lambda: one.draw(jax.random.key(0), zeros(x)))
    run = lambda call: lambda tree, x: one.run(tree[0], tree[1], x, call)[0]
    found = mixing.mixes(run(Call()), drawn, x)
    if found is not False and mixing.differ(run(Call()), start(), x):
        return True
    if random and not jax.tree.leaves(state):
        return False  # it runs sample by sample
    found = mixing.mixes(run(Call(True, axes=(mixing.AXIS,))), drawn, x)
    if jax.tree.leaves(state):
        return bool(found)
    return found is not False and mixing.differ(run(Call(True)), start(), x)


@lru_cache(maxsize=64)
def _counted(layer: Adapted, shape: Sample) -> tuple[int, int]:
    """Of a sample the multiply-adds, and the numbers that products make; a planner asks often."""
    jaxpr = layer.traced(shape)
    return _summed(jaxpr, _of_equation) // ROWS, _summed(jaxpr, _made) // ROWS


def _summed(jaxpr: Jaxpr, of: Callable[[Any], int]) -> int:
    """Of every equation, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += of(equation)
        total += times * sum(_summed(inner, of) for inner in jaxprs_in_params(equation.params))
    return total


def _made(equation: Any) -> int:
    """What a product gives, and what follows it (a softmax, an activation)."""
    products = ("dot_general", "conv_general_dilated")
    return 2 * prod(equation.outvars[0].aval.shape) if equation.primitive.name in products else 0


def _of_equation(equation: Any) -> int:  # a JaxprEqn; in jax's types its avals have no shape
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = prod(equation.invars[0].aval.shape[d] for d in contracted)
    elif equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        inner = prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    else:
        return 0
    return prod(equation.outvars[0].aval.shape) * inner
