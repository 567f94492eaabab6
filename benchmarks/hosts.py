"""Does splitting a network over two hosts pay, and does the planner know?

Two hosts are network namespaces of this machine with one core and one process each; their link has a
rate in each direction, and acknowledges every packet at once (`benchmarks.namespaces`). Every method of
`benchmarks.host_cases` runs its placed step in a loop: seconds of a step (median of the slower host),
samples a second, times the seconds a sample of plain SGD on one host, whose step is measured before and
after it, since machines change their pace; bytes that crossed the link (the
kernel's count, headers and all, of the direction that has more) beside those of the formula; and the
seconds that the planner predicts for a machine of these hosts: calibrated in one process, its latency
measured by all-reduces of two processes, its link's rate the one that is set; and for that machine fitted
to the network (`jtssm.sharding.fitted`), as slow as its steps on one host were. A step that does not end
is told and left. Other work on the machine should rest meanwhile.

    python -m benchmarks.hosts [--networks mlp,transformer] [--links free,1gbit] [--cases PATTERN]
                               [--steps 20] [--seconds 4] [--realtime] [--write NAME] [--add] [--smoke]

Needs root, ip, tc and taskset. Only the whole table is written, and what is given a name; --add puts
what was measured in the place of the same cases, or after the others, of the table that stands there, and
predicts all anew for fitted machines of this run.

Half an hour on 2 cores. Last result: benchmarks/results/hosts.json and .png, in
docs/which-method.md.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from math import inf, prod
from statistics import median
from typing import Any

from jax.sharding import AbstractMesh

import jtssm
from benchmarks import figures, namespaces, record
from benchmarks.host_cases import NETWORKS, SMOKE, TABLE, TITLES, Trained
from benchmarks.host_control import Hosts
from benchmarks.host_process import SUMS
from benchmarks.planner_measured import ranked
from jtssm import sharding
from jtssm.sharding import cost, gloo
from jtssm.sharding.cost import calibration

# bits a second by tc's words
RATES: dict[str, float | None] = {"free": None, "1gbit": 1e9, "100mbit": 1e8, "10mbit": 1e7}
NO_LINK = "none"  # of what runs on one host
STARTING = 300  # most seconds until all is compiled
MESSAGES = (2**8, 2**20)  # numbers, of the all-reduces that latency and link are measured with
BESIDE = 0.6  # seconds, of what a case is compared with, before it and after it
LEAST_WAIT = 60.0  # seconds that a step may take, however short it is predicted

Row = dict[str, Any]


def main() -> None:
    """Measure the hosts, then every case; write the JSON and the figure."""
    given = _arguments()
    if reason := namespaces.lacking("ip", "tc", "taskset"):
        raise SystemExit(f"two hosts: expected root, ip, tc and taskset; got {reason}")
    rows: list[Row] = []
    with namespaces.joined() as link:
        machines = known_machines(link, given)
        for network in given.networks:
            for row in of_network(link, network, machines, given):
                rows.append(row)
                print(shown(row), flush=True)
    name = given.write or "hosts"
    content = {"titles": TITLES, "machines": {k: asdict(m) for k, m in machines.items()}}
    if given.add:
        table = json.loads((record.RESULTS / f"{name}.json").read_text())
        rows, content = among(table, rows, content)
    rows = fitted_rows(rows, machines)
    links = list(RATES) if given.add else given.links
    agreement = {key: agreements(rows, links, f"{key}_seconds") for key in ("predicted", "fitted")}
    for key, each in agreement.items():
        for of, found in each.items():
            told = "  ".join(f"{k} {a:.2f}" for k, a in found.items() if a is not None)
            print(f"{of}, {key}: {told}")
    if given.write or given.whole or given.add:
        content |= {"rows": rows} | agreement
        print(record.write(name, "benchmarks.hosts", content))
    if name == "hosts" and (given.whole or given.add):
        figures.draw("hosts")


def among(
    table: dict[str, Any], rows: list[Row], content: dict[str, Any]
) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a table with these in it; its content, and what of it was measured apart, how."""
    key = lambda row: (row["network"], row["case"], row["link"])
    new = {key(row): row for row in rows}
    kept = [new.pop(key(row), row) for row in table["rows"]]
    *before, last = table.get("apart", [{"cases": "all others"}])
    last = last | {k: table[k] for k in ("command", "date", "commit", "machines")}
    cases = sorted({(row["network"], row["case"]) for row in rows})
    return [*kept, *new.values()], content | {"apart": [*before, last, {"cases": cases}]}


