"""`fit`: the training loop over a method, on one device or on a mesh."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jtssm import checks
from jtssm.divergence import Divergence, Guard, Outcome
from jtssm.protocol import Array, Info, Method
from jtssm.sharding import batch_sharding, gathered, num_splits, place

CHUNK = 50  # most steps a dispatch
ROWS = 8192  # most samples a forward pass of an evaluation


class Epoch(NamedTuple):
    """What a callback is given after every epoch; it stops the training by returning True."""

    record: dict[str, float]  # the line just added to the history
    state: Any
    method: Method  # as placed


class Result(NamedTuple):
    """What `fit` returns, also after a divergence or an interruption."""

    history: list[dict[str, float]]  # one line an epoch
    state: Any  # the last finite one
    method: Method  # as placed on the mesh
    divergence: Divergence | None
    interrupted: bool  # by Ctrl-C, or by an exception that carries this result

    def predict(self, x: Any) -> np.ndarray:
        """Outputs [samples, ...] of the composed network, on the host."""
        return outputs(self.method, self.state, x)

    @property
    def params(self) -> list:
        """The whole network's parameters, one tree a layer."""
        return self.method.params(self.state)


def fit(
    method: Method,
    train: Any,
    *,
    epochs: int,
    key: Array,
    mesh: Mesh | None = None,
    validation: Any = None,
    callbacks: Sequence[Callable[[Epoch], Any]] = (),
    params: Any = None,
    state: Any = None,
    progress: bool | None = None,
    evaluate_every: int = 1,
) -> Result:
    """Train a method and keep a history.

    Each epoch passes over all samples in a new order; what does not fill a last minibatch is left
    out of that epoch. Methods that keep variables for every sample (`method.resident`) take one step
    an epoch, on samples that stay in place (shuffled once if the method draws minibatches).
    Minibatches still in flight after the last epoch are drained before it is evaluated.

    Args:
      method: placed or not.
      train: (x, y), numpy or jax arrays.
      epochs: passes over the samples; of a resident method: steps.
      key: draws the weights and the order of the samples.
      mesh: places the method on it, with `sharding.place`.
      validation: (x, y), or several by name: {"train": (x, y), "valid": (x, y)}. Loss and accuracy
        of the composed network on each stand in the history as `valid_loss`, `valid_accuracy`; a
        single pair is called "validation".
      callbacks: called with an `Epoch` after every epoch; returning True stops.
      params: weights to start from, one tree a layer.
      state: instead, a state of the method to go on from, placed or not (of one device, or
        `sharding.gathered`). The samples of a resident method must be those it was made with, in the
        same order: the same `train`, and with minibatches the same `key`.
      progress: show a bar; None: where there is a terminal.
      evaluate_every: epochs between two lines of the history, with their evaluations and callbacks.
        A resident method runs that many steps in one dispatch.

    Returns:
      A `Result`. History: epoch, step, seconds (training only, since the line before; the first
      includes compilation), the means since then of `Info`, and the evaluations; of a method with a
      certificate (pdADMM) also c_k, the least `Info.decrease` of all steps so far.

    Raises:
      ValueError: bad samples, fewer than one minibatch, or bad arguments.

    A loss or state that is not finite stops the training: the result keeps the last finite state and
    says in `divergence`, and in a RuntimeWarning, which variable went first. Ctrl-C ends the training
    and returns what was reached; any other exception carries it as its attribute `result`.
    """
    checks.count(epochs=epochs, evaluate_every=evaluate_every)
    if mesh is not None:
        method = place(method, mesh)
    x, y = (np.asarray(a) for a in _pair("train", train))
    sets = validation if isinstance(validation, Mapping) else {"validation": validation}
    sets = {name: _pair(name, pair) for name, pair in sets.items() if pair is not None}
    for pair in ((x, y), *sets.values()):
        method.parts.check(*pair, "values")
    init_key, order_key = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    epoch = (_Resident if method.resident else _Minibatches)(method, x, y, rng)
    if state is None:
        state = method.init(init_key, epoch.x, epoch.y, params)
    elif params is not None:
        raise ValueError("params: expected None with a state, which has its own; got both")
    else:
        state = method.spread(state)
    # the epochs after which a line of the history is due
    lines = [*range(evaluate_every, epochs, evaluate_every), epochs]
    return _train(method, state, epoch, lines, sets, callbacks, progress)


