"""The notebooks run from top to bottom, with small settings, and are stored with what they printed then."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PUBLIC = {f"jtssm.{name}" for name in ("data", "losses", "nn", "sharding", "solvers")} | {"jtssm"}


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
    monkeypatch.setenv(
        "JAX_DISABLE_MOST_OPTIMIZATIONS", "1"
    )  # as in conftest: they compile more than run
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return tmp_path


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_the_outputs_of_one_whole_run(path):
    """In order, without an error, a bar or a path of the machine; with pictures, and how long each section takes."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if not any(cell.outputs or cell.execution_count for cell in cells):
        pytest.skip("stored without outputs: make notebooks")
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {
        "stream",
        "display_data",
        "execute_result",
    }
    assert {o.name for o in outputs if o.output_type == "stream"} == {"stdout"}
    told = "".join(text(cell) for cell in cells)
    assert "8 x cpu" in told
    assert not re.search(r"/(tmp|root|home|work)/", told)
    assert images(notebook) > 0
    first = notebook.cells[0].source
    assert "**On one chip**" in first
    titles = re.findall(r"^\| (\d+\. .*?) \| (\d+) \|$", first, re.MULTILINE)
    assert len(titles) > 4


class Config:
    """jax.config, which notes what is asked of it."""

    def __init__(self):
        self.asked = {}

    def update(self, name, value):
        self.asked[name] = value


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("chips", "gpus", "virtual"),
    [(1, 0, True), (4, 0, False), (0, 1, True), (0, 2, False), (0, 0, False)],
)
def test_one_chip_is_left_for_virtual_devices(path, chips, gpus, virtual, monkeypatch, capsys):
    """A TPU of one chip, of four, one GPU, two, none."""
    sources = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    listed = SimpleNamespace(stdout=b"GPU 0: NVIDIA L4 (UUID: GPU-0)\n" * gpus)
    monkeypatch.setattr("shutil.which", lambda _: "nvidia-smi" if gpus else None)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: listed)
    monkeypatch.setattr(jax, "config", Config())
    exec(sources[1], {"chips": ["/dev/accel"] * chips})
    assert jax.config.asked["jax_num_cpu_devices"] == 8
    assert (jax.config.asked.get("jax_platforms") == "cpu") == virtual
    assert "8 x cpu" in capsys.readouterr().out


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_what_ships_from_where_it_is_public(path):
    sources = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
    ours = {name for name in names if (FOLDER.parent / name.split(".")[0]).is_dir()}
    assert "jtssm" in ours
    assert ours <= PUBLIC


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_ones_own_network_is_cut_and_comes_back_trained(small):
    notebook, shown = executed("00_own_network", small)
    found = dict(re.findall(r"^(n = \d) on .*: test accuracy (\S+), ", shown, re.MULTILINE))
    accuracies = {name: float(a) for name, a in found.items()}
    assert accuracies["n = 1"] > 0.8
    assert 0.3 < accuracies["n = 2"] < accuracies["n = 1"]
    assert f"modules: 14  test accuracy: {found['n = 2']}" in shown
    # 4 bytes of weights and moments of Adam, thrice, and its counter, whole on every device
    held = 3 * 4 * 7770 / 1e3
    assert f"data parallel, 4  a device holds {held:6.1f} kB" in shown
    assert len(re.findall(r" cut   on 4 devices, [24] x \d x \d: +\S+ times one", shown)) == 4
    assert images(notebook) == 2


