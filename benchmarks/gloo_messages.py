"""How long do messages of two processes on CPUs take, by collective and size?

Two network namespaces as in `benchmarks.hosts`, a process on one core each; on a link of each rate
messages of a kind in a compiled loop. Of every kind a device sends what stands in the first column, once.
Medians; what `jtssm.sharding.gloo` chooses by rests on this table. In one kind gloo's thread is left as
it is, which `jtssm.sharding.receiving` has wait for its turn. Last some 20 ms of products: alone,
before an all-reduce that waits for them, and beside one that does not.

    python -m benchmarks.gloo_messages [--links free,1gbit,100mbit] [--bytes 32,65536,524288] [--smoke]

Needs root, ip, tc and taskset. Three minutes on 2 cores, which should be idle. Last result:
benchmarks/results/gloo_messages.json.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from statistics import median
from typing import Any

from benchmarks import namespaces, record
from benchmarks.host_control import Hosts
from benchmarks.host_process import MESSAGES, SUMS
from benchmarks.hosts import LEAST_WAIT, RATES, STARTING
from jtssm.protocol.declared import WORD

LINKS = ("free", "1gbit", "100mbit")
BYTES = (2**5, 2**16, 2**19)
RUNS = (4, 3)  # of each kind in turn: how often, and how many dispatches


def main() -> None:
    """Measure all kinds in turn; write the JSON."""
    given = _arguments()
    if reason := namespaces.lacking("ip", "tc", "taskset"):
        raise SystemExit(f"two hosts: expected root, ip, tc and taskset; got {reason}")
    rows: list[dict[str, Any]] = []
    with namespaces.joined() as link:
        for num_bytes in given.bytes:
            for row in measured(link, num_bytes, given.links):
                rows.append(row)
                found = "  ".join(f"{k} {1e3 * s:.2f}" for k, s in row["seconds"].items())
                print(f"{num_bytes:8} bytes {row['link']:8} {found} ms", flush=True)
    if given.whole:
        print(record.write("gloo_messages", "benchmarks.gloo_messages", {"rows": rows}))


def measured(link: namespaces.Link, num_bytes: int, links: list[str]) -> list[dict[str, Any]]:
    """A row for each link: median seconds of a message of each kind."""
    rows = []
    with ExitStack() as stack:
        link.limit(None)
        pairs: dict[str, Hosts] = {}
        for kind in MESSAGES:
            words = ("messages", kind, str(num_bytes // WORD))
            pairs[kind] = stack.enter_context(Hosts(link, 2, *words))
            pairs[kind].answers(STARTING)
        for name in links:
            link.limit(name if RATES.get(name) else None)
            seconds: dict[str, list[float]] = {kind: [] for kind in MESSAGES}
            for _ in range(RUNS[0]):
                for kind, pair in pairs.items():
                    seconds[kind] += pair.run(RUNS[1], LEAST_WAIT)
            found = {kind: median(times) / SUMS for kind, times in seconds.items()}
            rows.append({"bytes": num_bytes, "link": name, "seconds": found})
    return rows


def _arguments() -> argparse.Namespace:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parse.add_argument
    add("--links", default=",".join(LINKS), help="their rates, in tc's words")
    add("--bytes", default=",".join(map(str, BYTES)), help="that a device sends")
    add("--smoke", action="store_true", help="one size on a free link, no result file")
    given = parse.parse_args()
    given.whole = not given.smoke and all(
        getattr(given, name) == parse.get_default(name) for name in ("links", "bytes")
    )
    given.links, given.bytes = given.links.split(","), [int(n) for n in given.bytes.split(",")]
    if given.smoke:
        given.links, given.bytes = ["free"], [2**5]
    if unknown := set(given.links) - set(RATES):
        parse.error(f"--links: expected some of {','.join(RATES)}; got {','.join(sorted(unknown))}")
    return given


if __name__ == "__main__":
    main()
