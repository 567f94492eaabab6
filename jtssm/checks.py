"""The front door for arguments: static misuse raises ValueError before anything is computed."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from math import isqrt
from numbers import Integral, Real
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PACKAGE = str(Path(__file__).parent) + os.sep
SHOWN = 200  # most characters of a value in a message
LISTED = 4096  # up to which divisors are listed
LEAST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the user's line: of the innermost function that is not of this package."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def shown(value: Any) -> str:
    """The value as a message shows it: its repr, cut where it is long, whatever it is."""
    try:
        text = repr(value)
    except Exception:  # of an object of the user's, or an int of over 4300 digits
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def is_integer(value: Any) -> bool:
    """Whether it is an integer, Python's or numpy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _real(value: Any) -> bool:
    """Whether it is a real number, Python's or numpy's; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(**numbers: Any) -> tuple[float, ...]:
    """Each number is a finite real above 0, also in float32; returns them as Python's floats."""
    return tuple(_positive(name, value) for name, value in numbers.items())


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value) if _real(value) else -1.0
    except OverflowError:  # of an integer
        number = np.inf
    if not 0 < number < np.inf:
        raise ValueError(f"{name}: expected a finite number above 0, e.g. 1.0; got {shown(value)}")
    if not LEAST <= number <= LARGEST:
        raise ValueError(
            f"{name}: expected a finite number above 0 that float32 can hold, {LEAST:.2g} to "
            f"{LARGEST:.2g}; got {shown(value)}"
        )
    return number


def not_negative(**numbers: Any) -> tuple[float, ...]:
    """Each number is a finite real of at least 0; returns them as Python's floats."""
    zero = lambda value: _real(value) and value == 0
    return tuple(
        0.0 if zero(value) else positive(**{name: value})[0] for name, value in numbers.items()
    )


def share(name: str, value: Any, example: float, *, whole: bool) -> float:
    """The value is a real from 0 to 1, or below 1 unless `whole`; returns Python's float."""
    if not _real(value) or not 0 <= value <= 1 or (value == 1 and not whole):
        limit = "from 0 to 1" if whole else "of at least 0 and below 1"
        raise ValueError(f"{name}: expected a share {limit}, e.g. {example}; got {shown(value)}")
    return float(value)


def count(**numbers: Any) -> tuple[int, ...]:
    """Each number is an integer of at least 1; returns them as Python's, which do not overflow."""
    for name, value in numbers.items():
        if not is_integer(value) or value < 1:
            raise ValueError(f"{name}: expected an integer of at least 1; got {shown(value)}")
        if value > sys.maxsize:
            raise ValueError(f"{name}: expected an integer below 2**63; got {shown(value)}")
    return tuple(int(value) for value in numbers.values())


def natural(name: str, value: Any) -> int:
    """The value is an integer of at least 0; returns Python's."""
    if not is_integer(value) or not 0 <= value <= sys.maxsize:
        raise ValueError(f"{name}: expected an integer of at least 0; got {shown(value)}")
    return int(value)


def path(name: str, value: Any) -> Path:
    """The value is a path, or the text of one."""
    if not isinstance(value, (str, PathLike)) or not isinstance(fspath(value), str):
        raise ValueError(f"{name}: expected a path, e.g. 'data'; got {shown(value)}")
    return Path(value)


def counts(name: str, values: Any, example: str, *, least: int = 1) -> tuple[int, ...]:
    """The values are a sequence of at least `least` integers of at least 1; returns Python's."""
    listed = isinstance(values, np.ndarray) and values.ndim == 1
    if isinstance(values, Sequence) and not isinstance(values, (str, bytes)):
        listed = True
    if not listed or len(values) < least:
        wanted = f"at least {least} " if least else ""
        raise ValueError(
            f"{name}: expected a list of {wanted}positive integers, e.g. {example}; got "
            f"{shown(values)}"
        )
    return count(**{f"{name}[{i}]": a for i, a in enumerate(values)})


def divides(name: str, value: Any, whole: int, of: str) -> int:
    """The value is an integer that divides `whole`; returns Python's."""
    (value,) = count(**{name: value})
    if whole % value:
        fits = [d for d in range(1, min(whole, LISTED) + 1) if whole % d == 0]
        more = ", or a larger one" if whole > LISTED else ""
        raise ValueError(
            f"{name}: expected one of {fits}{more}, which divide {whole} {of}; got {value}"
        )
    return value


