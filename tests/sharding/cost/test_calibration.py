"""Calibration: counts by hand on a clock of our own, then the devices of the tests in wide limits."""

import datetime
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtssm.sharding.cost import calibration, seconds
from jtssm.sharding.cost.calibration import calibrate, rate_table, ring, seconds_a_pass
from jtssm.sharding.cost.machine_files import find_machine
from jtssm.sharding.cost.machines import Machine

SMALL = calibration._Sizes(side=64, rows=(1, 16), array=4096, between=128, messages=(16, 1024))
HOST_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class Clock:
    """A clock that only runs move: a start, and so much a pass."""

    def __init__(self, start, each):
        self.now, self.start, self.each, self.runs = 0.0, start, each, []

    def perf_counter(self):
        return self.now

    def run(self, passes):
        self.runs.append(passes)
        self.now += self.start + passes * self.each


@pytest.mark.parametrize("each", [1e-8, 1e-6, 1e-3, 0.3, 10.0])
def test_a_pass_takes_what_it_takes_and_the_budget_holds(each, monkeypatch):
    clock = Clock(start=1e-5, each=each)
    monkeypatch.setattr(calibration, "time", clock)
    np.testing.assert_allclose(seconds_a_pass(clock.run, 1.0), each, rtol=2e-3)
    assert clock.now <= 1.5 + 2 * each  # the budget, the run that compiles, one pass more
    assert clock.runs[0] == 1


def test_a_stalled_run_does_not_count(monkeypatch):
    clock = Clock(start=0.0, each=1e-3)

    def run(passes):
        clock.run(passes)
        clock.now += 0.5 if len(clock.runs) == 5 else 0.0

    monkeypatch.setattr(calibration, "time", clock)
    np.testing.assert_allclose(seconds_a_pass(run, 2.0), 1e-3, rtol=1e-9)
    assert len(clock.runs) > 5


def test_a_ring_is_found_again_from_its_own_times():
    machine = Machine("made", 1e12, 1e11, 2e9, 3e-5, 1e-6, "made up")
    sizes = [1024, 4e6]
    for devices in (2, 5, 8):
        times = [seconds.all_reduce_seconds(machine, size, devices) for size in sizes]
        np.testing.assert_allclose(ring(devices, sizes, times), (2e9, 3e-5), rtol=1e-9)


def test_noise_never_gives_a_link_or_latency_of_nothing():
    link, latency = ring(4, [1e3, 1e6], [2e-3, 1e-3])  # the large one faster
    np.testing.assert_allclose(link, 1.5 * 1e6 / 1e-3)
    assert 0 < latency <= 2e-3 / 6
    link, latency = ring(4, [1e3, 1e6], [1e-7, 1e-3])  # no time left for latencies
    np.testing.assert_allclose((link, latency), (1.5 * 999e3 / (1e-3 - 1e-7), 1e-7 / 6))


def test_rates_are_shares_of_the_best():
    assert rate_table({64: 4e9, 1: 1e9, 8: 2e9}) == (4e9, ((1, 0.25), (8, 0.5), (64, 1.0)))
    assert rate_table({1: 3e9, 8: 1.5e9}) == (3e9, ((1, 1.0), (8, 0.5)))


@pytest.fixture
def measured(monkeypatch):
    """calibrate with small arrays, where a pass takes what `seconds` says; what was run."""
    monkeypatch.setattr(calibration, "_HOST", SMALL)
    seen = []

    def took(run, budget):
        out = run(3)
        seen.append((run, out.copy(), budget))  # the run goes on from it, and uses it up
        return 0.5

    monkeypatch.setattr(calibration, "seconds_a_pass", took)
    return seen


def test_the_counts_by_hand_where_every_pass_takes_half_a_second(measured):
    """Products 2 m side^2; an array read and written; 32 products a pass; a ring's latencies and bytes."""
    got = calibrate(seconds=7.0)
    assert got.flops == 2 * 16 * 64**2 / 0.5
    assert got.rates == ((1, 1 / 16), (16, 1.0))
    assert got.memory == 2 * 4 * 4096 / 0.5
    assert got.activation == 0.5 / 128
    assert got.kernel == 0.5 / 32
    large = 2 * 7 / 8 * 4 * 1024
    np.testing.assert_allclose(got.link, large / 0.5)
    np.testing.assert_allclose(got.latency, 0.5 * (1 - 16 / 1024) / 14)
    assert (got.shared, got.capacity, got.algorithm) == (True, HOST_MEMORY / 8, "ring")
    assert [out.shape for _, out, _ in measured] == [
        (1, 64),
        (16, 64),
        (4096,),
        (128,),
        (8, 8),
        (8 * 16,),
        (8 * 1024,),
    ]
    assert {out.dtype for _, out, _ in measured} == {np.dtype(np.float32)}
    assert {budget for *_, budget in measured} == {1.0}  # an equal share each