def _arguments() -> argparse.Namespace:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parse.add_argument
    add("--smoke", action="store_true", help="a minute, a small network, no result file")
    add("--networks", default=",".join(TABLE), help="of benchmarks.host_cases")
    add("--links", default=",".join(RATES), help="their rates, in tc's words")
    add("--cases", default="", help="regular expression: which lines of the tables")
    add("--steps", type=int, default=20, help="most steps that are measured")
    add("--seconds", type=float, default=4.0, help="about the most that one measurement takes")
    add("--write", help="the name of a result file of these cases alone")
    add("--add", action="store_true", help="to the table that stands there")
    add("--realtime", action="store_true", help="keep other work off the hosts' cores (chrt -f 10)")
    given = parse.parse_args()
    whole = ("smoke", "networks", "links", "cases")
    given.whole = all(getattr(given, name) == parse.get_default(name) for name in whole)
    given.networks, given.links = given.networks.split(","), given.links.split(",")
    if given.smoke:
        given.networks, given.links = list(SMOKE), ["100mbit"]
    for what, known in (("networks", NETWORKS | SMOKE), ("links", RATES)):
        if unknown := set(getattr(given, what)) - set(known):
            parse.error(f"--{what}: expected some of {','.join(known)}; got {','.join(unknown)}")
    given.before = ["chrt", "-f", "10"] if given.realtime else []
    return given


def known_machines(link: namespaces.Link, given: argparse.Namespace) -> dict[str, sharding.Machine]:
    """A machine of the hosts for every rate of their link; not calibrated in a smoke run."""
    if given.smoke:
        host = replace(sharding.MACHINES["host"], shared=False)
        return {name: replace(host, link=(RATES[name] or 1e10) / 8) for name in given.links}
    with Hosts(link, 1, "calibrated", before=given.before) as one:
        (fields,) = one.answers(STARTING)
    host = sharding.Machine(**fields)
    times = [_all_reduce_seconds(link, numbers, given) for numbers in MESSAGES]
    sizes = [cost.WORD * numbers for numbers in MESSAGES]
    free, latency = calibration.ring(2, sizes, times)
    found = {}
    for name in given.links:
        speed = min(free, (RATES[name] or inf) / 8)
        source = f"{host.source}; link {name}, all-reduces of {sizes} bytes between two processes"
        found[name] = replace(
            host,
            name=f"two hosts, {name}",
            link=speed,
            latency=latency,
            source=source,
            combined=gloo.LONGEST,
        )
    print(f"{host.name}: {host.source}\nlink {free:.3g} bytes a second, latency {latency:.3g} s")
    return found


def _all_reduce_seconds(link: namespaces.Link, numbers: int, given: argparse.Namespace) -> float:
    """Of one all-reduce of so many numbers over a free link."""
    link.limit(None)
    with Hosts(link, 2, "sums", str(numbers), before=given.before) as pair:
        pair.answers(STARTING)
        return median(pair.run(given.steps, LEAST_WAIT)) / SUMS


