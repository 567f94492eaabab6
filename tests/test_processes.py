"""The same program on several processes, each with devices of its own."""

import socket
import subprocess
import sys

PROGRAM = """
import sys
import jax, numpy as np, optax
jax.config.update("jax_num_cpu_devices", int(sys.argv[4]))
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
if int(sys.argv[2]) > 1:
    jax.distributed.initialize(f"localhost:{sys.argv[3]}", int(sys.argv[2]), int(sys.argv[1]))
import jtssm
from jtssm import problems, sharding, solvers

x, y = problems.separable(0, 120, 4, 3, np.float64)
net = jtssm.mlp([4, 16, 12, 3])
for schedule in ("streaming", "stored"):
    method = solvers.gsadmm(net, subnets=2, optimizer=optax.sgd(0.05), batch_size=20, schedule=schedule)
    result = jtssm.fit(
        method, (x, y), epochs=2, key=jax.random.key(0), mesh=sharding.make_mesh(2, 1, 2), validation=(x, y)
    )
    print("RESULT", schedule, repr(result.history[-1]["validation_loss"]), flush=True)
"""


def run(num: int) -> list[list[str]]:
    """What each process prints; 4 devices in all."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(i), str(num), str(port), str(4 // num)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(num)
    ]
    printed = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        printed.append([line for line in out.splitlines() if line.startswith("RESULT")])
    return printed


def test_two_processes_train_to_the_numbers_of_one():
    (one,), two = run(1), run(2)
    assert two[0] == two[1]
    values = [[float(line.split()[2]) for line in lines] for lines in (one, two[0])]
    assert len(values[0]) == 2
    assert all(abs(a - b) < 1e-10 for a, b in zip(*values, strict=True))
