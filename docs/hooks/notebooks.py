"""Executes the notebooks of colab/ in their small mode and adds them to the site; a hook of mkdocs.

    python docs/hooks/notebooks.py [colab/01_tunable_splitting.ipynb ...]   # `make notebooks`: all

stores what they print and draw in them, and how long each section took, for who reads them on the web.
What a notebook printed for the site is kept in build/docs, by a checksum of notebook and package, so that
`make serve-docs` runs only what has changed. A notebook that fails, fails the build. Results and figures
of the benchmarks are added, too, so that links to them are checked.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
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


def run(notebook: Any, seconds: int = 300) -> Any:
    """Execute all cells, in a folder of their own; seconds: of a cell, at most."""
    with tempfile.TemporaryDirectory() as folder:
        where = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=seconds, kernel_name="python3", resources=where)
        kernel = client.create_kernel_manager()
        kernel.transport, kernel.ip = "ipc", f"{folder}/kernel"  # over TCP a kernel warns
        client.execute(env={**os.environ, **SMALL, "PYTHONPATH": str(ROOT)})
    for cell in notebook.cells:  # without progress bars
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
    return notebook


TIMES = re.compile(r"<!-- times -->.*", re.DOTALL)


def stored(path: Path) -> None:
    """Execute a notebook, and keep in it its outputs and the seconds of its sections."""
    notebook = run(nbformat.read(path, as_version=4), seconds=1800)
    rows = [f"| {title} | {seconds:.0f} |" for title, seconds in sections(notebook)]
    table = ["| section | seconds, small mode |", "|---|---|", *rows]
    told = (
        "How long a section takes: measured in the small mode in which the outputs below were made,\n"
        "on two cores that others used too; in full size it takes longer, and numbers mean more.\n\n"
    )
    first = notebook.cells[0]
    first.source = TIMES.sub(f"<!-- times -->\n{told}" + "\n".join(table), first.source)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.language_info = {"name": "python"}
    nbformat.write(notebook, path)


def sections(notebook: Any) -> list[tuple[str, float]]:
    """(title, seconds) of the sections that have code."""
    found: dict[str, float] = {}
    title = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            titles = re.findall(r"^## (.*)$", cell.source, re.MULTILINE)
            title = titles[-1] if titles else title
        elif times := cell.metadata.get("execution"):
            ends = (times[f"iopub.status.{at}"] for at in ("busy", "idle"))
            begun, ended = (datetime.fromisoformat(end.replace("Z", "+00:00")) for end in ends)
            found[title] = found.get(title, 0.0) + (ended - begun).total_seconds()
    return [*found.items()]


def checksum(path: Path) -> str:
    """Of the notebook and of every module of the package."""
    sources = [path, *sorted((ROOT / "jtssm").rglob("*.py"))]
    return hashlib.sha256(b"".join(p.read_bytes() for p in sources)).hexdigest()[:16]


def main(paths: Sequence[str]) -> None:
    """Store the outputs of these notebooks, or of all."""
    for path in map(Path, paths or sorted(map(str, (ROOT / "colab").glob("*.ipynb")))):
        stored(path)
        print(path, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
