"""The examples run, and give the numbers that they promise."""

import pytest

from examples import optax_loop, stream


def test_a_flax_nnx_loop_with_gsadmm_in_its_place():
    pytest.importorskip("flax")
    from examples import nnx_loop

    found = nnx_loop.main()
    assert found["nnx"]["before"] == found["gsadmm"]["before"] < 0.3
    assert found["nnx"]["after"] > 0.92
    assert abs(found["gsadmm"]["after"] - found["nnx"]["after"]) < 0.03
    assert found["gsadmm"]["loss"] < 0.3


@pytest.mark.slow
def test_an_optax_loop_with_gsadmm_in_its_place():
    found = optax_loop.main()
    optax, gsadmm = found["optax"], found["gsadmm"]
    assert optax["accuracy"] > 0.92
    assert abs(gsadmm["accuracy"] - optax["accuracy"]) < 0.02
    # one log, one schedule
    logs = [[(line["step"], line["rate"]) for line in run["log"]] for run in (optax, gsadmm)]
    assert logs[0] == logs[1]
    assert [step for step, _ in logs[0]] == [100, 200]
    assert gsadmm["log"][1]["loss"] < 0.2 < gsadmm["log"][0]["loss"]


def test_samples_from_files():
    pytest.importorskip("grain")
    found = stream.main()
    assert found["files"]["steps"] == found["grain"]["steps"] == 10 * (1200 // 40)
    assert found["files"]["reads"] == 10 * 6
    assert min(each["accuracy"] for each in found.values()) > 0.9