def of_network(
    link: namespaces.Link,
    network: str,
    machines: Mapping[str, sharding.Machine],
    given: argparse.Namespace,
) -> Iterator[Row]:
    """The rows of all cases of a network, each beside what it is compared with."""
    trained, plain = (NETWORKS | SMOKE)[network], dict[str, Hosts]()
    with ExitStack() as kept:
        for case in (name for name in trained.cases if re.search(given.cases, name)):
            against = trained.cases[case].against
            if against not in plain:
                one = Hosts(link, 1, "trained", network, against, before=given.before)
                plain[against] = kept.enter_context(one)
                one.answers(STARTING)
            yield from measured(link, trained, network, case, machines, given, plain[against])


def measured(
    link: namespaces.Link,
    trained: Trained,
    network: str,
    name: str,
    machines: Mapping[str, sharding.Machine],
    given: argparse.Namespace,
    plain: Hosts,
) -> Iterator[Row]:
    """A row for every rate of the link, or one of a case of one host; an error ends them.

    plain: the case that it is compared with, which runs before and after each measurement: a machine that
    others use changes its pace.
    """
    case, method = trained.cases[name], trained.method(name)
    links = list(machines) if case.hosts == 2 else [NO_LINK]
    kept = resident(trained, method)
    about: Row = {"network": network, "case": name, "against": case.against, "link": links[0]}
    about["samples"] = samples_of(trained, name)
    mesh = AbstractMesh(case.mesh or (1, 1, 1), sharding.AXES)
    words = ("trained", network, name)
    link.limit(None)
    try:
        with Hosts(link, max(1, case.hosts), *words, before=given.before) as hosts:
            hosts.answers(STARTING)
            beside = some_steps(plain)
            for at in links:
                about["link"] = at
                machine = machines.get(at) or next(iter(machines.values()))
                about |= expected(method, machine, mesh, kept)
                link.limit(at if RATES.get(at) else None)
                row = about | timed(link, hosts, about["predicted_seconds"], given)
                before, beside = beside, some_steps(plain)
                yield row | compared(row, [*before, *beside], samples_of(trained, case.against))
    except (TimeoutError, RuntimeError) as error:
        yield about | {"error": str(error)}


def expected(
    method: jtssm.Method, machine: sharding.Machine, mesh: AbstractMesh, samples: int | None
) -> Row:
    """Bytes that a host sends in a step by the formula, and seconds; None of what has no formula.

    samples: that a resident method keeps.
    """
    subnet, pr, pc = mesh.axis_sizes
    try:
        handed_in = sharding.step_bytes(method, mesh, samples=samples)
    except ValueError:  # of slots that stay empty on a host the model knows nothing
        return {"bytes_by_formula": None, "predicted_seconds": None}
    found = sharding.step_seconds(method, machine, subnet=subnet, pr=pr, pc=pc, samples=samples)
    sent = sharding.ring_bytes(handed_in, mesh.shape)
    return {"bytes_by_formula": sent, "predicted_seconds": found.total}


def fitted_rows(rows: list[Row], machines: Mapping[str, sharding.Machine]) -> list[Row]:
    """Rows with the seconds that are predicted for machines that are fitted to their networks."""
    known: dict[tuple[str, str], sharding.Machine] = {}
    for row in rows:  # of each network on one host
        if row["case"] == row["against"] and "error" not in row:
            trained = (NETWORKS | SMOKE)[row["network"]]
            method, seconds = trained.method(row["case"]), row["step_seconds"]["median"]
            for link, machine in machines.items():
                fit = sharding.fitted(machine, method, seconds, samples=resident(trained, method))
                known.setdefault((row["network"], link), fit)
    return [fitted(row, known) for row in rows]


def fitted(row: Row, known: Mapping[tuple[str, str], sharding.Machine]) -> Row:
    """The row with the seconds for a machine of its network and link; of one host with any of them."""
    network, case = row["network"], row["case"]
    mine = {link: machine for (of, link), machine in known.items() if of == network}
    if not mine or not row.get("predicted_seconds"):
        return row
    trained = (NETWORKS | SMOKE)[network]
    method = trained.method(case)
    mesh = AbstractMesh(trained.cases[case].mesh or (1, 1, 1), sharding.AXES)
    machine = mine.get(row["link"], next(iter(mine.values())))
    found = expected(method, machine, mesh, resident(trained, method))
    return row | {"fitted_seconds": found["predicted_seconds"]}


