"""A line of the history: what the steps since the line before have shown, as plain numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from math import isnan
from typing import Any

import jax
import numpy as np

from jtssm import checks
from jtssm.arrays import Array
from jtssm.protocol.info import Info

Document = dict[str, Any]  # what JSON holds, by names
HELD = 2**16  # most steps since a line whose numbers are kept one by one


def means(infos: Info) -> dict[str, float]:
    """Means over steps, each weighted by the samples it measured; nan where there were none.

    Args:
      infos: arrays [steps] on the host.

    Returns:
      loss, accuracy, samples (their sum), and what the method shows.
    """
    total, seen = float(infos.samples.sum()), infos.samples > 0

    def mean(a: Array) -> float:
        return float((np.where(seen, a, 0) * infos.samples).sum() / total) if total else np.nan

    given = {"loss": mean(infos.loss), "accuracy": mean(infos.accuracy), "samples": total}
    return given | {name: mean(a) for name, a in infos.shown.items()}


def joined(infos: Sequence[Info]) -> Info:
    """Infos of some steps, one after the other; of none where there are none."""
    empty: Any = np.zeros(0)
    joint = lambda *a: np.concatenate(a)
    return jax.tree.map(joint, *infos) if infos else Info(empty, empty, empty, {})


def folded(infos: Info) -> Info:
    """A few steps in place of very many: the same means, least decrease and first measured loss.

    Those two steps stay as they are; one that has the means of all others stands for these.
    """
    alone = np.zeros(len(infos.loss), bool)
    alone[np.flatnonzero(infos.samples > 0)[:1]] = True
    if "decrease" in infos.shown:
        alone[np.argmin(infos.shown["decrease"])] = True
    some: Any = lambda which: jax.tree.map(lambda a: np.asarray(a, float)[which], infos)
    told: Any = {name: np.array([a]) for name, a in means(some(~alone)).items()}
    loss, accuracy, samples = (told.pop(name) for name in ("loss", "accuracy", "samples"))
    return joined([some(alone), Info(loss, accuracy, samples, told)])


def certificate(infos: Info, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """c_k: the least decrease that theory guarantees, of all steps so far, where a method shows any."""
    if "decrease" not in infos.shown:
        return {}
    before = history[-1].get("c_k", np.inf) if history else np.inf
    return {"c_k": min(float(infos.shown["decrease"].min()), before)}


def make_plain(record: MutableMapping[str, Any]) -> None:
    """Scalars of numpy and jax, which a callback may have added, become Python's, in place.

    Raises:
      ValueError: what no file of histories and no checkpoint holds.
    """
    for name, value in record.items():
        if isinstance(value, (np.generic, np.ndarray, jax.Array)) and np.ndim(value) == 0:
            with suppress(AttributeError, TypeError):  # of a key of jax.random
                record[name] = value = value.tolist()
        if type(name) is not str or not (value is None or isinstance(value, (int, float, str))):
            _check_told(name, value)


def _check_told(name: object, value: object) -> None:
    try:
        json.dumps({"": value}, default=plain)
        wrong = None if isinstance(name, str) else "another name"
    except (TypeError, ValueError, RecursionError):
        wrong = type(value).__name__
    if wrong is not None:
        raise ValueError(
            f"epoch.record: expected numbers, text and lists by names; got {wrong}, {checks.shown(name)}"
        )


def without_nan(record: Mapping[str, float]) -> dict[str, float | None]:
    """The same with None for nan, which JSON does not know."""
    return {n: None if isinstance(a, float) and isnan(a) else a for n, a in record.items()}


def plain(value: object) -> list | float:
    """An array or a scalar of numpy or jax as JSON holds it: the `default` of `json.dumps`.

    Raises:
      TypeError: it is neither.
    """
    if not hasattr(value, "tolist"):
        raise TypeError(
            f"history: expected numbers, text and lists in its lines; got {type(value).__name__}"
        )
    return np.asarray(value).tolist()