def test_what_is_timed_is_work_that_no_pass_can_skip(measured):
    calibrate()
    for run, _, _ in measured[:2]:  # numbers change with every pass, and neither grow nor vanish
        a, b, late = (np.array(run(n)) for n in (1, 1, 40))
        assert np.abs(a - b).max() > 0.1
        assert 1e-6 < np.abs(late).mean() < 1e3
    np.testing.assert_array_equal(measured[2][0](1), np.full(4096, 1.875, np.float32))  # the fourth
    np.testing.assert_allclose(measured[3][0](1), np.full(128, _tanhs(4)), rtol=1e-6)
    for run, out, _ in measured[5:]:
        assert len(out.sharding.device_set) == 8
        text = str(jax.make_jaxpr(run)(2))
        assert "psum" in text
        assert "while" in text


def _tanhs(passes):
    x = 0.0
    for _ in range(passes):
        x = np.tanh(x) + 0.5
    return x


def test_a_loop_makes_as_many_passes_as_it_is_told():
    run = calibration._loop(lambda x, w: x * w + 1.0, jnp.zeros(()), jnp.asarray(2.0))
    assert [float(run(n)) for n in (0, 1, 2, 2)] == [
        0.0,
        1.0,
        7.0,
        31.0,
    ]  # each from the last one's end


def test_one_device_sends_nothing_and_says_so(measured):
    got = calibrate(devices=jax.devices()[3:4])
    assert (got.link, got.latency) == (got.memory, got.kernel)
    assert "one device: link is memory, latency is kernel" in got.source
    assert (got.shared, got.capacity, got.name) == (False, HOST_MEMORY, "cpu-x1")
    assert len(measured) == 5
    assert all(out.devices() == {jax.devices()[3]} for _, out, _ in measured)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    path = tmp_path_factory.mktemp("machines") / "host.json"
    with pytest.MonkeyPatch.context() as patch:
        sizes = calibration._Sizes(512, (1, 8, 64, 512), 2**20, 2**12, (2**8, 2**16))
        patch.setattr(calibration, "_HOST", sizes)
        return calibrate(path, seconds=0.4), path


def test_the_devices_of_the_tests_lie_in_wide_limits(host):
    got, _ = host
    assert 1e8 < got.flops < 1e15
    assert 1e7 < got.memory < 1e13
    assert 1e4 < got.link < 1e13
    assert 1e-8 < got.kernel < 1e-2
    assert 1e-8 < got.latency < 1.0
    assert [size for size, _ in got.rates] == [1, 8, 64, 512]
    assert max(share for _, share in got.rates) == 1.0
    assert got.share(1) < got.share(
        512
    )  # reading 16 MB for 8 million operations: a long way from 64 of them
    assert got.shared


def test_the_source_says_when_where_and_how(host):
    got, _ = host
    assert got.name == "cpu-x8"
    year = str(datetime.datetime.now(datetime.UTC).year)
    for part in (year, "8 x cpu", f"{os.cpu_count()} cores", f"jax {jax.__version__}", "float32"):
        assert part in got.source


def test_the_file_reads_back_to_the_bit(host):
    got, path = host
    assert find_machine(path) == got


def fake(kind="cpu", process=0):
    return SimpleNamespace(platform="cpu", device_kind=kind, process_index=process)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds: expected a finite number above 0, e.g. 1.0; got 0"),
        ({"path": "machine.txt"}, "path: expected one that ends with .json, e.g. machine.json"),
        ({"path": "no/such/m.json"}, "path: expected a file in a folder that exists, e.g. m.json"),
        ({"devices": []}, r"devices: expected devices of one kind, e.g. jax.devices\(\); got \[\]"),
        ({"devices": [fake(), fake("TPU v4")]}, r"of one kind, .*; got \['TPU v4', 'cpu'\]"),
        (
            {"devices": [fake(), fake(process=2)]},
            r"devices: expected devices of this process, 0, e.g. jax.local_devices\(\).* got devices of \[2\]",
        ),
    ],
    ids=lambda value: str(value)[:20],
)
def test_misuse_is_refused_before_anything_is_measured(options, message, measured):
    with pytest.raises(ValueError, match=message):
        calibrate(**options)
    assert not measured
