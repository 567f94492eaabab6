"""The front door: static misuse and bad samples raise ValueError before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtssm.losses import Loss
from jtssm.network import Network

EXACT = 2**24  # integers up to it are exact as float32


def positive(**numbers: Any) -> None:
    """Each number is a finite real above 0."""
    for name, value in numbers.items():
        real = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if not real or not 0 < value < np.inf:
            raise ValueError(f"{name}: expected a finite number above 0, e.g. 1.0; got {value!r}")


def not_negative(**numbers: Any) -> None:
    """Each number is a finite real of at least 0."""
    for name, value in numbers.items():
        if isinstance(value, bool) or value != 0:
            positive(**{name: value})


def count(**numbers: Any) -> None:
    """Each number is an integer of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1; got {value!r}")


def divides(name: str, value: Any, whole: int, of: str) -> None:
    """The value is an integer that divides `whole`."""
    count(**{name: value})
    if whole % value:
        fits = [d for d in range(1, whole + 1) if whole % d == 0]
        raise ValueError(f"{name}: expected one of {fits}, which divide {whole} {of}; got {value}")


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """The value is one of the known names."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {sorted(known)}; got {value!r}")


def no_use_for(name: str, value: Any, why: str, *, schedule: str, given: str) -> None:
    """The value is None where the schedule `given` is the one that has no use for it."""
    if given == schedule and value is not None:
        raise ValueError(f"{name}: expected None with schedule={schedule!r}, {why}; got {value!r}")


def precision(value: Any) -> None:
    """A name that jax.default_matmul_precision takes, or None for jax's own default."""
    try:
        with jax.default_matmul_precision(value):
            pass
    except ValueError as error:
        raise ValueError(
            f"precision: expected None, 'highest', 'float32', 'tensorfloat32' or 'bfloat16'; "
            f"got {value!r}"
        ) from error


COMPUTE_DTYPES = ("bfloat16", "float32")


def compute_dtype(value: Any) -> Any:
    """The dtype that layers compute in, as a dtype; None: that of the samples."""
    if value is None:
        return None
    try:
        found = jnp.dtype(value)
    except TypeError:
        found = None
    if found is None or found.name not in COMPUTE_DTYPES:
        why = ": its small gradients vanish without loss scaling" if found == jnp.float16 else ""
        raise ValueError(
            f"compute_dtype: expected None, 'bfloat16' or 'float32'; got {value!r}{why}"
        )
    return found


def optimizers(optimizer: Any, num: int) -> tuple[optax.GradientTransformation, ...]:
    """One optax optimizer a subnetwork, from one for all or a sequence of `num`."""
    if isinstance(optimizer, optax.GradientTransformation):
        return (optimizer,) * num
    given = tuple(optimizer) if isinstance(optimizer, (list, tuple)) else ()
    if len(given) != num or not all(isinstance(o, optax.GradientTransformation) for o in given):
        raise ValueError(
            f"optimizer: expected an optax optimizer, e.g. optax.adam(1e-3), or a list of {num} "
            f"of them, one a subnetwork; got {optimizer!r}"
        )
    return given


def steady(network: Network, method: str) -> None:
    """No layer draws random numbers or is estimated: the method runs layers more often than it trains."""
    for i, layer in enumerate(network.layers):
        if layer.random or layer.estimate:
            raise ValueError(
                f"net: expected layers without dropout and running statistics for {method}; got layer "
                f"{i}, {layer.name!r}: use normalisation='batch' or 'layer', or a method that streams "
                f"minibatches, e.g. gsadmm with schedule='streaming'"
            )


def samples(network: Network, loss: Loss, x: Any, y: Any, values: bool) -> None:
    """x and y fit the network and the loss; with `values` also: x finite, labels in range.

    Values of tracers (inside jit) cannot be seen and are left unchecked.
    """
    x_shape, y_shape = jnp.shape(x), jnp.shape(y)
    width = prod(network.shapes[0])
    if not x_shape or prod(x_shape[1:]) != width:
        raise ValueError(
            f"x: expected [samples, {width}] or images of {width} numbers; got shape {x_shape}"
        )
    _dtype(network, jnp.result_type(x))
    _labels(network, loss, x_shape[0], y, y_shape)
    if values and not isinstance(x, jax.core.Tracer) and not isinstance(y, jax.core.Tracer):
        _values(network, loss, x, y)


