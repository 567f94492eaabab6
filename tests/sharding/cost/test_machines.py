"""Machines: what they say of a product and a message by hand, entries with sources, files that read back."""

import json
from dataclasses import asdict, astuple, replace
from math import inf
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jtssm.sharding.cost.machine_files import (
    KINDS,
    find_machine,
    present_machine,
    read_machine,
    write_machine,
)
from jtssm.sharding.cost.machine_table import MACHINES
from jtssm.sharding.cost.machines import Machine

PLAIN = Machine("plain", 1e12, 1e11, 1e10, 1e-5, 1e-6, "made up")
ODD = replace(
    PLAIN,
    name="odd",
    flops=1e12 / 3,
    latency=0.1 + 0.2,
    capacity=2**70 / 7,
    algorithm="logarithmic",
    links=(("subnet", 1e9 / 7), ("pc", 3e9)),
    rates=((1, 1 / 3), (2.5, 0.9), (7.0, 1.0)),
    shared=True,
)


def test_share_is_straight_between_points_on_logarithmic_axes_and_constant_beyond():
    machine = replace(PLAIN, rates=((1, 0.01), (100, 1.0), (400, 0.25)))
    assert machine.share(0.5) == machine.share(1) == 0.01
    np.testing.assert_allclose(machine.share(10), 0.1, rtol=1e-12)
    np.testing.assert_allclose(machine.share(10**0.5), 10**-1.5, rtol=1e-12)
    assert machine.share(100) == 1.0
    np.testing.assert_allclose(machine.share(200), 0.5, rtol=1e-12)
    assert machine.share(400) == machine.share(1e9) == 0.25


def test_a_machine_without_rates_has_its_flops_in_every_shape():
    assert PLAIN.share(1) == PLAIN.share(4096) == 1.0


def test_a_single_rate_holds_everywhere():
    assert [replace(PLAIN, rates=((8, 0.5),)).share(size) for size in (1, 8, 64)] == [0.5] * 3


def test_speed_is_that_of_the_slowest_link_among_the_axes():
    machine = replace(PLAIN, links=(("subnet", 1e9), ("pr", 4e10)))
    assert machine.speed("subnet") == machine.speed(("subnet",)) == 1e9
    assert machine.speed("pc") == machine.link == machine.speed(()) == 1e10
    assert machine.speed(["pr"]) == 4e10  # also where it is faster than `link`
    assert machine.speed(("pr", "pc")) == 1e10
    assert machine.speed(("pc", "subnet", "pr")) == 1e9


def test_latencies_by_hand():
    tree = replace(PLAIN, algorithm="logarithmic")
    assert [PLAIN.latencies(p) for p in (1, 2, 5, 8, 512)] == [0, 1, 4, 7, 511]
    assert [tree.latencies(p) for p in (1, 2, 3, 5, 8, 9, 512)] == [0, 1, 2, 3, 3, 4, 9]
    assert tree.latencies(np.int64(8)) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PLAIN.latencies(0), "devices: expected an integer of at least 1; got 0"),
        (
            lambda: replace(PLAIN, algorithm="tree"),
            r"algorithm: expected one of \['logarithmic', 'ring'\]; got 'tree'",
        ),
        (
            lambda: replace(PLAIN, flops=0),
            "^flops: expected a number above 0 that a float holds, .*; got 0",
        ),
        (
            lambda: replace(PLAIN, link=10**400),
            "^link: expected a number above 0 that a float holds",
        ),
        (
            lambda: replace(PLAIN, latency=-1.0),
            "^latency: expected a finite number of at least 0, .*; got -1",
        ),
        (
            lambda: replace(PLAIN, kernel=inf),
            "^kernel: expected a finite number of at least 0, .*; got inf",
        ),
        (
            lambda: replace(PLAIN, memory="fast"),
            "^memory: expected a number above 0 .*; got 'fast'",
        ),
        (
            lambda: replace(PLAIN, links=(("px", 1e9),)),
            r"^links: expected one of \['pc', .*got 'px'",
        ),
        (
            lambda: replace(PLAIN, links=(("pc", 1e9), ("pc", 2e9))),
            r"^links: expected each axis once; got \(\('pc'",
        ),
        (
            lambda: replace(PLAIN, links={"pc": inf}),
            r"^links\['pc'\]: expected .* above 0, .*got inf",
        ),
        (lambda: replace(PLAIN, rates=((1, 2.0),)), "^rates: expected shares of at most 1.0"),
    ],
)
def test_misuse_of_a_machine_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_speeds_may_be_infinite_and_latencies_zero_and_numbers_of_numpy_are_python_s():
    ideal = Machine("ideal", inf, inf, inf, 0.0, 0, "made up")
    assert (ideal.speed("pc"), ideal.latency, ideal.capacity) == (inf, 0, inf)
    found = replace(PLAIN, flops=np.float32(2e12), links={"pc": np.int64(3)}, rates=[[1, 0.5]])
    assert [type(a) for a in (found.flops, found.links[0][1])] == [float, int]
    assert found.links == (("pc", 3),)
    assert {found: 1}[replace(found, rates=((1, 0.5),))] == 1  # of tuples: it can be hashed


