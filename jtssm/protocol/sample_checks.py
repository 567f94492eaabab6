"""The front door for samples: they fit the network, the loss and the method, or ValueError says why."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import AnyArray, Shaped, Tree
from jtssm.losses import Loss
from jtssm.nn.boundary import SampleTree, float_dtype, floating, num_samples, rows_of
from jtssm.nn.inputs import check_samples, entries, leaves
from jtssm.nn.network import Network

if TYPE_CHECKING:
    from jtssm.protocol.program import Program


def steady(network: Network, method: str) -> None:
    """No layer draws random numbers or is estimated: the method runs layers more often than it trains."""
    for i, layer in enumerate(network.layers):
        if layer.random or layer.estimated:
            raise ValueError(
                f"net: expected layers without dropout and running statistics for {method}; got layer "
                f"{i}, {layer.name!r}: use normalisation='batch' or 'layer', or a method that streams "
                f"minibatches, e.g. gsadmm with schedule='streaming'"
            )


def one_array(network: Network, method: str) -> None:
    """Between layers there is one array, and samples are one: the method knows no trees."""
    for i, shape in enumerate(network.shapes):
        if isinstance(shape, SampleTree):
            raise ValueError(
                f"net: expected one array before each layer for {method}; got a tree, {shape}, before "
                f"layer {i}: use sgd, local_sgd, ensemble, or gsadmm and gsam with schedule='streaming'"
            )


def floats_cross(network: Network, starts: Sequence[int], method: str) -> None:
    """Over every cut something crosses that has a gradient: what stands before it can be trained."""
    for i in starts[1:-1]:
        if not any(map(floating, jax.tree.leaves(network.boundaries[i]))):
            raise ValueError(
                f"cuts: expected floats over each cut for {method}; got {network.shapes[i]} before layer "
                f"{i}: cut elsewhere, e.g. cuts=[{min(i + 1, len(network.layers) - 1)}]"
            )


def several(name: str, network: Network, num: int | None) -> None:
    """As many samples as layers need that take mean and variance over them, if any do.

    Of one sample the mean is the sample itself: what is left says nothing of it. Of images there are
    pixels, too.

    num: samples that they are taken over; None: all there are.
    """
    alone = zip(network.layers, network.shapes, network.shapes[1:], strict=False)
    for i, (layer, inputs, outputs) in enumerate(alone if num == 1 else ()):
        own = any(each.over == "samples" for each in layer.statistics)
        # of a module of the user's nobody knows where in it they are taken
        places = rows_of(outputs) if own else max(rows_of(inputs), rows_of(outputs))
        if (own or layer.estimated) and places == 1:
            raise ValueError(
                f"{name}: expected at least 2 samples, as layer {i}, {layer.name!r}, takes their mean "
                f"and variance; got 1: use normalisation='layer', or more samples"
            )


def samples(network: Network, loss: Loss, x: Tree, y: Shaped, values: bool) -> None:
    """x and y fit the network and the loss; with `values` also: all finite, labels in range.

    Values of tracers (inside jit) cannot be seen and are left unchecked.
    """
    named = entries(network, "x", x)
    for name, a in named:
        checks.array(name, a, booleans=isinstance(network.shapes[0], SampleTree))
    checks.array("y", y)
    check_samples(network, x)
    num, y_shape = num_samples(x), jnp.shape(y)
    if not num:
        raise ValueError(f"x: expected at least one sample; got shape {jnp.shape(named[0][1])}")
    likes = jax.tree.leaves(network.boundaries[0])
    for (name, a), like in zip(named, likes, strict=True):
        _dtype(name, jnp.result_type(a), like.dtype)
    _labels(network, loss, num, y, y_shape)
    _value(network, loss, float_dtype(x), y)
    seen = [*(a for _, a in named), y]
    if values and not any(isinstance(a, (jax.core.Tracer, jax.ShapeDtypeStruct)) for a in seen):
        for (name, a), like in zip(named, likes, strict=True):
            _in_range(name, cast(AnyArray, a), like.dtype)
        _known_words(network, cast(AnyArray, named[0][1]))
        _known_labels(network, loss, cast(AnyArray, y))


def _dtype(name: str, dtype: DTypeLike, wanted: np.dtype) -> None:
    """Of floats, integers and booleans each is what the network takes, of whatever width."""
    if jnp.issubdtype(wanted, jnp.integer) and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"{name}: expected integers, as the first layer takes them; got {dtype}")
    boolean = lambda a: jnp.issubdtype(a, jnp.bool_)
    if boolean(wanted) and not boolean(dtype):
        raise ValueError(
            f"{name}: expected booleans, as the first layer takes them; got {dtype}: convert, e.g. "
            f"{name} != 0"
        )
    if jnp.issubdtype(wanted, jnp.floating) and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"{name}: expected a floating dtype; got {dtype}: convert, e.g. "
            f"{name}.astype('float32') / 255"
        )


def _labels(network: Network, loss: Loss, num: int, y: Shaped, y_shape: tuple[int, ...]) -> None:
    outputs = network.outputs
    if loss.labels is None:
        if y_shape[:1] != (num,):
            raise ValueError(f"y: expected {num} samples, as x has; got shape {y_shape}")
        return
    kind, expected = (
        (jnp.integer, (num, *outputs[:-1])) if loss.labels else (jnp.floating, (num, *outputs))
    )
    if y_shape != expected:
        raise ValueError(f"y: expected shape {expected} for {loss.name}; got {y_shape}")
    if not jnp.issubdtype(jnp.result_type(y), kind):
        wanted = "integer labels" if loss.labels else "a floating dtype"
        raise ValueError(f"y: expected {wanted} for {loss.name}; got {jnp.result_type(y)}")


def _value(network: Network, loss: Loss, dtype: DTypeLike, y: Shaped) -> None:
    """A loss gives one number a sample, or one a position, and weights like them."""
    outputs = jax.ShapeDtypeStruct((2, *network.outputs), dtype)
    few = jax.ShapeDtypeStruct((2, *jnp.shape(y)[1:]), jnp.result_type(y))
    name = checks.shown(loss.name)
    try:
        value = jax.eval_shape(loss.value, outputs, few)
        weight = value if loss.weight is None else jax.eval_shape(loss.weight, few)
    except Exception as error:
        raise ValueError(
            f"loss: expected a function of outputs {outputs.shape} and y {few.shape}, for two samples; "
            f"got an error of {name}: {type(error).__name__}: {error}"
        ) from error
    shape = getattr(value, "shape", None)
    if shape is None or shape[:1] != (2,) or shape != outputs.shape[: len(shape)]:
        raise ValueError(
            f"loss: expected one number a sample, or one a position, of shape {outputs.shape[:-1]} or "
            f"{outputs.shape[:1]} for two samples; got {shape} of {name}: leave out the mean over "
            f"samples, it is taken over all devices"
        )
    if weight.shape != shape:
        raise ValueError(
            f"loss: expected weights of the shape of its values, {shape}; got {weight.shape}"
        )


def _in_range(name: str, a: AnyArray, dtype: np.dtype) -> None:
    """Floats are finite; integers fit the dtype in which they travel."""
    if jnp.issubdtype(dtype, jnp.floating):
        checks.finite(name, a)
    elif jnp.issubdtype(dtype, jnp.integer) and a.size:
        low, high = jnp.iinfo(dtype).min, jnp.iinfo(dtype).max
        least, most = int(a.min()), int(a.max())
        if least < low or most > high:
            raise ValueError(
                f"{name}: expected integers that {dtype} holds, {low}..{high}; got {least}..{most}"
            )


def _known_words(network: Network, x: AnyArray) -> None:
    words = network.layers[0].words
    if words is not None and not 0 <= int(x.min()) <= int(x.max()) < words:
        raise ValueError(
            f"x: expected words 0..{words - 1}, the network knows {words}; got {int(x.min())}.."
            f"{int(x.max())}"
        )


def _known_labels(network: Network, loss: Loss, y: AnyArray) -> None:
    if loss.labels is None:
        return
    if not loss.labels:
        checks.finite("y", y)
        return
    classes, known = network.outputs[-1], np.asarray(y) if loss.ignored is not None else y
    if loss.ignored is not None:
        known = np.where(known == loss.ignored, 0, known)
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        but = "" if loss.ignored is None else f", or {loss.ignored}"
        hint = (
            f": where {low} counts nothing, say cross_entropy(ignore_index={low}), or ignored={low} in a "
            f"losses.Loss of your own"
            if low < 0 and loss.ignored is None
            else ""
        )
        raise ValueError(
            f"y: expected labels 0..{classes - 1}{but}, the network has {classes} outputs; "
            f"got {low}..{high}{hint}"
        )


def weights(given: Shaped) -> None:
    """An array of finite real numbers, to start from."""
    checks.array("params", given)
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise ValueError(f"params: expected real numbers; got {given.dtype}")
    if not isinstance(given, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        checks.finite("params", given)


def same_dtype(weights: Tree, x: Tree) -> None:
    """x has the dtype of the weights, that of the samples `init` saw, or fewer than 32 bits."""
    dtypes = {a.dtype for a in jax.tree.leaves(weights) if jnp.issubdtype(a.dtype, jnp.floating)}
    given = [a for a in map(jnp.result_type, jax.tree.leaves(x)) if jnp.issubdtype(a, jnp.floating)]
    if dtypes and given and float_dtype(x) not in dtypes:  # integers go with any
        names = " or ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(
            f"x: expected {names}, as in init; got {jnp.result_type(*given)}: convert x"
        )


def of_step(program: Program, x: Tree, y: Shaped, stage: str, weights: Tree) -> None:
    """The front door of a program of pieces; see `jtssm.protocol.program.Program.check`."""
    samples(program.network, program.loss, x, y, values=stage != "step")
    if stage == "values":
        return
    size = program.batch.size
    if size is None:
        checks.count(samples=num_samples(x))
    elif program.batch.resident:
        strata(size, x)
    elif stage == "step" and program.batch.workers is None:
        batch(size, x)
    same_dtype(weights, x)


def batch(batch_size: int, x: Tree) -> None:
    """x holds exactly one minibatch."""
    if num_samples(x) != batch_size:
        raise ValueError(
            f"x: expected a minibatch of batch_size={batch_size} samples; got {num_samples(x)}"
        )


def leading(name: str, shape: Sequence[int], a: Shaped) -> None:
    """The array's first dimensions are those of a round."""
    checks.array(name, a, booleans=True)
    if jnp.shape(a)[: len(shape)] != tuple(shape):
        raise ValueError(
            f"{name}: expected [local_steps, workers, batch_size, ...] = {[*shape, '...']}; "
            f"got shape {jnp.shape(a)}"
        )


def of_round(shape: Sequence[int], x: Tree, y: Shaped) -> tuple[Tree, jax.ShapeDtypeStruct]:
    """A round's samples [R, N, b, ...] as shapes in one row [R N b, ...].

    Raises:
      ValueError: other first dimensions.
    """

    for name, a in (*leaves("x", x), ("y", y)):
        leading(name, shape, a)
    row = lambda a: (prod(shape), *jnp.shape(a)[len(shape) :])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(row(a), jnp.result_type(a)), (x, y))


def strata(batch_size: int, x: Tree) -> None:
    """The samples fall into batch_size strata of equal size."""
    num = num_samples(x)
    if num == 0 or num % batch_size:
        fits = num - num % batch_size
        raise ValueError(
            f"x: expected a multiple of batch_size={batch_size} samples, since each minibatch of "
            f"the stored schedule takes one from every stratum; got {num}: leave out "
            f"{num % batch_size} to have {fits}, or change batch_size"
        )