# what the kernel's own packages do with their sockets at exit is not ours to judge; `make docs` runs it too
@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_grid_parallel_sgd_runs_and_prints_the_bytes_of_a_step(small):
    notebook, shown = executed("04_grid_parallel_sgd", small)
    grids = re.findall(r"held-out accuracy (\S+)  largest difference of a loss (\S+)", shown)
    (accuracy,) = re.findall(r"one device: held-out accuracy (\S+)", shown)
    assert [found for found, _ in grids] == [accuracy] * 2
    assert all(float(difference) < 1e-5 for _, difference in grids)
    assert float(accuracy) > 0.5
    sent = {
        (name.strip(), grid): {number.replace(",", "") for number in numbers}
        for name, grid, *numbers in re.findall(
            r"^(\D+?) (\d x \d): by formula +(\S+) bytes, counted +(\S+)$", shown, re.MULTILINE
        )
    }
    # 8 and 16 channels of 3 x 3, then 64-32-10; a step sums the loss and what is right, too
    convolutions, first, last = 9 * 8 + 8 + 9 * 8 * 16 + 16, 64 * 32 + 32, 32 * 10 + 10
    eight, four = 2 * 4 * 7 / 8, 2 * 4 * 3 / 4  # bytes a device sends to sum a number over them
    for grid in ("1 x 8", "2 x 4", "4 x 2", "8 x 1"):
        assert sent["all batch", grid] == {f"{eight * (convolutions + first + last + 2):.0f}"}
    # 8 samples on each pc; over pr: gather of half of 64, dX of 64, sum of 10 numbers a sample
    over_pr = 4 * 8 * (64 // 2 + 64 + 10)
    weights = eight * convolutions + four * (first / 2 + (last - 10) / 2 + 10)
    assert sent["model, row", "2 x 4"] == {f"{weights + over_pr + four * 2:.0f}"}
    assert "domain     8 x 1: does not fit: 4 rows over pr = 8 leave a slab empty" in shown
    assert_domain_and_alexnet(shown)
    assert (small / "alexnet.png").stat().st_size > 5_000
    assert images(notebook) == 1


def assert_domain_and_alexnet(shown):
    (difference,) = re.findall(r"^largest difference (\S+)$", shown, re.MULTILINE)
    assert float(difference) < 1e-5
    assert "expected a 'pc' axis that divides batch_size=2; got 8" in shown
    # convolutions: a row to both sides, the second's back too; the pool: to one side and back
    halo = 4 * (2 * 8 * 1 + 2 * 8 * 8 + 4 * 4 * 8)
    assert f"rows of the 7 on each device: [1 2 2 2]\nhalo: {halo} bytes a step" in shown
    # AlexNet's weights: in groups of 2 where half the input channels are seen
    kernels = [(121 * 3, 96), (25 * 48, 256), (9 * 256, 384), (9 * 192, 384), (9 * 192, 256)]
    dense = [(9216, 4096), (4096, 4096), (4096, 1000)]
    size = sum(a * b + b for a, b in kernels + dense)
    assert f"pr =   1, pc = 512: {2 * 511 / 512 * 4 * (size + 2) / 1e6:7.2f} MB a step" in shown
    sent = {int(pr): float(mb) for pr, mb in re.findall(r"pr = +(\d+), pc = .*: +(\S+) MB", shown)}
    assert list(sent) == [2**i for i in range(10)]
    assert f"{min(sent.values())} MB a step  <- least" in shown
    assert 1 < min(sent, key=sent.get) < 512


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_mesh_shapes_are_planned_counted_and_measured(small):
    notebook, shown = executed("05_mesh_shapes", small)
    assert_plan_of_alexnet(shown)
    assert_counted_shapes(shown)
    assert (
        f"h100-ethernet  4 x 1 x 2: {milliseconds_of_gsadmm():.3f} ms, cut before layers [1, 2, 4]"
        in shown
    )
    published = re.findall(
        r"again (\S+ x \d+) .*?(\S+) s, of it.*?ours (\S+ x \d+) +(\S+) s", shown
    )
    assert [(again, ours) for again, _, ours, _ in published] == [
        (grid, grid) for grid in ("4 x 2", "8 x 4", "16 x 8", "32 x 16")
    ]
    assert all(0.97 < float(ours) / float(theirs) < 1 for _, theirs, _, ours in published)
    assert len(re.findall(r"^1 x \d x \d: predicted \S+ ms, measured", shown, re.MULTILINE)) == 4
    assert re.search(r"trained on 1 x \d x \d as ", shown)
    (accuracy,) = re.findall(r"^held-out accuracy (\S+)$", shown, re.MULTILINE)
    assert float(accuracy) > 0.5
    for name in ("shapes", "measured"):
        assert (small / f"{name}.png").stat().st_size > 5_000
    assert images(notebook) == 2


def milliseconds_of_gsadmm():
    """The first of four subnetworks is the slowest; 256 of 512 samples on each device of pc = 2."""
    size = 784 * 2048 + 2048
    # memory-bound: forward on the minibatch that comes and the one that is trained, and dW
    products = 3 * (4 * (256 * (784 + 2048) + size) / 3.35e12 + 3e-6)
    optimizer = 7 * 4 * size / 3.35e12 + 3e-6
    boundaries = 2 * (20e-6 + 4 * 256 * 2048 / 12.5e9)  # f and q - f of the widest
    gradient = 2 * 20e-6 + 4 * size / 12.5e9
    return 1e3 * (products + optimizer + boundaries + gradient)


def assert_plan_of_alexnet(shown):
    assert "planned: 1 x 32 x 2 " in shown
    table = dict(re.findall(r"^ +(\S+) +([\d.]+)$", shown, re.MULTILINE))
    # convolutions whole; dense layers over pr = 32, but for the biases of those in the row form
    kernels = [(121 * 3, 96), (25 * 48, 256), (9 * 256, 384), (9 * 192, 384), (9 * 192, 256)]
    dense = (9216 * 4096 + 4096 * 4096 + 4096 + 4096 * 1000) / 32 + 4096 + 1000
    size = sum(a * b + b for a, b in kernels) + dense
    assert table["weights"] == f"{4 * size / 1e6:.1f}"
    assert table["optimizer"] == f"{8 * size / 1e6:.1f}"
    assert table["samples"] == f"{128 * 4 * (227 * 227 * 3 + 1) / 1e6:.1f}"
    # 128 samples of 9216 from split by samples to split by columns and back; 31 messages of 1 us each way
    assert table["all_to_all"] == f"{2e3 * (31e-6 + 31 / 32 * 4 * 128 * 9216 / 32 / 50e9):.3f}"


def assert_counted_shapes(shown):
    assert "predicted and counted bytes agree on 4 shapes; 6 do not go" in shown
    sent = {
        mesh: {int(number.replace(",", "")) for number in numbers}
        for mesh, *numbers in re.findall(
            r"^(1 x \d x \d): .*predicted (\S+), counted (\S+) bytes", shown, re.MULTILINE
        )
    }
    layers = [9 * 8 + 8, 9 * 8 * 16 + 16, 64 * 32 + 32, 32 * 10 + 10]
    # weights whole: a gradient and two sums over all 8
    for mesh in ("1 x 1 x 8", "1 x 4 x 2", "1 x 8 x 1"):
        assert sent[mesh] == {4 * 2 * 7 / 8 * (sum(layers) + 2)}
    # 8 samples on each pc; over pr = 2: 128 and 64 numbers a sample gathered, their gradients scattered,
    # the 10 outputs summed; over pc = 4: halves of the weights, but the last biases
    over_pr = 1 / 2 * 8 * (128 + 64) * 2 + 2 * 1 / 2 * 8 * 10
    over_pc = 2 * 3 / 4 * ((sum(layers) - 10) / 2 + 10 + 2)
    assert sent["1 x 2 x 4"] == {4 * (over_pr + over_pc)}
    assert len(sent) == 4
    assert all(len(numbers) == 1 for numbers in sent.values())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_language_model_is_trained_whole_cut_resumed_and_on_eight_devices(small):
    notebook, shown = executed("06_language_model", small)
    (difference,) = re.findall(
        r"^largest difference from flax and optax: (\S+)$", shown, re.MULTILINE
    )
    assert float(difference) < 1e-5
    held_out = dict(re.findall(r"^(.+?) +(\S+) bits a byte of held-out", shown, re.MULTILINE))
    assert list(held_out) == ["sgd", "gsADMM, n = 2", "gsADMM, n = 4", "local SGD, N = 2"]
    assert all(6 < float(bits) < 7 for bits in held_out.values())  # 7.7 at the start
    assert "steps: 10 and on to 20; all bits equal: True" in shown
    placed = re.findall(
        r"^(.+?) +on (\d x \d x \d): (\S+) bits a byte, losses (\S+) from .*; (\S+) bytes a step$",
        shown,
        re.MULTILINE,
    )
    assert {shape for _, shape, *_ in placed} == {"1 x 2 x 4", "2 x 2 x 2", "2 x 1 x 2"}
    for name, _, bits, gap, _ in placed:
        assert abs(float(bits) - float(held_out[name])) < 2e-4
        assert float(gap) < 1e-5
    moved = {name: int(size.replace(",", "")) for name, *_, size in placed}
    # a block: attention's four products, the perceptron's two, two norms; tables, places and the head
    block = 4 * (16 * 16 + 16) + 2 * 16 * 64 + 64 + 16 + 4 * 16
    size = 2 * block + (128 + 16) * 16 + 2 * 16 + 16 * 128 + 128
    # with the gradient the loss and what is right; of a round two gradients, then the mean of weights
    assert moved["sgd"] == 4 * (size + 2)
    assert moved["local SGD, N = 2"] == 4 * (3 * size + 2)
    assert (small / "language.png").stat().st_size > 5_000
    assert images(notebook) == 1