def test_numbers_that_results_rest_on_stay():
    """benchmarks/results/tssm_modelled.json was made with these."""
    assert astuple(MACHINES["tpu-v5e"])[1:6] == (197e12, 819e9, 50e9, 1e-6, 1e-6)
    assert astuple(MACHINES["h100-nvlink"])[1:6] == (495e12, 3.35e12, 450e9, 5e-6, 3e-6)
    assert astuple(MACHINES["h100-ethernet"])[1:6] == (495e12, 3.35e12, 12.5e9, 20e-6, 3e-6)
    for name in ("tpu-v5e", "h100-nvlink", "h100-ethernet"):
        assert MACHINES[name].rates == MACHINES[name].links == ()
        assert MACHINES[name].algorithm == "ring"


@pytest.mark.parametrize("machine", MACHINES.values(), ids=lambda m: m.name)
def test_entries_are_positive_and_finite_and_name_their_source(machine, tmp_path):
    assert MACHINES[machine.name] is machine
    assert all(0 < number < inf for number in (*astuple(machine)[1:6], machine.capacity))
    assert "measured" in machine.source or "assumed" in machine.source
    documents = ("cloud.google.com", "nvidia.com", "arXiv", "calibrate()")
    assert any(document in machine.source for document in documents)
    write_machine(machine, tmp_path / "m.json")  # which checks the rest
    assert read_machine(tmp_path / "m.json") == machine


def test_entries_stand_to_each_other_as_the_devices_do():
    h100, slow, h200 = (MACHINES[n] for n in ("h100-nvlink", "h100-ethernet", "h200-nvlink"))
    assert h200.capacity > 1.5 * h100.capacity
    assert h200.memory > 1.2 * h100.memory
    assert h200.flops == h100.flops == slow.flops
    assert slow.link < h100.link / 10
    assert slow.latency > h100.latency
    small, a100, b200 = (MACHINES[f"{n}-nvlink"] for n in ("a100-40gb", "a100", "b200"))
    t4, l4 = MACHINES["t4-pcie"], MACHINES["l4-pcie"]
    assert t4.flops < l4.flops < a100.flops == small.flops < h100.flops < b200.flops
    assert l4.memory < t4.memory < small.memory < a100.memory < h100.memory < b200.memory
    assert t4.link * 2 == l4.link < a100.link < h100.link == b200.link / 2
    assert t4.capacity < l4.capacity < small.capacity < a100.capacity == h100.capacity
    assert h200.capacity < b200.capacity
    v4, v5e, v5p, v6e = (MACHINES[f"tpu-{n}"] for n in ("v4", "v5e", "v5p", "v6e"))
    assert v5e.flops < v4.flops < v5p.flops < v6e.flops
    assert v5e.capacity < v6e.capacity < v4.capacity < v5p.capacity  # 32 GB and 32 GiB
    assert v5e.memory < v4.memory < v6e.memory < v5p.memory
    assert v4.link <= v5e.link < v5p.link
    assert [m.name for m in MACHINES.values() if m.shared] == ["host"]


