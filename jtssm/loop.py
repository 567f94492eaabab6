"""`fit`: the training loop over a method, on one device or on a mesh."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm.auto import tqdm

from jtssm import checks
from jtssm.divergence import Divergence, Guard
from jtssm.feeding import Minibatches, Resident, means
from jtssm.protocol import Array, Info, Method, as_method
from jtssm.sharding import gathered, make_mesh, num_splits, place, planner
from jtssm.sharding.finding import present_machine
from jtssm.sharding.machines import Machine
from jtssm.sharding.packing import is_rows
from jtssm.workers import WorkerParts
from jtssm.workers import as_method as of_workers

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
    mesh: Mesh | str | None = None,
    machine: Machine | str | None = None,
    forms: str | Sequence[str] = "auto",
    validation: Any = None,
    callbacks: Sequence[Callable[[Epoch], Any]] = (),
    params: Any = None,
    state: Any = None,
    progress: bool | None = None,
    evaluate_every: int = 1,
) -> Result:
    """Train a method and keep a history.

    Each epoch passes over all samples in a new order; what does not fill a last minibatch is left
    out of that epoch, and a round of local steps (ist, local_sgd, ensemble) that an epoch does not fill
    goes on in the next one; samples that do not fill a last round are left out. Statistics that layers
    keep (normalisation="running") are estimated on up to 8192 training samples before each evaluation.
    Methods that keep variables for every sample (`method.resident`) take one step
    an epoch, on samples that stay in place (shuffled once if the method draws minibatches).
    Minibatches still in flight after the last epoch are drained before it is evaluated.

    Args:
      method: placed or not.
      train: (x, y), numpy or jax arrays.
      epochs: passes over the samples; of a resident method: steps.
      key: draws the weights and the order of the samples.
      mesh: places the method on it, with `sharding.place`.  forms: of its layers there. "auto": the mesh
        of all present devices, and the forms, that the cost model finds fastest for this method
        (`sharding.planner`).  machine: that it is found for: a `Machine`, a name, a machine file
        (`sharding.calibrating.calibrate` writes one); None: the one that is known for these devices.
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
    checks.instance("method", method, Method, "solvers.sgd(net, ...)")
    epochs, evaluate_every = checks.count(epochs=epochs, evaluate_every=evaluate_every)
    key, callbacks = checks.key(key), _functions(callbacks)
    x, y = _pair("train", train)
    method = _on_mesh(method, mesh, forms, machine, len(x))
    sets = validation if isinstance(validation, Mapping) else {"validation": validation}
    sets = {name: _pair(name, pair) for name, pair in sets.items() if pair is not None}
    for pair in ((x, y), *sets.values()):
        method.parts.check(*pair, "values")
    init_key, order_key = jax.random.split(key)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(order_key)))
    feeds = Resident if method.resident else Minibatches
    epoch = feeds(method, x, y, rng, epochs)
    if state is None:
        state = method.init(init_key, epoch.x, epoch.y, params)
    elif params is not None:
        raise ValueError("params: expected None with a state, which has its own; got both")
    else:
        _check_state(method, state, x, y)
        state = method.spread(state)
    # the epochs after which a line of the history is due
    lines = [*range(evaluate_every, epochs, evaluate_every), epochs]
    return _train(method, state, epoch, lines, sets, callbacks, progress)


def _check_state(method: Method, state: Any, x: np.ndarray, y: np.ndarray) -> None:
    """The state is one of this method, of these samples where it keeps them."""
    workers = isinstance(method.parts, WorkerParts)
    unplaced = (of_workers if workers else as_method)(method.parts)
    like = jax.eval_shape(unplaced.init, jax.random.key(0), x, y)
    if type(state) is not type(like):
        raise ValueError(
            f"state: expected one of {method.name}, as its init or fit return it; got "
            f"{checks.shown(state)}"
        )
    rows = any(is_rows(getattr(state, name)) for name in state._fields)
    wanted, got = (jax.tree.map(np.shape, a) for a in (like, state)) if not rows else ((), ())
    if wanted != got:
        raise ValueError(
            f"state: expected arrays of shapes {checks.shown(wanted)}, of this network, optimizer and "
            f"samples; got {checks.shown(got)}"
        )


