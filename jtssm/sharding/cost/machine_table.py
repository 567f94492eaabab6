"""Machines with published or measured numbers, each with its source: what is printed, what is assumed.

Numbers are the makers', of products in jax's default precision of float32: bfloat16 on TPUs, TF32 on
NVIDIA's GPUs that have it. Nothing here was measured but "host".
"""

from __future__ import annotations

from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.published import ALEXNET

# seconds of an epoch of AlexNet's 1.2 million images on one Cori KNL node by the samples it takes at a
# time, read off a figure of the integrated paper (1 %)
KNL_EPOCHS = {
    1: 30_740,
    2: 17_290,
    4: 9_610,
    8: 5_920,
    16: 3_920,
    32: 2_840,
    64: 2_320,
    128: 2_030,
    256: 1_780,
    512: 1_830,
    1024: 1_920,
    2048: 2_430,
}
_KNL_BEST = min(KNL_EPOCHS.values())
# of an image, in floating-point operations: three products a layer, the first layer without dX
_ADDS = [layer.multiply_adds for layer in ALEXNET]
_ALEXNET_FLOPS = 2 * (3 * sum(_ADDS) - _ADDS[0])

_H100 = (
    "nvidia.com/en-us/data-center/h100, SXM: 495 TFLOP/s (TF32 dense, half of the printed sparse), "
    "3.35 TB/s, 80 GB, NVLink 900 GB/s in both directions; "
)
_QUOTED = "as tables of others quote it; "
_A100 = (
    "nvidia.com/en-us/data-center/a100, SXM: 156 TFLOP/s (TF32 dense, half of the printed sparse), "
    f"NVLink 600 GB/s in both directions, {_QUOTED}"
)
_SWITCH = "assumed: at most 8 devices, on one switch, 5 us a message, 3 us a kernel"
_BUS = "assumed: devices of one host, each at the bus's full rate, 10 us a message, 3 us a kernel"
_TPU = "(bf16, jax's default for float32); assumed: 1 us a message, 1 us a kernel"

MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "tpu-v4",
            275e12,
            1200e9,
            45e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 1200 GB/s, 32 GiB; all-reduce 1.1 PB/s a pod of "
            f"4096 over six links a chip, of which one is counted: 45 GB/s {_TPU}",
            capacity=32 * 2**30,
        ),
        Machine(
            "tpu-v5e",
            197e12,
            819e9,
            50e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 819 GB/s, 16 GB; 1600 Gbit/s over four links, "
            f"of which one is counted: 50 GB/s {_TPU}",
            capacity=16e9,
        ),
        Machine(
            "tpu-v5p",
            459e12,
            2765e9,
            100e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 2765 GB/s, 95 GiB; 4800 Gbit/s (1200 GB/s in "
            f"both directions) over six links, of which one is counted: 100 GB/s {_TPU}",
            capacity=95 * 2**30,
        ),
        Machine(
            "tpu-v6e",
            918e12,
            1638e9,
            100e9,
            1e-6,
            1e-6,
            "cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 1638 GB/s, 32 GB; 800 GB/s in both directions "
            f"over four links, of which one is counted: 100 GB/s {_TPU}",
            capacity=32e9,
        ),
        Machine(
            "h100-nvlink",
            495e12,
            3.35e12,
            450e9,
            5e-6,
            3e-6,
            f"{_H100}assumed: all devices on one switch, 5 us a message, 3 us a kernel",
            capacity=80e9,
        ),
        Machine(
            "h100-ethernet",
            495e12,
            3.35e12,
            12.5e9,
            20e-6,
            3e-6,
            f"{_H100}assumed: one a host on 100 Gbit/s Ethernet at full line rate, 20 us a message, "
            "3 us a kernel",
            capacity=80e9,
        ),
        Machine(
            "h200-nvlink",
            495e12,
            4.8e12,
            450e9,
            5e-6,
            3e-6,
            "nvidia.com/en-us/data-center/h200, SXM, 8 a node: 495 TFLOP/s (TF32 dense, half of the "
            "printed sparse), 4.8 TB/s, 141 GB, NVLink 900 GB/s in both directions; assumed: at most 8 "
            "devices, on one switch, 5 us a message, 3 us a kernel",
            capacity=141e9,
        ),
        Machine(
            "a100-nvlink",
            156e12,
            2.039e12,
            300e9,
            5e-6,
            3e-6,
            f"{_A100}80 GB, 2039 GB/s; {_SWITCH}",
            capacity=80e9,
        ),
        Machine(
            "a100-40gb-nvlink",
            156e12,
            1.555e12,
            300e9,
            5e-6,
            3e-6,
            f"{_A100}40 GB, 1555 GB/s; {_SWITCH}",
            capacity=40e9,
        ),
        Machine(
            "b200-nvlink",
            1.1e15,
            8e12,
            900e9,
            5e-6,
            3e-6,
            "nvidia.com/en-us/data-center/dgx-b200 and hgx, 8 a node: 1.1 PFLOP/s (TF32 dense, half of "
            "the printed sparse 2.2), 8 TB/s, 1440 GB a node, NVLink 1.8 TB/s in both directions; "
            f"{_QUOTED}{_SWITCH}",
            capacity=180e9,
        ),
        Machine(
            "l4-pcie",
            60e12,
            300e9,
            32e9,
            10e-6,
            3e-6,
            "nvidia.com/en-us/data-center/l4: 60 TFLOP/s (TF32 dense, half of the printed sparse 120), "
            f"300 GB/s, 24 GB, PCIe 4 x 16, 64 GB/s in both directions; {_QUOTED}{_BUS}",
            capacity=24e9,
        ),
        Machine(
            "t4-pcie",
            8.1e12,
            320e9,
            16e9,
            10e-6,
            3e-6,
            "nvidia.com/en-us/data-center/tesla-t4: 8.1 TFLOP/s (float32; it has no TF32), 320 GB/s, 16 "
            f"GB, PCIe 3 x 16, 32 GB/s in both directions; {_QUOTED}{_BUS}",
            capacity=16e9,
        ),
        Machine(
            "cori-knl",
            _ALEXNET_FLOPS * 1.2e6 / _KNL_BEST,
            460e9,
            6 * 2**30,
            2e-6,
            1e-6,
            "arXiv 1712.04432, the machine of its simulation: 2 us, logarithmic collectives, 6 * 2**30 "
            "B/s, which reproduces its bars (printed: 6 GB/s); flops and rates: AlexNet's products over "
            "the seconds of an epoch on one node by batch, read off its figure to 1 %, the batch taken "
            "as the smallest dimension: what else a step does and the start of kernels are included; "
            "docs.nersc.gov/systems/cori: 96 GB of DDR4 (the capacity), 16 GB of MCDRAM at 460 GB/s; "
            "assumed: all traffic is the MCDRAM's, a cache; 1 us a kernel",
            capacity=96e9,
            algorithm="logarithmic",
            rates=tuple((batch, _KNL_BEST / seconds) for batch, seconds in KNL_EPOCHS.items()),
        ),
        Machine(
            "host",
            1.79e11,
            4.8e10,
            1.28e9,
            15e-6,
            0.59e-6,
            "measured by calibrate(seconds=8) on 2026-11-22, medians of 5 runs without other "
            "work: 8 virtual devices on 2 cores of an AMD EPYC (family 25, model 17) with 25 GB, an "
            "eighth each (the capacity), jax 0.10.2; of other hosts calibrate() tells",
            capacity=3.1e9,
            rates=((1, 0.126), (8, 0.289), (64, 0.718), (512, 1.0)),
            shared=True,
        ),
    )
}
