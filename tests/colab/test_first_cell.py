"""The first cell of the notebooks brings a runtime from what Colab has to what jtssm asks for.

The slow tests make an environment with Colab's versions once, and copies of it by hard links (pip
unlinks what it replaces, so the original stays). All notebooks start with the same text, which a quick
test asserts: the upgrade is walked once in a kernel that goes on with the notebook, once in a kernel
that already holds the old jax. The other notebooks run in the environment that the first one left.
"""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
COLAB = ("jax==0.7.2", "flax==0.11.2", "orbax-checkpoint==0.12.4", "optax==0.2.8", "numpy==2.1.3")
# what only a whole, fitting installation can do; and where jtssm was imported from
PROOF = """
import sys
import jtssm, matplotlib, optax, orbax.checkpoint, rich, sklearn
from flax import nnx
print("nnx", nnx.Linear(2, 3, rngs=nnx.Rngs(0)).kernel.shape)
print("from site-packages:", jtssm.__file__.startswith(sys.prefix))
"""
# what the kernel's own packages do with their sockets at exit is not ours to judge
kernel_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


def read(path):
    return nbformat.read(path, 4)


def first_cell():
    return next(cell.source for cell in read(NOTEBOOKS[0]).cells if cell.cell_type == "code")


def run_first_cell():
    exec(compile(first_cell(), "first cell", "exec"), {})


def test_all_notebooks_start_with_the_same_two_cells():
    starts = [[(c.cell_type, c.source) for c in read(path).cells[1:3]] for path in NOTEBOOKS]
    assert all(start == starts[0] for start in starts)
    assert starts[0][1] == ("code", first_cell())


def test_the_place_is_one_variable_at_the_top_and_the_index_by_name():
    assert first_cell().splitlines()[0].startswith('PLACE = "jtssm"  #')
    assert len(re.findall(r"^PLACE = ", first_cell(), re.MULTILINE)) == 1


@pytest.fixture
def pip(monkeypatch):
    """The commands that would be run; as if pip had failed."""
    commands = []
    failed = SimpleNamespace(returncode=1, stderr="no such thing")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: commands.append(command) or failed)
    return commands


@pytest.fixture
def version(monkeypatch):
    """Sets the version of a distribution, None for one that is not there."""
    there, found = {}, metadata.distribution

    def distribution(name):
        if there.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return SimpleNamespace(version=there[name], requires=[]) if name in there else found(name)

    monkeypatch.setattr(metadata, "distribution", distribution)
    return there.__setitem__


@pytest.mark.parametrize(
    ("chips", "smi", "kind"),
    [
        ("accel*", None, "tpu"),
        ("vfio/[0-9]*", None, "tpu"),
        (None, "nvidia-smi", "cuda12"),
        (None, None, None),
    ],
)
def test_jax_is_installed_for_the_chips_that_are_there(chips, smi, kind, pip, version, monkeypatch):
    version("jtssm", None)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(Path, "glob", lambda _, pattern: ["/dev/0"] if pattern == chips else [])
    monkeypatch.setattr(shutil, "which", lambda _: smi)
    with pytest.raises(RuntimeError, match="no such thing\nPLACE, at the top of this cell"):
        run_first_cell()
    wanted = ["jtssm[all]", f"jax[{kind}]>=0.10"] if kind else ["jtssm[all]"]
    assert pip == [[sys.executable, "-m", "pip", "install", "--quiet", *wanted]]


@pytest.mark.parametrize(
    ("name", "have", "message"),
    [
        ("flax", "0.11.2", r"flax is 0\.11\.2, asked for is >=0\.12\.8"),
        ("orbax-checkpoint", None, "orbax-checkpoint is not there"),  # of an extra
        ("jaxlib", "0.7.2", r"jaxlib is 0\.7\.2, asked for is "),
        ("ml-dtypes", "0.1", r"ml_dtypes is 0\.1, asked for is "),  # of jax alone
    ],
)
def test_what_is_too_old_or_not_there_is_installed(
    name, have, message, pip, version, monkeypatch, capsys
):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    version(name, have)
    version(name.replace("-", "_"), have)
    with pytest.raises(RuntimeError):
        run_first_cell()
    assert len(pip) == 1
    assert re.search(message, capsys.readouterr().out)


