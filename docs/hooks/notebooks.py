"""Executes the notebooks of colab/ in their small mode and adds them to the site; a hook of mkdocs.

What a notebook printed is kept in build/docs, by a checksum of the notebook and of the package, so that
`make serve-docs` runs only what has changed. A notebook that fails, fails the build. Results and figures
of the benchmarks are added, too, so that links to them are checked.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "docs"
SMALL = {
    "JTSSM_NOTEBOOK": "small",
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # small programs: they compile for longer than they run
}


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, *, config: Any) -> Files:
    """mkdocs calls this once it has the files of docs/."""
    with ThreadPoolExecutor(2) as pool:
        notebooks = list(pool.map(executed, sorted((ROOT / "colab").glob("*.ipynb"))))
    for path in (*notebooks, *(ROOT / "benchmarks" / "results").glob("*.*")):
        within = f"{path.parent.name}/{path.name}"  # tutorials/..., results/...
        where = str(path.parents[1]), config.site_dir, config.use_directory_urls
        files.append(File(within, *where))
    return files


def executed(path: Path) -> Path:
    """The notebook with its outputs."""
    kept = KEPT / checksum(path) / "tutorials" / path.name
    if not kept.exists():
        notebook = run(nbformat.read(path, as_version=4))
        kept.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, kept)
    return kept


def run(notebook: Any) -> Any:
    """Execute all cells, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", f"{folder}/kernel"  # over TCP a kernel warns
        client.execute(env={**os.environ, **SMALL, "PYTHONPATH": str(ROOT)})
    for cell in notebook.cells:  # without progress bars
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


def checksum(path: Path) -> str:
    """Of the notebook and of every module of the package."""
    sources = [path, *sorted((ROOT / "jtssm").rglob("*.py"))]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]
