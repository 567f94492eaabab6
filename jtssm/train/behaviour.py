"""Closures known by what they do: optimizers, losses, activations and layers by a few numbers each.

Two runs are compared by these numbers, up to rounding: an object of another process has no other name.
Everything here runs on small fixed arrays, never on the samples or the state.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.interpreters import partial_eval
from jax.tree_util import PyTreeDef

from jtssm.arrays import Array, Shaped, Tree, crc
from jtssm.losses import Loss
from jtssm.nn.boundary import Sample, described, floating
from jtssm.nn.layer import Layer, Shape
from jtssm.nn.ops import PLAIN
from jtssm.protocol.program import Stages
from jtssm.train.record import Document

STEPS = 101  # of an optimizer: 0 to 100
LATER = (1_000, 10_000, 100_000)  # what its counts are set to after them, for schedules
SCALES = np.array([1.0, 1e-2, 1e-4, 1e-7])  # of gradients: an epsilon is seen by small ones
MOST = 2**18  # numbers of a loss's outputs
LARGE = 1e3  # of every other few parameters
TWO = 2  # samples, and the length of each side of the arrays that an optimizer is tried on


def does(numbers: Any) -> Document:
    """A few numbers by which something is known; `jtssm.train.fingerprint` compares them as numbers."""
    return {"does": [float(f"{a:.7g}") for a in np.asarray(numbers, np.float64).ravel()]}


def of_optimizers(stages: Stages) -> list[Any]:
    """Of each piece's optimizer: its updates of fixed gradients; None: it cannot be tried."""
    shapes = stages.by_piece(stages.network.parameter_shapes())
    return [of_optimizer(*pair) for pair in zip(stages.optimizers, shapes, strict=True)]


def of_optimizer(optimizer: optax.GradientTransformation, trees: Sequence[Tree]) -> Document | None:
    """An optimizer by its updates of such trees, with short sides; None: it cannot be tried."""
    leaves, structure = jax.tree.flatten(list(trees))
    shapes = tuple(tuple(min(n, TWO) for n in a.shape) for a in leaves)
    return _of_optimizer(optimizer, shapes, structure)


