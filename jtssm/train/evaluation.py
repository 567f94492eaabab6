"""The composed network's loss, accuracy and other means on samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.data.dicts import as_pair
from jtssm.data.own import of_library
from jtssm.losses import Loss, Metric, summed, total
from jtssm.nn.boundary import num_samples
from jtssm.nn.inputs import check_samples, on_host
from jtssm.protocol import sample_checks
from jtssm.protocol.method import Method
from jtssm.sharding.agreement import check_all_ask
from jtssm.sharding.placement.on_host import gathered

ROWS = 1024  # most samples of a forward pass, unless told
ROWS_OF_STATISTICS = 8192  # of a network that takes means over the samples at hand


def evaluate(
    method: Method,
    state: Tree,
    data: Any,
    *,
    metrics: Mapping[str, Callable | Metric] | None = None,
    batch_size: int | None = None,
    params: Callable[[Tree], Sequence[Tree]] | None = None,
) -> dict[str, float]:
    """Mean loss and accuracy of the composed network, weighted as the loss is; every process must ask.

    Args:
      method: placed or not.
      state: one of its states.
      data: (x, y); or an iterable of such pairs, read once; or a map from names to either.
      metrics: further means by name: functions (outputs, y) -> one number a sample or a position, or a
        `losses.Metric`, e.g. `losses.perplexity()`.
      batch_size: most samples in one forward pass; None: 1024, of a network with normalisation "batch",
        whose outputs depend on it, 8192.
      params: of the gathered state the parameters to evaluate, one tree a layer, e.g. averaged ones;
        None: the method's.

    Returns:
      loss, accuracy and the metrics; of a map with the names before them, "train_loss". nan where
      no sample has weight.

    Raises:
      ValueError: samples that do not fit.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> x, y = synthetic.separable(0, 100, 4, 3)
      >>> method = solvers.sgd(jtssm.mlp([4, 8, 3]), optimizer=optax.adam(1e-2), batch_size=50)
      >>> state = method.init(jax.random.key(0), x, y)
      >>> sorted(jtssm.evaluate(method, state, {"train": (x, y)}))
      ['train_accuracy', 'train_loss']
    """
    if method.mesh is not None:
        check_all_ask("evaluate")
    if batch_size is None:
        batch_size = _rows(method)
    (batch_size,) = checks.count(batch_size=batch_size)
    forward = _forward(method, params)
    score = partial(_scored, method, forward, state, batch_size=batch_size)
    found = {name: as_metric(name, given) for name, given in (metrics or {}).items()}
    data = as_pair(data)
    if not isinstance(data, Mapping):
        return score(data, found)
    return {
        f"{name}_{what}": number
        for name, given in data.items()
        for what, number in score(given, found).items()
    }


def _rows(method: Method) -> int:
    """Most samples of a forward pass."""
    layers = method.network.layers
    here = any(s.over == "samples" for l in layers if not l.estimated for s in l.statistics)
    return ROWS_OF_STATISTICS if here else ROWS


def _forward(
    method: Method, params: Callable[[Tree], Sequence[Tree]] | None
) -> Callable[[Tree, Tree], Array]:
    """(state, x) -> outputs."""
    if params is None:
        return jax.jit(method.predict)
    apply = jax.jit(method.network.apply)
    return lambda state, x: apply(params(gathered(state)), x)


def _scored(
    method: Method,
    forward: Callable[[Tree, Tree], Array],
    state: Tree,
    data: Any,
    metrics: Mapping[str, Metric],
    *,
    batch_size: int,
) -> dict[str, float]:
    """Means over the samples of a pair, or of pairs one after the other."""
    totals: dict[str, float] = dict.fromkeys(["loss", "accuracy", *metrics], 0.0)
    weight = 0.0
    for given in [data] if _is_pair(data) else data:
        pair = as_pair(given)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise ValueError(
                f"data: expected a pair of arrays (x, y), or an iterable of such pairs; got one of "
                f"{type(pair).__name__}: {checks.shown(pair)}"
            )
        x, y = jax.tree.map(lambda a: of_library("data", a), tuple(pair))
        method.program.check(x, y, "values")
        x, num = on_host(method.network, x), num_samples(x)
        _check_parts(method, num, batch_size)
        for rows in np.array_split(np.arange(num), -(-num // batch_size)):
            y_here = np.asarray(y)[rows]
            x_here = jax.tree.map(lambda a, rows=rows: a[rows], x)
            outputs = gathered(forward(state, x_here))
            sums, more = _sums(method.loss, metrics, outputs, y_here)
            weight += sums.pop("weight")
            for name, number in {**sums, **more}.items():
                totals[name] += number
    means = {name: total / weight if weight else np.nan for name, total in totals.items()}
    finished = {n: float(m.finish(jnp.asarray(means[n]))) for n, m in metrics.items()}
    return means | finished


def _check_parts(method: Method, num: int, most: int) -> None:
    """No part of so many samples is a single one where outputs depend on the samples at hand."""
    if num < 1:
        raise ValueError("x: expected at least one sample; got none")
    layers = method.network.layers
    if any(s.over == "samples" for l in layers if not l.estimated for s in l.statistics):
        sample_checks.several("x", method.network, num // -(-num // most))


def _sums(
    loss: Loss, metrics: Mapping[str, Metric], outputs: np.ndarray, y: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Of some samples: loss, accuracy and weight; the metrics."""
    f, labels = jnp.asarray(outputs), jnp.asarray(y)
    sums = summed(loss, f, labels)
    own = {"loss": float(sums.loss), "accuracy": float(sums.right), "weight": float(sums.weight)}
    found = {}
    for name, metric in metrics.items():
        value = jnp.asarray(metric.value(f, labels))
        found[name] = float(total(loss, labels, value))
    return own, found


def as_metric(name: str, given: object) -> Metric:
    """A metric as it is, or of a function.

    Raises:
      ValueError: neither.
    """
    if isinstance(given, Metric):
        return given
    if callable(given):
        return Metric(given)
    raise ValueError(
        f"metrics[{name!r}]: expected a function (outputs, y) -> one number a sample, or a "
        f"losses.Metric; got {checks.shown(given)}"
    )


def _is_pair(data: Any) -> bool:
    """Whether it is (x, y), and no list of such."""
    pair = isinstance(data, (tuple, list)) and len(data) == 2 and hasattr(data[1], "shape")
    return pair and all(hasattr(a, "shape") for a in jax.tree.leaves(data[0]))


def outputs(method: Method, state: Tree, x: Tree) -> np.ndarray:
    """Outputs [samples, ...] of the composed network, on the host, some samples at a time.

    Every process must ask, with the same samples, and gets all of them.
    """
    if method.mesh is not None:
        check_all_ask("predict")
    predict, whole = jax.jit(method.predict), on_host(method.network, x)
    check_samples(method.network, whole)
    num = num_samples(whole)
    _check_parts(method, num, _rows(method))
    # even parts: batch statistics need many samples
    chunks = np.array_split(np.arange(num), -(-num // _rows(method)))
    parts = (jax.tree.map(lambda a, rows=rows: a[rows], whole) for rows in chunks)
    return np.concatenate([gathered(predict(state, part)) for part in parts])
