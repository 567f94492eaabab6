"""How somebody's module becomes a layer: parameters, statistics, random draws, multiply-adds.

A layer's tree is {"params": what is trained, "state": statistics of batch normalisation, if any}. While
training, batch normalisation takes the mean and variance of the minibatch, on a mesh those of all
devices that share it; its running averages are not moved along the way but estimated anew on training
samples (`jtssm.Result`, `Method.estimate`), for a layer of a split network runs more often than it steps.
A layer that draws runs sample by sample under `jax.vmap`, each with a key of its own, so that its draws
are the same on any mesh. One that has statistics, too, runs on all samples at once: there only dropout
may draw, a mask for each sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params
from jax.interpreters import partial_eval

from jtssm.arrays import Array, Tree
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.network import Network, sequence
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


class Adapted(NamedTuple):
    """Somebody's module as pure functions."""

    name: str
    draw: Callable[[Array, Array], tuple]  # (key, x [b, ...]) -> (params, state), {} for none
    run: Callable[[Tree, Tree, Array, Call], tuple]  # (params, state, x, call) -> (y, state)
    whole: Callable[[Tree, Tree], Any]  # (params, state) -> what the user gave, with these


def chained(adapted: Iterable[Callable[[], Adapted]], sample_input: Any) -> Network:
    """A network of modules, each adapted in its turn; sample_input [samples, ...].

    Raises:
      ValueError: no modules, a bad sample, a module that does not take what the one before it gives.
    """
    x = _sample(sample_input)
    layers, shape, integer = [], x.shape[1:], jnp.issubdtype(x.dtype, jnp.integer)
    for i, make in enumerate(adapted):
        one = make()
        given = jax.ShapeDtypeStruct((ROWS, *shape), x.dtype if i == 0 else jnp.float32)
        try:
            layer = _as_layer(one, given, integer and i == 0)
            shape = layer.shape(shape)
        except Exception as error:
            raise ValueError(
                f"modules: expected that module {i}, {one.name}, takes samples of shape {shape} of "
                f"{given.dtype} and gives [samples, ...]; got {type(error).__name__}: {error}"
            ) from error
        layers.append(layer)
    return sequence(layers, x.shape[1:])


def _sample(sample_input: Any) -> jax.ShapeDtypeStruct:
    shape = tuple(jnp.shape(sample_input))
    dtype: Any = jnp.result_type(sample_input) if shape else "nothing"
    numbers = shape and any(jnp.issubdtype(dtype, k) for k in (jnp.floating, jnp.integer))
    if len(shape) < 2 or not numbers or min(shape) < 1:
        raise ValueError(
            f"sample_input: expected samples [samples, ...] of floats or integers, as the first module "
            f"takes them, e.g. jnp.zeros((1, 28, 28, 1)); got shape {shape} of {dtype}"
        )
    return jax.ShapeDtypeStruct(
        shape, jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32
    )


def _as_layer(one: Adapted, x: jax.ShapeDtypeStruct, integer: bool) -> Layer:
    given = x
    drawn = jax.eval_shape(lambda x: one.draw(jax.random.key(0), x), x)
    params, state = drawn
    if strange := [a.dtype for a in jax.tree.leaves((params, state)) if not _floating(a)]:
        raise ValueError(f"expected parameters and statistics of floats; got {strange[0]}")
    random = _draws(one, params, state, x)
    if random and jax.tree.leaves(state) and _draws(one, params, state, x, masks=True):
        raise ValueError(
            "expected of a module with batch statistics that only dropout draws in it; got other draws: "
            "make them a module of their own"
        )

    def taken(x: Array) -> Array:
        """As the module takes it: a grid may flatten it on the way, and integers travel as floats."""
        x = x.reshape(-1, *given.shape[1:])
        return x.astype(jnp.int32) if integer else x

    def init(key: Array, shape: Shape, dtype: Any) -> Tree:
        found = one.draw(key, jnp.zeros((ROWS, *shape), x.dtype if integer else dtype))
        return _tree(*jax.tree.map(lambda a: jnp.asarray(a, dtype), found))

    def apply(tree: Tree, x: Array, products: Products) -> Array:
        return _applied(one, tree, taken(x), products, random)

    def estimate(tree: Tree, x: Array, products: Products) -> Tree:
        call = Call(True, axes=products.sample_axes, estimating=True)
        _, found = one.run(tree["params"], tree["state"], varying(taken(x), call.axes), call)
        return tree | {
            "state": jax.tree.map(lambda a, old: a.astype(old.dtype), found, tree["state"])
        }

    samples = lambda shape: jax.ShapeDtypeStruct((ROWS, *shape), x.dtype)
    predict = lambda params, state, x: one.run(params, state, x, Call())[0]

    def shape_of(shape: Shape) -> Shape:
        y = jax.eval_shape(predict, params, state, samples(shape))
        if not y.shape or y.shape[0] != ROWS or not _floating(y):
            raise ValueError(f"expected [samples, ...] of floats, samples first; got {y}")
        return tuple(y.shape[1:])

    return Layer(
        name=one.name, init=init, apply=apply, shape=shape_of,
        cost=lambda shape: _multiply_adds(one, params, state, samples(shape)),
        splits={}, random=random, estimate=estimate if state else None,
        estimated=("state",) if state else (), uncast=("state",), integer=integer,
        module=lambda tree: one.whole(tree["params"], tree.get("state", {})),
    )  # fmt: skip


