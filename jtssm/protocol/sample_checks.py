"""The front door for samples: they fit the network, the loss and the method, or ValueError says why."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jtssm import checks
from jtssm.arrays import Shaped, Tree
from jtssm.losses import Loss
from jtssm.nn.network import Network, check_shape, float_dtype

if TYPE_CHECKING:
    from jtssm.protocol.program import Program

EXACT = 2**24  # integers up to it are exact as float32


def steady(network: Network, method: str) -> None:
    """No layer draws random numbers or is estimated: the method runs layers more often than it trains."""
    for i, layer in enumerate(network.layers):
        if layer.random or layer.estimated:
            raise ValueError(
                f"net: expected layers without dropout and running statistics for {method}; got layer "
                f"{i}, {layer.name!r}: use normalisation='batch' or 'layer', or a method that streams "
                f"minibatches, e.g. gsadmm with schedule='streaming'"
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
        places = prod(outputs[:-1]) if own else max(prod(inputs[:-1]), prod(outputs[:-1]))
        if (own or layer.estimated) and places == 1:
            raise ValueError(
                f"{name}: expected at least 2 samples, as layer {i}, {layer.name!r}, takes their mean "
                f"and variance; got 1: use normalisation='layer', or more samples"
            )


def samples(network: Network, loss: Loss, x: Shaped, y: Shaped, values: bool) -> None:
    """x and y fit the network and the loss; with `values` also: all finite, labels in range.

    Values of tracers (inside jit) cannot be seen and are left unchecked.
    """
    checks.array("x", x)
    checks.array("y", y)
    x_shape, y_shape = jnp.shape(x), jnp.shape(y)
    check_shape(network, x_shape)
    if not x_shape[0]:
        raise ValueError(f"x: expected at least one sample; got shape {x_shape}")
    _dtype(network, jnp.result_type(x))
    _labels(network, loss, x_shape[0], y, y_shape)
    _value(network, loss, x, y)
    if values and not isinstance(x, jax.core.Tracer) and not isinstance(y, jax.core.Tracer):
        _values(network, loss, x, y)


def _dtype(network: Network, dtype: DTypeLike) -> None:
    if network.integer and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"x: expected integers, as the first layer takes them; got {dtype}")
    if not network.integer and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"x: expected a floating dtype; got {dtype}: convert, e.g. x.astype('float32') / 255"
        )


def _labels(network: Network, loss: Loss, num: int, y: Shaped, y_shape: tuple[int, ...]) -> None:
    outputs = network.shapes[-1]
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


def _value(network: Network, loss: Loss, x: Shaped, y: Shaped) -> None:
    """A loss gives one number a sample, or one a position, and weights like them."""
    dtype = jnp.result_type(x) if jnp.issubdtype(jnp.result_type(x), jnp.floating) else jnp.float32
    outputs = jax.ShapeDtypeStruct((2, *network.shapes[-1]), dtype)
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


def _values(network: Network, loss: Loss, x: Shaped, y: Shaped) -> None:
    if isinstance(x, jax.ShapeDtypeStruct) or isinstance(y, jax.ShapeDtypeStruct):
        return
    if network.integer and not -EXACT <= int(x.min()) <= int(x.max()) <= EXACT:
        raise ValueError(f"x: expected integers up to {EXACT}; got {int(x.min())}..{int(x.max())}")
    checks.finite("x", x)
    if loss.labels is None:
        return
    if not loss.labels:
        checks.finite("y", y)
        return
    classes, known = network.shapes[-1][-1], np.asarray(y) if loss.ignored is not None else y
    if loss.ignored is not None:
        known = np.where(known == loss.ignored, 0, known)
    low, high = int(known.min()), int(known.max())
    if low < 0 or high >= classes:
        but = "" if loss.ignored is None else f", or {loss.ignored}"
        raise ValueError(
            f"y: expected labels 0..{classes - 1}{but}, the network has {classes} outputs; "
            f"got {low}..{high}"
        )


def weights(given: Shaped) -> None:
    """An array of finite real numbers, to start from."""
    checks.array("params", given)
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise ValueError(f"params: expected real numbers; got {given.dtype}")
    if not isinstance(given, (jax.core.Tracer, jax.ShapeDtypeStruct)):
        checks.finite("params", given)


def same_dtype(weights: Tree, x: Shaped) -> None:
    """x has the dtype of the weights, that of the samples `init` saw, or fewer than 32 bits."""
    dtypes = {a.dtype for a in jax.tree.leaves(weights) if jnp.issubdtype(a.dtype, jnp.floating)}
    floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)  # integers go with any
    if dtypes and floating and float_dtype(x) not in dtypes:
        names = " or ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"x: expected {names}, as in init; got {jnp.result_type(x)}: convert x")


def of_step(program: Program, x: Shaped, y: Shaped, stage: str, weights: Tree) -> None:
    """The front door of a program of pieces; see `jtssm.protocol.program.Program.check`."""
    samples(program.network, program.loss, x, y, values=stage != "step")
    if stage == "values":
        return
    size = program.batch.size
    if size is None:
        checks.count(samples=len(x))
    elif program.batch.resident:
        strata(size, x)
    elif stage == "step":
        batch(size, x)
    same_dtype(weights, x)


def batch(batch_size: int, x: Shaped) -> None:
    """x holds exactly one minibatch."""
    if jnp.shape(x)[0] != batch_size:
        raise ValueError(
            f"x: expected a minibatch of batch_size={batch_size} samples; got {jnp.shape(x)[0]}"
        )


def leading(name: str, shape: Sequence[int], a: Shaped) -> None:
    """The array's first dimensions are those of a round."""
    checks.array(name, a)
    if jnp.shape(a)[: len(shape)] != tuple(shape):
        raise ValueError(
            f"{name}: expected [local_steps, workers, batch_size, ...] = {[*shape, '...']}; "
            f"got shape {jnp.shape(a)}"
        )


def strata(batch_size: int, x: Shaped) -> None:
    """The samples fall into batch_size strata of equal size."""
    num = jnp.shape(x)[0]
    if num == 0 or num % batch_size:
        fits = num - num % batch_size
        raise ValueError(
            f"x: expected a multiple of batch_size={batch_size} samples, since each minibatch of "
            f"the stored schedule takes one from every stratum; got {num}: leave out "
            f"{num % batch_size} to have {fits}, or change batch_size"
        )