def _train(method, state, epoch, lines, sets, callbacks, progress) -> Result:
    history: list[dict[str, float]] = []
    drain, guard = jax.jit(method.drain), Guard(method.step, state)
    divergence, interrupted = None, False
    with _Bar(lines[-1] * epoch.steps, progress) as bar:
        try:
            for before, number in pairwise((0, *lines)):
                start = time.perf_counter()
                state, infos, divergence = epoch.run(guard, state, bar, number - before)
                if divergence is not None:
                    warnings.warn(divergence.message, RuntimeWarning, stacklevel=3)
                    break
                if number == lines[-1]:
                    guard.latest = state = jax.block_until_ready(drain(state))
                record = {"epoch": number, "step": number * epoch.steps}
                record["seconds"] = time.perf_counter() - start
                record |= _means(infos) | _certificate(infos, history)
                record |= evaluate(method, state, sets)
                history.append(record)
                bar.show(record)
                stops = [call(Epoch(record, state, method)) is True for call in callbacks]
                if any(stops):
                    state = drain(state)
                    break
        except KeyboardInterrupt:
            state, interrupted = guard.latest, True
        except Exception as error:  # a callback's, or out of memory: hand out what there is
            error.result = Result(history, guard.latest, method, None, True)  # type: ignore[attr-defined]
            raise
    return Result(history, state, method, divergence, interrupted)


class _Bar:
    """A progress bar with the newest of each number; quiet where there is no terminal."""

    NAMES = (
        ("loss", "loss"), ("primal_residual", "|p-q|"), ("coupling", "|q-f|"), ("objective", "L"),
        ("c_k", "c_k"),
    )  # fmt: skip

    def __init__(self, steps: int, progress: bool | None):
        disable = None if progress is None else not progress
        self.bar = tqdm(total=steps, disable=disable, unit="step", dynamic_ncols=True)
        self.scores: dict[str, str] = {}
        self.sizes: dict[str, str] = {}

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def show(self, record: Mapping[str, float], steps: int = 0) -> None:
        """Count steps done, and show loss, residuals and the accuracies of the composed network."""
        scores = {name: a for name, a in record.items() if name.endswith("_accuracy")}
        self.scores |= {name.removesuffix("_accuracy"): f"{a:.3f}" for name, a in scores.items()}
        self.sizes |= {s: f"{record[name]:.3g}" for name, s in self.NAMES if record.get(name)}
        self.bar.set_postfix(self.scores | self.sizes, refresh=False)
        self.bar.update(steps)