def _tree(params: Tree, state: Tree) -> Tree:
    return {"params": params} | ({"state": state} if jax.tree.leaves(state) else {})


def _floating(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)


def _applied(one: Adapted, tree: Tree, x: Array, products: Products, random: bool) -> Array:
    params, state, axes = tree["params"], tree.get("state", {}), products.sample_axes
    x = varying(x, axes)  # a module may take means over them
    if not (random and products.training and products.keys):
        return one.run(params, state, x, Call(products.training, axes=axes))[0]
    keys = products.drawn(lambda key, _: key, products.keys(), x)  # of the samples here
    if state:
        return one.run(params, state, x, Call(True, keys=keys, axes=axes))[0]
    alone = lambda x, key: one.run(params, state, x[None], Call(True, key))[0][0]
    return jax.vmap(alone)(x, keys)


def dropped(x: Array, call: Call, number: int, rate: float, same: Sequence[int]) -> Array:
    """Dropout of x [b, ...] with a mask for each sample.

    number: of dropouts so far in this call.  same: dimensions along which the mask is the same.
    """
    if x.shape[0] != len(call.keys):  # type: ignore[arg-type]
        raise ValueError(
            f"expected dropout of samples [{len(call.keys)}, ...] beside batch statistics; got {x.shape}"  # type: ignore[arg-type]
        )
    if rate == 0 or 0 in same:
        return x * (rate < 1)
    shape = [1 if d in same or d - x.ndim in same else n for d, n in enumerate(x.shape)]
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, number), 1 - rate, shape[1:])
    kept = jnp.broadcast_to(jax.vmap(draw)(call.keys), x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def _draws(
    one: Adapted, params: Tree, state: Tree, x: jax.ShapeDtypeStruct, *, masks: bool = False
) -> bool:
    """Whether what a module gives while training depends on its key; masks: dropout has others."""
    keys = jax.random.split(jax.random.key(1), ROWS) if masks else None
    run = lambda key, params, state, x: one.run(params, state, x, Call(True, key, keys))[0]
    traced = jax.make_jaxpr(run)(jax.random.key(0), params, state, x).jaxpr
    return bool(partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[1][0])


def _multiply_adds(one: Adapted, params: Tree, state: Tree, x: jax.ShapeDtypeStruct) -> int:
    """Of a sample, in products and convolutions."""
    run = lambda params, state, x: one.run(params, state, x, Call())[0]
    return _of_jaxpr(jax.make_jaxpr(run)(params, state, x).jaxpr) // ROWS


def _of_jaxpr(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += _of_equation(equation)
        total += times * sum(_of_jaxpr(inner) for inner in jaxprs_in_params(equation.params))
    return total


def _of_equation(equation: Any) -> int:
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        inner = prod(equation.invars[0].aval.shape[d] for d in contracted)
    elif equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        inner = prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    else:
        return 0
    return prod(equation.outvars[0].aval.shape) * inner


def need_flax(name: str) -> Any:
    """The package flax.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import flax
    except ImportError as error:
        raise ImportError(f"{name} needs flax: pip install 'jtssm[flax]'") from error
    return flax


def listed(modules: Any) -> list:
    """A list or tuple of at least one module.

    Raises:
      ValueError: anything else.
    """
    if not isinstance(modules, (list, tuple)) or not modules:
        raise ValueError(
            f"modules: expected a list of modules, one a layer, e.g. [nnx.Linear(...), jax.nn.relu]; got "
            f"{modules!r}"
        )
    return list(modules)


def named(given: Any) -> str:
    """What a layer made of a function or module is called."""
    return getattr(given, "__name__", None) or type(given).__name__
