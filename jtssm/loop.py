"""`fit`: the training loop over a method, on one device or on a mesh."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jtssm import checks
from jtssm.protocol import Array, Info, Method
from jtssm.sharding import batch_sharding, gathered, place

CHUNK = 50  # most steps a dispatch
ROWS = 8192  # most samples a forward pass of an evaluation


class Divergence(NamedTuple):
    """Where training left the finite numbers."""

    step: int  # from 0
    variable: str  # the first one, in the state's order, that is not finite after that step
    message: str


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
    interrupted: bool  # by Ctrl-C

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
    progress: bool | None = None,
) -> Result:
    """Train a method and keep a history.

    Each epoch passes over all samples in a new order; what does not fill a last minibatch is left
    out of that epoch. Methods that keep variables for every sample (`method.resident`) take one
    step an epoch, on samples that are shuffled once and then stay in place. Minibatches still in
    flight after the last epoch are drained before it is evaluated.

    Args:
      method: placed or not.
      train: (x, y), numpy or jax arrays.
      epochs: passes over the samples.
      key: draws the weights and the order of the samples.
      mesh: places the method on it, with `sharding.place`.
      validation: (x, y), or several by name: {"train": (x, y), "valid": (x, y)}. Loss and accuracy
        of the composed network on each stand in the history as `valid_loss`, `valid_accuracy`; a
        single pair is called "validation".
      callbacks: called with an `Epoch` after every epoch; returning True stops.
      params: weights to start from, one tree a layer.
      progress: show a bar; None: where there is a terminal.

    Returns:
      A `Result`. History: epoch, step, seconds (training only, this epoch; the first includes
      compilation), the means over the epoch of `Info`, and the evaluations.

    Raises:
      ValueError: bad samples, fewer than one minibatch, or bad arguments.

    A loss or state that is not finite stops the training: the result keeps the last finite state and
    says in `divergence`, and in a RuntimeWarning, which variable went first.
    """
    checks.count(epochs=epochs)
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
    state = method.init(init_key, epoch.x, epoch.y, params)
    return _train(method, state, epoch, epochs, sets, callbacks, progress)


class _Outcome(NamedTuple):
    state: Any
    infos: Info | None  # one number a step, on the host; None after a divergence
    divergence: Divergence | None


def _train(method, state, epoch, epochs, sets, callbacks, progress) -> Result:
    history: list[dict[str, float]] = []
    drain = jax.jit(method.drain)
    disable = None if progress is None else not progress
    divergence, interrupted = None, False
    with tqdm(total=epochs * epoch.steps, disable=disable, unit="step") as bar:
        try:
            for number in range(1, epochs + 1):
                start = time.perf_counter()
                state, infos, divergence = epoch.run(state, bar)
                if divergence is not None:
                    warnings.warn(divergence.message, RuntimeWarning, stacklevel=3)
                    break
                if number == epochs:
                    state = jax.block_until_ready(drain(state))
                record = {"epoch": number, "step": number * epoch.steps}
                record["seconds"] = time.perf_counter() - start
                record |= _means(infos) | evaluate(method, state, sets)
                history.append(record)
                bar.set_postfix(_shown(record))
                if any([call(Epoch(record, state, method)) is True for call in callbacks]):
                    state = drain(state)
                    break
        except KeyboardInterrupt:
            interrupted = True
    return Result(history, state, method, divergence, interrupted)


class _Minibatches:
    """One epoch of a method that takes minibatches: chunks of steps, each one dispatch."""

    def __init__(self, method: Method, x: np.ndarray, y: np.ndarray, rng: np.random.Generator):
        self.method, self.x, self.y, self.rng = method, x, y, rng
        self.shape = method.batch_shape
        self.steps = len(x) // prod(self.shape)
        if not self.steps:
            raise ValueError(
                f"train: expected at least {prod(self.shape)} samples, one step of "
                f"{method.name}; got {len(x)}"
            )
        self.sharding = batch_sharding(method, stacked=True)
        self.guard = _Guard(method.step)

    def run(self, state: Any, bar: Any) -> _Outcome:
        """Train on every sample once, in a new order."""
        order = self.rng.permutation(len(self.x))[: self.steps * prod(self.shape)]
        pieces = np.array_split(order.reshape(self.steps, -1), -(-self.steps // CHUNK))
        chunks = (self._chunk(rows) for rows in pieces)
        seen, chunk = [], next(chunks)
        while chunk is not None:
            following = self.guard.dispatch(state, *chunk)
            ahead = next(chunks, None)  # gathered on the host while the device works
            state, infos, divergence = self.guard.judge(state, following, *chunk)
            if divergence is not None:
                return _Outcome(state, None, divergence)
            seen.append(infos)
            bar.update(len(infos.loss))
            bar.set_postfix(_shown(_means(infos)))
            chunk = ahead
        return _Outcome(state, jax.tree.map(lambda *a: np.concatenate(a), *seen), None)

    def _chunk(self, rows: np.ndarray) -> tuple:
        shape = (len(rows), *self.shape)
        arrays = (a[rows.ravel()].reshape(*shape, *a.shape[1:]) for a in (self.x, self.y))
        return tuple(
            a if self.sharding is None else jax.device_put(a, self.sharding) for a in arrays
        )


class _Resident:
    """One epoch of a method that keeps all samples in place: one step on all of them."""

    steps = 1

    def __init__(self, method: Method, x: np.ndarray, y: np.ndarray, rng: np.random.Generator):
        size = method.parts.batch_size
        kept = len(x) - len(x) % size
        if kept < len(x):
            warnings.warn(
                f"train: {len(x) - kept} of {len(x)} samples are left out: {method.name} needs a "
                f"multiple of batch_size={size}",
                UserWarning,
                stacklevel=4,
            )
        order = rng.permutation(len(x))[:kept]
        sharding = batch_sharding(method)
        put = lambda a: jnp.asarray(a) if sharding is None else jax.device_put(a, sharding)
        self.x, self.y = put(x[order]), put(y[order])
        self.guard = _Guard(method.step)

    def run(self, state: Any, bar: Any) -> _Outcome:
        """One step on all samples."""
        chunk = self.x[None], self.y[None]
        outcome = self.guard.judge(state, self.guard.dispatch(state, *chunk), *chunk)
        if outcome.infos is not None:
            bar.update(1)
        return outcome


class _Guard:
    """Runs chunks of steps and finds the step at which a number stopped being finite.

    The state before a chunk is its snapshot: it is not donated, and a chunk that goes wrong is
    replayed from it step by step.
    """

    def __init__(self, step: Callable):
        self._step = jax.jit(step)
        self._odd: int | None = None  # numbers that were not finite at the start, e.g. a best loss
        self._done = 0
        self._chunk = jax.jit(
            lambda state, xs, ys: _with_count(*lax.scan(lambda s, b: step(s, *b), state, (xs, ys)))
        )

    def dispatch(self, state: Any, xs: Any, ys: Any) -> tuple:
        """Start a chunk of steps; nothing is waited for."""
        if self._odd is None:
            self._odd = int(_not_finite(state))
        return self._chunk(state, xs, ys)

    def judge(self, before: Any, after: tuple, xs: Any, ys: Any) -> _Outcome:
        """The state after the chunk, or, if it went wrong, the last finite one."""
        state, infos, count = after
        infos = jax.tree.map(np.asarray, infos)
        if np.isfinite(infos.loss).all() and int(count) <= self._odd:
            self._done += len(infos.loss)
            return _Outcome(state, infos, None)
        for i in range(len(infos.loss)):
            state, info = self._step(before, xs[i], ys[i])
            if not np.isfinite(info.loss) or int(_not_finite(state)) > self._odd:
                name = "loss" if not np.isfinite(info.loss) else _first_not_finite(before, state)
                return _Outcome(before, None, self._divergence(i, name, float(info.loss)))
            before = state
        return _Outcome(before, None, self._divergence(len(infos.loss), "unknown", np.nan))

    def _divergence(self, i: int, name: str, loss: float) -> Divergence:
        step = self._done + i
        message = (
            f"step {step}: {name} is not finite (loss {loss:.4g}); training stopped, the result "
            f"keeps the state before this step. Try a smaller learning rate or eta."
        )
        return Divergence(step, name, message)


def _with_count(state: Any, infos: Info) -> tuple:
    return state, infos, _not_finite(state)


def _not_finite(state: Any) -> Array:
    floats = [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]
    return sum((jnp.sum(~jnp.isfinite(a)) for a in floats), jnp.zeros((), jnp.int32))


def _first_not_finite(before: Any, after: Any) -> str:
    """Path of the first array of the state, in order, with numbers that were finite before."""
    leaves = [jax.tree_util.tree_leaves_with_path(gathered(state)) for state in (before, after)]
    for (path, old), (_, new) in zip(*leaves, strict=True):
        if np.issubdtype(np.asarray(new).dtype, np.floating):
            if (np.isfinite(old) & ~np.isfinite(new)).any():
                return jax.tree_util.keystr(path).lstrip(".")
    return "state"


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


def _shown(record: Mapping[str, float]) -> dict[str, str]:
    """What the progress bar shows of a line of the history."""
    names = {"loss": "loss", "primal_residual": "|p-q|", "coupling": "|q-f|"}
    names |= {k: k.removesuffix("uracy") for k in record if k.endswith("_accuracy")}
    return {short: f"{record[name]:.4g}" for name, short in names.items() if record.get(name)}


def _pair(name: str, pair: Any) -> tuple:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name}: expected a pair (x, y); got {type(pair).__name__}")
    return tuple(pair)
