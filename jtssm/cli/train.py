"""What the options of `jtssm train` describe: a network and the method that trains it."""

from __future__ import annotations

import argparse

import optax

import jtssm
from jtssm import checks, solvers
from jtssm.cli import outside
from jtssm.cli.constructors import flag, given, takes
from jtssm.cli.samples import outputs
from jtssm.data import Split
from jtssm.nn import images
from jtssm.nn.network import Network
from jtssm.planning.builders import workers_argument
from jtssm.protocol.method import Method
from jtssm.protocol.optimizers import told
from jtssm.train.checkpoint import local
from jtssm.train.stored import need_orbax

HIDDEN = {"mlp": [512] * 3, "convnet": [128]}  # unless given
CHANNELS = [16, 32]
WARMUP = 500  # most steps of warm-up


def complete(arguments: argparse.Namespace) -> None:
    """Check the options that depend on others, and fill in what --net decides.

    Raises:
      ValueError: --channels without convolutions, options of our networks with one of the user's, --forms
        without what they split, several processes without a mesh.
      ImportError: --checkpoint without orbax.
    """
    if ":" in arguments.net:
        _own_network(arguments)
    if arguments.net == "mlp" and arguments.channels:
        raise ValueError(
            f"--channels: expected --net convnet with it; got {arguments.channels} with --net mlp"
        )
    if arguments.forms and not arguments.mesh:
        raise ValueError(
            f"--forms: expected a --mesh with it, e.g. pr=2,pc=2; got {arguments.forms} and none"
        )
    if several(arguments) and not arguments.mesh:
        raise ValueError(
            "--mesh: expected one over the devices of all processes, e.g. pc=8; got none"
        )
    if arguments.checkpoint is not None:
        need_orbax()
        local(arguments.checkpoint)
    arguments.hidden = arguments.hidden or HIDDEN.get(arguments.net)
    if arguments.net == "convnet":
        arguments.channels = arguments.channels or CHANNELS


def _own_network(arguments: argparse.Namespace) -> None:
    for name in ("hidden", "channels", "normalisation", "dropout", "shallow"):
        if value := getattr(arguments, name):
            raise ValueError(
                f"{flag(name)}: expected none with --net {arguments.net}, which makes its own network; "
                f"got {value}"
            )


def several(arguments: argparse.Namespace) -> bool:
    """Whether the options ask for several processes.

    Raises:
      ValueError: for two ways of finding them.
    """
    given = (arguments.coordinator, arguments.num_processes, arguments.process_id)
    if arguments.distributed and given != (None, None, None):
        raise ValueError(
            "--distributed: expected no --coordinator, --num-processes or --process-id with it, which "
            f"jax then finds by itself; got {given}"
        )
    return arguments.distributed or given != (None, None, None)


def network(arguments: argparse.Namespace, train: Split) -> Network:
    """The network for training samples."""
    if ":" in arguments.net:
        return outside.network(arguments.net, train._asdict())
    shape, last = train.x.shape[1:], outputs(train)
    shared = {"normalisation": arguments.normalisation, "dropout": arguments.dropout}
    if arguments.net == "mlp":
        return jtssm.mlp([*shape, *arguments.hidden, last], **shared)
    widths = {"channels": arguments.channels, "hidden": arguments.hidden}
    return images.convnet(shape, last, **widths, **shared)


def build(arguments: argparse.Namespace, train: Split) -> Method:
    """The method that the arguments describe, for training samples.

    Raises:
      ValueError: an argument that the method refuses.
    """
    make = solvers.METHODS[arguments.method]
    options = given(arguments, make)
    if takes(make, "optimizer"):
        checks.positive(**{"--learning-rate": arguments.learning_rate})
        options["optimizer"] = optimizer(arguments, len(train.y))
    if arguments.loss is not None:
        options["loss"] = outside.loss(arguments.loss)
    return make(network(arguments, train), **options)


def optimizer(arguments: argparse.Namespace, samples: int) -> optax.GradientTransformation:
    """The optimizer, which says how it was asked for."""
    rate = learning_rate(arguments, samples)
    words = {"learning_rate": arguments.learning_rate, "rates": arguments.rates}
    if arguments.rates != "constant":
        words["steps"] = _steps(arguments, samples)
    return told(getattr(optax, arguments.optimizer)(rate), arguments.optimizer, words)


def learning_rate(arguments: argparse.Namespace, samples: int) -> optax.ScalarOrSchedule:
    """Constant, or up to --learning-rate and down to 0 in as many steps as the optimizer will take."""
    if arguments.rates == "constant":
        return arguments.learning_rate
    steps = _steps(arguments, samples)
    warmup = min(WARMUP, steps // 5)
    return optax.warmup_cosine_decay_schedule(0.0, arguments.learning_rate, warmup, steps)


def _steps(arguments: argparse.Namespace, samples: int) -> int:
    """How many steps the optimizer of a subnetwork or worker will take."""
    checks.count(**{"--batch-size": arguments.batch_size, "--epochs": arguments.epochs})
    make = solvers.METHODS[arguments.method]
    options = given(arguments, make)
    sharers = options.get(workers_argument(make) or "workers") or 1
    schedule = options.get("schedule")  # of the methods that have any
    each = getattr(schedule, "weight_steps", None) or samples // (arguments.batch_size * sharers)
    return max(each * arguments.epochs * getattr(schedule, "sweeps", 1), 1)


def shallow(arguments: argparse.Namespace, method: Method) -> Method | None:
    """The method on the first hidden layers alone; None without --shallow."""
    if arguments.shallow is None:
        return None
    hidden, shapes = arguments.hidden, method.network.shapes
    if not 1 <= arguments.shallow < len(hidden):
        raise ValueError(
            f"--shallow: expected 1..{len(hidden) - 1}, fewer than the hidden layers; got "
            f"{arguments.shallow}"
        )
    if len(set(hidden[arguments.shallow - 1 :])) > 1:
        raise ValueError(
            f"--hidden: expected equal widths from layer {arguments.shallow} on, as inserted identity "
            f"layers need; got {hidden}"
        )
    assert method.settings is not None
    few = jtssm.mlp([*shapes[0], *hidden[: arguments.shallow], *shapes[-1]])
    return method.settings.remade(few)