class _Minibatches:
    """Epochs of a method that takes minibatches: chunks of steps, each one dispatch."""

    def __init__(self, method: Method, x: np.ndarray, y: np.ndarray, rng: np.random.Generator):
        self.x, self.y, self.rng = x, y, rng
        self.shape: tuple[int, ...] = method.batch_shape or ()
        self.steps = len(x) // prod(self.shape)
        if not self.steps:
            raise ValueError(
                f"train: expected at least {prod(self.shape)} samples, one step of "
                f"{method.name}; got {len(x)}"
            )
        self.sharding = batch_sharding(method, stacked=True)

    def run(self, guard: Guard, state: Any, bar: Any, epochs: int) -> Outcome:
        """Train on every sample `epochs` times, each time in a new order."""
        used = self.steps * prod(self.shape)
        order = np.concatenate([self.rng.permutation(len(self.x))[:used] for _ in range(epochs)])
        steps = self.steps * epochs
        rows = np.array_split(order.reshape(steps, -1), -(-steps // CHUNK))
        chunk, seen = self._chunk(rows[0]), []
        for following in [*rows[1:], None]:
            after = guard.dispatch(state, *chunk)
            # the next chunk is gathered on the host while the device works
            ahead = None if following is None else self._chunk(following)
            state, infos, divergence = guard.judge(state, after, *chunk)
            if divergence is not None:
                return Outcome(state, None, divergence)
            seen.append(infos)
            bar.show(_means(infos), len(infos.loss))
            chunk = ahead or ()
        return Outcome(state, jax.tree.map(lambda *a: np.concatenate(a), *seen), None)

    def _chunk(self, rows: np.ndarray) -> tuple:
        shape = (len(rows), *self.shape)
        arrays = [a[rows.ravel()].reshape(*shape, *a.shape[1:]) for a in (self.x, self.y)]
        return _put(arrays, self.sharding)


class _Resident:
    """Epochs of a method that keeps all samples in place: each is one step on all of them."""

    steps = 1

    def __init__(self, method: Method, x: np.ndarray, y: np.ndarray, rng: np.random.Generator):
        size, what = method.parts.batch_size, "batch_size"
        if size is None:
            size, what = num_splits(method), "pc"
        kept = len(x) - len(x) % size
        if 0 < kept < len(x):
            warnings.warn(
                f"train: {len(x) - kept} of {len(x)} samples are left out: {method.name} needs a "
                f"multiple of {what}={size}",
                UserWarning,
                stacklevel=4,
            )
        if method.parts.batch_size is not None:  # strata are drawn once; otherwise order is nothing
            order = rng.permutation(len(x))[: kept or None]
            x, y = x[order], y[order]
        self.x, self.y = x[: kept or None], y[: kept or None]
        self.chunk = _put((self.x[None], self.y[None]), batch_sharding(method, stacked=True))

    def run(self, guard: Guard, state: Any, bar: Any, epochs: int) -> Outcome:
        """That many steps on all samples, in one dispatch."""
        x, y = self.chunk
        outcome = guard.judge(state, guard.dispatch(state, x, y, epochs), x, y)
        bar.show({}, epochs * int(outcome.infos is not None))
        return outcome


def _put(arrays: Sequence[np.ndarray], sharding: Any) -> tuple:
    """Arrays on the mesh, or on the default device."""
    return tuple(jax.device_put(a, sharding) for a in arrays)


def evaluate(method: Method, state: Any, sets: Mapping[str, Any]) -> dict[str, float]:
    """Mean loss and accuracy of the composed network on each named (x, y)."""
    loss, record = method.parts.loss, {}
    for name, (x, y) in sets.items():
        predicted = outputs(method, state, x)
        record[f"{name}_loss"] = float(loss.value(predicted, np.asarray(y)).mean())
        record[f"{name}_accuracy"] = float(loss.correct(predicted, np.asarray(y)).mean())
    return record


def outputs(method: Method, state: Any, x: Any) -> np.ndarray:
    """Outputs [samples, ...] of the composed network, on the host, computed ROWS at a time."""
    predict = jax.jit(method.predict)
    chunks = (x[i : i + ROWS] for i in range(0, len(x), ROWS))
    return np.concatenate([gathered(predict(state, chunk)) for chunk in chunks])


def _means(infos: Info) -> dict[str, float]:
    """Means over steps, each weighted by the samples it measured."""
    count = max(float(infos.samples.sum()), 1.0)
    means = {name: float((a * infos.samples).sum() / count) for name, a in infos._asdict().items()}
    return means | {"samples": float(infos.samples.sum())}


def _certificate(infos: Info, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """c_k: the least decrease that theory guarantees, of all steps so far."""
    if not infos.decrease.any():
        return {}
    before = history[-1].get("c_k", np.inf) if history else np.inf
    return {"c_k": min(float(infos.decrease.min()), before)}


def _pair(name: str, pair: Any) -> tuple:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name}: expected a pair (x, y); got {type(pair).__name__}")
    return tuple(pair)
