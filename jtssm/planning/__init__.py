"""Which mesh, before it is paid for: `plan`, `sweep`, and a machine `fitted_here` to a network."""

from __future__ import annotations

from typing import Any

from jtssm import checks
from jtssm.nn.network import Network
from jtssm.planning.builders import Optimizers, as_network, builder
from jtssm.planning.trials import measured_here
from jtssm.sharding.cost import fitting, planner
from jtssm.sharding.cost.machine_files import find_machine
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.planner import Build, Plan


def plan(
    net: Network | str,
    num_devices: int,
    batch: int,
    machine: Machine | str,
    *,
    method: str | Build = "sgd",
    optimizer: Optimizers | None = None,
    memory_limit: float | None = None,
    overlap: float = 0.0,
    samples: int | None = None,
    runners_up: int = 4,
    **options: Any,
) -> Plan:
    """The fastest mesh of so many devices, the cuts and each layer's form, by the cost model.

    Args:
      net: a network, or the name of a published one, of `jtssm.nn.architectures.ARCHITECTURES`.
      num_devices: all are used.
      batch: samples of a step's minibatch, of all devices together.
      machine: a `Machine`, the name of one of `MACHINES`, or the path of a machine file.
      method: the name of a method, or (net, n, batch) -> the unplaced one with n subnetworks or workers.
      optimizer: of the method; None: Adam.
      options: its other arguments, as its constructor takes them (a schedule by its name or as it is).
      memory_limit: bytes a device may hold; None: the machine's capacity.
      overlap: share of the products' time, 0 to 1, behind which the all-reduce of gradients may hide.
      samples: that a resident method keeps.
      runners_up: how many other meshes to return.

    Raises:
      ValueError: unknown names (with the nearest), bad numbers, no mesh that goes.

    Examples:
      >>> import jtssm
      >>> found = jtssm.plan("alexnet", 8, 512, "h100-ethernet")
      >>> found.best.shape  # subnet, pr, pc
      (1, 8, 1)
      >>> found.best.forms[-3:]
      ('row', 'model', 'row')
    """
    build = builder(method, optimizer=optimizer, **options)
    return planner.plan(
        as_network(net),
        num_devices,
        batch,
        machine,
        method=build,
        memory_limit=memory_limit,
        overlap=overlap,
        samples=samples,
        runners_up=runners_up,
    )


def fitted_here(
    net: Network | str,
    batch: int,
    machine: Machine | str,
    *,
    optimizer: Optimizers | None = None,
) -> Machine:
    """The machine as fast as plain steps of this network are on a device that is present.

    Runs plain SGD's step on random samples, a dozen times; other work should rest meanwhile. What the
    model does not count of this network (see `jtssm.sharding.cost.fitting`) is in its machine then.

    Args:
      net: a network, or the name of a published one.
      batch: samples of a step, on that one device.
      machine: a `Machine`, or as `plan` takes it, of devices like the one that is present.
      optimizer: of the steps; None: Adam.

    Raises:
      ValueError: unknown names (with the nearest), bad numbers.

    Examples:
      >>> import jtssm
      >>> from jtssm import planning
      >>> net = jtssm.mlp([64, 128, 128, 10])
      >>> machine = planning.fitted_here(net, 32, "host")
      >>> plan = jtssm.plan(net, 3, 32, machine, method="gsadmm")
    """
    (batch,) = checks.count(batch=batch)
    method = builder("sgd", optimizer=optimizer)(as_network(net), 1, batch)
    return fitting.fitted(find_machine(machine), method, measured_here(method))
