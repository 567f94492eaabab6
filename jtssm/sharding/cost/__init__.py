"""What a step costs by the model: machines, demands, seconds, memory, the search for forms and meshes.

Assumptions: `seconds`. Measured is here only what `calibration` writes into a machine file.
"""

from jtssm.protocol.declared import WORD, MatrixProduct, Run
from jtssm.sharding.cost.bytes_moved import exchanged_bytes, sent_bytes, step_bytes
from jtssm.sharding.cost.calibration import calibrate
from jtssm.sharding.cost.demand import step_demand
from jtssm.sharding.cost.fitting import fitted
from jtssm.sharding.cost.machine_files import (
    find_machine,
    present_machine,
    read_machine,
    write_machine,
)
from jtssm.sharding.cost.machine_table import KNL_EPOCHS, MACHINES
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.memory import Memory, step_memory
from jtssm.sharding.cost.messages import Demand, predicted_bytes
from jtssm.sharding.cost.planner import Plan, Proposal, propose
from jtssm.sharding.cost.products import network_tasks
from jtssm.sharding.cost.search import fastest_forms
from jtssm.sharding.cost.seconds import (
    Seconds,
    all_reduce_seconds,
    message_seconds,
    seconds_of,
    step_flops,
    step_seconds,
    task_seconds,
    update_seconds,
)

__all__ = [
    "KNL_EPOCHS",
    "MACHINES",
    "WORD",
    "Demand",
    "Machine",
    "MatrixProduct",
    "Memory",
    "Plan",
    "Proposal",
    "Run",
    "Seconds",
    "all_reduce_seconds",
    "calibrate",
    "exchanged_bytes",
    "fastest_forms",
    "find_machine",
    "fitted",
    "message_seconds",
    "network_tasks",
    "predicted_bytes",
    "present_machine",
    "propose",
    "read_machine",
    "seconds_of",
    "sent_bytes",
    "step_bytes",
    "step_demand",
    "step_flops",
    "step_memory",
    "step_seconds",
    "task_seconds",
    "update_seconds",
    "write_machine",
]
