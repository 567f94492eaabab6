"""What a run is, in a few words and numbers that another process can compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, cast

import jax
import numpy as np
import optax

from jtssm.arrays import Array, Tree, crc
from jtssm.nn.adapted import Adapted
from jtssm.nn.boundary import Sample
from jtssm.nn.layer import Layer, Shape
from jtssm.protocol.method import Method
from jtssm.protocol.settings import plain
from jtssm.sharding.placement.comparing import key_words, words
from jtssm.sharding.placement.on_host import gathered
from jtssm.train import behaviour
from jtssm.train.checksums import checksums
from jtssm.train.record import Document

# what must be the same for a state and its place among samples to mean anything, whoever wants it
NEEDED = ("state", "samples", "batch")
ALIKE = 1e-4  # how far numbers of the same closure lie apart, on whatever machine


def abstract_state(method: Method, key: Array, x: Tree, y: Array | np.ndarray) -> Tree:
    """Shapes of an unplaced state; x, y: the samples as `init` sees them, or their shapes."""
    shape = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    x, y = jax.tree.map(shape, (x, y))
    return jax.eval_shape(method.program.on_one_device().init, key, x, y)


def fingerprint(
    method: Method,
    state: Tree,
    train: str,
    used: int,
    key: Array,
    params: Sequence[Tree] | None,
    start: Tree = None,
    y: Array | np.ndarray | None = None,
) -> Document:
    """What must be the same for a run to go on from a checkpoint; numbers and names that JSON holds.

    Closures (optimizers, losses, activations, somebody's layers) are in it by what they do on small fixed
    arrays: `jtssm.train.behaviour`.

    Args:
      state: shapes of its unplaced state.
      train: `samples` or `stream`.  used: of the samples at hand, how many the method sees.
      params: weights that the run starts from, or None.  start: or a state; every process must ask.
      y: labels or targets, for their shape and dtype.
    """
    stages = method.program.stages
    return {
        **method.program.identity(),
        "precision": getattr(jax.config, "jax_default_matmul_precision", None),
        "compute_dtype": stages.compute_dtype and str(stages.compute_dtype),
        "functions": _functions(method),
        "optimizer": behaviour.of_optimizers(stages),
        "network": [
            _layer(layer, shape)
            for layer, shape in zip(stages.network.layers, stages.network.shapes, strict=False)
        ],
        "values of the loss": None
        if y is None
        else behaviour.of_loss(stages.loss, stages.network.outputs, y),
        "samples": used,
        "train": train,
        "key": key_words(key),
        "params": None if params is None else crc(params),
        "start": None if start is None else crc_of_state(start),
        "state": {
            jax.tree_util.keystr(path).lstrip("."): f"{a.dtype}{list(a.shape)}"
            for path, a in jax.tree_util.tree_leaves_with_path(state)
        },
    }


def crc_of_state(state: Tree) -> int:
    """Of a state, placed or not, the same number."""
    return crc([np.asarray(checksums([a]), np.uint32) for a in jax.tree.leaves(gathered(state))])


def _functions(method: Method) -> Document:
    """Functions and further optimizers among the arguments of a method, by what they do."""
    made = {} if method.settings is None else method.settings.closures()
    told = {name: _function(a, method) for name, a in made.items()}
    return {name: a for name, a in told.items() if a is not None}


def _function(value: Any, method: Method) -> Any:
    if isinstance(value, optax.GradientTransformation):
        return behaviour.of_optimizer(value, method.network.parameter_shapes())
    return behaviour.of_function(value)


def _layer(layer: Layer, shape: Sample) -> Document:
    """A layer of ours by its fields, somebody's by what it does."""
    own = is_dataclass(layer) and type(layer).__module__.startswith("jtssm.nn.")
    if not own or isinstance(layer, Adapted):
        return {"name": layer.name} | behaviour.of_layer(layer, shape)
    assert is_dataclass(layer)
    told = {field.name: _field(getattr(layer, field.name), shape) for field in fields(layer)}
    return {"kind": type(layer).__name__} | told


def _field(value: Any, shape: Sample) -> Any:
    """What a field of a layer says: numbers and words, or a function's values, or layers.

    Args:
      shape: of one sample of the layer's inputs; layers in a row hand on others.
    """
    if isinstance(value, Layer):
        return _layer(value, shape)
    if isinstance(value, (tuple, list)):
        told = []
        for each in value:
            told.append(_field(each, shape))
            shape = each.shape(cast(Shape, shape)) if isinstance(each, Layer) else shape
        return told
    if callable(value):
        return behaviour.of_function(value) or plain(value)
    return plain(value)


def samples(train: Tree, shares: int | None = None) -> str:
    """What (x, y) are, in words; shares: of `ProcessSamples` a checksum of all processes' samples."""
    all_of = lambda a: f"{a.dtype}{list(a.shape)} of checksum {shares} of all shares"
    return ", ".join(map(words if shares is None else all_of, _leaves(train)))


def stream(first: Tree, steps_per_epoch: int | None) -> str:
    """What a stream is, in words, by its first sample; its batches have checksums of their own."""
    each = ", ".join(f"{a.dtype}{list(a.shape[1:])}" for a in _leaves(first))
    return f"a stream of {each}; an epoch is {steps_per_epoch or 'a pass, not'} steps"


def _leaves(pair: Tree) -> list[np.ndarray]:
    """The arrays of x, then y."""
    return jax.tree.leaves(tuple(pair))


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """What differs, in words by name; empty where nothing does."""
    names = [*here, *(name for name in there if name not in here)]
    told = {name: _difference(there.get(name), here.get(name)) for name in names}
    return {name: text for name, text in told.items() if text}


def _difference(a: Any, b: Any) -> str:
    """What differs first between two values; "" where nothing does."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if "does" in a and "does" in b:
            return _by_numbers(a, b)
        inner = differences(a, b)
        return next((f"{name}: {text}" for name, text in inner.items()), "")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = ((i, _difference(*pair)) for i, pair in enumerate(zip(a, b, strict=True)))
        plainly = not any(isinstance(each, (Mapping, list)) for each in (*a, *b))
        first = next(((i, text) for i, text in parts if text), None)
        if first is None:
            return ""
        return f"{a} there, {b} here" if plainly else f"number {first[0]}: {first[1]}"
    return "" if a == b else f"{_shown(a)} there, {_shown(b)} here"


def _by_numbers(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Whether what something does is another thing."""
    rest = [{name: value for name, value in one.items() if name != "does"} for one in (a, b)]
    if text := next((f"{n}: {t}" for n, t in differences(*rest).items()), ""):
        return text
    one, other = (np.asarray(each["does"]) for each in (a, b))
    if one.shape == other.shape:
        near = np.isclose(one, other, rtol=ALIKE, atol=1e-6 * np.abs(one).max(initial=0.0))
        if near.all():
            return ""
        one, other = one[~near], other[~near]
    return f"values {one[:1].tolist()} there, {other[:1].tolist()} here, on the same inputs"


def _shown(value: Any) -> str:
    """A value as a message shows it."""
    return (
        f"values {value['does'][:1]}"
        if isinstance(value, Mapping) and "does" in value
        else f"{value}"
    )