def _on_mesh(method: Method, mesh: Any, forms: Any, machine: Any, samples: int) -> Method:
    """The method on the user's mesh, or on the one that the cost model finds fastest; None: as it is."""
    if isinstance(mesh, Mesh):
        return place(method, mesh, forms=forms)
    own = not isinstance(forms, str) or forms != "auto"
    if mesh is None and not own:
        return method
    if not isinstance(mesh, str) or mesh != "auto" or own:
        raise ValueError(
            f"mesh: expected a jax.sharding.Mesh, or 'auto' or None and then no forms; got "
            f"{checks.shown(mesh)}, forms {checks.shown(forms)}"
        )
    given = lambda net, subnet, batch: method
    best = planner.plan(
        method.parts.network, jax.device_count(), method.parts.batch_size or samples,
        machine or present_machine(), method=given, samples=samples, runners_up=0,
    ).best  # fmt: skip
    return place(method, make_mesh(*best.shape), forms=best.forms or "auto")


def _train(method, state, epoch, lines, sets, callbacks, progress) -> Result:
    history: list[dict[str, float]] = []
    drain, guard = jax.jit(method.drain), Guard(method.step, state)
    estimate = _estimator(method, epoch.x)
    divergence, interrupted = None, False
    with _Bar(epoch.steps(lines[-1]), progress) as bar:
        try:
            for before, number in pairwise((0, *lines)):
                start = time.perf_counter()
                state, infos, divergence = epoch.run(guard, state, bar, number - before)
                if divergence is not None:
                    warnings.warn(divergence.message, RuntimeWarning, stacklevel=3)
                    break
                if number == lines[-1]:
                    guard.latest = state = jax.block_until_ready(drain(state))
                seconds = time.perf_counter() - start
                state = estimate(state)
                record = {"epoch": number, "step": epoch.steps(number)}
                record["seconds"] = seconds
                record |= means(infos) | _certificate(infos, history)
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


def _estimator(method: Method, x: np.ndarray) -> Callable:
    """state -> state with the statistics of up to ROWS training samples, where layers keep any."""
    if not method.parts.network.estimated:
        return lambda state: state
    rows = min(len(x), ROWS) // num_splits(method) * num_splits(method)
    seen = x[np.random.default_rng(0).permutation(len(x))[:rows]]
    estimate = jax.jit(method.estimate)
    return lambda state: estimate(state, seen)


class _Bar:
    """A progress bar with the newest of each number; quiet where there is no terminal."""

    NAMES = (
        ("loss", "loss"), ("primal_residual", "|p-q|"), ("coupling", "|q-f|"), ("objective", "L"),
        ("c_k", "c_k"),
    )  # fmt: skip

    def __init__(self, steps: int, progress: bool | None):
        disable = None if progress is None else not checks.flag("progress", progress)
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


def evaluate(method: Method, state: Any, sets: Mapping[str, Any]) -> dict[str, float]:
    """Mean loss and accuracy of the composed network on each named (x, y)."""
    loss, record = method.parts.loss, {}
    for name, (x, y) in sets.items():
        predicted = outputs(method, state, x)
        record[f"{name}_loss"] = float(loss.value(predicted, np.asarray(y)).mean())
        record[f"{name}_accuracy"] = float(loss.correct(predicted, np.asarray(y)).mean())
    return record


def outputs(method: Method, state: Any, x: Any) -> np.ndarray:
    """Outputs [samples, ...] of the composed network, on the host, computed at most ROWS at a time."""
    predict = jax.jit(method.predict)
    chunks = np.array_split(
        np.asarray(x), max(1, -(-len(x) // ROWS))
    )  # even: batch statistics need many
    return np.concatenate([gathered(predict(state, chunk)) for chunk in chunks])


def _certificate(infos: Info, history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """c_k: the least decrease that theory guarantees, of all steps so far."""
    if not infos.decrease.any():
        return {}
    before = history[-1].get("c_k", np.inf) if history else np.inf
    return {"c_k": min(float(infos.decrease.min()), before)}


def _pair(name: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """x and y in host memory, of a pair of arrays or of lists of numbers."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise ValueError(f"{name}: expected a pair (x, y); got {type(pair).__name__}")
    try:
        x, y = (np.asarray(a) for a in pair)
    except (ValueError, TypeError) as error:  # lists of unequal lengths
        raise ValueError(f"{name}: expected a pair of arrays (x, y); got {error}") from error
    for part, a in (("x", x), ("y", y)):
        checks.array(f"{name}: {part}", a)
        if not a.ndim:
            raise ValueError(f"{name}: {part}: expected [samples, ...]; got a single number, {a}")
    return x, y


def _functions(callbacks: Any) -> tuple:
    if not isinstance(callbacks, (list, tuple)) or not all(map(callable, callbacks)):
        raise ValueError(
            f"callbacks: expected a list of functions, e.g. [print]; got {checks.shown(callbacks)}"
        )
    return tuple(callbacks)
