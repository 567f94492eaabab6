"""Samples of one's own: arrays of numpy, jax, pandas and torch, split into train, valid and test."""

from __future__ import annotations

from typing import Any

import numpy as np

from jtssm import checks
from jtssm.data.splits import Split, Splits


def from_arrays(
    x: Any,
    y: Any,
    *,
    valid: float | tuple[Any, Any] = 0.1,
    test: float | tuple[Any, Any] = 0.1,
    seed: int = 0,
) -> Splits:
    """Samples of one's own in three parts, as `load` gives data sets.

    Args:
      x: [samples, ...]: an array of numpy or jax, a list, a DataFrame of numbers, a tensor of torch.
      y: [samples, ...], the same.
      valid: the share of the samples that is held out to choose on; or a pair (x, y) of others.
      test: the share that is held out to report on; or a pair (x, y) of others.
      seed: of the permutation by which samples are dealt out; where none are held out they keep their
        order.

    Returns:
      Splits of numpy arrays in the dtypes they came in. Held-out parts have at least one sample each.

    Raises:
      ValueError: no numbers, other lengths, shares that leave nothing.

    Examples:
      >>> import numpy as np
      >>> from jtssm import data
      >>> splits = data.from_arrays(np.zeros((50, 4)), np.zeros(50, int), valid=0.2, test=0.1)
      >>> [len(part.y) for part in splits]
      [35, 10, 5]
    """
    whole = _pair("x", x, "y", y)
    asked = {"valid": valid, "test": test}
    pairs = {name: a for name, a in asked.items() if isinstance(a, (tuple, list))}
    found = {name: _like(whole, _given(name, pair), name) for name, pair in pairs.items()}
    sizes = {n: _size(n, a, len(whole.y)) for n, a in asked.items() if n not in pairs}
    left = len(whole.y) - sum(sizes.values())
    if left < 1:
        raise ValueError(
            f"valid, test: expected shares that leave samples to train on, e.g. 0.1 and 0.1; got {valid} "
            f"and {test} of {len(whole.y)} samples"
        )
    seed = checks.natural("seed", seed)
    if sizes:
        order = np.random.default_rng(seed).permutation(len(whole.y))
        train, *rows = np.split(order, np.cumsum([left, *sizes.values()])[:-1])
        found |= {n: Split(whole.x[r], whole.y[r]) for n, r in zip(sizes, rows, strict=True)}
        whole = Split(whole.x[train], whole.y[train])
    return Splits(whole, found["valid"], found["test"])


def _given(name: str, pair: Any) -> Split:
    if len(pair) != 2:
        raise ValueError(f"{name}: expected a share or a pair (x, y); got {len(pair)} entries")
    return _pair(f"{name}: x", pair[0], f"{name}: y", pair[1])


def _pair(x_name: str, x: Any, y_name: str, y: Any) -> Split:
    split = Split(_numbers(x_name, x), _numbers(y_name, y))
    if len(split.x) != len(split.y):
        raise ValueError(
            f"{y_name}: expected {len(split.x)} entries, one for each sample of {x_name}; got "
            f"{len(split.y)}"
        )
    return split


def _like(whole: Split, other: Split, name: str) -> Split:
    for part, a, b in zip("xy", whole, other, strict=True):
        if a.shape[1:] != b.shape[1:]:
            raise ValueError(
                f"{name}: {part}: expected samples of shape {a.shape[1:]}; got {b.shape[1:]}"
            )
    return other


def _size(name: str, given: Any, samples: int) -> int:
    """Of a held-out part, at least one sample."""
    share = checks.share(name, given, 0.1, whole=False)
    if share == 0:
        raise ValueError(
            f"{name}: expected a share above 0, e.g. 0.1, or a pair (x, y); got {given}"
        )
    return max(1, round(share * samples))


def _numbers(name: str, given: Any) -> np.ndarray:
    a = as_numpy(name, given)
    if a.dtype.kind not in "iuf" or not a.ndim or not a.shape[0]:
        raise ValueError(
            f"{name}: expected integers or floats, [samples, ...]; got {a.dtype} {a.shape}"
        )
    checks.array(name, a)
    return a


def as_numpy(name: str, given: Any) -> np.ndarray:
    """An array in numpy, of whatever library.

    A tensor of torch comes off its device and out of its graph; bfloat16, which numpy lacks, becomes
    float32. A DataFrame must hold numbers alone: what is text or missing is named by its column.

    Raises:
      ValueError: no array, or one of other things than numbers.
    """
    given = of_library(name, given)
    try:
        a = np.asanyarray(given)
    except (ValueError, TypeError) as error:  # lists of unequal lengths
        raise ValueError(f"{name}: expected an array of numbers; got {error}") from error
    if a.dtype.kind in "OSUmM":
        raise ValueError(f"{name}: expected an array of numbers; got {checks.shown(given)}")
    return a


def of_library(name: str, given: Any) -> Any:
    """A tensor of torch, a Series or DataFrame of pandas in numpy; anything else as it is.

    Raises:
      ValueError: columns of other things than numbers.
    """
    if hasattr(given, "detach") and hasattr(given, "cpu"):
        given = given.detach().cpu()
        return (given.float() if str(given.dtype) == "torch.bfloat16" else given).numpy()
    if hasattr(given, "to_numpy"):
        _check_frame(name, given)
        return given.to_numpy()
    return given


def _check_frame(name: str, frame: Any) -> None:
    """A Series or DataFrame of pandas holds numbers alone."""
    columns = dict(frame.items()) if hasattr(frame, "columns") else {name: frame}
    for column, series in columns.items():
        a = np.asarray(series.to_numpy())
        if a.dtype.kind not in "iuf":
            raise ValueError(
                f"{name}: expected columns of numbers without missing values; got {series.dtype} in "
                f"{column!r}: turn it into numbers, e.g. .astype('category').cat.codes, or drop it"
            )