def test_a_kernel_that_holds_another_version_is_told_to_restart(pip, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(jax, "__version__", "0.7.2")
    with pytest.raises(RuntimeError, match=r"restart the kernel and run this cell again, for jax$"):
        run_first_cell()
    assert not pip


@functools.cache
def python_3_13():
    """The path of an interpreter; skips without one."""
    environment = os.environ | {"PYENV_VERSION": "3.13"}  # pyenv's shims ask for it
    for name in (sys.executable, "python3.13"):
        command = [name, "-c", "import sys; print(sys.version_info[:2], sys._base_executable)"]
        if shutil.which(name) is None:
            continue
        found = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
        if found.startswith("(3, 13) "):
            return found.removeprefix("(3, 13) ").strip()
    return pytest.skip("no python3.13, which Colab has")


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """The folder of an environment with Colab's versions, not to be changed."""
    folder = tmp_path_factory.mktemp("colab") / "pins"
    subprocess.run([python_3_13(), "-m", "venv", folder], check=True)
    command = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", *COLAB, "ipykernel"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Colab's versions cannot be installed: {done.stderr.strip()[-300:]}")
    yield folder
    shutil.rmtree(folder)  # 1 GB


@pytest.fixture
def runtime(colab, tmp_path, monkeypatch):
    """The folder of a copy of it, in which kernels named colab run."""
    folder = tmp_path / "runtime"
    shutil.copytree(colab, folder, symlinks=True, copy_function=os.link)
    python = str(folder / "bin" / "python")
    spec = {"argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    kernel = tmp_path / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps(spec | {"display_name": "Colab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JTSSM_NOTEBOOK", "small")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # conftest's, for the suite's own jaxlib
    monkeypatch.delenv("PYTHONPATH", raising=False)
    yield folder
    shutil.rmtree(folder)


def run(notebook, folder):
    """What a new kernel prints, by code cell."""
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=900, kernel_name="colab", resources=place).execute()
    stdout = lambda cell: (o for o in cell.outputs if o.get("name") == "stdout")
    printed = lambda cell: "".join(output.text for output in stdout(cell))
    return [printed(cell) for cell in notebook.cells if cell.cell_type == "code"]


def cells(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])


def placed(source, place):
    assert 'PLACE = "jtssm"' in source
    return source.replace('PLACE = "jtssm"', f"PLACE = {str(place)!r}")


@pytest.mark.slow
@kernel_warnings
def test_every_notebook_starts_on_colab_beside_a_checkout(runtime, tmp_path):
    """The folder `jtssm` beside the notebook is where to install from, and not the package."""
    folder = tmp_path / "content"
    shutil.copytree(ROOT / "jtssm", folder / "jtssm" / "jtssm")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "jtssm")
    for number, path in enumerate(NOTEBOOKS):
        notebook = read(path)
        notebook.cells[2].source = placed(notebook.cells[2].source, "./jtssm")
        if number == 0:  # a hasty user: the folder, as a namespace package
            notebook.cells.insert(2, nbformat.v4.new_code_cell("import jtssm"))
        notebook.cells.append(nbformat.v4.new_code_cell(PROOF))
        *shown, proof = run(notebook, folder)
        assert ("all there: jtssm" if number else "installed now: jtssm") in "".join(shown[:2])
        assert proof == "nnx (2, 3)\nfrom site-packages: True\n"


@pytest.mark.slow
@kernel_warnings
def test_after_an_upgrade_under_an_imported_jax_a_restart_is_asked_for_and_enough(
    runtime, tmp_path
):
    build = [runtime / "bin" / "python", "-m", "pip", "wheel", "--quiet", "--no-deps", ROOT]
    subprocess.run([*build, "--wheel-dir", tmp_path], check=True)
    (wheel,) = tmp_path.glob("jtssm-*.whl")
    source = placed(first_cell(), wheel)
    with pytest.raises(CellExecutionError, match="restart the kernel and run this cell again, for"):
        run(cells("import jax, flax", source), tmp_path)
    shown, proof = run(cells(source, PROOF), tmp_path)
    assert shown.startswith("all there: jtssm")
    assert proof == "nnx (2, 3)\nfrom site-packages: True\n"
