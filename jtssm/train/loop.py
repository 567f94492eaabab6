"""`fit`: the training loop over a method, on one device or on a mesh."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jtssm import checks
from jtssm.arrays import Array, Tree
from jtssm.losses import Metric
from jtssm.nn.boundary import num_samples
from jtssm.protocol.method import Method
from jtssm.sharding.agreement import ending_all
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.distributed import ProcessBatches, ProcessSamples, introduce
from jtssm.train import fingerprint
from jtssm.train.agreement import Ways, agree, share
from jtssm.train.batches import Minibatches, Resident
from jtssm.train.checkpoint import Folder
from jtssm.train.compilation import check_cache, kept_in
from jtssm.train.divergence import not_finite
from jtssm.train.document import check_order
from jtssm.train.evaluation import as_metric, evaluate
from jtssm.train.every_steps import EverySteps
from jtssm.train.feed import Feed, check_shared
from jtssm.train.front_door import check_epochs, check_start, check_ways
from jtssm.train.halving import Halving
from jtssm.train.hooks import Hook, as_hooks
from jtssm.train.placing import on_mesh
from jtssm.train.position import Checkpoint, Lines, Position
from jtssm.train.pretrained import estimates
from jtssm.train.progress import Bar
from jtssm.train.result import Epoch, Result
from jtssm.train.samples import Given, Pair, evaluated, in_memory
from jtssm.train.saving import Saving
from jtssm.train.signals import noted
from jtssm.train.stream import Stream, check_streams, is_stream
from jtssm.train.trainer import Trainer


def fit(
    method: Method,
    train: Given | Iterable[Given] | ProcessBatches,
    *,
    epochs: int,
    key: Array,
    mesh: Mesh | str | None = None,
    machine: Machine | str | None = None,
    forms: str | Sequence[str] = "auto",
    validation: Given | Mapping[str, Given] | None = None,
    metrics: Mapping[str, Callable | Metric] | None = None,
    callbacks: Sequence[Callable[[Epoch], object] | Hook] = (),
    params: Sequence[Tree] | None = None,
    state: Tree = None,
    estimate: bool | None = None,
    progress: bool | None = None,
    evaluate_every: int = 1,
    checkpoint: str | Path | None = None,
    every: int | None = None,
    keep: int = 3,
    resume: int | str | None = None,
    on_divergence: str = "stop",
    halvings: int = 5,
    steps_per_epoch: int | None = None,
    log_every: int | None = None,
    compilation_cache: str | Path | None = None,
) -> Result:
    """Train a method and keep a history.

    Each epoch passes over all samples in a new order; what does not fill a last minibatch is left out
    of that epoch, and a round of local steps (ist, local_sgd, ensemble, `workers=`) that an epoch
    does not fill goes on in the next one; samples that do not fill a last round are left out.
    Statistics that layers keep (normalisation="running") are estimated on up to 8192 training samples
    before each evaluation. Methods that keep variables for every sample (`method.resident`) take one
    step an epoch, on samples that stay in place (shuffled once if the method draws minibatches).
    Minibatches still in flight after the last epoch are drained before it is evaluated.

    Args:
      method: placed or not.
      train: (x, y), numpy or jax arrays, x a tree of them where the network takes one; with several
        processes the same ones in each. Or `sharding.ProcessSamples(x, y)`: each process holds a share
        of its own. Or, where they do not fit
        in memory, an iterable of such pairs of any numbers of samples (a list, a generator, a grain
        DataLoader), for methods that keep no variables of each sample: sgd, gsadmm and gsam with
        schedule="streaming", ist, local_sgd, ensemble. Its samples are taken in the order in which they
        come; the statistics of layers are estimated on the first 8192 of them. Processes give the same
        pairs, or each its own in `sharding.ProcessBatches(pairs)`.
      epochs: passes over the samples; of a resident method: steps.
      steps_per_epoch: of an iterable of pairs: how many steps are an epoch, wherever a pass ends. None: a
        pass is an epoch, which only what `iter` starts anew can have (no generator).
      key: draws the weights and the order of the samples.
      mesh: places the method on it, with `sharding.place`. "auto": the mesh of all present devices, and
        the forms, that the cost model finds fastest for this method (`jtssm.plan`).
      forms: of its layers there.
      machine: that mesh="auto" is found for: a `Machine`, a name, a machine file (`sharding.calibrate`
        writes one); None: the one that is known for these devices.
      validation: (x, y), or several by name: {"train": (x, y), "valid": (x, y)}. Loss and accuracy
        of the composed network on each stand in the history as `valid_loss`, `valid_accuracy`; a
        single pair is called "validation".
      metrics: further means on each of them, by name, as `jtssm.evaluate` takes them: `valid_top5`.
      callbacks: called with an `Epoch` at every line of the history; a true bool of Python, numpy or jax
        that one returns stops the training. Numbers that it adds to `epoch.record` stand in the history.
        Or a `jtssm.train.hooks.Hook`, which sees more than lines.
      params: weights to start from, one tree a layer.
      state: instead, a state of the method to go on from, placed or not (of one device, or
        `sharding.gathered`). The samples of a resident method must be those it was made with, in the
        same order: the same `train`, and with minibatches the same `key`.
      estimate: whether the statistics that layers keep are estimated on training samples before each
        evaluation. None: they are, but for pretrained ones (`params`, or modules, that come with others
        than a new network's), which are kept, with a UserWarning: training takes those of its
        minibatches. What is frozen (use_running_average) stays in any case.
      progress: show a bar; None: where there is a terminal.
      evaluate_every: epochs between two lines of the history, with their evaluations and callbacks.
        A resident method runs that many steps in one dispatch.
      checkpoint: a folder of this machine or mounted there, which one run uses at a time. A run that
        has checkpoints there goes on from the newest, with the numbers it would have had; `params` and
        `state` are then not used again. One that was complete, or that a callback stopped, returns at
        once, and a UserWarning says that nothing was trained. Mesh, forms, callbacks, validation,
        `estimate`, `evaluate_every` and the arguments below may change, and `epochs` may grow; anything
        else that can be seen may not, and the error names it: the method's arguments, the network, the
        key, the samples, the weights or the state that it starts from, precision. Functions (optimizers,
        schedules, losses, activations, somebody's modules) are compared by what they do on small fixed
        inputs: an optimizer, e.g., by its updates at steps 0 to 100, and where it counts its steps at
        1000, 10 000 and 100 000. A stream must give the same batches again, or its iterator have
        `get_state` and `set_state` (`jtssm.train.stream_reader`); a UserWarning says if it does not.
        On one mesh and CPU, of as many cores (a UserWarning says where not), the results are the same
        bits; on a GPU with XLA_FLAGS=--xla_gpu_deterministic_ops=true; on another mesh they agree up to
        rounding. SIGTERM and Ctrl-C let the chunk of steps end (at most 50, of a resident method
        `evaluate_every`, at most 65 536), write a checkpoint and return; a second Ctrl-C gives up at
        once.
        `jtssm.load_params` reads the weights.
      every: least number of steps between two checkpoints, which lie at ends of chunks; None: one at
        every line of the history.
      keep: how many of the newest stay.
      resume: None: from the newest checkpoint. A number: where the first start with it begins; the same
        call again goes on from what that start has written since. "anyway": from the newest, though the
        run in the folder is another (a UserWarning says what differs), as long as shapes of the state,
        the number of samples and the minibatches are the same.
      on_divergence: "stop", or "halve": go back to the last line of the history whose loss was not over
        twice the least so far, nor twice that of its own first step, and on from there with half the
        steps (`jtssm.Method` says which), at most `halvings` times. One state more is kept in
        memory, and in those checkpoints that do not lie at such a line.
      log_every: steps between two calls of `on_steps` of the callbacks that have one, e.g.
        `callbacks.Steps(print)` and `callbacks.TensorBoard`; None: they are not called.
      compilation_cache: a folder of this machine or mounted there in which jax keeps what it compiles
        in this call, for other processes on the same devices with the same versions (those who can
        write there can make them run what they like). None: as jax is set. In one process a method that
        trains again, on the same mesh with samples of the same shapes, compiles nothing anyway.

    Returns:
      A `Result`. History: epoch, step, seconds (training only, since the line before; the first
      includes compilation), the means since then of `Info` and of what it shows (nan where nothing was
      measured yet), and the evaluations; of a method with a certificate (pdADMM) also c_k, the least
      decrease of all steps so far; with on_divergence="halve" also halvings, their number so far.

    Raises:
      ValueError: bad samples, fewer than one minibatch, or bad arguments; a checkpoint that is damaged
        (it says which is before it) or of another run (it says what differs), or in another's use.
      OSError: checkpoints cannot be written: before training, or later (full disk), with `result`.
      ImportError: `checkpoint` without orbax-checkpoint.

    A loss or state that is not finite stops the training: the result keeps the last finite state and
    says in `divergence`, and in a RuntimeWarning, which variable went first. Ctrl-C ends the training
    and returns what was reached; any other exception carries it as its attribute `result`.

    With several processes (`sharding.connect`) all of them call this, and the functions of the result,
    with the same arguments on a mesh that has devices of each; all get the same (but for `seconds`).
    Before anything is drawn they compare versions, method, network, samples, key, mesh and arguments:
    ValueError in every process says what differs. Process 0 shows the bar. Callbacks run where they were
    given, in some of the processes too (but ask nothing there that all must ask); training stops in all
    where one stops it, and what one raises ends all: the others raise an error of the same kind
    (ValueError, OSError, ImportError, else RuntimeError) that names the process, with `result`. A signal
    to one process ends all, with a checkpoint; without one Ctrl-C, and always an exception that is no
    callback's, ends that process; jax then ends the others.

    Examples:
      >>> import jax, jtssm, optax
      >>> from jtssm import solvers
      >>> from jtssm.data import synthetic
      >>> x, y = synthetic.separable(0, 100, 4, 3)
      >>> net = jtssm.mlp([4, 8, 3])
      >>> method = solvers.sgd(net, optimizer=optax.adam(1e-2), batch_size=50)
      >>> result = jtssm.fit(method, (x, y), epochs=2, key=jax.random.key(0), validation=(x, y))
      >>> [line["epoch"] for line in result.history]
      [1, 2]
      >>> result.predict(x).shape
      (100, 3)
    """
    with ending_all():  # nothing before its end waits for another process
        checks.instance("method", method, Method, "solvers.sgd(net, ...)")
        epochs, evaluate_every = checks.count(epochs=epochs, evaluate_every=evaluate_every)
        if log_every is not None:
            (log_every,) = checks.count(log_every=log_every)
        key, given = checks.key(key), as_hooks(callbacks)
        check_ways(checkpoint, every, keep, resume, on_divergence, halvings)
        compiled = check_cache(compilation_cache)
        held = None if is_stream(train) else in_memory(method.network, train, steps_per_epoch)
        if held is None:
            check_streams(method, train, steps_per_epoch)
        method = on_mesh(method, mesh, forms, machine, 0 if held is None else num_samples(held[0]))
        sets = evaluated(method, validation)
        found = {name: as_metric(name, given) for name, given in (metrics or {}).items()}
        ways = Ways(
            epochs=epochs,
            evaluate_every=evaluate_every,
            steps_per_epoch=steps_per_epoch,
            checkpoint=checkpoint is not None,
            every=every,
            keep=keep,
            resume=resume,
            on_divergence=on_divergence,
            halvings=halvings,
            estimate=estimate,
        )
    samples = train if held is None else held
    given = agree(method, samples, key, ways, sets, found, (params, state), given)
    share(checkpoint)
    introduce(method.mesh)
    init_key, order_key = jax.random.split(key)
    if held is None:
        feed, told = _streamed(method, train, steps_per_epoch, checkpoint is not None)
    else:
        feed, told = _held(method, held, order_key, epochs)
    check_start(method, params, state, feed)
    lines = Lines(evaluate_every, epochs)
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept_in(compiled))
        folder = begun = None
        if checkpoint is not None:
            shapes = fingerprint.abstract_state(method, init_key, feed.x, feed.y)
            run = fingerprint.fingerprint(
                method, shapes, told, num_samples(feed.x), key, params, state, feed.y
            )
            folder = Folder(checkpoint, keep, run)
            stack.callback(folder.close)
            begun = folder.load(method, shapes, resume)
        if begun is None:
            begun = _begin(method, feed, init_key, params, state)
        else:
            check_order(begun.position.order, feed.order())
            feed.resume(begun.position.order)
        check_epochs(epochs, begun.position)
        hooks: list[Hook] = [Halving(halvings, begun.sound)] if on_divergence == "halve" else []
        hooks.append(stack.enter_context(Bar(feed.steps(epochs), begun.position.steps, progress)))
        hooks += [] if log_every is None else [EverySteps(log_every, given)]
        hooks += given
        if folder is not None:  # behind all others: what they have done stands in the checkpoint
            hooks += [stack.enter_context(noted()), Saving(folder, every)]
        anew = estimates(method.network, params, estimate)
        score = lambda state: evaluate(method, state, sets, metrics=found)
        trainer = Trainer(begun, method, feed, lines, score, hooks, estimated=anew)
        if folder is not None and trainer.complete:
            folder.tell_complete()
        return trainer.train()


def _streamed(
    method: Method, train: Iterable | ProcessBatches, steps: int | None, placed: bool
) -> tuple[Feed, str]:
    """What feeds samples from batches, and what they are, in words; placed: for checkpoints."""
    feed = Stream(method, train, steps, placed)
    return feed, fingerprint.stream((feed.x, feed.y), steps)


def _held(
    method: Method, train: Pair | ProcessSamples, key: Array, epochs: int
) -> tuple[Feed, str]:
    """What feeds samples in arrays, once they are checked, and what they are, in words."""
    shared, crc = isinstance(train, ProcessSamples), None
    check = lambda x, y: method.program.check(x, y, "values")
    if isinstance(train, ProcessSamples):
        crc = check_shared(method, train, check)
    else:
        check(*train)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    x, y = train
    kind = Resident if method.resident else Minibatches
    return kind(method, x, y, rng, epochs, shared), fingerprint.samples(train, crc)


def _begin(
    method: Method, feed: Feed, key: Array, params: Sequence[Tree] | None, state: Tree
) -> Checkpoint:
    """The start of a run as a checkpoint."""
    state = method.init(key, feed.x, feed.y, params) if state is None else method.spread(state)
    at = Position(0, 0, 0, 0, 0, feed.order())
    return Checkpoint(state, at, None, [], (), int(not_finite(state)), 0)
