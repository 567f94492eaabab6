"""What the options of `jtssm train` describe: a network and the method that trains it."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Collection, Sequence
from typing import Any

import optax

import jtssm
from jtssm import checks, solvers
from jtssm.cli.options import NETS, OPTIMIZERS, RATES
from jtssm.nn import images
from jtssm.nn.network import Network
from jtssm.planning.builders import LOCAL_STEPS
from jtssm.protocol.method import Method

PASSED = (
    "subnets", "cuts", "rho", "alpha", "eta", "schedule", "order", "sweeps", "weight_steps",
    "delay_power", "workers", "members", "local_steps", "deal", "scale", "nu", "steps", "damping",
    "t0", "weight_decay", "grid", "float_q", "compute_dtype",
)  # fmt: skip
HIDDEN = {"mlp": [512] * 3, "convnet": [128]}  # unless given
CHANNELS = [16, 32]
WARMUP = 500  # most steps of warm-up


def complete(arguments: argparse.Namespace) -> None:
    """Check the options that depend on others, and fill in what --net decides.

    Raises:
      ValueError: an unknown network, --channels without convolutions, --forms without what they split,
        several processes without a mesh.
    """
    checks.one_of("--net", arguments.net, NETS)
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
    arguments.hidden = arguments.hidden or HIDDEN[arguments.net]
    if arguments.net == "convnet":
        arguments.channels = arguments.channels or CHANNELS


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


def network(arguments: argparse.Namespace, shape: Sequence[int], classes: int) -> Network:
    """The network for samples of a shape."""
    shared = {"normalisation": arguments.normalisation, "dropout": arguments.dropout}
    if arguments.net == "mlp":
        return jtssm.mlp([*shape, *arguments.hidden, classes], **shared)
    widths = {"channels": arguments.channels, "hidden": arguments.hidden}
    return images.convnet(tuple(shape), classes, **widths, **shared)


def build(
    arguments: argparse.Namespace, shape: Sequence[int], classes: int, samples: int
) -> Method:
    """The method that the arguments describe.

    Raises:
      ValueError: an unknown name, or an argument the method does not take.
    """
    checks.one_of("--method", arguments.method, list(solvers.METHODS))
    checks.one_of("--optimizer", arguments.optimizer, OPTIMIZERS)
    checks.one_of("--rates", arguments.rates, RATES)
    checks.positive(**{"--learning-rate": arguments.learning_rate})
    builder = solvers.METHODS[arguments.method]
    given = _given(arguments, inspect.signature(builder).parameters)
    net = network(arguments, shape, classes)
    if "optimizer" in inspect.signature(builder).parameters:
        given["optimizer"] = getattr(optax, arguments.optimizer)(learning_rate(arguments, samples))
        given["batch_size"] = arguments.batch_size
    if "local_steps" in inspect.signature(builder).parameters:
        given.setdefault("local_steps", LOCAL_STEPS)
    for name, parameter in inspect.signature(builder).parameters.items():
        if name not in ("net", *given) and parameter.default is parameter.empty:
            raise ValueError(
                f"--method {arguments.method}: expected --{name.replace('_', '-')}, which it needs, "
                f"e.g. 4; got none"
            )
    return builder(net, precision=arguments.precision, **given)


def _given(arguments: argparse.Namespace, taken: Collection[str]) -> dict[str, Any]:
    """The options of methods that are given; taken: what the method takes."""
    given = {name: getattr(arguments, name) for name in PASSED}
    given = {name: value for name, value in given.items() if value is not None}
    # workers keep their layers whole
    forms = {"forms": arguments.forms} if arguments.forms and "local_steps" in taken else {}
    unknown = {name: value for name, value in given.items() if name not in taken} | forms
    if unknown:
        raise ValueError(
            f"--method {arguments.method}: expected no --{min(unknown).replace('_', '-')}, which it "
            f"does not take; got {unknown[min(unknown)]}"
        )
    return given


def learning_rate(arguments: argparse.Namespace, samples: int) -> Any:
    """Constant, or up to --learning-rate and down to 0 in as many steps as the optimizer will take."""
    if arguments.rates == "constant":
        return arguments.learning_rate
    checks.count(**{"--batch-size": arguments.batch_size, "--epochs": arguments.epochs})
    sharers = arguments.workers or arguments.members
    if arguments.method == "ist":
        sharers = arguments.subnets
    minibatches = arguments.weight_steps or samples // (arguments.batch_size * (sharers or 1))
    steps = max(minibatches * arguments.epochs * (arguments.sweeps or 1), 1)
    warmup = min(WARMUP, steps // 5)
    return optax.warmup_cosine_decay_schedule(0.0, arguments.learning_rate, warmup, steps)


def shallow(arguments: argparse.Namespace, method: Method) -> Method | None:
    """The method on the first hidden layers alone; None without --shallow."""
    if arguments.shallow is None:
        return None
    hidden, shapes = arguments.hidden, method.parts.network.shapes
    if method.name != "pdadmm" or not 1 <= arguments.shallow < len(hidden):
        raise ValueError(
            f"--shallow: expected 1..{len(hidden) - 1}, fewer than the hidden layers, with --method "
            f"pdadmm; got {arguments.shallow} with {method.name}"
        )
    if len(set(hidden[arguments.shallow - 1 :])) > 1:
        raise ValueError(
            f"--hidden: expected equal widths from layer {arguments.shallow} on, as inserted identity "
            f"layers need; got {hidden}"
        )
    assert method.parts.rebuild is not None
    return method.parts.rebuild(jtssm.mlp([*shapes[0], *hidden[: arguments.shallow], *shapes[-1]]))
