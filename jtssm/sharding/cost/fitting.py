"""A machine that is as fast as a network's own steps were measured to be.

The model counts products, and what else it knows of a layer; steps of small transformers take 1.8 times
as long as that on a CPU (docs/planner.md). The factor is the network's and the device's, and nearly the
same for every method and mesh: so it is measured once, with plain steps on one device, and all that a
device does is taken to be so much slower. Our own; no paper has it.
"""

from __future__ import annotations

from dataclasses import replace

from jtssm import checks
from jtssm.protocol.method import Method
from jtssm.sharding.cost.machine_files import find_machine
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.seconds import step_seconds


def fitted(
    machine: Machine | str, method: Method, seconds: float, *, samples: int | None = None
) -> Machine:
    """The machine whose device takes `seconds` for a step of the method; its links are as they were.

    Args:
      machine: whose device was measured; a `Machine`, its name or its file.
      method: unplaced, e.g. plain SGD on the network that is to be planned for.
      seconds: of its step on one device, measured; above 0.
      samples: that a resident method keeps.

    Returns:
      A Machine of the same links: flops and memory divided, kernel and activation multiplied, by
      measured over predicted seconds.

    Raises:
      ValueError: an unknown machine; no method; seconds that are not above 0; a device whose steps take
        no time at all.

    Examples:
      >>> import jtssm, optax
      >>> from jtssm import sharding, solvers
      >>> net = jtssm.mlp([784, 512, 10])
      >>> method = solvers.sgd(net, optimizer=optax.sgd(0.1), batch_size=128)
      >>> machine = sharding.fitted("host", method, 0.02)
      >>> round(sharding.step_seconds(method, machine).total, 6)
      0.02
    """
    machine = find_machine(machine)
    checks.instance("method", method, Method, "solvers.sgd(net, optimizer=..., batch_size=128)")
    checks.positive(seconds=seconds)
    predicted = step_seconds(method, machine, samples=samples).total
    if not predicted:
        raise ValueError(
            f"machine: expected one whose products take time, e.g. 'host'; got {machine.name!r}"
        )
    slower = seconds / predicted
    return replace(
        machine,
        flops=machine.flops / slower,
        memory=machine.memory / slower,
        kernel=machine.kernel * slower,
        activation=machine.activation * slower,
        source=f"{machine.source}; {slower:.2f} times as slow, as a step of {method.name} was measured",
    )
