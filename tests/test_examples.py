"""The examples run, and give the numbers that they promise."""

import pytest

from examples import language_model, optax_loop, stream


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


def test_a_language_model_trains_as_plain_flax_and_optax():
    found = language_model.main(["sgd"])
    assert abs(found["sgd"]["last"] - found["plain"]["last"]) < 1e-5
    assert found["sgd"]["held_out"] < 5.0  # bits a byte, of 7 at the start


@pytest.mark.slow
def test_a_language_model_is_cut_and_trained_by_workers():
    found = language_model.main()
    held_out = {name: bits["held_out"] for name, bits in found.items() if name != "plain"}
    assert all(4.5 < bits < 5.2 for bits in held_out.values())
    assert held_out["sgd"] == min(held_out.values())


def test_samples_from_files():
    pytest.importorskip("grain")
    found = stream.main()
    assert found["files"]["steps"] == found["grain"]["steps"] == 10 * (1200 // 40)
    assert found["files"]["reads"] == 10 * 6
    assert min(each["accuracy"] for each in found.values()) > 0.9