def test_cori_has_the_paper_s_links_and_its_compute_by_batch():
    """AlexNet by its shapes: three products a layer but no dX of the first, 1.2 million images."""
    cori = MACHINES["cori-knl"]
    assert (cori.latency, cori.link, cori.latencies(512)) == (2e-6, 6 * 2**30, 9)
    convolutions = [
        (11 * 11 * 3 * 96, 55),
        (5 * 5 * 48 * 256, 27),
        (3 * 3 * 256 * 384, 13),
        (3 * 3 * 192 * 384, 13),
        (3 * 3 * 192 * 256, 13),
    ]
    costs = [weights * side**2 for weights, side in convolutions]
    costs += [13 // 2 * 6 * 256 * 4096, 4096 * 4096, 4096 * 1000]
    flops = 2 * (3 * sum(costs) - costs[0])
    printed = {1: 30_740, 2: 17_290, 16: 3920, 256: 1780, 1024: 1920, 2048: 2430}
    for batch, seconds in printed.items():
        np.testing.assert_allclose(
            1.2e6 * flops / (cori.flops * cori.share(batch)), seconds, rtol=1e-12
        )
    assert cori.share(256) == 1.0
    assert cori.share(2) < cori.share(3) < cori.share(4)


def test_a_machine_is_found_as_it_is_by_name_and_by_file(tmp_path):
    assert find_machine(PLAIN) is PLAIN
    assert find_machine("tpu-v5p") is MACHINES["tpu-v5p"]
    write_machine(PLAIN, tmp_path / "mine.json")
    assert find_machine(tmp_path / "mine.json") == PLAIN
    assert find_machine(str(tmp_path / "mine.json")) == PLAIN


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "tpu-5vp",
            r"machine: expected a Machine, one of \['a100-40gb-nvlink', .*did you mean 'tpu-v5p'",
        ),
        ("H100-nvlink", r"got 'H100-nvlink'; did you mean 'h100-nvlink'"),
        ("A100", r"did you mean 'a100-nvlink' or 'a100-40gb-nvlink'\?"),
        ("TPU v5e", r"did you mean 'tpu-v5e'\?"),
        ("b200", r"did you mean 'b200-nvlink'\?"),
        ("abacus", r"a path that ends with .json; got 'abacus'$"),
        ("no/such.json", r"path: expected a machine file, .* got no/such.json: No such file"),
        (3, r"machine: expected a Machine, .* got 3"),
        (None, r"machine: expected a Machine, .* got None"),
    ],
)
def test_unknown_machines_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        find_machine(given)


@pytest.mark.parametrize("kind", KINDS)
def test_the_present_machine_is_known_by_the_kind_of_its_device(kind):
    platform = "cpu" if kind == "cpu" else "tpu"
    found = present_machine([SimpleNamespace(platform=platform, device_kind=kind)])
    assert found is MACHINES[KINDS[kind]]
    digits = {c for c in kind if c.isdigit()}
    assert kind == "cpu" or digits & set(found.name)


def test_the_present_machine_of_the_tests_is_the_host():
    assert jax.devices()[0].platform == "cpu"
    assert present_machine() is MACHINES["host"]


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        ([], "devices: expected at least one, e.g. jax.devices"),
        (
            [SimpleNamespace(platform="gpu", device_kind="NVIDIA A30")],
            r"devices: expected a kind with published numbers, .*; got 'NVIDIA A30': "
            r"measure it, machine = calibrate\('machine.json'\)",
        ),
        # not the SXM module whose numbers the entry has
        (
            [SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 PCIe")],
            "got 'NVIDIA H100 PCIe'",
        ),
    ],
)
def test_unknown_devices_are_refused(devices, message):
    with pytest.raises(ValueError, match=message):
        present_machine(devices)


@pytest.mark.parametrize("machine", [PLAIN, ODD], ids=lambda m: m.name)
def test_a_file_reads_back_to_the_bit(machine, tmp_path):
    write_machine(machine, tmp_path / "m.json")
    got = read_machine(tmp_path / "m.json")
    assert got == machine
    assert hash(got) == hash(machine)  # tuples again, not lists
    assert all(type(a) is type(b) for a, b in zip(astuple(got), astuple(machine), strict=True))
    assert "Infinity" not in (tmp_path / "m.json").read_text()  # which is no JSON


def test_fields_with_a_default_may_be_missing_from_a_file(tmp_path):
    fields = dict(list(asdict(PLAIN).items())[:7])
    (tmp_path / "m.json").write_text(json.dumps(fields))
    assert read_machine(tmp_path / "m.json") == PLAIN


