"""`plan` and `sweep`: mesh shapes for a network, predicted, counted in compiled programs and measured."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
from tqdm.auto import tqdm

from jtssm import checks, files
from jtssm.nn.network import Network
from jtssm.planning.builders import Optimizers, as_network, builder
from jtssm.planning.trials import Record, column, counted, measured, ring_sent, topology_devices
from jtssm.protocol.settings import plain
from jtssm.sharding.cost import planner
from jtssm.sharding.cost.machine_files import find_machine
from jtssm.sharding.cost.machines import Machine
from jtssm.sharding.cost.messages import Sizes
from jtssm.sharding.cost.planner import Build, Proposal
from jtssm.sharding.cost.refusals import NoRoomError
from jtssm.sharding.mesh import AXES, make_mesh

MOST_BYTES = 2**26  # of a file of records


def sweep(
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
    count: bool = True,
    measure: bool = False,
    topology: str | None = None,
    resume: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> list[Record]:
    """One record for every mesh shape, which `pandas.DataFrame` takes: predicted, counted, measured.

    Args:
      net: this and the arguments up to `samples`, and the options, as `plan` takes them.
      count: compile each shape for present devices (virtual ones will do) and count its bytes; shapes
        for which there are too few are predicted alone.
      measure: also run each shape on the present devices, if they are that many.
      topology: of TPUs that need not be there, "tpu-v5e:4x4" say: each shape is also compiled for it
        (needs libtpu).
      resume: a file of JSON lines; shapes that stand there are taken from it, each new one is added as
        soon as it is done. A record of another sweep there is refused.
      progress: show a bar; None: where there is a terminal.

    Returns:
      Records in the order of `planner.factorisations`. Fields: subnet, pr, pc, mesh, forms, cuts;
      seconds and seconds_CAUSE; bytes_sent (on rings) and bytes by route, both of one device;
      counted_sent, agrees; memory and memory_PART; compiled_memory; measured_seconds;
      topology_memory, topology_counted_sent; best; error: why a shape does not go, or what failed;
      memory_missing: bytes, where it is memory alone.

    Raises:
      ValueError: as `plan`, but that a shape which does not go is a record with an error.

    Examples:
      >>> import jtssm
      >>> net = jtssm.mlp([784, 512, 512, 10])
      >>> records = jtssm.sweep(net, 4, 64, "tpu-v5e", count=False)
      >>> [record["mesh"] for record in records]
      ['1 x 1 x 4', '1 x 2 x 2', '1 x 4 x 1', '2 x 1 x 2', '2 x 2 x 1', '4 x 1 x 1']
      >>> [record["mesh"] for record in records if record["best"]]
      ['1 x 4 x 1']
    """
    batch, overlap, memory_limit, samples = planner.check_numbers(
        batch, overlap, memory_limit, samples
    )
    (num_devices,) = checks.count(num_devices=num_devices)
    count, measure = checks.flag("count", count), checks.flag("measure", measure)
    network, machine = as_network(net), find_machine(machine)
    build = builder(method, optimizer=optimizer, **options)
    if topology is not None and len(topology_devices(topology)) < num_devices:
        raise ValueError(
            f"topology: expected one of at least {num_devices} devices; got {topology!r} with "
            f"{len(topology_devices(topology))}"
        )
    layers = [layer.name for layer in network.layers]
    about = {
        "net": net if isinstance(net, str) else layers,
        "devices": num_devices,
        "batch": batch,
        "machine": machine.name,
        "method": method if isinstance(method, str) else "own",
        "overlap": overlap,
        "samples": samples,
        "memory_limit": memory_limit,
        "count": count,
        "measure": measure,
        "topology": topology,
        "optimizer": plain(optimizer),
        "options": plain(options),
    }
    resume = None if resume is None else checks.path("resume", resume)
    done = _done(resume, about)
    shapes = planner.factorisations(num_devices)
    at = _Sweep(
        network, num_devices, batch, machine, build, memory_limit, overlap, samples, topology
    )
    disable = None if progress is None else not checks.flag("progress", progress)
    for shape in tqdm(shapes, disable=disable, unit="shape", dynamic_ncols=True):
        if shape not in done:
            done[shape] = at.record(shape, count, measure)
            _keep(resume, about, done[shape])
    records = [done[shape] for shape in shapes]
    _mark_best(records)
    return records


class _Sweep:
    """What all shapes of a sweep share."""

    def __init__(
        self,
        net: Network,
        num_devices: int,
        batch: int,
        machine: Machine,
        build: Build,
        limit: float | None,
        overlap: float,
        samples: int | None,
        topology: str | None,
    ):
        self.net, self.num_devices, self.batch, self.machine = net, num_devices, batch, machine
        self.build, self.overlap, self.samples, self.topology = build, overlap, samples, topology
        self.limit = machine.capacity if limit is None else limit

    def record(self, shape: Sizes, count: bool, measure: bool) -> Record:
        """All that is asked of one shape; what fails is told in `error`, and the others go on."""
        record: Record = dict(zip(AXES, shape, strict=True)) | {"mesh": " x ".join(map(str, shape))}
        try:
            found = self.proposal(shape)
            record |= _predicted(found, self.net)
            if count and jax.device_count() >= self.num_devices:
                record |= counted(found, make_mesh(*shape), self.samples)
            if self.topology is not None:
                tpus = make_mesh(*shape, devices=topology_devices(self.topology))
                compiled = counted(found, tpus, self.samples)
                # there products' operands go as bfloat16: no agreement to the byte is asked
                record |= {
                    f"topology_{name.removeprefix('compiled_')}": a
                    for name, a in compiled.items()
                    if name != "agrees"
                }
            if measure and jax.device_count() >= self.num_devices:
                record["measured_seconds"] = measured(found, make_mesh(*shape), self.samples)
        except NoRoomError as error:
            record |= {"error": f"ValueError: {error}", "memory_missing": error.missing}
        except Exception as error:  # one failing shape does not stop the rest
            record["error"] = f"{type(error).__name__}: {error}"
        return record

    def proposal(self, shape: Sizes) -> Proposal:
        """The best forms of one shape, checked."""
        method = self.build(self.net, shape[0], self.batch)
        return planner.propose(
            method,
            shape,
            self.machine,
            overlap=self.overlap,
            samples=self.samples,
            limit=self.limit,
        )


def _predicted(found: Proposal, net: Network) -> Record:
    seconds = {f"seconds_{name}": value for name, value in found.seconds._asdict().items()}
    memory = {f"memory_{name}": value for name, value in found.memory._asdict().items()}
    return {
        "forms": " ".join(found.forms),
        "cuts": " ".join(map(str, found.cuts)),
        "seconds": found.seconds.total,
        **seconds,
        "bytes_sent": sent_bytes(found),
        **{column("bytes", route): num for route, num in found.bytes.items()},
        "memory": found.memory.total,
        **memory,
    }


def sent_bytes(found: Proposal) -> float:
    """Bytes that a device sends in a step, by rings."""
    return ring_sent(found.bytes, found.shape)


def _mark_best(records: Iterable[Record]) -> None:
    """`best`: whether a record has the fewest predicted seconds of those that go."""
    records = list(records)
    fastest = min((r["seconds"] for r in records if "seconds" in r), default=None)
    first = next((r for r in records if r.get("seconds") == fastest), None)
    for record in records:
        record["best"] = fastest is not None and record is first


def _done(path: Path | None, about: Record) -> dict[tuple[int, ...], Record]:
    """Records that stand in a file, by shape."""
    if path is None or not path.exists():
        return {}
    try:
        text = files.content(path, MOST_BYTES).decode()
    except (OSError, ValueError) as error:
        raise ValueError(f"resume: expected a file of JSON lines; got {path}: {error}") from error
    lines = [json.loads(line) for line in text.splitlines() if _whole(line)]
    strange = [line for line in lines if line.get("about") != json.loads(json.dumps(about))]
    if strange:
        raise ValueError(
            f"resume: expected records of the same sweep, {about}; got {path} with "
            f"{strange[0].get('about')}: name another file"
        )
    records = [line.get("record") for line in lines]
    damaged = [r for r in records if not _is_record(r)]
    if damaged:
        raise ValueError(
            f"resume: expected records with {list(AXES)}; got {path} with "
            f"{checks.shown(damaged[0])}: name another file"
        )
    return {tuple(r[axis] for axis in AXES): r for r in records}


def _is_record(found: object) -> bool:
    """Whether it says of which shape it is."""
    return isinstance(found, dict) and all(isinstance(found.get(axis), int) for axis in AXES)


def _whole(line: str) -> bool:
    """Whether a line was written to its end before an interruption."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _keep(path: Path | None, about: Record, record: Record) -> None:
    if path is None:
        return
    old = path.read_bytes() if path.exists() else b""
    with path.open("a") as file:
        # behind a line that an interruption cut off, a new one
        file.write("\n" * bool(old and not old.endswith(b"\n")))
        file.write(json.dumps({"about": about, "record": record}) + "\n")
