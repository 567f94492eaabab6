"""8 virtual CPU devices, float64 where x is float64, no silent rank promotion."""

import os
from pathlib import Path

import jax
import pytest

# what a program is made of is compiled in one piece: a sixth less time for programs as small as these
FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # half the time; newer versions of jaxlib have no such choice
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
# processes that tests start inherit them
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# the tests compile small programs that run for milliseconds: what LLVM would gain costs a third of the suite
jax.config.update("jax_disable_most_optimizations", True)


# of families of cases those that a cheaper one stands for where time is short, by id
SLOW_CASES = Path(__file__).with_name("slow_cases.txt")


@pytest.hookimpl(tryfirst=True)  # before -m looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cases that are listed are slow."""
    listed = set(SLOW_CASES.read_text().splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data: JTSSM_DATA, else the one beside the checkout; skips without it."""
    folder = Path(os.environ.get("JTSSM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "mnist").is_dir():
        pytest.skip(f"real data: no {folder}/mnist; set JTSSM_DATA to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    """Checkpoints at steps 6 and 12 of a run of 4 epochs, `tests.train.short_runs`."""
    from tests.train.short_runs import broken_off

    folder = tmp_path_factory.mktemp("kept")
    assert broken_off(folder) == [6, 12]
    return folder