def _dtype(network: Network, dtype: Any) -> None:
    if network.integer and not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"x: expected integers, as the first layer takes them; got {dtype}")
    if not network.integer and not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"x: expected a floating dtype; got {dtype}: convert, e.g. x.astype('float32') / 255"
        )


def _labels(network: Network, loss: Loss, num: int, y: Any, y_shape: tuple) -> None:
    kind, expected = (
        (jnp.integer, (num,)) if loss.labels else (jnp.floating, (num, *network.shapes[-1]))
    )
    if y_shape != expected:
        raise ValueError(f"y: expected shape {expected} for {loss.name}; got {y_shape}")
    if not jnp.issubdtype(jnp.result_type(y), kind):
        wanted = "integer labels" if loss.labels else "a floating dtype"
        raise ValueError(f"y: expected {wanted} for {loss.name}; got {jnp.result_type(y)}")


def _values(network: Network, loss: Loss, x: Any, y: Any) -> None:
    if isinstance(x, jax.ShapeDtypeStruct) or isinstance(y, jax.ShapeDtypeStruct):
        return
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    if network.integer and xp.size(x) and not -EXACT <= int(xp.min(x)) <= int(xp.max(x)) <= EXACT:
        raise ValueError(
            f"x: expected integers up to {EXACT}; got {int(xp.min(x))}..{int(xp.max(x))}"
        )
    bad = int(xp.size(x) - xp.isfinite(xp.asarray(x)).sum())
    if bad:
        raise ValueError(f"x: expected finite numbers; got {bad} that are NaN or infinite")
    if not loss.labels:
        return
    classes = network.shapes[-1][-1]
    y = np.asarray(y) if isinstance(y, (np.ndarray, list, tuple)) else jnp.asarray(y)
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"y: expected labels 0..{classes - 1}, the network has {classes} outputs; "
            f"got {low}..{high}"
        )


def same_dtype(weights: Any, x: Any) -> None:
    """x has the dtype of the weights, which is that of the samples `init` saw."""
    dtypes = {a.dtype for a in jax.tree.leaves(weights) if jnp.issubdtype(a.dtype, jnp.floating)}
    floating = jnp.issubdtype(jnp.result_type(x), jnp.floating)  # integers go with any
    if dtypes and floating and jnp.result_type(x) not in dtypes:
        names = " or ".join(sorted(str(dtype) for dtype in dtypes))
        raise ValueError(f"x: expected {names}, as in init; got {jnp.result_type(x)}: convert x")


def batch(batch_size: int, x: Any) -> None:
    """x holds exactly one minibatch."""
    if jnp.shape(x)[0] != batch_size:
        raise ValueError(
            f"x: expected a minibatch of batch_size={batch_size} samples; got {jnp.shape(x)[0]}"
        )


def leading(name: str, shape: Sequence[int], a: Any) -> None:
    """The array's first dimensions are those of a round."""
    if jnp.shape(a)[: len(shape)] != tuple(shape):
        raise ValueError(
            f"{name}: expected [local_steps, workers, batch_size, ...] = {[*shape, '...']}; "
            f"got shape {jnp.shape(a)}"
        )


def strata(batch_size: int, x: Any) -> None:
    """The samples fall into batch_size strata of equal size."""
    num = jnp.shape(x)[0]
    if num == 0 or num % batch_size:
        fits = num - num % batch_size
        raise ValueError(
            f"x: expected a multiple of batch_size={batch_size} samples, since each minibatch of "
            f"the stored schedule takes one from every stratum; got {num}: leave out "
            f"{num % batch_size} to have {fits}, or change batch_size"
        )