def divisors(whole: int) -> list[int]:
    """All of them, rising, in sqrt(whole) steps, of which a million take a tenth of a second."""
    if whole > 2**40:
        raise ValueError(f"num_devices: expected at most 2**40; got {whole}")
    low = [d for d in range(1, isqrt(whole) + 1) if whole % d == 0]
    return [*low, *(whole // d for d in reversed(low) if d * d != whole)]


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """The value is one of the known names."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}: expected one of {sorted(known)}; got {shown(value)}")


def flag(name: str, value: Any) -> bool:
    """The value is True or False, Python's or numpy's; returns Python's."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name}: expected True or False; got {shown(value)}")
    return bool(value)


def instance(name: str, value: Any, kind: Any, example: str) -> None:
    """The value is of the kind, or of one of several."""
    if not isinstance(value, kind):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ValueError(f"{name}: expected a {kinds}, e.g. {example}; got {shown(value)}")


def activation(value: Any) -> None:
    """None, or a function that jax can trace and that keeps an array's shape and floats."""
    if value is None:
        return
    expected = "activation: expected None or a function of an array, e.g. jax.nn.relu"
    if not callable(value):
        raise ValueError(f"{expected}; got {shown(value)}")
    try:
        # a lambda of our own: jax 0.10 dies of a segmentation fault over numpy's ufuncs
        out = jax.eval_shape(lambda a: value(a), jax.ShapeDtypeStruct((2, 3), jnp.float32))
    except Exception as error:  # whatever a function of the user's raises
        raise ValueError(
            f"{expected}, that jax can trace; got {shown(value)}, which raised "
            f"{type(error).__name__}: {shown(str(error))}"
        ) from error
    if not isinstance(out, jax.ShapeDtypeStruct) or out.shape != (2, 3):
        raise ValueError(f"{expected}, that keeps its shape; got {shown(value)}, which gives {out}")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise ValueError(f"{expected}, that gives floats; got {shown(value)}, which gives {out}")


def key(value: Any) -> jax.Array:
    """A single key of jax.random, typed or, for `jax.random.PRNGKey`, raw; returns the typed one."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
        return value
    try:
        if dtype == np.uint32:
            typed = jax.random.wrap_key_data(jnp.asarray(value))
            if typed.shape == ():
                return typed
    except (TypeError, ValueError):
        pass
    raise ValueError(f"key: expected a single key, e.g. jax.random.key(0); got {shown(value)}")


def array(name: str, value: object, *, booleans: bool = False) -> None:
    """The value is an array of numbers (`booleans`: or of those) that jax takes, or stands for one."""
    traced = isinstance(value, jax.core.Tracer)
    if isinstance(value, jax.Array) and not traced and value.is_deleted():
        raise ValueError(
            f"{name}: expected an array that holds its numbers; got one of shape {value.shape} that was "
            f"deleted or donated: keep a copy, or hand it in before"
        )
    if isinstance(value, (jax.Array, jax.ShapeDtypeStruct)):
        return
    known = isinstance(value, np.ndarray) and (
        jnp.issubdtype(value.dtype, jnp.number) or (booleans and value.dtype == bool)
    )
    if not known or not isinstance(value, np.ndarray):
        raise ValueError(
            f"{name}: expected an array of numbers, numpy's or jax's; got {shown(value)}"
        )
    if isinstance(value, np.ma.MaskedArray):
        raise ValueError(
            f"{name}: expected an array without a mask, which would be lost; got a masked one: fill it, "
            f"e.g. {name}.filled(0)"
        )
    if not value.dtype.isnative:
        raise ValueError(
            f"{name}: expected numbers in this machine's byte order; got {value.dtype.str}: convert, "
            f"e.g. {name}.astype('{value.dtype.newbyteorder('=').name}')"
        )
    if value.dtype.type in (np.longdouble, np.clongdouble) and value.dtype.itemsize > 8:
        raise ValueError(
            f"{name}: expected numbers of at most 64 bits; got {value.dtype}: convert, e.g. "
            f"{name}.astype('float32')"
        )


def finite(name: str, value: Any) -> None:
    """The array of numbers has neither NaN nor infinite ones."""
    xp: ModuleType = np if isinstance(value, np.ndarray) else jnp
    bad = int(xp.size(value) - xp.isfinite(value).sum())
    if bad:
        raise ValueError(f"{name}: expected finite numbers; got {bad} that are NaN or infinite")


def precision(value: Any) -> None:
    """A name that jax.default_matmul_precision takes, or None for jax's own default."""
    try:
        with jax.default_matmul_precision(value):
            pass
    except Exception as error:  # jax shows what it refuses, which may fail
        raise ValueError(
            f"precision: expected None, 'highest', 'float32', 'tensorfloat32' or 'bfloat16'; "
            f"got {shown(value)}"
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


def optimizers(
    optimizer: Any, num: int, name: str = "optimizer"
) -> tuple[optax.GradientTransformation, ...]:
    """One optax optimizer a subnetwork, from one for all or a sequence of `num`.

    Of an `optax.MultiSteps` its transformation.  name: of the argument, in the error.
    """
    optimizer = transformation(optimizer)
    if isinstance(optimizer, optax.GradientTransformation):
        return (optimizer,) * num
    given = tuple(map(transformation, optimizer)) if isinstance(optimizer, (list, tuple)) else ()
    if len(given) != num or not all(isinstance(o, optax.GradientTransformation) for o in given):
        raise ValueError(
            f"{name}: expected an optax optimizer, e.g. optax.adam(1e-3), or a list of {num} "
            f"of them, one a subnetwork; got {shown(optimizer)}"
        )
    return given


def transformation(optimizer: Any) -> Any:
    """What an `optax.MultiSteps` does, as optax's other optimizers come; all else as it is."""
    several = isinstance(optimizer, optax.MultiSteps)
    return optimizer.gradient_transformation() if several else optimizer
