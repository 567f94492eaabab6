"""Machines as data: what a device and its links can do."""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
    """A device and its links; `source` says what was published and what is assumed."""

    name: str
    flops: float  # a second, of products in jax's default precision of float32
    memory: float  # bytes a second
    link: float  # bytes a second that a device sends in one direction
    latency: float  # seconds a message
    kernel: float  # seconds to start a kernel
    source: str


MACHINES = {
    machine.name: machine
    for machine in (
        Machine(
            "tpu-v5e", 197e12, 819e9, 50e9, 1e-6, 1e-6,
            "cloud.google.com/tpu/docs/v5e: 197 TFLOP/s (bf16, jax's default for float32), "
            "819 GB/s, 1600 Gbit/s over four links, of which one is counted: 50 GB/s; "
            "assumed: 1 us a message, 1 us a kernel",
        ),
        Machine(
            "h100-nvlink", 495e12, 3.35e12, 450e9, 5e-6, 3e-6,
            "NVIDIA H100 SXM: 495 TFLOP/s (TF32 dense), 3.35 TB/s, NVLink 900 GB/s in both directions; "
            "assumed: all devices on one switch, 5 us a message, 3 us a kernel",
        ),
        Machine(
            "h100-ethernet", 495e12, 3.35e12, 12.5e9, 20e-6, 3e-6,
            "NVIDIA H100 SXM as above, one a host on 100 Gbit/s Ethernet; assumed: full line rate, "
            "20 us a message, 3 us a kernel",
        ),
    )
}  # fmt: skip
