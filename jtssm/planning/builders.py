"""From a method's name and options to a function that builds it for a mesh."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

from optax import GradientTransformation

from jtssm import checks, solvers
from jtssm.nn.architectures import find_architecture
from jtssm.nn.network import Network
from jtssm.protocol.method import Method
from jtssm.sharding.cost.planner import Build

Optimizers: TypeAlias = (
    GradientTransformation | Sequence[GradientTransformation]
)  # one a subnetwork
LOCAL_STEPS = 20  # of a round of workers, unless given


def builder(method: str | Build, *, optimizer: Optimizers | None = None, **options: Any) -> Build:
    """(net, n, batch) -> the unplaced method with n subnetworks or workers.

    Args:
      method: a name of `solvers.METHODS`, or such a function as it is.
      optimizer: of methods that take one; None: optax.adam(1e-3).
      options: of the method, as its function takes them, e.g. schedule="stored" or
        schedule=solvers.Stored(weight_steps=1). With the number of subnetworks or workers among them
        (subnets, cuts, workers, members) n only says over how many devices they lie. Workers share
        the batch evenly.

    Raises:
      ValueError: an unknown name.
    """
    if callable(method):
        return partial(_own, method)
    checks.one_of("method", method, list(solvers.METHODS))
    make = solvers.METHODS[method]
    _check_options(make, options)
    _optimizers(optimizer)
    adam = solvers.optimizer("adam", 1e-3) if optimizer is None else optimizer
    takes = inspect.signature(make).parameters
    trained: dict[str, Any] = {"optimizer": adam} if "optimizer" in takes else {}
    workers = workers_argument(make)

    def build(net: Network, n: int, batch: int) -> Method:
        if method == "sgd" and n > 1:
            raise ValueError(f"subnet: expected 1, sgd trains the network as one piece; got {n}")
        given = trained | options
        if workers is not None:
            num = given.get(workers, n)
            checks.divides(workers, num, batch, "samples of a step")
            given = {
                "local_steps": LOCAL_STEPS,
                "batch_size": batch // num,
                workers: num,
            } | given
        elif "batch_size" in takes:
            num = given.get("workers") or 1  # that share a batch, where any are asked for
            checks.divides("workers", num, batch, "samples of a step")
            given = {"batch_size": batch // num} | given
        if "cuts" in takes and not {"subnets", "cuts"} & set(given):
            given["subnets"] = n
        return make(net, **given)

    return build


def workers_argument(make: Callable[..., Method]) -> str | None:
    """The argument of a constructor that says how many workers there are; None: none need be.

    A method of workers takes local_steps, not None, and nothing else that it needs is its own.
    """
    parameters = inspect.signature(make).parameters
    if "local_steps" not in parameters or parameters["local_steps"].default is None:
        return None
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    (found,) = needed - {"net", "optimizer", "local_steps", "batch_size"}
    return found


def _own(build: Build, net: Network, n: int, batch: int) -> Method:
    """What the user's function builds, a method."""
    try:
        method = build(net, n, batch)
    except TypeError as error:
        raise TypeError(
            f"method: expected a function (net, n, batch) -> Method; got {checks.shown(build)}: {error}"
        ) from error
    checks.instance("method", method, Method, "what solvers.sgd(net, ...) returns")
    return method


def _optimizers(optimizer: Optimizers | None) -> tuple[GradientTransformation, ...]:
    """Those that are given: none, one for all subnetworks, or one for each."""
    num = 1
    if isinstance(optimizer, (list, tuple)) and not hasattr(optimizer, "init"):
        num = len(optimizer)
    return () if optimizer is None else checks.optimizers(optimizer, num)


def _check_options(make: Callable, options: Iterable[str]) -> None:
    known = [name for name in inspect.signature(make).parameters if name != "net"]
    for name in options:
        checks.one_of("options", name, known)


def as_network(net: Network | str) -> Network:
    """A network as it is, or a published one by its name.

    Raises:
      ValueError: an unknown name.
    """
    if isinstance(net, str):
        return find_architecture(net)()
    checks.instance("net", net, Network, "jtssm.mlp([196, 512, 10])")
    return net