def of_loss(loss: Loss, outputs: Shape, y: Shaped) -> Document | None:
    """A loss by its values, what is right and the weights of fixed samples; None: it wants others.

    Args:
      outputs: shape of one sample of the network's outputs.
      y: the samples' labels or targets, or their shape, for its dtype.
    """
    lead, tail = list(outputs[:-1]), outputs[-1:]
    k = tail[0] if tail else 1
    if y.shape[1:] in (outputs, outputs[:-1]):  # fewer positions or pixels mean the same
        lead = [min(n, TWO) for n in lead]
    own = {outputs: [*lead, *tail], outputs[:-1]: lead}.get(tuple(y.shape[1:]), y.shape[1:])
    samples = max(TWO, min(2 * k, MOST // int(np.prod((*lead, k)))))
    z = jnp.asarray(_fixed((samples, *lead, *tail), 3.0))
    try:
        given = _targets((samples, *own), k, y.dtype)
        told = [loss.value(z, given), loss.correct(z, given)]
        if loss.weight is not None:
            told += [loss.weight(given), loss.weight(_targets((2 * k, *own), k, y.dtype))]
    except Exception:  # whatever a loss raises over labels that are not its own
        return None
    return does(np.concatenate([_digest(np.asarray(a)) for a in told]))


def _targets(shape: Sequence[int], k: int, dtype: np.dtype) -> Array:
    """Labels 0 .. k - 1, as many of them as there is place for, or numbers between 0 and 1."""
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(np.abs(np.sin(_fixed(shape, 3.0))))
    size = int(np.prod(shape))
    labels = np.arange(size) * max(1, k // size) % max(k, 2)
    return jnp.asarray(labels.reshape(shape).astype(np.int32))


def of_function(f: Callable[..., Any]) -> Document | None:
    """A function of one array by its values; None: it is not such a function."""
    try:
        return does(_digest(np.asarray(f(jnp.asarray(_fixed((16,), 3.0))))))
    except Exception:  # whatever a function raises over what it is not made for
        return None


def of_layer(layer: Layer, shape: Sample) -> Document:
    """Somebody's own layer by what it makes of fixed samples; given weights by their bytes.

    Args:
      shape: of one sample of its inputs, an array or a tree.
    """
    key, x = jax.random.key(0), _samples(described(shape, layer.integer))
    keys = lambda: jax.random.split(key, TWO)
    try:
        params = layer.init(key, cast(Shape, shape), jnp.float32)
        with jax.default_matmul_precision("highest"):  # the same numbers on an accelerator
            runs = [layer.apply(params, x, how) for how in (PLAIN, PLAIN.to_train(keys))]
        told = does(np.concatenate([_digest(np.asarray(a)) for a in jax.tree.leaves(runs)]))
    except Exception:  # one that runs on the samples' own dtype only, or on a mesh
        return {"given": None}
    return told | {"given": crc(params) if _is_given(layer, shape) else None}


def _is_given(layer: Layer, shape: Sample) -> bool:
    """Whether a layer starts from weights that no key decides."""
    draw = lambda key: layer.init(key, cast(Shape, shape), jnp.float32)
    traced = jax.make_jaxpr(draw)(jax.random.key(0)).jaxpr
    return not partial_eval.dce_jaxpr(traced, [True] * len(traced.outvars))[1][0]


def _samples(described: Tree) -> Tree:
    """Two fixed samples: of floats, of 0 and 1 where these are integers or booleans."""

    def one(a: jax.ShapeDtypeStruct) -> Array:
        if floating(a):
            return jnp.asarray(_fixed((TWO, *a.shape), 1.0))
        places = np.arange(TWO * prod(a.shape)) % TWO
        return jnp.asarray(places.reshape(TWO, *a.shape), a.dtype)

    return jax.tree.map(one, described)


def _fixed(shape: Sequence[int], size: float) -> np.ndarray:
    """Numbers in [-size, size], the same everywhere, none of them alike."""
    places = np.arange(int(np.prod(shape, dtype=int)), dtype=np.float64)
    return (size * (2 * (places * 0.6180339887 % 1) - 1)).reshape(shape).astype(np.float32)


def _digest(a: np.ndarray) -> np.ndarray:
    """[4]: the size of numbers, and sums of them with three fixed weights."""
    flat = np.nan_to_num(np.asarray(a, np.float64).ravel(), posinf=1e30, neginf=-1e30)
    weights = np.cos(np.outer([0.3, 1.0, 2.7], np.arange(flat.size)))
    return np.concatenate([[np.abs(flat).sum()], weights @ flat])


@functools.lru_cache(maxsize=64)  # of those seen last: a program of their own each
def _of_optimizer(
    optimizer: optax.GradientTransformation, shapes: tuple[Shape, ...], structure: PyTreeDef
) -> Document | None:
    one = optax.with_extra_args_support(optimizer)
    size = sum(int(np.prod(shape)) for shape in shapes)
    if not size:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it says of numbers, it says in training
            trace = jax.jit(functools.partial(_updates, one.init, one.update, shapes, structure))
            found = np.asarray(trace(*_gradients(size), _counts()))
    except Exception:  # made for certain shapes
        return None
    return does([found[:STEPS].sum(axis=0), *found[[0, 1]], *found[STEPS - 1 :]])


def _gradients(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of parameters [size] their gradients, of several scales, and what each step multiplies them by."""
    pace = np.exp(2 * _fixed((STEPS + len(LATER),), 1.0))
    pace[60] = 1e4  # what clips, clips
    gradients = SCALES[np.arange(size) % len(SCALES)] * (1 + 0.5 * _fixed((size,), 1.0))
    return gradients.astype(np.float32), pace.astype(np.float32)


def _counts() -> np.ndarray:
    """What counts of steps are set to before each; -1: they stay."""
    return np.asarray([-1] * STEPS + list(LATER), np.int32)


def _updates(
    init: Callable,
    update: Callable,
    shapes: tuple[Shape, ...],
    structure: PyTreeDef,
    gradients: Array,
    pace: Array,
    counts: Array,
) -> Array:
    """[steps, 4]: sums of an optimizer's updates, one for each scale of the gradient."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    starts = np.concatenate([[0], np.cumsum(sizes)])

    def cut(flat: Array) -> Tree:
        parts = zip(starts, sizes, shapes, strict=False)
        return jax.tree.unflatten(structure, [flat[a : a + n].reshape(s) for a, n, s in parts])

    large = np.where(np.arange(len(gradients)) // len(SCALES) % 2, LARGE, 1.0)  # a decay is seen
    params = cut(jnp.asarray(large * (1 + 0.5 * _fixed((len(gradients),), 1.0)), jnp.float32))
    scale = np.arange(len(gradients)) % len(SCALES) == np.arange(len(SCALES))[:, None]
    weights = jnp.asarray(scale * (1 + 0.5 * _fixed((len(gradients),), 1.0)), jnp.float32)

    def step(state: Tree, now: tuple[Array, Array]) -> tuple[Tree, Array]:
        pace, count = now
        state = jax.tree_util.tree_map_with_path(functools.partial(_counted, count), state)
        updates, state = update(cut(gradients * pace), state, params, value=pace)
        flat = jnp.concatenate([a.ravel() for a in jax.tree.leaves(updates)])
        return state, weights @ flat.astype(jnp.float32)

    return jax.lax.scan(step, init(params), (pace, counts))[1]


def _counted(count: Array, path: tuple, leaf: Array) -> Array:
    """A leaf of an optimizer's state, counts of its steps set to another number where there is one."""
    counts = getattr(path[-1], "name", None) == "count" if path else False
    if not counts or leaf.shape or not jnp.issubdtype(leaf.dtype, jnp.integer):
        return leaf
    return jnp.where(count < 0, leaf, count.astype(leaf.dtype))