def written(tmp_path, **changes):
    """A file of a right machine but for the changes; None leaves a field out."""
    fields = {**asdict(PLAIN), "capacity": 1e9, "links": {}, **changes}
    path = tmp_path / "m.json"
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flops": None}, r"flops: expected e.g. 495000000000000.0; got no such field"),
        ({"source": None}, r"source: expected e.g. 'nvidia.com.*; got no such field"),
        ({"flop": 1e12}, r"flop: expected fields among \['name', .*; did you mean 'flops'"),
        (
            {"flops": -1.0},
            r"flops: expected a number above 0 that a float holds, e.g. 4.95e\+14; got -1.0",
        ),
        (
            {"memory": 0},
            r"memory: expected a number above 0 that a float holds, e.g. 3.35e\+12; got 0",
        ),
        (
            {"link": "fast"},
            r"link: expected a number above 0 that a float holds, e.g. 4.5e\+11; got 'fast'",
        ),
        (
            {"latency": float("nan")},
            r"latency: expected a finite number of at least 0, .*; got nan",
        ),
        ({"kernel": True}, r"kernel: expected a finite number of at least 0, e.g. 3e-06; got True"),
        ({"kernel": [1.0]}, r"kernel: expected a finite number of at least 0, .*; got \[1.0\]"),
        ({"kernel": 0}, r"kernel: expected a finite number above 0, e.g. 3e-06; got 0"),
        ({"flops": inf}, r"flops: expected a finite number above 0, .*; got inf"),
        ({"flops": 10**400}, r"flops: expected a number above 0 that a float holds, .*; got 1000"),
        (
            {"capacity": -1},
            r"capacity: expected a number above 0 that a float holds, e.g. 8e\+10; got -1",
        ),
        ({"combined": 0}, r"combined: expected a number above 0 that a float holds, .*; got 0"),
        ({"name": ""}, r"name: expected a text, e.g. 'measured'; got ''"),
        ({"source": 7}, r"source: expected a text, e.g. 'measured'; got 7"),
        (
            {"algorithm": "tree"},
            r"algorithm: expected one of \['logarithmic', 'ring'\]; got 'tree'",
        ),
        ({"shared": 1}, r"shared: expected True or False; got 1"),
        ({"links": [["pc", 1e9]]}, r'links: expected e.g. {"pc": 12.5e9}; got \[\['),
        ({"links": {"px": 1e9}}, r"links: expected one of \['pc', 'pr', 'subnet'\]; got 'px'"),
        ({"links": {"pc": 0}}, r"links\['pc'\]: expected a finite number above 0, .*; got 0"),
        ({"rates": {"1": 0.5}}, r"rates: expected e.g. \[\[1, 0.01\], \[128, 1.0\]\]; got"),
        (
            {"rates": [1, 0.5]},
            r"rates: expected e.g. \[\[1, 0.01\], \[128, 1.0\]\]; got \[1, 0.5\]",
        ),
        ({"rates": [[1, 0.5, 2]]}, r"rates: expected e.g. .*; got \[\[1, 0.5, 2\]\]"),
        (
            {"rates": [[8, 0.5], [1, 0.1]]},
            r"rates: expected rising smallest dimensions, e.g. \[1, 8\]; got \[8, 1\]",
        ),
        ({"rates": [[1, 0.5], [1, 0.6]]}, r"rates: expected rising smallest dimensions"),
        ({"rates": [[0, 0.5]]}, r"rates: expected a finite number above 0, e.g. 128; got 0"),
        ({"rates": [[1, -0.5]]}, r"rates: expected a finite number above 0, e.g. 0.5; got -0.5"),
        ({"rates": [[1, 1.5]]}, r"rates: expected shares of at most 1.0, of flops; got 1.5"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_fields_of_a_file_are_refused_by_file_and_field(changes, message, tmp_path):
    with pytest.raises(ValueError, match=r"m\.json: " + message):
        read_machine(written(tmp_path, **changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "flops = 1",
            r"m.json: expected a JSON object of \['name', 'flops', .*; got other text: Expecting value",
        ),
        ("[1, 2]", r"m.json: expected a JSON object of .*; got \[1, 2\]"),
        (
            "\udcff",
            r"m.json: expected a JSON object of .*; got other text: 'utf-8' codec can't decode",
        ),
    ],
)
def test_files_that_hold_no_machine_are_refused(text, message, tmp_path):
    (tmp_path / "m.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_machine(tmp_path / "m.json")


def test_nothing_is_written_that_would_not_read_back(tmp_path):
    with pytest.raises(ValueError, match=r"plain: kernel: expected a finite number above 0"):
        write_machine(replace(PLAIN, kernel=0.0), tmp_path / "m.json")
    with pytest.raises(ValueError, match=r"path: expected one that ends with .json, e.g. machine"):
        write_machine(PLAIN, tmp_path / "m.txt")
    with pytest.raises(ValueError, match=r"path: expected a file in a folder that exists"):
        write_machine(PLAIN, tmp_path / "none" / "m.json")
    assert not list(tmp_path.iterdir())
