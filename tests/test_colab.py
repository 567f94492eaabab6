"""The notebooks run from top to bottom, with small settings, and are stored without outputs."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def text(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def executed(name, folder):
    """The notebook after a run in the folder, and all it printed."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    shown = "\n".join(text(cell) for cell in notebook.cells if cell.cell_type == "code")
    assert "8 x cpu" in shown
    assert "all there" in shown
    return notebook, shown


def images(notebook):
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return sum("image/png" in o.get("data", {}) for o in outputs)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setenv("JTSSM_NOTEBOOK", "small")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    assert all(
        not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells
    )


# what the kernel's own packages do with their sockets at exit is not ours to judge
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tunable_splitting_runs_and_shows_the_curve(small):
    notebook, shown = executed("01_tunable_splitting", small)
    for n in (2, 4):
        assert f"gsADMM streaming, n = {n}" in shown
    assert "n =  4  delays [6, 4, 2, 0]" in shown
    # n = 4 on 4 devices: 3 boundaries, 2 matrices of 55 x 32 float32
    assert f"n =  4 on 4 devices: {3 * 2 * 55 * 32 * 4} bytes a step" in shown
    assert "tpu-v5e        modelled" in shown
    assert (small / "tradeoff.png").stat().st_size > 5_000
    assert (small / "histories.png").stat().st_size > 5_000
    assert images(notebook) == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_layer_parallel_admm_runs_and_shows_certificate_and_bytes(small):
    notebook, shown = executed("02_layer_parallel_admm", small)
    assert "4 devices for 4 layers" in shown
    certified = {line.split("  ")[0] for line in shown.splitlines() if " c_k " in line}
    assert certified == {"gradient", "damped", "shallow, then grown"}
    # 3 boundaries, 2 matrices of 1 200 samples x 32; 8 bits: codes, and two floats a sample
    numbers = 3 * 2 * 1200
    assert f"grid 8   : {numbers * (32 + 8)} bytes an iteration as ['f32', 'u8']" in shown
    assert images(notebook) == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_independent_subnets_run_and_count_what_a_deal_moves(small):
    notebook, shown = executed("03_independent_subnets", small)
    for name in ("IST", "local SGD", "data parallel"):
        assert f"{name}, N = 2" in shown
    for n in (2, 4, 8):  # 64 inputs, 32 neurons, of which a subnet has m places, 10 outputs
        m = n * int(np.ceil(np.ceil(32 / n) / n))
        # four vectors of statistics and normalisation a hidden layer; the outputs' are shared
        size = 64 * m + m * m + 10 * m + 8 * m
        assert (
            f"N = {n}: {2 * size * 4} bytes a round (formula: {2 * size * 4}), 0 collectives"
            in shown
        )
    assert "normalisation None" in shown
    assert (small / "subnets.png").stat().st_size > 5_000
    assert images(notebook) == 1