def resident(trained: Trained, method: jtssm.Method) -> int | None:
    """How many samples a method keeps; None: it keeps none."""
    return trained.batch if method.resident else None


def timed(
    link: namespaces.Link, hosts: Hosts, predicted: float | None, given: argparse.Namespace
) -> Row:
    """Seconds of a step and bytes that crossed; a first step is left out, unless it fills the time."""
    wait = LEAST_WAIT + 10 * (predicted or LEAST_WAIT)
    before = link.sent()
    seconds = hosts.run(1, wait)
    if seconds[0] < given.seconds:
        before, steps = link.sent(), min(given.steps, int(given.seconds / seconds[0]))
        seconds = hosts.run(steps, wait * steps)
    crossed = [(b - a) / len(seconds) for a, b in zip(before, link.sent(), strict=True)]
    return {
        "steps": len(seconds),
        "step_seconds": record.spread(seconds),
        "bytes_crossed": max(crossed) if hosts.num > 1 else 0.0,
        "bytes_each_way": crossed,
    }


def seconds_a_sample(row: Row, key: str = "step_seconds") -> float:
    """The median that was measured, or what was predicted."""
    step = row[key]["median"] if key == "step_seconds" else row[key]
    return step / row["samples"]


def some_steps(plain: Hosts) -> list[float]:
    """Seconds of two steps at least."""
    first = plain.run(1, LEAST_WAIT)
    return first + plain.run(max(1, min(20, int(BESIDE / first[0]))), LEAST_WAIT)


def samples_of(trained: Trained, name: str) -> int:
    """Samples of a step of a case."""
    return prod(trained.method(name).batch_shape or (trained.batch,))


def compared(row: Row, seconds: list[float], samples: int) -> Row:
    """Times the seconds a sample of the case that it is compared with, whose steps took `seconds`."""
    ratio = seconds_a_sample(row) / (median(seconds) / samples)
    return {"ratio": ratio, "against_seconds": record.spread(seconds)}


def agreements(rows: list[Row], links: list[str], key: str) -> dict[str, dict[str, float | None]]:
    """How well predictions rank the cases of a network on a link, with what runs on one host.

    key: what of a row was predicted.
    """
    found = {}
    done = [row for row in rows if row.get(key) and "error" not in row]
    for network in dict.fromkeys(row["network"] for row in done):
        for link in links:
            here = [a for a in done if a["network"] == network and a["link"] in (link, NO_LINK)]
            if len(here) > 1:
                both = [[seconds_a_sample(a, k) for a in here] for k in (key, "step_seconds")]
                found[f"{network}, {link}"] = ranked(*both)
    return found


def shown(row: Row) -> str:
    """A row as it is printed."""
    start = f"{row['network']:12} {row['case']:34} {row['link']:8}"
    if "error" in row:
        return f"{start} {row['error']}"
    step = row["step_seconds"]["median"]
    parts = [f"{1e3 * step:10.2f} ms a step {1e6 * seconds_a_sample(row):9.1f} us a sample"]
    parts.append(f"{row['ratio']:6.2f} x {row['against']}")
    if row["bytes_crossed"]:
        formula = row["bytes_by_formula"]
        share = f" ({row['bytes_crossed'] / formula:.3f} x formula)" if formula else ""
        parts.append(f"{row['bytes_crossed'] / 1e6:.3f} MB{share}")
    if (predicted := row["predicted_seconds"]) is not None:
        parts.append(
            f"predicted {1e3 * predicted:.2f} ms, measured {step / predicted:.2f} times that"
        )
    return f"{start} {'  '.join(parts)}"


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # namespaces are removed then, too
    main()
