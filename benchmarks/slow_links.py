"""A language model of a billion parameters on 64 to 4 096 hosts with slow links: modelled, not measured.

A decoder of 16 blocks of width 2 048, sequences of 1 024 words, four of them a host and step; a host is
an H100 of 80 GB behind a link of 100 Mbit/s or 1 Gbit/s (20 us a message). By the model of
`jtssm.sharding.cost.seconds`, which `benchmarks.hosts` checks on two hosts: the days that 20 billion
words take, all counted alike, and what a host holds, for the fastest mesh of each way:

    SGD                synchronous, the fastest of all grids Pr x Pc with any forms
    local SGD          each host the whole network, a meeting every R = 100 steps
    gsADMM             n subnetworks, rows of hosts share a minibatch: gradients are summed in each step
    gsADMM, R = 100    n subnetworks, rows of hosts train apart and meet every R steps

Words are not equal in what they teach: old gradients and rare meetings cost some (docs/which-method.md
says how much, on small networks), and on 4 096 hosts a round of 100 steps is 1.7 billion words. Left out:
what the model leaves out.

    python -m benchmarks.slow_links [--smoke]

A minute. Last result: benchmarks/results/slow_links.json, in docs/which-method.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import optax

import jtssm
from benchmarks import record
from jtssm import nn, sharding, solvers
from jtssm.sharding import cost

WORDS, SEQUENCE, EACH, ROUND = 20e9, 1024, 4, 100
HOSTS, LINKS = (64, 512, 4096), {"100 Mbit/s": 1.25e7, "1 Gbit/s": 1.25e8}
SUBNETS = (2, 4, 8, 16)
DAY = 86_400
Sizes = tuple[int, int, int]


class Way(NamedTuple):
    """A method on a mesh, and how many sequences it takes in a step or round."""

    method: jtssm.Method
    sizes: Sizes
    sequences: int
    forms: tuple[str, ...]  # of its layers


def ways(net: nn.Network, hosts: int, machine: sharding.Machine) -> dict[str, list[Way]]:
    """By name all that are tried."""
    adam: dict[str, Any] = {"optimizer": optax.adam(1e-3)}
    whole = EACH * hosts
    batch: dict[str, Any] = {"batch_size": whole}
    best, plain = jtssm.plan(net, hosts, whole, machine).best, ("batch",) * len(net.layers)
    found = {"SGD": [Way(best.method, best.shape, whole, best.forms)]}
    local = solvers.local_sgd(net, workers=hosts, local_steps=ROUND, batch_size=EACH, **adam)
    found["local SGD"] = [Way(local, (hosts, 1, 1), whole * ROUND, plain)]
    for n in (n for n in SUBNETS if n <= len(net.layers)):
        rows = hosts // n
        own = EACH * n
        parts = min(own, 1 << (2 * n - 3).bit_length())  # at least 2 (n - 1), if there are as many
        summed: dict[str, Any] = {"microbatches": parts} | batch
        cut = solvers.gsadmm(net, subnets=n, **summed, **adam)
        found.setdefault("gsADMM", []).append(Way(cut, (n, 1, rows), whole, plain))
        apart: dict[str, Any] = {
            "workers": rows,
            "local_steps": ROUND,
            "microbatches": parts,
            "batch_size": own,
        }
        cut = solvers.gsadmm(net, subnets=n, **apart, **adam)
        found.setdefault(f"gsADMM, R = {ROUND}", []).append(
            Way(cut, (n, 1, rows), whole * ROUND, plain)
        )
    return found


def days(way: Way, machine: sharding.Machine) -> float:
    """Of all words."""
    subnet, pr, pc = way.sizes
    ways: dict[str, Any] = {"subnet": subnet, "pr": pr, "pc": pc, "forms": way.forms}
    step = sharding.step_seconds(way.method, machine, **ways)
    return step.total * WORDS / (way.sequences * SEQUENCE) / DAY


def held(way: Way) -> float:
    """Bytes that a host needs at most."""
    step = cost.step_demand(way.method, way.sizes, way.forms, None)
    return cost.step_memory(way.method, way.sizes, step, forms=way.forms).total


def rows(net: nn.Network, hosts: int, link: str) -> Iterator[dict[str, Any]]:
    """The fastest of every way."""
    host = sharding.MACHINES["h100-ethernet"]
    machine = replace(host, link=LINKS[link], name=f"H100, {link}")
    for name, tried in ways(net, hosts, machine).items():
        best = min(tried, key=lambda way: days(way, machine))
        yield {
            "hosts": hosts,
            "link": link,
            "way": name,
            "mesh": "x".join(map(str, best.sizes)),
            "microbatches": best.method.program.batch.microbatches,
            "days": days(best, machine),
            "bytes_held": held(best),
        }


def main() -> None:
    """Model, print, write the JSON."""
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parse.add_argument("--smoke", action="store_true", help="a small decoder, no result file")
    given = parse.parse_args()
    net = (
        nn.decoder(4, width=64, heads=4, sequence=SEQUENCE, vocabulary=100)
        if given.smoke
        else nn.decoder(16, width=2048, heads=16, sequence=SEQUENCE)
    )
    found = []
    for hosts in HOSTS[:1] if given.smoke else HOSTS:
        for link in LINKS:
            for row in rows(net, hosts, link):
                found.append(row)
                print(
                    f"{hosts:5} hosts  {link:10}  {row['way']:16} {row['mesh']:10} "
                    f"{row['days']:10.2f} days  {row['bytes_held'] / 1e9:.1f} GB a host",
                    flush=True,
                )
    if not given.smoke:
        print(record.write("slow_links", "benchmarks.slow_links", {"words": WORDS, "rows": found}))


if __name__ == "__main__":
    main()
